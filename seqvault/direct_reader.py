"""Ordinary reads: one look-up under the lock, then one kernel that reads and unpacks."""

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqvault.codec.chunks import OK, PADDING
from seqvault.codec.direct import NO_ROOM, read_rows
from seqvault.events import NO_BOUND
from seqvault.index import find_rows
from seqvault.requests import bounds_of, check_last_n, ids_of
from seqvault.segment import Segment
from seqvault.sequence_batch import SequenceBatch
from seqvault.state import State

MAX_BUFFER = 1 << 24  # bytes of one user's records
MAX_OUTPUT = 1 << 25  # bytes of answers that a thread keeps room for
_ONLY_OURS = 2  # references to the kept room: the attribute and the question
_NO_BOUND = np.full(1, NO_BOUND, np.int64)
_INT64 = np.dtype(np.int64)


class _Room(threading.local):
    """What each thread keeps from read to read."""

    def __init__(self) -> None:
        self.rows = np.empty((64, 3), np.int64)
        self.records = np.empty((256, 5), np.int64)
        self.buffer = np.empty(1 << 18, np.uint8)
        self.out = np.empty(0, np.uint8)

    def output(self, size: int) -> np.ndarray:
        """Room for an answer: that of the last one if nobody holds on to it any more.

        Fresh memory has its pages faulted in and cleared, a third of the time of a read.
        """
        if len(self.out) < size or sys.getrefcount(self.out) > _ONLY_OURS:
            if size > MAX_OUTPUT:
                return np.empty(size, np.uint8)
            self.out = np.empty(size, np.uint8)
        return self.out


class DirectReader:
    """Answers reads without filters and versions. Any number of threads may use one.

    Whatever is out of the ordinary (damage, a short file, a very long record) is left to
    the ``Reader``, which finds out what it is.

    Args:
        state: what there is to read.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._room = _Room()
        self._open_files: tuple[dict[int, Segment], tuple[np.ndarray, ...]] = ({}, ())

    def read(
        self, user_ids: Any, before: Any, last_n: int, fields: Sequence[str] | None
    ) -> SequenceBatch | None:
        """See ``SeqVault.read``; None: somebody else must do it."""
        users = _users_of(user_ids)
        rows = len(users)
        width = check_last_n(last_n, rows)
        got = self._read(users, before, width, fields, ragged=False)
        if got is None:
            return None
        lengths, version, out, placed, _ = got
        shape = (rows, width)
        return SequenceBatch(
            users,
            lengths,
            {name: np.ndarray(shape, dtype, out, at) for name, dtype, at in placed},
            version,
        )

    def read_ragged(
        self, user_ids: Any, before: Any, last_n: int, fields: Sequence[str] | None
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]] | None:
        """See ``SeqVault.read_ragged``; None: somebody else must do it."""
        users = _users_of(user_ids)
        got = self._read(users, before, check_last_n(last_n, len(users)), fields, ragged=True)
        if got is None:
            return None
        lengths, version, out, placed, _ = got
        total = int(lengths.sum())
        return lengths, version, {n: np.ndarray((total,), kind, out, at) for n, kind, at in placed}

    def _read(
        self,
        users: np.ndarray,
        before: Any,
        width: int,
        fields: Sequence[str] | None,
        ragged: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Any], Any] | None:
        state, room, rows = self._state, self._room, len(users)
        state.check_open()
        if len(room.rows) < rows:
            room.rows = np.empty((2 * rows, 3), np.int64)
        found, records = room.rows[:rows], room.records
        bound = _NO_BOUND if before is None else bounds_of(before, rows)
        version, lengths = np.empty(rows, np.int64), np.empty(rows, np.int32)
        with state.lock:
            names = state.schema.select(fields)
            memtable, segments, layouts = state.memtable, state.segments, state.layouts
            files = self._files_of(segments)
            arrays = (*state.index.arrays, memtable.heads, memtable.links, *files)
            many, events = find_rows(users, *arrays, width, found, records, version)  # type: ignore[call-arg]
            if many > len(records):
                records = room.records = np.empty((2 * many, 5), np.int64)
                many, events = find_rows(users, *arrays, width, found, records, version)  # type: ignore[call-arg]
            columns, addresses = memtable.columns, memtable.addresses
            links, oldest = memtable.links, state.oldest()
        layout = layouts.of(names)
        size, placed = layout.offsets(names, *((1, events) if ragged else (rows, width)))
        out = room.output(size + PADDING)
        while True:
            status, need = read_rows(
                users, bound, width, oldest, found, records, links, columns["timestamp"],
                addresses, layout.columns_of, layout.sizes, layout.defaults, layout.mem_columns,
                layouts.columns_in, events if ragged else rows * width, ragged, out, lengths,
                room.buffer,
            )  # fmt: skip
            if status == OK:
                return lengths, version, out, placed, segments
            if status != NO_ROOM or need > MAX_BUFFER:
                return None
            room.buffer = np.empty(2 * need, np.uint8)

    def _files_of(self, segments: dict[int, Segment]) -> tuple[np.ndarray, ...]:
        """int64 [S] numbers, ascending, descriptors and schemas of the open segments."""
        known, files = self._open_files
        if known is not segments or not files:
            numbers = sorted(segments)
            files = tuple(
                np.array(values, np.int64)
                for values in (
                    numbers,
                    [segments[number].fd for number in numbers],
                    [segments[number].schema_id for number in numbers],
                )
            )
            self._open_files = (segments, files)
        return files


def _users_of(user_ids: Any) -> np.ndarray:
    """``ids_of``; what is as it must be already passes quickly."""
    if type(user_ids) is np.ndarray and user_ids.dtype is _INT64 and user_ids.ndim == 1:
        flags = user_ids.flags
        if flags.c_contiguous and flags.writeable and flags.aligned:
            return user_ids
    return ids_of(user_ids, "user_ids")
