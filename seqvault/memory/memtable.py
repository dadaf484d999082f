"""Events that are in the log but not yet in a segment, in columns, linked per user."""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import numpy as np
from numba import njit

from seqvault.codec.chains import (
    RUN,
    SUMMARY_WIDTH,
    collect_chains,
    newest_in_chain,
    sort_chains,
    summarise,
)
from seqvault.memory.key_table import EMPTY, Empty, filled, grown
from seqvault.schema import Schema


@njit(nogil=True, cache=True)
def _number(slots, first_row, arrivals, counters):
    for i in range(len(slots)):
        arrivals[first_row + i] = counters[slots[i]]
        counters[slots[i]] += 1


@njit(nogil=True, cache=True)
def _link(slots, first_row, heads, links, times, depths, runs, summaries, used):
    """Links rows into the chains of their users; returns the number of summaries."""
    for i in range(len(slots)):
        row, slot = first_row + i, slots[i]
        before = heads[slot]
        links[row] = before
        depths[row] = depths[before] + 1 if before >= 0 else 0
        if depths[row] % RUN == RUN - 1:
            summarise(row, links, times, runs, summaries, used)
            used += 1
        heads[slot] = row
    return used


@njit(nogil=True, cache=True)
def _below(heads, links, limit):
    for b in range(len(heads)):
        row = heads[b]
        while row >= limit:
            row = links[row]
        heads[b] = row


@njit(nogil=True, cache=True)
def _chain_starts(heads, links, starts):
    for b in range(len(heads)):
        n = 0
        row = heads[b]
        while row >= 0:
            n += 1
            below = links[row]
            row = below if below < row else EMPTY
        starts[b + 1] = starts[b] + n


class Memtable:
    """Columns that only grow; a row never changes once it is there.

    Events are *staged* first: copied into the memtable, not yet visible to readers. Once they are
    durable, ``show`` makes them visible in little time. The store serialises both. Rows obtained
    under the store's lock may be read without it.

    A user's events are a chain: its newest row by slot, and from each row the one before. Every
    ``RUN`` events of a chain have a summary, which lets reads skip them.

    Attributes:
        size: events that readers see.
        staged: these and those to come.
        heads: int64 by slot, the newest row of each user, -1: none.
        links: int64 by row, the row before of the same user.
        depths: int32 by row, how many there are before.
        runs: int32 by row, number of the summary of the run that the row ends, if it does.
        summaries: int64 [N, 4], see ``chains.summarise``.

    Args:
        schema: fields of an event.
        empty: takes memory for it.
    """

    def __init__(self, schema: Schema, empty: Empty = np.empty) -> None:
        self.schema, self._empty = schema, empty
        self.size = self.staged = 0
        self.revision = 0  # counts up whenever an array is replaced by another
        self.slots: np.ndarray
        self.arrivals: np.ndarray
        self.links: np.ndarray
        self.files: np.ndarray  # number of the log file that each event is in
        self.depths: np.ndarray
        self.runs: np.ndarray
        self.summaries: np.ndarray
        self._summaries_used = 0
        self.columns: dict[str, np.ndarray] = {}
        self.addresses: np.ndarray
        self._capacity = 0
        self._grow(1024)
        self.heads = filled(empty, 1024, EMPTY, np.int64)

    @classmethod
    def of_arrays(cls, schema: Schema, arrays: Sequence[np.ndarray]) -> "Memtable":
        """One to read from, made of another's ``arrays``, which another process changes."""
        one = cls.__new__(cls)
        one.schema, one._empty = schema, np.empty
        one.size = one.staged = 1 << 62  # all rows that the heads lead to
        one.revision = one._summaries_used = one._capacity = 0
        one.heads, one.links, one.arrivals, one.depths, one.runs, flat, *columns = arrays
        one.summaries = flat.reshape(-1, SUMMARY_WIDTH)
        one.columns = dict(zip(("timestamp", *schema.names), columns, strict=True))
        one.addresses = _addresses_of(one.columns)
        return one

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that reads need, of the types ``dtypes_of``."""
        return (
            self.heads, self.links, self.arrivals, self.depths, self.runs, self.summaries,
            *self.columns.values(),
        )  # fmt: skip

    @staticmethod
    def dtypes_of(schema: Schema) -> list[np.dtype]:
        """Of ``arrays``."""
        wide, narrow = np.dtype(np.int64), np.dtype(np.int32)
        columns = [schema.dtype(name) for name in ("timestamp", *schema.names)]
        return [wide, wide, wide, narrow, narrow, wide, *columns]

    def _grow(self, capacity: int) -> None:
        """Grows the arrays; those that readers hold are not changed."""
        self._capacity = capacity
        self.revision += 1
        columns = {}
        for name in ("timestamp", *self.schema.names):
            fresh = self._empty(capacity, self.schema.dtype(name))
            if self.staged:
                fresh[: self.staged] = self.columns[name][: self.staged]
            columns[name] = fresh
        self.columns = columns
        self.addresses = _addresses_of(columns)
        kinds = (("slots", "arrivals", "links", "files"), np.int64), (("depths", "runs"), np.int32)
        for names, kind in kinds:
            for name in names:
                fresh = self._empty(capacity, kind)
                if self.staged:
                    fresh[: self.staged] = getattr(self, name)[: self.staged]
                setattr(self, name, fresh)
        summaries = self._empty((capacity // RUN + 1, SUMMARY_WIDTH), np.int64)
        if self._summaries_used:
            summaries[: self._summaries_used] = self.summaries[: self._summaries_used]
        self.summaries = summaries

    def append(
        self,
        slots: np.ndarray,
        columns: dict[str, np.ndarray],
        counters: np.ndarray,
        file: int,
    ) -> None:
        """Adds events, visible at once; nothing may be staged."""
        self.stage(slots, columns, file)
        self.show(len(slots), counters)

    def stage(self, slots: np.ndarray, columns: dict[str, np.ndarray], file: int) -> None:
        """Copies events into the memtable, not yet visible to readers."""
        first, need = self.staged, self.staged + len(slots)
        self.make_room(need)
        for name, column in self.columns.items():
            column[first:need] = columns[name]
        self.slots[first:need] = slots
        self.files[first:need] = file
        self.staged = need

    def unstage(self, count: int) -> None:
        """Drops all but the first ``count`` staged events."""
        self.staged = min(self.staged, self.size + count)

    def show(self, count: int, counters: np.ndarray) -> None:
        """Makes the first ``count`` staged events visible and advances the arrival ``counters``."""
        first, end = self.size, self.size + count
        assert end <= self.staged, (first, end, self.staged)
        self._grow_heads(len(counters))
        _number(self.slots[first:end], first, self.arrivals, counters)
        self._link(first, end)
        self.size = end

    def _link(self, first: int, end: int) -> None:
        self._summaries_used = _link(
            self.slots[first:end], first, self.heads, self.links, self.columns["timestamp"],
            self.depths, self.runs, self.summaries, self._summaries_used,
        )  # fmt: skip

    def _grow_heads(self, slots: int) -> None:
        before = self.heads
        self.heads = grown(before, slots, EMPTY, self._empty)
        self.revision += self.heads is not before

    def make_room(self, need: int) -> None:
        """Takes memory for so many events at once."""
        if need > self._capacity:
            self._grow(max(need, 2 * self._capacity))

    def rows(self, slots: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows below ``limit`` of each slot (-1: none), sorted by (time, arrival).

        Returns:
            starts [B + 1] and rows [M].
        """
        if limit == 0:
            return np.zeros(len(slots) + 1, np.int64), np.empty(0, np.int64)
        return self.chains(self.newest(slots, limit))

    def newest(self, slots: np.ndarray, limit: int) -> np.ndarray:
        """int64 [B], the last row below ``limit`` of each slot, -1: none."""
        known = (slots >= 0) & (slots < len(self.heads))
        heads: np.ndarray = np.where(known, self.heads[np.where(known, slots, 0)], EMPTY)
        _below(heads, self.links, limit)
        return heads

    def chains(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``rows`` from these on back in time; needs no lock, they do not change."""
        starts = np.zeros(len(heads) + 1, np.int64)
        _chain_starts(heads, self.links, starts)
        rows = np.zeros(starts[-1], np.int64)
        collect_chains(heads, self.links, starts, rows)
        sort_chains(starts, rows, self.columns["timestamp"])
        return starts, rows

    def newest_before(
        self, heads: np.ndarray, before: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of ``rows`` from these on back in time at most the ``most`` newest before a time.

        Args:
            heads: int64 [B], from ``newest``. Needs no lock.
            before: int64 [B].
        """
        starts, parts = np.zeros(len(heads) + 1, np.int64), []
        times = self.columns["timestamp"]
        for b in np.flatnonzero(heads >= 0).tolist():
            room = np.empty(min(most, int(self.depths[heads[b]]) + 1), np.int64)
            found, _ = newest_in_chain(
                heads[b], self.links, times, self.depths, self.runs, self.summaries,
                before[b], len(room), room,
            )  # fmt: skip
            starts[b + 1] = found
            parts.append(room[:found])
        return np.cumsum(starts), np.concatenate([np.empty(0, np.int64), *parts])

    def count(self, heads: np.ndarray) -> np.ndarray:
        """int64 [B], how many events there are from these rows on back in time."""
        there = heads >= 0
        counts: np.ndarray = np.where(there, self.depths[np.where(there, heads, 0)] + 1, 0)
        return counts

    def part(self, rows: np.ndarray) -> "Memtable":
        """A new memtable with these rows, ascending, arrival numbers kept."""
        fresh = Memtable(self.schema, self._empty)
        fresh._grow_heads(len(self.heads))
        fresh._take(self, rows)
        return fresh

    def extend(self, other: "Memtable", first: int) -> None:
        """Adds another one's rows from ``first`` on, arrival numbers kept, and what it staged."""
        self._grow_heads(len(other.heads))
        self._take(other, np.arange(first, other.size))
        self._copy(other, np.arange(other.size, other.staged))

    def _take(self, other: "Memtable", rows: np.ndarray) -> None:
        first = self.size
        self._copy(other, rows)
        self._link(first, self.staged)
        self.size = self.staged

    def _copy(self, other: "Memtable", rows: np.ndarray) -> None:
        """Stages rows of another one."""
        first, need = self.staged, self.staged + len(rows)
        self.make_room(need)
        for name, column in self.columns.items():
            column[first:need] = np.take(other.columns[name], rows)
        for name in ("slots", "arrivals", "files"):
            getattr(self, name)[first:need] = np.take(getattr(other, name), rows)
        self.staged = need

    @property
    def bytes(self) -> int:
        """Bytes in use by the events."""
        width = 40 + sum(column.itemsize for column in self.columns.values())
        return self.size * width


def _addresses_of(columns: dict[str, np.ndarray]) -> np.ndarray:
    """int64, where each column is in memory, for kernels."""
    return np.array([column.ctypes.data for column in columns.values()], np.int64)
