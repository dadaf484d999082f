"""The training pass of the tower compiled by XLA, in batches of few shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.training.tower import Tower, TowerOutput

BUCKETS = 4
"""Lengths of histories that XLA compiles for."""


class CompiledTower:
    """A tower whose pass forward and backward is compiled, once per shape of a batch.

    Only whole parts of a batch are: the last batch of a file has any number of requests, and would
    be compiled for each. It takes the plain way, to the same result.

    Args:
        tower: The tower.
        requests: Of a whole part of a batch.
    """

    def __init__(self, tower: Tower, requests: int) -> None:
        self._tower, self._requests = tower, requests
        self._compiled = tf.function(self._plain, jit_compile=True, autograph=False)

    def __call__(
        self,
        weights: Sequence[tf.Tensor],
        carried: Sequence[tf.Tensor],
        inputs: Mapping[str, tf.Tensor],
        step: tf.Tensor,
    ) -> TowerOutput:
        """As ``Tower.__call__`` in training."""
        arguments = (list(weights), list(carried), dict(inputs), step)
        is_whole = tf.equal(tf.shape(inputs["history_mask"])[0], self._requests)
        return TowerOutput(
            *tf.cond(is_whole, lambda: self._compiled(*arguments), lambda: self._plain(*arguments))
        )

    def _plain(self, *arguments: Any) -> tuple[Any, ...]:
        output = self._tower(*arguments)
        return (
            output.logits,
            output.heads,
            output.auxiliary_logits,
            output.penalty,
            output.carried,
        )


def in_buckets(spec: FeatureSpec, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A parsed batch padded to one of few shapes; padding changes no result.

    Histories get the next of ``BUCKETS`` even parts of the spec's length, candidates and their
    labels the next power of two.

    Args:
        spec: The feature spec.
        batch: What ``parse_examples`` returned.
    """
    inputs = {each.name: each for each in spec.model_inputs()}
    even = -(-spec.max_history // BUCKETS)
    padded = {}
    for name, value in batch.items():
        each = inputs.get(name)
        kind = "candidate" if _is_label(name) else each.kind if each is not None else "request"
        if kind == "request":
            padded[name] = value
            continue
        size = tf.shape(value)[1]
        wanted = _next_power(size)
        if kind == "history":
            wanted = tf.maximum(size, tf.minimum(-(-size // even) * even, spec.max_history))
        padded[name] = _padded(value, wanted - size, each)
    return padded


def _padded(value: tf.Tensor, more: tf.Tensor, each: ModelInput | None) -> tf.Tensor:
    paddings: list[list[Any]] = [[0, 0]] * value.shape.rank
    paddings[1] = [0, more]
    padding = tf.constant(0 if each is None else each.padding, value.dtype)
    return tf.pad(value, paddings, constant_values=padding)


def _next_power(size: tf.Tensor) -> tf.Tensor:
    bits = tf.math.ceil(tf.math.log(tf.cast(size, tf.float32)) / tf.math.log(2.0) - 1e-4)
    return tf.maximum(size, tf.cast(tf.round(2.0 ** tf.maximum(bits, 0.0)), tf.int32))


def _is_label(name: str) -> bool:
    return name == "label" or name.startswith("label_")
