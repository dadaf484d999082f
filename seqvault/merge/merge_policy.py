"""The merge policy: which users a merge rewrites, as pure functions over counts.

A user's history is a base and at most ``MAX_EXTENTS`` extents behind it, so that a cold
read touches few places. To limit write amplification, new events of a user wait in the log until
there are enough for a record (``HOLD_BELOW``), extents are compacted into one when there are too
many, and the base is rewritten only when the extents have reached a share of it.
"""

from dataclasses import dataclass

import numpy as np

from seqvault.disk.segment import BASE, EXTENT, TAIL

MAX_EXTENTS = 2  # beside the base
FOLD_AT = 2  # fold when the tail reaches 1/2 of the base
HOLD_BELOW = 48  # events of a user; fewer may wait in the log for more
HELD_EVENTS = 1 << 20  # that may wait, of all users
HELD_FILES = 64  # log files that they may be in: a merge begins one
DEAD_SHARE = 0.5  # of a segment; more is rewritten


@dataclass(frozen=True)
class Waiting:
    """Users with events in memory, of a prefix of the log.

    Args:
        slots: int64 [U], ascending.
        counts: int64 [U], events of each.
        files: int64 [U], log file of the oldest of them.
    """

    slots: np.ndarray
    counts: np.ndarray
    files: np.ndarray

    def only(self, chosen: np.ndarray) -> "Waiting":
        """Those of a mask."""
        return Waiting(self.slots[chosen], self.counts[chosen], self.files[chosen])


def waiting_in(slots: np.ndarray, files: np.ndarray) -> Waiting:
    """Who waits, from the [N] slots and log files of events in order of arrival."""
    found, first, counts = np.unique(slots, return_index=True, return_counts=True)
    return Waiting(found, counts.astype(np.int64), files[first])


def oldest_file_to_keep(files: np.ndarray, end: int) -> int:
    """First log file that may stay: what waits is bounded in number and in age.

    Args:
        files: int64 [N], log file of each event, ascending.
        end: the log's present file, which has none of them.
    """
    young = end - HELD_FILES
    if len(files) <= HELD_EVENTS:
        return young
    return max(young, int(files[len(files) - HELD_EVENTS - 1]) + 1)


def to_write(waiting: Waiting, files: np.ndarray, end: int, hold: bool) -> np.ndarray:
    """Mask over ``waiting`` of those whose events become records now."""
    if not hold:
        return np.ones(len(waiting.slots), np.bool_)
    keep_from = oldest_file_to_keep(files, end)
    mask: np.ndarray = (waiting.counts >= HOLD_BELOW) | (waiting.files < keep_from)
    return mask


def kinds_of(
    extents: np.ndarray, stored: np.ndarray, base: np.ndarray, tail: np.ndarray
) -> np.ndarray:
    """int64 [U]: what each user's new record does to those before.

    Args:
        extents: records so far. stored, base: events in all of them, and in the oldest.
        tail: new events.
    """
    kinds = np.where(extents > MAX_EXTENTS, TAIL, EXTENT)
    kinds[FOLD_AT * (stored - base + tail) >= base] = BASE
    return kinds
