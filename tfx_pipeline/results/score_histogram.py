"""Calibration and lift of a model, from a histogram of its scores by label."""

from __future__ import annotations

import json
import math
import os

import numpy as np
from numpy.typing import NDArray

NAME = "eval_histogram.json"
_BUCKETS = 10


def to_json(histogram: NDArray[np.int64]) -> str:
    """A [2, bins] histogram of negatives and positives as text; empty bins are left out."""
    used = np.flatnonzero(histogram.sum(axis=0))
    content = {
        "bins": histogram.shape[1],
        "bin": used.tolist(),
        "negatives": histogram[0, used].tolist(),
        "positives": histogram[1, used].tolist(),
    }
    return json.dumps(content) + "\n"


def read_histogram(folder: str) -> NDArray[np.int64] | None:
    """What ``to_json`` wrote into a folder, None if nothing is there."""
    path = os.path.join(folder, NAME)
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    histogram = np.zeros((2, content["bins"]), np.int64)
    histogram[:, content["bin"]] = [content["negatives"], content["positives"]]
    return histogram


def calibration_curve(histogram: NDArray[np.int64]) -> list[tuple[float, float, int]]:
    """Mean score, click rate and impressions of ten groups of about equal size, by score.

    Example:
        >>> calibration_curve(np.array([[3, 0], [1, 4]]))
        [(0.25, 0.25, 4), (0.75, 1.0, 4)]
    """
    bins = histogram.shape[1]
    scores = (np.arange(bins) + 0.5) / bins
    shown = histogram.sum(axis=0)
    group = _groups(shown)
    curve = []
    for number in np.unique(group[shown > 0]):
        own = (group == number) & (shown > 0)
        count = int(shown[own].sum())
        mean = float((scores[own] * shown[own]).sum() / count)
        curve.append((mean, float(histogram[1, own].sum() / count), count))
    return curve


def lift_curve(histogram: NDArray[np.int64]) -> list[tuple[float, float]]:
    """Share of impressions taken from the best scores down, and the click rate among them
    relative to all; empty without clicks.

    Example:
        >>> lift_curve(np.array([[3, 0], [1, 4]]))
        [(0.5, 1.6), (1.0, 1.0)]
    """
    shown, clicks = histogram.sum(axis=0)[::-1], histogram[1, ::-1]
    whole, clicked = int(shown.sum()), int(clicks.sum())
    if not clicked:
        return []
    taken, found = np.cumsum(shown), np.cumsum(clicks)
    at = np.searchsorted(taken, np.arange(1, _BUCKETS + 1) * whole / _BUCKETS)
    at = np.unique(np.clip(at, 0, len(taken) - 1))
    return [(float(taken[i] / whole), float(found[i] / taken[i] * whole / clicked)) for i in at]


def auc_interval(auc: float, impressions: float, click_rate: float) -> tuple[float, float] | None:
    """95% interval of an AUC after Hanley and McNeil (1982); None where it is not defined.

    It takes impressions as independent; those of one user are not, so it is on the narrow side.

    Example:
        >>> [round(limit, 3) for limit in auc_interval(0.8, 10_000, 0.3) or ()]
        [0.79, 0.81]
    """
    positives = impressions * click_rate
    negatives = impressions - positives
    if not 0 <= auc <= 1 or positives < 1 or negatives < 1:
        return None
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc)
    spread += (positives - 1) * (first - auc**2) + (negatives - 1) * (second - auc**2)
    error = 1.96 * math.sqrt(max(spread, 0.0) / (positives * negatives))
    return max(0.0, auc - error), min(1.0, auc + error)


def _groups(shown: NDArray[np.int64]) -> NDArray[np.int64]:
    middle = np.cumsum(shown) - shown / 2
    whole = max(int(shown.sum()), 1)
    return np.minimum((middle * _BUCKETS / whole).astype(np.int64), _BUCKETS - 1)
