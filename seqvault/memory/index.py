"""The index in memory: from a user to its records on disk and its events in memory."""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import numpy as np
from numba import njit

from seqvault.codec.bundles import (
    ARRIVALS,
    COUNT,
    DEPTHS,
    DESCRIPTORS,
    HEADS,
    KEYS,
    LATEST,
    LENGTH,
    NUMBERS,
    OFFSET,
    PREVIOUS,
    RECORD_WIDTH,
    RECORDS,
    ROW_WIDTH,
    ROWS,
    SCHEMAS,
    SEGMENT,
    TABLE,
    int32_part,
    int64_part,
)
from seqvault.memory.key_table import EMPTY, Empty, KeyTable, filled, grown, slot_of


@njit(nogil=True, cache=True)
def _link(latest, previous, slots, kinds, counts, first):
    for i in range(len(slots)):
        below = latest[slots[i]]
        if kinds[i] == 1:  # in place of all
            below = EMPTY
        elif kinds[i] == 2:  # in place of all but the oldest
            while below >= 0 and previous[below] >= 0:
                below = previous[below]
        if counts[i] == 0:  # nothing comes instead
            latest[slots[i]] = below
            continue
        previous[first] = below
        latest[slots[i]] = first
        first += 1


@njit(nogil=True, cache=True)
def _chain(latest, previous, slots, starts, out):
    """Extents of each slot, oldest first; with ``out`` empty only counts them.

    Another process may change the arrays meanwhile: whatever they hold, it ends and stays
    within ``out``. Extents before another have lower numbers.
    """
    for b in range(len(slots)):
        n = 0
        if 0 <= slots[b] < len(latest):
            extent = latest[slots[b]]
            while 0 <= extent < len(previous):
                n += 1
                if len(out):
                    if n > starts[b + 1] - starts[b]:
                        break
                    out[starts[b + 1] - n] = extent
                below = previous[extent]
                if below >= extent:
                    break
                extent = below
        if not len(out):
            starts[b + 1] = starts[b] + n


@njit(cache=True)  # holds the GIL: it is short, and whoever waits for the lock needs the GIL
def find_rows(users, store, room, last_n, version):
    """Looks up the users of an ordinary read, as a consistent snapshot.

    If another process changes the store meanwhile, the outcome means nothing, but it ends and
    stays within the room. Extents before another have lower numbers.

    Args:
        users: int64 [B].
        store: the bundle ``ReadView.words``.
        room: a bundle. Its rows, int64 [B or more, 3], receive where a user's records end,
            and the newest event in memory and the number of events there; its records,
            int64 [R, 5], descriptor, offset, length, events and schema.
        last_n: most events per user.
        version: int64 [B] receives the number of events that ever arrived.

    Returns:
        (records found, events that an answer can have at most); with more records than
        there is room for only their number counts.
    """
    table, keys = int32_part(store, TABLE), int64_part(store, KEYS)
    latest, previous = int32_part(store, LATEST), int32_part(store, PREVIOUS)
    segment, offset = int32_part(store, SEGMENT), int64_part(store, OFFSET)
    length, count = int32_part(store, LENGTH), int32_part(store, COUNT)
    arrivals, numbers = int64_part(store, ARRIVALS), int64_part(store, NUMBERS)
    descriptors, schemas = int64_part(store, DESCRIPTORS), int64_part(store, SCHEMAS)
    heads, depths = int64_part(store, HEADS), int32_part(store, DEPTHS)
    rows, records = int64_part(room, ROWS), int64_part(room, RECORDS)
    rows = rows.reshape((len(rows) // ROW_WIDTH, ROW_WIDTH))
    records = records.reshape((len(records) // RECORD_WIDTH, RECORD_WIDTH))
    used, events = 0, 0
    for b in range(len(users)):
        slot = table[slot_of(table, keys, users[b])]
        rows[b, 1], rows[b, 2], version[b] = EMPTY, 0, 0
        if not 0 <= slot < len(latest):
            rows[b, 0] = used
            continue
        version[b] = arrivals[slot]
        extents, held = 0, 0
        extent = newest = latest[slot]
        while 0 <= extent < len(previous):
            extents += 1
            below = previous[extent]
            extent = below if below < extent else EMPTY
        extent, first, at = newest, used, used + extents
        used = at
        while 0 <= extent < len(previous) and first < at and used <= len(records):
            at -= 1
            place = np.searchsorted(numbers, segment[extent])
            records[at, 0], records[at, 1] = descriptors[place], offset[extent]
            records[at, 2], records[at, 3] = length[extent], count[extent]
            records[at, 4] = schemas[place]
            held += count[extent]
            extent = previous[extent]
        rows[b, 0] = used
        if slot < len(heads):
            row = heads[slot]
            if 0 <= row < len(depths):
                rows[b, 1], rows[b, 2] = row, depths[row] + 1
        events += min(last_n, held + rows[b, 2])
    return used, events


class Index:
    """Users, the extents of each on disk, and how many events ever arrived for each.

    Attributes:
        arrivals: int64, by slot of the user.
        revision: counts up whenever one of ``arrays`` is replaced by another.

    Args:
        empty: takes memory for it.
    """

    DTYPES = tuple(
        np.dtype(name)
        for name in ("i4", "i8", "i4", "i4", "i4", "i8", "i4", "i4", "i8")  # of ``arrays``
    )

    def __init__(self, empty: Empty = np.empty) -> None:
        self._empty = empty
        self.users = KeyTable(empty)
        self.arrivals = filled(empty, 512, 0, np.int64)
        self._latest = filled(empty, 512, EMPTY, np.int32)
        self._previous = empty(512, np.int32)
        self._segment = empty(512, np.int32)
        self._offset = empty(512, np.int64)
        self._length = empty(512, np.int32)
        self._count = empty(512, np.int32)
        self._used = 0
        self.revision = 0

    @classmethod
    def of_arrays(cls, arrays: Sequence[np.ndarray]) -> "Index":
        """One to look up in, made of another's ``arrays``, which another process changes."""
        one = cls.__new__(cls)
        one._empty, one._used, one.revision = np.empty, 0, 0
        table, keys, *rest, one.arrivals = arrays
        one.users = KeyTable.of_arrays(table, keys)
        one._latest, one._previous, one._segment, one._offset, one._length, one._count = rest
        return one

    def add_users(self, keys: np.ndarray) -> np.ndarray:
        """int64 slots of the users, made where they are new."""
        before = self.arrays
        slots = self.users.add(keys)
        self.arrivals = grown(self.arrivals, len(self.users), 0, self._empty)
        self._latest = grown(self._latest, len(self.users), EMPTY, self._empty)
        if any(old is not new for old, new in zip(before, self.arrays, strict=True)):
            self.revision += 1
        return slots

    def add_records(
        self,
        number: int,
        users: np.ndarray,
        offsets: np.ndarray,
        lengths: np.ndarray,
        counts: np.ndarray,
        kinds: np.ndarray,
        arrivals: np.ndarray,
    ) -> np.ndarray:
        """Adds the records of a segment that is newer than all before it; returns users' slots.

        Kinds are those of ``seqvault.disk.segment``; a record of 0 events replaces others
        without a record of its own.
        """
        slots = self.add_users(users)
        self.arrivals[slots] = np.maximum(self.arrivals[slots], arrivals)
        kept = counts > 0
        need = self._used + int(kept.sum())
        for name in ("_previous", "_segment", "_offset", "_length", "_count"):
            setattr(self, name, grown(getattr(self, name), need, 0, self._empty))
        new = slice(self._used, need)
        _link(self._latest, self._previous, slots, kinds, counts, self._used)
        self._segment[new], self._offset[new] = number, offsets[kept]
        self._length[new], self._count[new] = lengths[kept], counts[kept]
        self._used = need
        self.revision += 1
        return slots

    def extents(
        self, slots: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Extents of each slot, oldest first.

        Returns:
            starts [B + 1], and [R] segment numbers, offsets, lengths and event counts.
        """
        starts = np.zeros(len(slots) + 1, np.int64)
        _chain(self._latest, self._previous, slots, starts, np.empty(0, np.int64))
        found = np.empty(starts[-1], np.int64)
        if len(found):
            _chain(self._latest, self._previous, slots, starts, found)
        return (
            starts,
            self._segment[found],
            self._offset[found],
            self._length[found].astype(np.int64),
            self._count[found].astype(np.int64),
        )

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Parts TABLE to ARRIVALS of what ``find_rows`` takes."""
        return (
            self.users._table, self.users._keys, self._latest, self._previous, self._segment,
            self._offset, self._length, self._count, self.arrivals,
        )  # fmt: skip

    def live_bytes(self) -> dict[int, int]:
        """Bytes of records in use per segment."""
        slots = np.arange(len(self.users), dtype=np.int64)
        _, segments, _, lengths, _ = self.extents(slots)
        numbers, where = np.unique(segments, return_inverse=True)
        sums = np.bincount(where, weights=lengths, minlength=len(numbers))
        return {int(number): int(size) for number, size in zip(numbers, sums, strict=True)}

    @property
    def bytes(self) -> int:
        """Bytes in memory."""
        return sum(array.nbytes for array in self.arrays)
