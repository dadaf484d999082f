"""How far the join in this process is; workers elsewhere leave no trace here."""

from __future__ import annotations

import threading

from components.heartbeat import Done


class JoinProgress:
    """Counts impressions that were read and impressions that were joined, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found = self._joined = 0

    def reset(self) -> None:
        """Begin again."""
        with self._lock:
            self._found = self._joined = 0

    def found(self, impressions: int) -> None:
        """So many more will be joined."""
        with self._lock:
            self._found += impressions

    def joined(self, impressions: int) -> None:
        """So many more were joined."""
        with self._lock:
            self._joined += impressions

    def read(self) -> Done | None:
        """Joined of all; None before the join itself begins, when not all may be known."""
        with self._lock:
            return Done(self._joined, self._found, "impressions") if self._joined else None


PROGRESS = JoinProgress()
"""Beam copies its functions for every worker, so what they share lies here."""
