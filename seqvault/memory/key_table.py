"""A hash table from ids to 0, 1, 2..., and arrays that grow."""

# mypy: disable-error-code="no-untyped-def"

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

EMPTY = -1
LOAD = 0.6  # of a hash table
SEED_WORDS = 2  # behind the places of a hash table
_SEED = np.frombuffer(os.urandom(4 * SEED_WORDS), np.int32)
Empty = Callable[[Any, Any], np.ndarray]  # makes an array of a shape and a type, as ``np.empty``


def filled(empty: Empty, shape: int, fill: int, dtype: Any) -> np.ndarray:
    """As ``np.full``, in memory that ``empty`` takes."""
    out = empty(shape, dtype)
    out[:] = fill
    return out


def _empty_table(places: int, empty: Empty) -> np.ndarray:
    """A hash table, int32, with a power of two places and behind them the seed."""
    table = filled(empty, places + SEED_WORDS, EMPTY, np.int32)
    table[places:] = _SEED
    return table


@njit(nogil=True)
def slot_of(table, keys, key):
    """Place in ``table`` where ``key`` is, or where it would go.

    The hash is the finaliser of splitmix64 with a random seed, kept in the last two words of the
    table: neither regular nor adversarial ids cause long probe sequences.
    """
    mask = len(table) - SEED_WORDS - 1
    low, high = np.uint64(np.uint32(table[mask + 1])), np.uint64(np.uint32(table[mask + 2]))
    mixed = np.uint64(key) ^ (low | high << np.uint64(32))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    place = np.int64(mixed & np.uint64(mask))
    while table[place] >= 0 and keys[table[place]] != key:
        place = (place + 1) & mask
    return place


@njit(nogil=True, cache=True)
def _find(table, keys, wanted, out):
    for i in range(len(wanted)):
        out[i] = table[slot_of(table, keys, wanted[i])]


@njit(nogil=True, cache=True)
def _add(table, keys, used, wanted, out):
    for i in range(len(wanted)):
        place = slot_of(table, keys, wanted[i])
        if table[place] < 0:
            keys[used] = wanted[i]
            table[place] = used
            used += 1
        out[i] = table[place]
    return used


@njit(nogil=True, cache=True)
def _rebuild(table, keys, used):
    for i in range(used):
        table[slot_of(table, keys, keys[i])] = i


class KeyTable:
    """Open addressing from int64 keys to 0, 1, 2... in order of first sight.

    About 15 bytes a key. Not safe for concurrent change: the store's lock guards it.

    Args:
        empty: takes memory for it.
    """

    def __init__(self, empty: Empty = np.empty) -> None:
        self._empty = empty
        self._table = _empty_table(1024, empty)
        self._keys = empty(512, np.int64)
        self._used = 0

    @classmethod
    def of_arrays(cls, table: np.ndarray, keys: np.ndarray) -> "KeyTable":
        """One that another process has made and changes; ``know`` says how many keys it has."""
        one = cls.__new__(cls)
        one._empty, one._table, one._keys, one._used = np.empty, table, keys, 0
        return one

    def know(self, used: int) -> None:
        """There are so many keys by now."""
        self._used = max(self._used, used)

    def __len__(self) -> int:
        return self._used

    @property
    def keys(self) -> np.ndarray:
        """int64, all keys in order of first sight."""
        return self._keys[: self._used]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64 number of each key, -1 for unknown ones."""
        keys = for_kernel(keys)
        out = np.empty(len(keys), np.int64)
        _find(self._table, self._keys, keys, out)
        return out

    def add(self, keys: np.ndarray) -> np.ndarray:
        """int64 number of each key; unknown ones get the next numbers."""
        keys = for_kernel(keys)
        self._make_room(self._used + len(keys))
        out = np.empty(len(keys), np.int64)
        self._used = _add(self._table, self._keys, self._used, keys, out)
        return out

    def with_room(self, more: int) -> "KeyTable":
        """A copy that ``more`` keys can be added to quickly; itself if it is one already."""
        need = self._used + more
        if need <= len(self._keys) and need <= LOAD * (len(self._table) - SEED_WORDS):
            return self
        copy = KeyTable()
        copy._table, copy._keys, copy._used = self._table, self._keys, self._used
        copy._make_room(need)  # in other arrays where these are too small
        if copy._table is self._table:
            copy._table = self._table.copy()
        if copy._keys is self._keys:
            copy._keys = self._keys.copy()
        return copy

    def _make_room(self, need: int) -> None:
        """Makes room for ``need`` keys in all; arrays that are too small are left as they are."""
        if need > len(self._keys):
            grown = self._empty(max(need, 2 * len(self._keys)), np.int64)
            grown[: self._used] = self.keys
            self._keys = grown
        places = len(self._table) - SEED_WORDS
        if need > LOAD * places:
            size = 1 << int(np.ceil(np.log2(need / LOAD)))
            self._table = _empty_table(max(size, 2 * places), self._empty)
            _rebuild(self._table, self._keys, self._used)


def for_kernel(array: np.ndarray) -> np.ndarray:
    """int64 [n], contiguous and writable: another layout would need a second kernel."""
    return np.require(array, np.int64, ["C", "W"])


def grown(array: np.ndarray, need: int, fill: int, empty: Empty = np.empty) -> np.ndarray:
    """The array itself, or a copy with room for ``need`` entries, doubled."""
    if need <= len(array):
        return array
    out = filled(empty, max(need, 2 * len(array)), fill, array.dtype)
    out[: len(array)] = array
    return out
