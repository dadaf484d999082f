"""What a look inside a model shows while it trains: lengths of embeddings, and its gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfx_pipeline.training.ranking_step import RankingStep, valid_candidates

REQUESTS = 32
"""Requests that are looked at: enough for means, and a pass over them takes no time."""
SEGMENT = 10
SHOWN_SEGMENTS = 10
SILENT = 0.05
"""A segment is silent for a candidate if no gate of any head opens further."""


def embedding_norms(
    step: RankingStep, batch: Mapping[str, tf.Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Lengths of the embeddings that a batch uses, by table: float32 [distinct rows]."""
    rows = step.table_rows(batch)
    used: dict[str, list[NDArray]] = {}
    for each in step.spec.model_inputs():
        if each.table is not None:
            used.setdefault(each.table, []).append(rows[each.name].numpy().ravel())
    norms = {}
    for table, parts in used.items():
        ids = np.unique(np.concatenate(parts))
        values = step.state.tables[table].gather(tf.constant(ids[ids > 0], tf.int32))
        norms[table] = np.linalg.norm(values.numpy(), axis=1)
    return norms


def gates_by_segment(
    gates: NDArray[np.floating], lengths: NDArray[np.integer], valid: NDArray[np.bool_]
) -> tuple[dict[str, float], NDArray[np.floating]]:
    """How far gates open by position, and how many segments are silent.

    Args:
        gates: [B, N, heads, L], histories from the oldest event on.
        lengths: [B], events of each history.
        valid: [B, N], which candidates are real.

    Returns:
        ``segment_0`` (mean gate of the newest 10 events), ``segment_1``, ... as far as there are
        any, ``silent_segments`` (share of candidates' segments whose gates all stay shut); and all
        real gates in one vector.

    Example:
        >>> gates = np.zeros((1, 1, 1, 12)); gates[..., 2:] = 0.5
        >>> gates_by_segment(gates, np.array([12]), np.array([[True]]))[0]
        {'segment_0': 0.5, 'segment_1': 0.0, 'silent_segments': 0.5}
    """
    age = lengths[:, None] - 1 - np.arange(gates.shape[-1])  # [B, L], 0 is the newest event
    segment = np.where(age >= 0, age // SEGMENT, -1)
    real = np.broadcast_to(valid[:, :, None, None] & (age >= 0)[:, None, None, :], gates.shape)
    means, open_at_all = {}, []
    for number in range(int(segment.max(initial=-1)) + 1):
        within = np.broadcast_to((segment == number)[:, None, None, :], gates.shape) & real
        if number < SHOWN_SEGMENTS and within.any():
            means[f"segment_{number}"] = float(gates[within].mean())
        has_any = within.any(axis=(2, 3))
        widest = np.where(within, gates, 0.0).max(axis=(2, 3))
        open_at_all.append(widest[has_any] > SILENT)
    if open_at_all:
        means["silent_segments"] = float(1.0 - np.concatenate(open_at_all).mean())
    return means, gates[real]


def model_statistics(
    step: RankingStep,
    batch: Mapping[str, tf.Tensor],
    gates_of: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
) -> tuple[dict[str, float], dict[str, NDArray]]:
    """Scalars and histograms of a model, by name.

    Args:
        step: The step, with its model and variables.
        batch: A parsed batch.
        gates_of: ``step.gates`` as a graph for any length: an encoder refuses shapes that it sees
            to be short, as those of a few requests may be.
    """
    norms = embedding_norms(step, batch)
    scalars = {f"embedding_norm_{table}": float(each.mean()) for table, each in norms.items()
               if len(each)}  # fmt: skip
    histograms: dict[str, NDArray] = {f"embedding_norm/{table}": each for table, each in
                                      norms.items() if len(each)}  # fmt: skip
    if step.tower.has_gates:
        gates = gates_of(batch).numpy()
        lengths, valid = batch["history_length"].numpy(), valid_candidates(batch).numpy()
        means, all_gates = gates_by_segment(gates, lengths, valid)
        scalars |= {f"gate_{name}": value for name, value in means.items()}
        if all_gates.size:
            histograms["gates"] = all_gates
    return scalars, histograms
