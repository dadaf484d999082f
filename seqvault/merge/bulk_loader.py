"""Bulk loading: writes history straight into segments, bypassing the log, all or nothing."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqvault.disk import segment as segment_files
from seqvault.disk.segment import EXTENT, Packed, Segment
from seqvault.errors import WrongTypeError
from seqvault.memory.key_table import KeyTable, grown
from seqvault.memory.memtable import Memtable
from seqvault.memory.store_state import State
from seqvault.merge.merge_policy import MAX_EXTENTS
from seqvault.merge.merger import PART_EVENTS, Merger, slices
from seqvault.read.found import Found
from seqvault.write.event_columns import to_columns
from seqvault.write.group_commit import AppendLog

LOAD_EVENTS = 1 << 21  # events of a bulk load held in memory


class Staging:
    """Events on their way into a segment, which no reader sees.

    Args:
        state: the store; its log is empty, and stays so until the load is done.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._users = KeyTable()
        self._counters = np.zeros(512, np.int64)  # events that ever arrived, per user
        self.events = Memtable(state.schema)

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Adds events, with arrival numbers that continue those of the store."""
        known = len(self._users)
        slots = self._users.add(columns["user_id"])
        self._counters = grown(self._counters, len(self._users), 0)
        new = self._users.keys[known:]
        with self._state.lock:
            there = self._state.index.users.find(new)
            arrived = self._state.index.arrivals[np.maximum(there, 0)]
        self._counters[known : len(self._users)] = np.where(there >= 0, arrived, 0)
        self.events.append(slots, columns, self._counters, 0)

    def take(self) -> Iterator[tuple[Found, np.ndarray]]:
        """Yields the events in parts of users, with how many ever arrived for each."""
        events, self.events = self.events, Memtable(self._state.schema)
        slots, counts = np.unique(events.slots[: events.size], return_counts=True)
        order = np.argsort(self._users.keys[slots])
        slots, counts = slots[order], counts[order]
        none = np.empty(0, np.int64)
        for first, last in slices(counts, PART_EVENTS):
            part = slots[first:last]
            starts, rows = events.rows(part, events.size)
            found = Found(
                store=self._state.version,
                oldest=self._state.oldest(),
                users=self._users.keys[part],
                starts=np.zeros(len(part) + 1, np.int64),
                segments=none,
                offsets=none,
                lengths=none,
                counts=none,
                schema_ids=none,
                open_segments={},
                mem_starts=starts,
                mem_rows=rows,
                mem_columns=events.columns,
                mem_arrivals=events.arrivals,
                version=np.zeros(len(part), np.int64),
            )
            yield found, self._counters[part]


def bulk_load(state: State, log: AppendLog, merger: Merger, source: Any) -> int:
    """See ``SeqVault.bulk_load``. The caller holds ``state.merging``."""
    written: list[Segment] = []
    total = 0
    state.check_writable()
    with log.paused():
        merger.merge()  # loaded events come behind all that arrived before
        try:
            staging = Staging(state)
            for batch in batches_of(source):
                state.check_not_closing()
                columns = to_columns(batch, state.schema)
                if len(columns["user_id"]):
                    staging.add(columns)
                total += len(columns["user_id"])
                if staging.events.size >= LOAD_EVENTS:
                    written.append(_write(merger, staging))
            if staging.events.size:
                written.append(_write(merger, staging))
            if written:
                _publish(state, written)
        except BaseException:
            if state.failed is None:
                state.discard(*(segment_files.path_of(state.path, s.number) for s in written))
            raise
    if len(written) > MAX_EXTENTS:  # users may have a record in each
        with suppress(OSError):
            merger.merge(tidy=True)
    return total


def _write(merger: Merger, staging: Staging) -> Segment:
    def parts() -> Iterator[Packed]:
        for found, arrivals in staging.take():
            yield merger.pack(found, np.full(len(found.users), EXTENT, np.int64), arrivals)

    return merger.write(parts())


def _publish(state: State, written: list[Segment]) -> None:
    """Publishes all segments atomically."""
    footers = [segment.footer() for segment in written]
    numbers = [segment.number for segment in written]

    def show() -> None:
        for segment, footer in zip(written, footers, strict=True):
            state.index.add_records(segment.number, *footer[:-1])
        state.replace(
            segments={**state.segments, **{one.number: one for one in written}},
            schema_of={**state.schema_of, **{one.number: one.schema_id for one in written}},
        )

    state.publish(lambda old: replace(old, segments=[*old.segments, *numbers]), show)
    state.count_stored()


def batches_of(source: Any) -> Iterable[Any]:
    """Batches of events from Parquet paths, tables or batches."""
    if isinstance(source, str | os.PathLike):
        file = pq.ParquetFile(os.fspath(source))
        yield from file.iter_batches(batch_size=1 << 18)
    elif isinstance(source, pa.Table | pa.RecordBatch | dict) or hasattr(source, "columns"):
        yield source
    elif isinstance(source, Iterable):
        for one in source:
            yield from batches_of(one)
    else:
        raise WrongTypeError(
            f"bulk_load takes Parquet paths or Arrow batches; received {type(source).__name__}."
        )
