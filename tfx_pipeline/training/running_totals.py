"""Running totals of loss and AUC, accumulated by the workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

BINS = 8192
"""Equal bins of probability. Two scores in one bin count as a tie, so AUC is off by far less than
the 1e-4 at which models are told apart."""


@dataclass(frozen=True)
class Totals:
    """What was counted over some impressions.

    Attributes:
        histogram: int64 [2, BINS], impressions by label and by bin of the predicted probability.
        loss_sum: Sum of binary cross entropies in nats.
    """

    histogram: NDArray[np.int64]
    loss_sum: float

    @property
    def impressions(self) -> int:
        """Number of impressions."""
        return int(self.histogram.sum())

    @property
    def loss(self) -> float:
        """Mean binary cross entropy in nats, NaN without impressions."""
        return self.loss_sum / self.impressions if self.impressions else float("nan")

    @property
    def auc(self) -> float:
        """Area under the ROC curve, ties counted half."""
        return auc_of_histogram(self.histogram)

    @property
    def normalised_entropy(self) -> float:
        """Loss over that of the constant rate; NaN unless both classes are there."""
        rate = self.histogram[1].sum() / max(self.impressions, 1)
        if not 0 < rate < 1:
            return float("nan")
        return self.loss / float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))

    @property
    def calibration(self) -> float:
        """Sum of predicted (to half a bin) over sum of observed positives; NaN without any."""
        predicted = (self.histogram.sum(axis=0) * (np.arange(BINS) + 0.5)).sum() / BINS
        positives = self.histogram[1].sum()
        return float(predicted / positives) if positives else float("nan")

    def __sub__(self, earlier: Totals) -> Totals:
        return Totals(self.histogram - earlier.histogram, self.loss_sum - earlier.loss_sum)


class RunningTotals(tf.Module):
    """Two variables that steps add to: a histogram and a loss sum.

    Steps accumulate in plain tensors and call ``add`` only now and then, because each addition to a
    variable of a parameter server is a message of 128 KB.
    """

    def __init__(self) -> None:
        super().__init__(name="totals")
        self.histogram = tf.Variable(tf.zeros([2, BINS], tf.int64), trainable=False)
        self.loss_sum = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    def add(self, histogram: tf.Tensor, loss_sum: tf.Tensor) -> None:
        """Add what some steps counted."""
        self.histogram.assign_add(histogram)
        self.loss_sum.assign_add(loss_sum)

    def reset(self) -> None:
        """Start again from nothing."""
        self.histogram.assign(tf.zeros_like(self.histogram))
        self.loss_sum.assign(0.0)

    def read(self) -> Totals:
        """The totals so far."""
        return Totals(self.histogram.numpy(), float(self.loss_sum.numpy()))


def probability_histogram(probability: tf.Tensor, label: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Count impressions by label and bin.

    Args:
        probability: float [B, N].
        label: [B, N], positive where above 0.
        valid: bool [B, N]; others are not counted.

    Returns:
        int64 [2, BINS].
    """
    bins = tf.cast(tf.cast(probability, tf.float32) * BINS, tf.int32)
    bins = tf.clip_by_value(bins, 0, BINS - 1) + tf.where(label > 0, BINS, 0)
    counts = tf.math.bincount(
        tf.boolean_mask(bins, valid), minlength=2 * BINS, maxlength=2 * BINS, dtype=tf.int64
    )
    return tf.reshape(counts, [2, BINS])


def auc_of_histogram(histogram: NDArray[np.int64]) -> float:
    """Area under the ROC curve of a [2, bins] histogram of negatives and positives.

    Example:
        >>> auc_of_histogram(np.array([[1, 1, 0], [0, 1, 2]]))
        0.9166666666666666
    """
    negatives, positives = np.asarray(histogram, np.float64)
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return float("nan")
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)
