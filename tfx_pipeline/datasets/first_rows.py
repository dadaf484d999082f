"""Dropping repeated rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_rows(*keys: NDArray) -> NDArray[np.int64]:
    """Positions, in order, of the rows whose keys appear for the first time.

    Example:
        >>> first_rows(np.array([1, 2, 1, 1]), np.array([5, 5, 5, 6]))
        array([0, 1, 3])
    """
    # A stable sort by all keys puts equal rows side by side, the first one in front.
    order = np.lexsort(keys)
    new = np.ones(len(order), bool)
    if len(order):
        new[1:] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return np.sort(order[new])
