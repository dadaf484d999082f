"""From serialized tf.train.Examples to the arrays that ``build_model_inputs`` made.

Examples hold histories and candidates without padding. What comes out here is, byte for byte, what
``laser_features.build_model_inputs`` returned when the Example was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from laser_features import FeatureSpec, ModelInput

CANDIDATE_COUNT = "candidate_count"
REQUEST_TIME = "request_time_ms"


def example_features(
    spec: FeatureSpec, label: str | None = None, more: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``tf.io.parse_example`` needs to read the model's inputs, and labels if named.

    Example:
        >>> from laser_features.testing import tiny_spec
        >>> spec = tiny_spec()
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
    for name in (() if label is None else (label,)) + tuple(more):
        stored = tf.float32 if spec.labels[name].is_float else tf.int64
        features[f"label_{name}"] = tf.io.RaggedFeature(stored, row_splits_dtype=tf.int64)
    return features


def parse_examples(
    serialized: tf.Tensor, spec: FeatureSpec, label: str | None = None, more: Sequence[str] = ()
) -> dict[str, tf.Tensor]:
    """Parse and pad a batch of Examples.

    Args:
        serialized: string [B].
        spec: Says which features there are, their dtypes and paddings, and L.
        label: Name of a label to read too.
        more: Further labels.

    Returns:
        The arrays of ``spec.model_inputs()`` ([B, L], [B, N] with N the largest number of
        candidates in the batch, or [B]; with a further axis [V] where a field holds several
        values), ``candidate_count`` int32 [B], and with a label
        ``label`` float32 [B, N]; likewise ``label_<name>`` for further ones.

    Raises:
        tf.errors.InvalidArgumentError: An Example lacks a feature of the spec.
    """
    parsed = tf.io.parse_example(serialized, example_features(spec, label, more))
    batch: dict[str, tf.Tensor] = {}
    for model_input in spec.model_inputs():
        value = parsed[model_input.name]
        dtype = tf.as_dtype(model_input.dtype)
        if model_input.kind == "request":
            batch[model_input.name] = tf.cast(value, dtype)
            continue
        width = spec.max_history if model_input.kind == "history" else None
        several = model_input.values
        if several is not None and width is not None:
            width *= several
        padding = tf.constant(model_input.padding, dtype)
        padded = tf.cast(value, dtype).to_tensor(padding, shape=[None, width])
        if several is not None:
            length = -1 if width is None else width // several
            padded = tf.reshape(padded, [tf.shape(padded)[0], length, several])
        batch[model_input.name] = padded
    batch[CANDIDATE_COUNT] = tf.cast(parsed[CANDIDATE_COUNT], tf.int32)
    if label is not None:
        batch["label"] = tf.cast(parsed[f"label_{label}"], tf.float32).to_tensor()
    for name in more:
        batch[f"label_{name}"] = tf.cast(parsed[f"label_{name}"], tf.float32).to_tensor()
    return batch


def request_times(serialized: tf.Tensor) -> tf.Tensor:
    """Times of a batch of Examples, int64 [B], milliseconds UTC."""
    features = {REQUEST_TIME: tf.io.FixedLenFeature([], tf.int64)}
    return tf.io.parse_example(serialized, features)[REQUEST_TIME]


def without_padding(
    spec: FeatureSpec, inputs: Mapping[str, tf.Tensor], fixed: bool = False
) -> dict[str, tf.Tensor]:
    """Cut histories to the longest of the batch: padding costs time and never changes a result.

    Args:
        spec: The feature spec.
        inputs: At least the arrays of ``spec.model_inputs()``; others pass through.
        fixed: Give all histories the spec's length in place of the longest one's, for encoders
            that must know it.

    Returns:
        The same keys; histories are [B, max(1, longest)], or [B, L].
    """
    histories = {each.name: each for each in spec.model_inputs() if each.kind == "history"}
    if fixed:
        return {
            name: _fit(value, spec.max_history, histories[name]) if name in histories else value
            for name, value in inputs.items()
        }
    longest = tf.maximum(tf.reduce_max(inputs["history_length"]), 1)
    return {
        name: value[:, :longest] if name in histories else value for name, value in inputs.items()
    }


def _fit(value: tf.Tensor, length: int, model_input: ModelInput) -> tf.Tensor:
    if value.shape[1] == length:
        return value
    value = value[:, :length]
    paddings = [[0, 0]] * value.shape.rank
    paddings[1] = [0, length - tf.shape(value)[1]]
    padding = tf.constant(model_input.padding, value.dtype)
    padded = tf.pad(value, paddings, constant_values=padding)
    padded.set_shape([None, length, *value.shape[2:]])
    return padded


def stored_dtype(model_input: ModelInput) -> tf.DType:
    """How an input is stored in an Example: int64, or float32 for quantiles fields."""
    return tf.float32 if model_input.dtype == "float32" else tf.int64
