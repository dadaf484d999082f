"""Non-trainable state of the tower: moving averages and adaptive weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class CarriedState(tf.Module):
    """The tower's non-trainable variables as one vector, carried from step to step.

    With several workers the last one to finish a step wins, which is good enough for averages that
    change little in a step. Under a parameter-server strategy the vector lies whole on
    one server: it is float64, and the partitioner splits float32 alone.

    Args:
        values: Initial values, float32.
    """

    def __init__(self, values: Sequence[NDArray]) -> None:
        super().__init__(name="carried")
        self.shapes = [tuple(value.shape) for value in values]
        self.sizes = [int(np.prod(shape)) for shape in self.shapes]
        flat = np.concatenate([np.ravel(value) for value in values]) if values else np.zeros(0)
        self.values = tf.Variable(flat.astype(np.float64), trainable=False, name="carried")

    def read(self) -> list[tf.Tensor]:
        """The values in their shapes, float32."""
        if not self.sizes:
            return []
        pieces = tf.split(tf.cast(self.values.read_value(), tf.float32), self.sizes)
        return [tf.reshape(piece, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def assign(self, values: Sequence[tf.Tensor]) -> None:
        """Keep new values, in the same order."""
        if not self.sizes:
            return
        flat = tf.concat([tf.reshape(value, [-1]) for value in values], axis=0)
        self.values.assign(tf.cast(flat, tf.float64))
