"""How many bytes of table rows and gradients travel between servers and workers."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Moved:
    """Bytes of all workers together, as they are sent.

    Attributes:
        received: Of rows, from servers to workers.
        sent: Of their gradients, from workers to servers.
    """

    received: int = 0
    sent: int = 0

    def per_step(self, before: Moved, steps: int, codec: str) -> dict[str, float]:
        """Metrics by name of the steps since ``before``; none without a step.

        Example:
            >>> Moved(3000, 900).per_step(Moved(1000, 100), steps=10, codec="bf16")
            {'received_bytes_per_step_bf16': 200.0, 'sent_bytes_per_step_bf16': 80.0}
        """
        if steps <= 0:
            return {}
        return {
            f"received_bytes_per_step_{codec}": (self.received - before.received) / steps,
            f"sent_bytes_per_step_{codec}": (self.sent - before.sent) / steps,
        }


class Traffic(tf.Module):
    """Adds up what the workers counted. Create it inside the strategy's scope.

    Ids, dense weights and what TensorFlow says besides are not counted.
    """

    def __init__(self) -> None:
        super().__init__(name="traffic")
        self.bytes = tf.Variable(tf.zeros([2], tf.int64), trainable=False)

    def add(self, received: list[tf.Tensor], sent: list[tf.Tensor]) -> None:
        """Add sizes, int64 scalars."""
        self.bytes.assign_add(tf.stack([tf.add_n(received), tf.add_n(sent)]))

    def read(self) -> Moved:
        """Everything so far."""
        received, sent = self.bytes.numpy()
        return Moved(int(received), int(sent))


def bytes_of(values: tf.Tensor) -> tf.Tensor:
    """Size of a tensor of numbers, int64 scalar."""
    return tf.size(values, tf.int64) * values.dtype.size
