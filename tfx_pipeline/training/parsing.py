"""From serialized tf.train.Examples to the arrays that ``build_model_inputs`` made.

Examples hold histories and candidates without padding. What comes out here is, byte for byte, what
``laser_features.build_model_inputs`` returned when the Example was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from laser_features import FeatureSpec, ModelInput

CANDIDATE_COUNT = "candidate_count"


def example_features(spec: FeatureSpec, label: str | None = None) -> dict[str, Any]:
    """What ``tf.io.parse_example`` needs to read the model's inputs, and a label if named.

    Example:
        >>> spec = FeatureSpec.from_dict({
        ...     "name": "tiny", "history": {"max_length": 3},
        ...     "tables": {"item": {"rows": 10, "width": 4, "ids": "direct"}},
        ...     "event": {"item_id": {"type": "int64", "table": "item"}},
        ...     "label": {"click": {"type": "int8"}}})
        >>> sorted(example_features(spec, label="click"))
        ['candidate_count', 'candidate_item_id', 'history_age_seconds', 'history_item_id', \
'history_length', 'label_click']
    """
    features: dict[str, Any] = {CANDIDATE_COUNT: tf.io.FixedLenFeature([], tf.int64)}
    for model_input in spec.model_inputs():
        stored = stored_dtype(model_input)
        if model_input.kind == "request":
            features[model_input.name] = tf.io.FixedLenFeature([], stored)
        else:
            features[model_input.name] = tf.io.RaggedFeature(stored, row_splits_dtype=tf.int64)
    if label is not None:
        stored = tf.float32 if spec.labels[label].is_float else tf.int64
        features[f"label_{label}"] = tf.io.RaggedFeature(stored, row_splits_dtype=tf.int64)
    return features


def parse_examples(
    serialized: tf.Tensor, spec: FeatureSpec, label: str | None = None
) -> dict[str, tf.Tensor]:
    """Parse and pad a batch of Examples.

    Args:
        serialized: string [B].
        spec: Says which features there are, their dtypes and paddings, and L.
        label: Name of a label to read too.

    Returns:
        The arrays of ``spec.model_inputs()`` ([B, L], [B, N] with N the largest number of
        candidates in the batch, or [B]), ``candidate_count`` int32 [B], and with a label
        ``label`` float32 [B, N].

    Raises:
        tf.errors.InvalidArgumentError: An Example lacks a feature of the spec.
    """
    parsed = tf.io.parse_example(serialized, example_features(spec, label))
    batch: dict[str, tf.Tensor] = {}
    for model_input in spec.model_inputs():
        value = parsed[model_input.name]
        dtype = tf.as_dtype(model_input.dtype)
        if model_input.kind == "request":
            batch[model_input.name] = tf.cast(value, dtype)
            continue
        width = spec.max_history if model_input.kind == "history" else None
        padding = tf.constant(model_input.padding, dtype)
        batch[model_input.name] = tf.cast(value, dtype).to_tensor(padding, shape=[None, width])
    batch[CANDIDATE_COUNT] = tf.cast(parsed[CANDIDATE_COUNT], tf.int32)
    if label is not None:
        batch["label"] = tf.cast(parsed[f"label_{label}"], tf.float32).to_tensor()
    return batch


def without_padding(spec: FeatureSpec, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Cut histories to the longest of the batch: padding costs time and never changes a result.

    Args:
        spec: The feature spec.
        inputs: At least the arrays of ``spec.model_inputs()``; others pass through.

    Returns:
        The same keys; histories are [B, max(1, longest)].
    """
    longest = tf.maximum(tf.reduce_max(inputs["history_length"]), 1)
    histories = {each.name for each in spec.model_inputs() if each.kind == "history"}
    return {
        name: value[:, :longest] if name in histories else value for name, value in inputs.items()
    }


def stored_dtype(model_input: ModelInput) -> tf.DType:
    """How an input is stored in an Example: int64, or float32 for quantiles fields."""
    return tf.float32 if model_input.dtype == "float32" else tf.int64
