"""Walks over the whole index or many users of it, without the GIL and without large copies.

Only merges change what is walked here, so that a merge needs no lock for it.
"""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit

from seqvault.memory.index import Index

DEAD, BASE_DEAD, TOO_MANY = 1, 2, 4


@njit(nogil=True, cache=True)
def _live(latest, previous, segments, lengths, counts, users, numbers, live, totals):
    known, place = -1, 0
    for slot in range(users):
        extent = latest[slot]
        while extent >= 0:
            if segments[extent] != known:  # seldom: neighbours came with the same segment
                known = segments[extent]
                place = np.searchsorted(numbers, known)
            live[place] += lengths[extent]
            totals[0] += counts[extent]
            totals[1] += lengths[extent]
            extent = previous[extent]


@njit(nogil=True, cache=True)
def _flag(latest, previous, segments, users, numbers, dead, most, flags):
    known, place = -1, 0
    for slot in range(users):
        extent, n = latest[slot], 0
        while extent >= 0:
            n += 1
            if segments[extent] != known:
                known = segments[extent]
                place = np.searchsorted(numbers, known)
            if dead[place]:
                flags[slot] |= DEAD if previous[extent] >= 0 else DEAD | BASE_DEAD
            extent = previous[extent]
        if n > most:
            flags[slot] |= TOO_MANY


@njit(nogil=True, cache=True)
def _summarise(latest, previous, lengths, counts, slots, out):
    for b in range(len(slots)):
        extent = latest[slots[b]]
        while extent >= 0:
            out[0, b] += 1
            out[1, b] += counts[extent]
            out[2, b] = counts[extent]
            out[3, b] += lengths[extent]
            extent = previous[extent]


def live_bytes(index: Index, users: int, numbers: np.ndarray) -> tuple[np.ndarray, int, int]:
    """int64 [S] bytes of records in use per segment; events and bytes in all.

    Args:
        numbers: int64 [S], ascending, of all segments that the index knows.
    """
    _, _, latest, previous, segment, _, length, count, _ = index.arrays
    live, totals = np.zeros(len(numbers), np.int64), np.zeros(2, np.int64)
    _live(latest, previous, segment, length, count, users, numbers, live, totals)
    return live, int(totals[0]), int(totals[1])


def flag_users(
    index: Index, users: int, numbers: np.ndarray, dead: np.ndarray, most: int
) -> np.ndarray:
    """uint8 [users]: ``DEAD``, ``BASE_DEAD``, ``TOO_MANY``, of users by slot.

    Args:
        numbers: int64 [S], ascending, of all segments that the index knows.
        dead: bool [S], whether users' records there are to be rewritten: most are no longer in use.
        most: records of a user; more are too many.
    """
    _, _, latest, previous, segment, *_ = index.arrays
    flags = np.zeros(users, np.uint8)
    _flag(latest, previous, segment, users, numbers, dead, most, flags)
    return flags


def summaries(
    index: Index, slots: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """int64 [U] of users by slot: records, events, events of the oldest record, bytes."""
    _, _, latest, previous, _, _, length, count, _ = index.arrays
    out = np.zeros((4, len(slots)), np.int64)
    _summarise(latest, previous, length, count, slots, out)
    return out[0], out[1], out[2], out[3]
