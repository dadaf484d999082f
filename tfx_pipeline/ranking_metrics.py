"""Exact ranking metrics of clicks: what Evaluator reports and what blesses a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SMALLEST = 1e-7  # probabilities are clipped to [1e-7, 1 - 1e-7] in the log loss


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a clicked impression scores above one that was not; ties count half.

    NaN unless both classes are there.

    Example:
        >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    clicked = np.asarray(labels) > 0
    positives = int(clicked.sum())
    negatives = len(clicked) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = _ranks(np.asarray(scores, np.float64))
    return (ranks[clicked].sum() - positives * (positives + 1) / 2) / (positives * negatives)


def group_auc(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> float:
    """gAUC: mean AUC per user, weighted with the user's impressions.

    Users whose impressions are all clicked, or all not, have no AUC and are left out (Zhu et al.,
    "Optimized cost per click in Taobao display advertising", KDD 2017, section 5.1). NaN if no
    user is left.

    Example:
        >>> group_auc([7, 7, 8, 8, 8, 9], [0, 1, 0, 1, 1, 1], [0.2, 0.3, 0.5, 0.4, 0.6, 0.9])
        0.7
    """
    _, user = np.unique(np.asarray(users), return_inverse=True)
    score = np.asarray(scores, np.float64)
    order = np.lexsort((score, user))
    user, clicked = user[order], (np.asarray(labels) > 0)[order]
    count = np.bincount(user)
    positives = np.bincount(user, weights=clicked)
    negatives = count - positives
    # Rank among the user's own impressions.
    ranks = _tied_ranks(user, score[order]) - (np.cumsum(count) - count)[user]
    rank_sum = np.bincount(user, weights=ranks * clicked)
    mixed = (positives > 0) & (negatives > 0)
    if not mixed.any():
        return float("nan")
    wins = rank_sum[mixed] - positives[mixed] * (positives[mixed] + 1) / 2
    aucs = wins / (positives[mixed] * negatives[mixed])
    return float(np.average(aucs, weights=count[mixed]))


def log_loss(labels: ArrayLike, scores: ArrayLike) -> float:
    """Mean binary cross entropy in nats; NaN without impressions.

    Example:
        >>> round(log_loss([0, 1], [0.5, 0.5]), 6)
        0.693147
    """
    labels = np.asarray(labels, np.float64)
    if not len(labels):
        return float("nan")
    clipped = np.clip(np.asarray(scores, np.float64), _SMALLEST, 1 - _SMALLEST)
    return float(-np.mean(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped)))


def normalised_entropy(labels: ArrayLike, scores: ArrayLike) -> float:
    """Log loss over that of the constant click rate: below 1 says more than the rate alone.

    NaN unless both classes are there (He et al., "Practical lessons from predicting clicks on ads
    at Facebook", ADKDD 2014, section 3).

    Example:
        >>> normalised_entropy([0, 1], [0.5, 0.5])
        1.0
    """
    clicked = np.asarray(labels, np.float64)
    if not len(clicked) or clicked.min() == clicked.max():
        return float("nan")
    return log_loss(clicked, scores) / log_loss(clicked, np.full(len(clicked), clicked.mean()))


def calibration(labels: ArrayLike, scores: ArrayLike) -> float:
    """Sum of predicted over sum of observed clicks: 1 is right, above it predicts too much.

    NaN without a click.

    Example:
        >>> calibration([0, 1, 0, 1], [0.5, 0.5, 0.25, 0.25])
        0.75
    """
    clicks = float(np.sum(np.asarray(labels, np.float64)))
    return float(np.sum(np.asarray(scores, np.float64))) / clicks if clicks else float("nan")


def _ranks(scores: NDArray) -> NDArray:
    """Ranks from 1, tied scores share their mean rank."""
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = _tied_ranks(np.zeros(len(scores), np.int64), scores[order])
    return ranks


def _tied_ranks(group: NDArray, scores: NDArray) -> NDArray:
    """Positions from 1 in arrays sorted by (group, score), ties sharing their mean."""
    changed = (np.diff(group, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0)
    starts = np.flatnonzero(changed)
    sizes = np.diff(np.append(starts, len(scores)))
    return np.repeat(starts + (sizes + 1) / 2, sizes)
