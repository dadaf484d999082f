"""Calibration: maps a model's probabilities to the rates observed on the eval split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_SMALLEST = 1e-6


@dataclass(frozen=True)
class Calibration:
    """A piecewise linear function of the logit, the probability's, that never falls.

    Attributes:
        logits: Increasing places [K]; beyond the ends the function is constant (isotonic), or goes
            on with ``slope`` (Platt).
        values: What the function is there, [K], logits too.
        slope: Beyond the ends.

    Example:
        >>> half_as_sure = Calibration(np.array([0.0]), np.array([0.0]), slope=0.5)
        >>> round(float(half_as_sure.apply(tf.constant([0.9]))[0]), 3)
        0.75
    """

    logits: NDArray[np.float64]
    values: NDArray[np.float64]
    slope: float = 0.0

    def apply(self, probability: tf.Tensor) -> tf.Tensor:
        """Calibrated probabilities, float32 of the same shape."""
        clipped = tf.clip_by_value(probability, _SMALLEST, 1 - _SMALLEST)
        logit = tf.reshape(tf.math.log(clipped) - tf.math.log1p(-clipped), [-1])
        places = tf.constant(self.logits, tf.float32)
        values = tf.constant(self.values, tf.float32)
        inside = tf.clip_by_value(logit, places[0], places[-1])
        mapped = tf.fill(tf.shape(logit), values[0])
        if len(self.logits) > 1:
            right = tf.clip_by_value(tf.searchsorted(places, inside), 1, len(self.logits) - 1)
            left, after = tf.gather(places, right - 1), tf.gather(places, right)
            low, high = tf.gather(values, right - 1), tf.gather(values, right)
            mapped = low + (high - low) * (inside - left) / (after - left)
        mapped += self.slope * (logit - inside)
        return tf.reshape(tf.sigmoid(mapped), tf.shape(probability))


def fit_calibration(kind: str, histogram: NDArray[np.int64]) -> Calibration | None:
    """Fit to impressions counted by label and by bin of their predicted probability.

    Args:
        kind: ``none``; ``platt``: a line in the logit (Platt 1999); ``isotonic``: whatever
            function that never falls fits best (Zadrozny and Elkan 2002).
        histogram: [2, bins], negatives and positives, see ``RunningTotals``.

    Returns:
        None for ``none``.

    Raises:
        ValueError: The impressions are all of one class.
    """
    if kind == "none":
        return None
    negatives, positives = np.asarray(histogram, np.float64)
    if not negatives.sum() or not positives.sum():
        raise ValueError(
            f"calibration {kind!r} needs an eval split with clicks and without; it has "
            f"{positives.sum():.0f} of {negatives.sum() + positives.sum():.0f}"
        )
    count = negatives + positives
    seen = count > 0
    centre = (np.flatnonzero(seen) + 0.5) / len(count)
    negatives, positives, count = negatives[seen], positives[seen], count[seen]
    logit = np.log(centre) - np.log1p(-centre)
    if kind == "platt":
        return _platt(logit, negatives, positives)
    from sklearn.isotonic import IsotonicRegression  # slow to import, and only needed here

    fitted = IsotonicRegression(y_min=_SMALLEST, y_max=1 - _SMALLEST)
    fitted.fit(logit, positives / count, sample_weight=count)
    rate = np.clip(fitted.y_thresholds_, _SMALLEST, 1 - _SMALLEST)
    return Calibration(fitted.X_thresholds_, np.log(rate) - np.log1p(-rate))


def _platt(logit: NDArray, negatives: NDArray, positives: NDArray) -> Calibration:
    from sklearn.linear_model import LogisticRegression

    inputs = np.concatenate([logit, logit])[:, None]
    labels = np.repeat([0, 1], len(logit))
    fitted = LogisticRegression(C=1e6, max_iter=1000)
    fitted.fit(inputs, labels, sample_weight=np.concatenate([negatives, positives]))
    slope, bias = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope < 0:  # a model that ranks the wrong way round: its order is not for us to turn
        slope, bias = 0.0, float(np.log(positives.sum() / negatives.sum()))
    return Calibration(np.array([0.0]), np.array([bias]), slope)
