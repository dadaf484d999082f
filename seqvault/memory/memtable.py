"""Events that are in the log but not yet in a segment, in columns, linked per user."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit

from seqvault.codec.chains import collect_chains, sort_chains
from seqvault.memory.index import EMPTY, grown
from seqvault.schema import Schema


@njit(nogil=True, cache=True)
def _link(slots, first_row, heads, links, arrivals, counters):
    for i in range(len(slots)):
        row = first_row + i
        slot = slots[i]
        links[row] = heads[slot]
        heads[slot] = row
        arrivals[row] = counters[slot]
        counters[slot] += 1


@njit(nogil=True, cache=True)
def _relink(slots, first_row, heads, links):
    for i in range(len(slots)):
        links[first_row + i] = heads[slots[i]]
        heads[slots[i]] = first_row + i


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
            row = links[row]
        starts[b + 1] = starts[b] + n


class Memtable:
    """Columns that only grow; a row never changes once it is there.

    Events are *staged* first: laid down behind the visible ones, where nothing leads to them.
    To *show* them, once they are durable, takes little. Both are the store's business to
    serialise. A reader that got rows under the store's lock may go on reading them without it.

    Attributes:
        size: events that readers see.
        staged: these and those to come.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.size = self.staged = 0
        self.revision = 0  # counts up whenever an array is replaced by another
        self.slots: np.ndarray
        self.arrivals: np.ndarray
        self.links: np.ndarray
        self.files: np.ndarray  # number of the log file that each event is in
        self.columns: dict[str, np.ndarray] = {}
        self.addresses: np.ndarray
        self._capacity = 0
        self._grow(1024)
        self.heads = np.full(1024, EMPTY, np.int64)

    def _grow(self, capacity: int) -> None:
        """Makes room; arrays that readers have got stay as they are."""
        self._capacity = capacity
        self.revision += 1
        columns = {}
        for name in ("timestamp", *self.schema.names):
            fresh = np.empty(capacity, self.schema.dtype(name))
            if self.staged:
                fresh[: self.staged] = self.columns[name][: self.staged]
            columns[name] = fresh
        self.columns = columns
        # where each column is in memory, for kernels
        self.addresses = np.array([column.ctypes.data for column in columns.values()], np.int64)
        for name in ("slots", "arrivals", "links", "files"):
            fresh = np.empty(capacity, np.int64)
            if self.staged:
                fresh[: self.staged] = getattr(self, name)[: self.staged]
            setattr(self, name, fresh)

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
        """Lays down events of the users ``slots``, from the log file ``file``."""
        first, need = self.staged, self.staged + len(slots)
        self.make_room(need)
        for name, column in self.columns.items():
            column[first:need] = columns[name]
        self.slots[first:need] = slots
        self.files[first:need] = file
        self.staged = need

    def unstage(self, count: int) -> None:
        """Gives up all but the first ``count`` staged events."""
        self.staged = min(self.staged, self.size + count)

    def show(self, count: int, counters: np.ndarray) -> None:
        """Makes the first ``count`` staged events visible, and counts up the arrival
        ``counters`` of their users."""
        first, end = self.size, self.size + count
        assert end <= self.staged, (first, end, self.staged)
        self._grow_heads(len(counters))
        _link(self.slots[first:end], first, self.heads, self.links, self.arrivals, counters)
        self.size = end

    def _grow_heads(self, slots: int) -> None:
        before = self.heads
        self.heads = grown(before, slots, EMPTY)
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
        rows = np.empty(starts[-1], np.int64)
        collect_chains(heads, self.links, starts, rows)
        sort_chains(starts, rows, self.columns["timestamp"])
        return starts, rows

    def part(self, rows: np.ndarray) -> "Memtable":
        """A new memtable with these rows, ascending, arrival numbers kept."""
        fresh = Memtable(self.schema)
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
        _relink(self.slots[first : self.staged], first, self.heads, self.links)
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
        width = 32 + sum(column.itemsize for column in self.columns.values())
        return self.size * width
