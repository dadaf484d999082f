"""Numba kernels that follow the chains of users' events in memory."""

# mypy: ignore-errors

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def collect_chains(heads, links, starts, rows):
    """Walks each row's chain of events in memory; rows come out in arrival order."""
    for b in range(len(heads)):
        at = starts[b + 1]
        row = heads[b]
        while row >= 0:
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
