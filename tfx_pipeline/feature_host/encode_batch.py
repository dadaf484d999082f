"""From a joined batch of requests to one row of a stream."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.seqvault_example_gen.join import JoinedBatch
from laser_features import FeatureSpec
from tfx_pipeline.feature_host.wire_layout import (
    CANDIDATE_COUNT,
    HISTORY_LENGTH,
    INDEX,
    to_planes,
    wire_columns,
    wire_schema,
)


def encode_batch(
    spec: FeatureSpec,
    joined: JoinedBatch,
    labels: Mapping[str, NDArray[np.float32]],
    seal: tuple[int, int, int, int],
) -> pa.RecordBatch:
    """Lay out a batch as one row.

    Args:
        spec: The feature spec.
        joined: B requests with their model inputs.
        labels: Of the candidates by name, one after another, without padding.
        seal: The numbers of ``SEAL_VALUES``.
    """
    batch, inputs = joined.batch, joined.inputs
    lengths = inputs[HISTORY_LENGTH]
    in_history = np.arange(spec.max_history) < lengths[:, None]
    in_candidates = np.arange(batch.candidate_item_id.shape[1]) < batch.candidate_count[:, None]
    index, first = _items(joined, lengths, in_candidates)

    def flat(name: str, kind: str) -> NDArray:
        values = inputs[name]
        if kind == "request":
            return values
        return values[in_history if kind == "history" else in_candidates]

    columns: list[NDArray] = []
    for column in wire_columns(spec):
        if column.name == CANDIDATE_COUNT:
            values = batch.candidate_count
        elif column.name == HISTORY_LENGTH:
            values = lengths
        elif column.name == INDEX:
            values = index
        elif column.name in inputs:
            values = flat(column.name, column.inputs[0].kind)
            if column.name == "history_age_seconds":
                # Neighbours differ by little; ages are at least 0, so no difference overflows.
                values = np.diff(values, prepend=values.dtype.type(0))
        elif column.per == "item":
            values = np.concatenate([flat(each.name, each.kind) for each in column.inputs])[first]
        else:
            values = labels[column.name.removeprefix("label_")]
        columns.append(to_planes(values.astype(column.dtype, copy=False)))
    rows = [_one_list(values) for values in columns]
    return pa.record_batch([*rows, _one_list(np.array(seal, np.int64))], schema=wire_schema(spec))


def _items(
    joined: JoinedBatch, lengths: NDArray, in_candidates: NDArray
) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """The distinct items of events and candidates.

    Returns:
        The item of each event, then of each candidate, as a position among the distinct ones; and
        where in that order each distinct one comes first.
    """
    history_ids = np.asarray(joined.history["item_id"])
    valid = np.arange(history_ids.shape[1]) < lengths[:, None]
    candidate_ids = joined.batch.candidate_item_id[in_candidates]
    encoded = pa.array(np.concatenate([history_ids[valid], candidate_ids])).dictionary_encode()
    index = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    first = np.empty(len(encoded.dictionary), np.intp)
    first[index[::-1]] = np.arange(len(index))[::-1]  # the last write is the first occurrence
    return index, first


def _one_list(values: NDArray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(values))
