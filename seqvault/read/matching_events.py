"""Events in memory that a read with filters, or of an earlier version, can want."""

import numpy as np

from seqvault.memory.memtable import Memtable
from seqvault.read.read_request import ReadRequest

_FIRST, _FACTOR = 256, 4  # events looked at first, and how many times more each time after


def newest_matching(
    memtable: Memtable, heads: np.ndarray, request: ReadRequest
) -> tuple[np.ndarray, np.ndarray]:
    """``Memtable.newest_before`` with as many events as hold ``last_n`` that match, if there are.

    Of each user more and more of the newest events are looked at until enough of them match, so
    that a read costs what it has to pass over and not what the user has.

    Args:
        memtable: needs no lock.
        heads: int64 [B], from ``Memtable.newest``.
        request: its filters and versions say what matches.
    """
    starts, parts = np.zeros(len(heads) + 1, np.int64), []
    bounds, limits = request.bounds(), request.versions()
    for row in np.flatnonzero(heads >= 0).tolist():
        most = max(request.last_n, _FIRST)
        while True:
            one = slice(row, row + 1)
            _, found = memtable.newest_before(heads[one], bounds[one], most)
            enough = _matches(memtable, found, request, int(limits[row])) >= request.last_n
            if enough or len(found) < most:
                break
            most *= _FACTOR
        starts[row + 1] = len(found)
        parts.append(found)
    return np.cumsum(starts), np.concatenate([np.empty(0, np.int64), *parts])


def _matches(memtable: Memtable, rows: np.ndarray, request: ReadRequest, limit: int) -> int:
    keep = np.ones(len(rows), np.bool_) if limit < 0 else memtable.arrivals[rows] < limit
    for name, wanted in request.filters:
        keep &= np.isin(memtable.columns[name][rows], wanted)
    return int(keep.sum())
