"""Transform's preprocessing function: vocabularies and quantiles over the full data.

Everything else about a feature is known before the data is seen and was done when the Examples
were written. What Transform finds is read by ``tfx_pipeline.training.row_lookup.RowLookup``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.training.row_lookup import BOUNDARIES_PREFIX


def preprocessing_fn(inputs: Mapping[str, Any], custom_config: Mapping[str, Any]) -> dict[str, Any]:
    """TFX Transform's entry point.

    Args:
        inputs: The Examples' features, as dense, sparse or ragged tensors.
        custom_config: Holds ``feature_spec``, the spec's content.

    Returns:
        The inputs unchanged, and for each ``quantiles`` field its limits, repeated per Example.
        The ids of each ``vocabulary`` table go into a vocabulary file of the table's name, the
        most frequent first; history and candidates share it, as they share the table.
    """
    spec = FeatureSpec.from_dict(custom_config["feature_spec"])
    outputs = dict(inputs)
    by_table = _group(spec, "vocabulary", lambda each: each.table or "")
    for table, model_inputs in by_table.items():
        ids = _values(inputs, model_inputs)
        tft.vocabulary(
            tf.boolean_mask(ids, ids != -1),
            top_k=spec.tables[table].rows - 1,
            vocab_filename=table,
            name=f"vocabulary_{table}",
        )
    by_field = _group(spec, "quantiles", lambda each: each.field.name if each.field else "")
    examples = tf.shape(inputs["history_length"])[0]
    for name, model_inputs in by_field.items():
        values = _values(inputs, model_inputs)
        buckets = model_inputs[0].field.quantiles if model_inputs[0].field else None
        limits = tft.quantiles(
            tf.boolean_mask(values, ~tf.math.is_nan(values)),
            num_buckets=buckets,
            epsilon=0.01,
            name=f"quantiles_{name}",
        )
        outputs[BOUNDARIES_PREFIX + name] = tf.tile(tf.reshape(limits, [1, -1]), [examples, 1])
    return outputs


def _group(
    spec: FeatureSpec, transform: str, key: Callable[[ModelInput], str]
) -> dict[str, list[ModelInput]]:
    groups: dict[str, list[ModelInput]] = {}
    for model_input in spec.model_inputs():
        if model_input.transform == transform:
            groups.setdefault(key(model_input), []).append(model_input)
    return groups


def _values(inputs: Mapping[str, Any], model_inputs: Sequence[ModelInput]) -> tf.Tensor:
    """All values of some inputs in one vector."""
    return tf.concat([_flat(inputs[each.name]) for each in model_inputs], axis=0)


def _flat(value: Any) -> tf.Tensor:
    if isinstance(value, tf.SparseTensor):
        return value.values
    return value.flat_values if isinstance(value, tf.RaggedTensor) else tf.reshape(value, [-1])
