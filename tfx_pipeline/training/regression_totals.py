"""Running totals of a regression label, accumulated by the workers."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class RegressionMeans:
    """What an evaluation found over some impressions.

    Attributes:
        impressions: Their number.
        squared_error: Mean of the squared difference of prediction and label.
        label: Mean label.
        prediction: Mean prediction.
    """

    impressions: int
    squared_error: float
    label: float
    prediction: float


class RegressionTotals(tf.Module):
    """One variable that steps add to: impressions, squared errors, labels and predictions."""

    def __init__(self) -> None:
        super().__init__(name="regression_totals")
        self.sums = tf.Variable(tf.zeros([4], tf.float64), trainable=False)

    def add(self, sums: tf.Tensor) -> None:
        """Add what some steps summed, see ``regression_sums``."""
        self.sums.assign_add(sums)

    def reset(self) -> None:
        """Start again from nothing."""
        self.sums.assign(tf.zeros_like(self.sums))

    def read(self) -> RegressionMeans:
        """The means so far, NaN without impressions."""
        count, *sums = self.sums.numpy().tolist()
        means = [each / count if count else float("nan") for each in sums]
        return RegressionMeans(int(count), *means)


def regression_sums(prediction: tf.Tensor, label: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Sums over the valid candidates, float64 [4] in the order of ``RegressionTotals``.

    Args:
        prediction: float [B, N].
        label: Likewise.
        valid: bool [B, N]; others are not counted.
    """
    found, wanted = (
        tf.cast(tf.boolean_mask(each, valid), tf.float64) for each in (prediction, label)
    )
    columns = [tf.ones_like(found), tf.square(found - wanted), wanted, found]
    return tf.stack([tf.reduce_sum(each) for each in columns])
