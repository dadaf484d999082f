"""AUC of simple click rates, as a floor for a model's AUC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.ranking_metrics import auc

_PRIOR_IMPRESSIONS = 20.0


def click_rate_floors(
    impressions: Path, spec: FeatureSpec, splits: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """AUC on the eval split of click rates counted on the train split.

    Args:
        impressions: ``impressions.parquet`` of a prepared dataset.
        spec: Its feature spec; the first label is ranked by.
        splits: Time ranges ``train`` and ``eval``, [start, end) in milliseconds.

    Returns:
        ``item click rate`` and ``user click rate``; rates are drawn to the mean as if each item
        or user had 20 more impressions of it.
    """
    label = next(iter(spec.labels))
    names = {"item click rate": "item_id", "user click rate": "user_id"}
    table = pq.read_table(impressions, columns=["timestamp", label, *names.values()]).drop_null()
    times, clicks = table["timestamp"].to_numpy(), table[label].to_numpy()
    train, held_out = (
        (times >= splits[name][0]) & (times < splits[name][1]) for name in ("train", "eval")
    )
    floors = {}
    for name, column in names.items():
        _, key = np.unique(table[column].to_numpy(), return_inverse=True)
        rates = smoothed_rates(key[train], clicks[train], int(key.max()) + 1)
        floors[name] = auc(clicks[held_out], rates[key[held_out]])
    return floors


def smoothed_rates(key: NDArray, clicks: NDArray, size: int) -> NDArray[np.float64]:
    """Click rate of each key, drawn to the mean of all.

    Example:
        >>> smoothed_rates(np.array([0, 0]), np.array([1, 0]), 2).tolist()
        [0.5, 0.5]
    """
    mean = float(np.mean(clicks))
    shown = np.bincount(key, minlength=size)
    clicked = np.bincount(key, weights=clicks, minlength=size)
    return (clicked + _PRIOR_IMPRESSIONS * mean) / (shown + _PRIOR_IMPRESSIONS)
