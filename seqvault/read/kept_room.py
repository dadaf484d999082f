"""Buffers for answers, reused once the answer is no longer referenced."""

import sys

import numpy as np

MAX_KEPT = 1 << 25  # bytes of answers that are kept room for
ANSWERS = 4  # that are kept room for
_PAGE = 1 << 12
_ONLY_OURS = 2  # references to kept room: the list and the question


def holds_little_more(buffer: np.ndarray, size: int) -> bool:
    """Whether an answer of ``size`` bytes may be held in the buffer, perhaps for long."""
    return len(buffer) <= 2 * size + _PAGE


class KeptRoom:
    """Buffers for answers, reused; for one thread.

    Page faults of fresh memory would cost a third of a read. A loop that holds each answer until
    the next alternates between two buffers.

    Example:
        >>> kept = KeptRoom()
        >>> one = kept.take(100)
        >>> address = one.ctypes.data
        >>> del one
        >>> kept.take(80).ctypes.data == address
        True
    """

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def take(self, size: int) -> np.ndarray:
        """uint8 [at least ``size``], not cleared."""
        kept = self._kept
        for place in range(len(kept)):
            fits = size <= len(kept[place]) and holds_little_more(kept[place], size)
            if fits and sys.getrefcount(kept[place]) == _ONLY_OURS:
                return kept[place]
        fresh = np.empty(-(-size // _PAGE) * _PAGE, np.uint8)
        if len(fresh) <= MAX_KEPT:
            while kept and (len(kept) >= ANSWERS or sum(map(len, kept)) + len(fresh) > MAX_KEPT):
                kept.pop(0)
            kept.append(fresh)
        return fresh
