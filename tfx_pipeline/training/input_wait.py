"""How much of the time of training steps is spent waiting for their batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Waited:
    """Seconds of all workers together.

    Attributes:
        waiting: Between the end of a step and the arrival of the next one's batch.
        whole: Of steps and of the waits between them.
    """

    waiting: float = 0.0
    whole: float = 0.0

    @property
    def share(self) -> float:
        """Share of the time that steps wait; NaN before the first step."""
        return self.waiting / self.whole if self.whole else float("nan")

    def __sub__(self, earlier: Waited) -> Waited:
        return Waited(self.waiting - earlier.waiting, self.whole - earlier.whole)


class InputWait(tf.Module):
    """Adds up what the workers measured. Create it inside the strategy's scope, if there is one."""

    def __init__(self) -> None:
        super().__init__(name="input_wait")
        self.seconds = tf.Variable(tf.zeros([2], tf.float64), trainable=False)

    def add(self, waiting: tf.Tensor, whole: tf.Tensor) -> None:
        """Add seconds, float64 scalars."""
        self.seconds.assign_add(tf.stack([waiting, whole]))

    def read(self) -> Waited:
        """Everything so far."""
        waiting, whole = self.seconds.numpy()
        return Waited(float(waiting), float(whole))


def time_after(values: Any) -> tf.Tensor:
    """Seconds, float64, once all values are there and what computes them has had its effects."""
    with tf.control_dependencies(tf.nest.flatten(values)):
        return tf.timestamp()
