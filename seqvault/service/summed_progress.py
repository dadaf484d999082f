"""Combines the progress of several servers."""

import threading
from collections import defaultdict

from seqvault.progress import Progress, no_progress


class SummedProgress:
    """Reports the sum of several parts to one ``Progress``; thread-safe.

    Example:
        >>> summed = SummedProgress(print)
        >>> one, other = summed.part(), summed.part()
        >>> one("events", 3, 10)
        events 3 10
        >>> other("events", 1, 5)
        events 4 15
        >>> one("events", 10, 10)
        events 11 15
    """

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._told: defaultdict[str, dict[object, tuple[int, int]]] = defaultdict(dict)

    def part(self) -> Progress:
        """The ``Progress`` of one more part."""
        if self._progress is no_progress:
            return no_progress
        part = object()

        def tell(unit: str, done: int, total: int) -> None:
            with self._lock:
                parts = self._told[unit]
                parts[part] = (done, total)
                done, total = (sum(numbers) for numbers in zip(*parts.values(), strict=True))
                self._progress(unit, done, total)

        return tell
