"""Whether a system looks at the past events that moved the clicks of a generated log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tfx_pipeline.compare.joined_log import JoinedLog
from tfx_pipeline.datasets.planted_causes import planted_causes
from tfx_pipeline.ranking_metrics import auc

REQUESTS = 256
"""Requests of the eval split that are looked at, spread evenly over it."""
_BATCH = 16  # gates are [B, N, heads, L]


def gates_auc(
    gates: Callable[[Mapping[str, NDArray]], NDArray],
    log: JoinedLog,
    windows: Mapping[str, Sequence[int]],
    length: int,
    fixed_length: bool = False,
) -> float | None:
    """AUC of "this event is a planted cause" by the gate, within the history of each candidate.

    Args:
        gates: From a batch of model inputs to float [B, N, heads, L]; heads are averaged.
        log: The joined log.
        windows: ``facts["planted_windows"]`` of the dataset.
        length: Newest events that the system sees.
        fixed_length: Whether histories are padded to ``length``.

    Returns:
        The mean over candidates whose history holds both causes and other events; None if there is
        no such candidate.
    """
    count = log.requests("eval")
    chosen = np.unique(np.linspace(0, count - 1, min(count, REQUESTS)).astype(np.int64))
    found: list[float] = []
    for first in range(0, len(chosen), _BATCH):
        batch = log.batch("eval", chosen[first : first + _BATCH], length, fixed_length)
        causes = planted_causes(batch, windows)
        values = np.asarray(gates(batch)).mean(axis=2)
        for row, events in enumerate(batch["history_length"]):
            for candidate in range(batch["candidate_count"][row]):
                cause = causes[row, candidate, :events]
                if cause.any() and not cause.all():
                    found.append(auc(cause, values[row, candidate, :events]))
    return float(np.mean(found)) if found else None
