"""The dense weights of the tower: one flat vector, trained with Adam where it lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfx_pipeline.training.embedding_tables import shards_of

EPSILON = 1e-7


class DenseWeights(tf.Module):
    """All trainable weights of a Keras model as one vector with its Adam moments.

    One vector instead of a variable per weight makes one message per server and step. Under a
    parameter-server strategy each server holds a shard of it.

    Args:
        weights: Initial weights in the order of ``model.trainable_variables``.
    """

    def __init__(self, weights: Sequence[NDArray]) -> None:
        super().__init__(name="dense")
        self.shapes = [tuple(weight.shape) for weight in weights]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        flat = np.concatenate([np.asarray(weight, np.float32).ravel() for weight in weights])
        self.values = _vector("dense", flat)
        self.first_moments = _vector("dense_m", np.zeros_like(flat))
        self.second_moments = _vector("dense_v", np.zeros_like(flat))

    def read(self) -> tf.Tensor:
        """The whole vector, float32 [P]."""
        parts = [shard.read_value() for shard in shards_of(self.values)]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def unflatten(self, flat: tf.Tensor) -> list[tf.Tensor]:
        """The weights in the shapes that the model has."""
        pieces = tf.split(flat, self.sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def apply_gradient(
        self,
        gradient: tf.Tensor,
        step: tf.Tensor,
        learning_rate: tf.Tensor | float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.9999),
    ) -> None:
        """One Adam step (Kingma and Ba 2015, algorithm 1), after decoupled decay (AdamW).

        Args:
            gradient: float32 [P].
            step: int64, 1 at the first step; corrects the moments' bias.
            learning_rate: Step size.
            weight_decay: Each weight first loses ``learning_rate * weight_decay`` of itself.
            betas: Decay of the mean gradient and of its square; the paper's by default.
        """
        beta_1, beta_2 = (tf.constant(beta, tf.float64) for beta in betas)
        count = tf.cast(step, tf.float64)
        first = 0
        for value, m, v in zip(
            shards_of(self.values),
            shards_of(self.first_moments),
            shards_of(self.second_moments),
            strict=True,
        ):
            after = first + int(value.shape[0])
            with tf.device(value.device):
                if weight_decay:
                    value.assign_sub(learning_rate * weight_decay * value.read_value())
                tf.raw_ops.ResourceApplyAdam(
                    var=value.handle,
                    m=m.handle,
                    v=v.handle,
                    beta1_power=tf.cast(beta_1**count, tf.float32),
                    beta2_power=tf.cast(beta_2**count, tf.float32),
                    lr=tf.cast(learning_rate, tf.float32),
                    beta1=tf.cast(beta_1, tf.float32),
                    beta2=tf.cast(beta_2, tf.float32),
                    epsilon=tf.constant(EPSILON),
                    grad=gradient[first:after],
                    use_locking=True,
                    use_nesterov=False,
                )
            first = after


def _vector(name: str, initial: NDArray) -> tf.Variable:
    def initial_values(
        partition_shape: Sequence[int] = initial.shape, partition_offset: Sequence[int] = (0,)
    ) -> Any:
        first = int(partition_offset[0])
        return tf.constant(initial[first : first + int(partition_shape[0])])

    return tf.Variable(
        initial_values, shape=initial.shape, dtype=tf.float32, name=name, trainable=False
    )
