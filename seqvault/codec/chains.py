"""Numba kernels that follow the chains of users' events in memory.

Rows before another have lower numbers. A reader in another process may come so late that the
memory was given back and is zeros: then what it finds means nothing, but it ends.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def collect_chains(heads, links, starts, rows):
    """Walks each row's chain of events in memory; rows come out in arrival order."""
    for b in range(len(heads)):
        at = starts[b + 1]
        row = heads[b]
        while row >= 0 and at > starts[b]:
            at -= 1
            rows[at] = row
            row = links[row]


@njit(nogil=True, cache=True)
def sort_chains(starts, rows, times):
    """Sorts each user's rows by (time, arrival), in place; rows are in arrival order."""
    for b in range(len(starts) - 1):
        low, high = starts[b], starts[b + 1]
        in_order = True
        for i in range(low + 1, high):
            if times[rows[i]] < times[rows[i - 1]]:
                in_order = False
                break
        if in_order:
            continue
        source = rows[low:high].copy()
        target = np.empty_like(source)
        n = high - low
        width = 1
        while width < n:
            for left in range(0, n, 2 * width):
                middle, right = min(left + width, n), min(left + 2 * width, n)
                i, j = left, middle
                for k in range(left, right):
                    if i < middle and (j >= right or times[source[i]] <= times[source[j]]):
                        target[k] = source[i]
                        i += 1
                    else:
                        target[k] = source[j]
                        j += 1
            source, target = target, source
            width *= 2
        rows[low:high] = source


RUN = 256  # events of a user that a summary stands for
LOW, HIGH, TOP, BELOW = 0, 1, 2, 3  # columns of the summaries
SUMMARY_WIDTH = 4


@njit(nogil=True, cache=True)
def summarise(row, links, times, runs, summaries, used):
    """Sums up the ``RUN`` events of a user from ``row`` back, the last run so far.

    Args:
        row: the newest of them.
        links: int64, the row before each, of the same user.
        times: int64 of each row.
        runs: int32 receives at ``row`` the summary's number.
        summaries: int64 [N, 4] receives least and greatest time of the run, greatest time of
            all the user's events up to it, and the row before it.
        used: number of summaries so far.
    """
    low, high, at = times[row], times[row], row
    for _ in range(RUN):
        low, high = min(low, times[at]), max(high, times[at])
        at = links[at]
    summaries[used, LOW], summaries[used, HIGH], summaries[used, BELOW] = low, high, at
    summaries[used, TOP] = high if at < 0 else max(high, summaries[runs[at], TOP])
    runs[row] = used


@njit(nogil=True, cache=True)
def newest_in_chain(head, links, times, depths, runs, summaries, before, most, rows):
    """Finds a user's newest in-memory events before a time, without visiting all of them.

    Summaries let it skip runs without a match, so that the cost grows with the events returned and
    with how far events arrived out of order, not with the length of the history.

    Args:
        head: the user's newest row, -1: none.
        links, times, depths, runs, summaries: of the memtable.
        before: bound on time. most: how many events, at least 1.
        rows: int64 [``most`` or more] receives them, ascending by time and arrival.

    Returns:
        (how many, how many rows and summaries were looked at).
    """
    n, looked, row = 0, 0, head
    while row >= 0:
        looked += 1
        if depths[row] % RUN == RUN - 1:
            run = runs[row]
            if n == most and summaries[run, TOP] <= times[rows[0]]:
                break  # later arrivals of the same time are newer
            if summaries[run, LOW] >= before or (
                n == most and summaries[run, HIGH] <= times[rows[0]]
            ):
                below = summaries[run, BELOW]
                row = below if below < row else -1
                continue
        time = times[row]
        if time < before:
            if n < most:
                rows[n] = row
                n += 1
                if n == most:
                    _make_heap(rows, n, times)
            elif time > times[rows[0]]:
                rows[0] = row
                _sift(rows, 0, n, times)
        below = links[row]
        row = below if below < row else -1
    if n < most:
        _make_heap(rows, n, times)
    for end in range(n - 1, 0, -1):  # a heap sort gives the newest first
        rows[0], rows[end] = rows[end], rows[0]
        _sift(rows, 0, end, times)
    for i in range(n // 2):
        rows[i], rows[n - 1 - i] = rows[n - 1 - i], rows[i]
    return n, looked


@njit(nogil=True)
def _older(a, b, times):
    return times[a] < times[b] or (times[a] == times[b] and a < b)


@njit(nogil=True)
def _sift(rows, at, n, times):
    """Sifts a row down in a min-heap ordered by age (oldest first)."""
    while True:
        child = 2 * at + 1
        if child >= n:
            return
        if child + 1 < n and _older(rows[child + 1], rows[child], times):
            child += 1
        if not _older(rows[child], rows[at], times):
            return
        rows[at], rows[child] = rows[child], rows[at]
        at = child


@njit(nogil=True)
def _make_heap(rows, n, times):
    for at in range(n // 2 - 1, -1, -1):
        _sift(rows, at, n, times)
