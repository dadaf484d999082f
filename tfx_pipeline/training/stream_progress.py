"""How many batches of the streams under way have been trained on."""

from __future__ import annotations

import tensorflow as tf


class StreamProgress(tf.Module):
    """A count for each stream under way, which outlives workers: it lies with the tables.

    Create it inside the strategy's scope, if there is one.

    Args:
        streams: Most streams under way at once.
    """

    def __init__(self, streams: int) -> None:
        super().__init__(name="stream_progress")
        self.streams = streams
        self.batches = tf.Variable(tf.zeros([streams], tf.int64), trainable=False)

    def start(self, slot: int, batches: int) -> None:
        """Set the count of a stream that begins, or begins again."""
        # Others may count their own batches meanwhile, so this is an addition, too.
        change = batches - self.read()[slot]
        self.batches.assign_add(change * tf.one_hot(slot, self.streams, dtype=tf.int64))

    def reached(self, slot: tf.Tensor) -> tf.Tensor:
        """The count of a stream, within a graph."""
        return self.batches.read_value()[slot]

    def advance(self, slot: tf.Tensor) -> None:
        """One batch more of a stream, within a graph."""
        self.batches.assign_add(tf.one_hot(slot, self.streams, dtype=tf.int64))

    def read(self) -> list[int]:
        """All counts."""
        return [int(count) for count in self.batches.numpy()]
