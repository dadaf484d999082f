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


def pad_batch(
    batch: Mapping[str, tf.Tensor], spec: FeatureSpec, requests: int, history: int | None
) -> dict[str, tf.Tensor]:
    """Bring a parsed batch to one of a few shapes, so that few graphs are compiled.

    Args:
        batch: What ``parse_examples`` returned.
        spec: The feature spec.
        requests: B after padding; added requests have no candidates and no history.
        history: Histories are cut to the longest of the batch, rounded up to a multiple of this;
            None leaves L as it is. Padding never changes a result, so cutting it does not either.

    Returns:
        The same keys; N is rounded up to a power of two.
    """
    paddings = {model_input.name: model_input.padding for model_input in spec.model_inputs()}
    kinds = {model_input.name: model_input.kind for model_input in spec.model_inputs()}
    kinds["label"] = "candidate"
    missing = requests - tf.shape(batch[CANDIDATE_COUNT])[0]
    widths = {"history": tf.constant(spec.max_history), "candidate": _candidate_width(batch)}
    if history is not None:
        longest = tf.maximum(tf.reduce_max(batch["history_length"]), 1)
        rounded = (longest + history - 1) // history * history
        widths["history"] = tf.minimum(rounded, spec.max_history)
    padded = {}
    for name, value in batch.items():
        kind = kinds.get(name, "request")
        pads = [[0, missing]]
        if kind != "request":
            value = value[:, : widths[kind]]
            pads.append([0, widths[kind] - tf.shape(value)[1]])
        filler = tf.constant(paddings.get(name, 0), value.dtype)
        padded[name] = tf.pad(value, pads, constant_values=filler)
        padded[name].set_shape([requests] + [None] * (len(pads) - 1))
    return padded


def stored_dtype(model_input: ModelInput) -> tf.DType:
    """How an input is stored in an Example: int64, or float32 for quantiles fields."""
    return tf.float32 if model_input.dtype == "float32" else tf.int64


def _candidate_width(batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    largest = tf.maximum(tf.reduce_max(batch[CANDIDATE_COUNT]), 1)
    powers = tf.constant([2**exponent for exponent in range(31)])
    return powers[tf.searchsorted(powers, largest[None])[0]]
