"""Chooses the sizes of embedding tables from the ids of a dataset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAX_HASHED_ROWS = 1 << 22


def id_table(ids: NDArray, width: int) -> dict[str, object]:
    """A table for these ids: direct where they are dense, else hashed into twice their number.

    Example:
        >>> id_table(np.array([-1, 0, 1, 2, 3]), width=8)
        {'rows': 64, 'width': 8, 'ids': 'direct'}
    """
    known = ids[ids >= 0]
    distinct = len(np.unique(known))
    largest = int(known.max(initial=0))
    if largest < 4 * distinct + 1024:
        # Room for row 0, rounded up so that a few new ids keep the table's size.
        rows = (largest + 2 + 63) // 64 * 64
        return {"rows": rows, "width": width, "ids": "direct"}
    rows = 1 << (2 * distinct - 1).bit_length()
    return {"rows": min(max(rows, 64), _MAX_HASHED_ROWS), "width": width, "ids": "hash"}
