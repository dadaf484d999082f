"""A request in progress: its deadline, and whether the caller is still connected."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.runtime.errors import AbandonedError, DeadlinePassedError


class Call:
    """Passed from stage to stage; each asks ``check`` before it begins.

    Args:
        seconds: Time from arrival to the answer; None: any.
        arrived: When the first byte came, of ``time.monotonic``; None: now.

    Example:
        >>> call = Call(seconds=0.0)
        >>> try:
        ...     call.check("reading the history")
        ... except DeadlinePassedError as error:
        ...     print(error)
        the deadline passed before reading the history
    """

    def __init__(self, seconds: float | None, arrived: float | None = None) -> None:
        self.arrived = time.monotonic() if arrived is None else arrived
        self.deadline = math.inf if seconds is None else self.arrived + seconds
        self._abandoned = False
        self._stops: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        """Seconds until the deadline, below zero when it has passed."""
        return self.deadline - time.monotonic()

    @property
    def abandoned(self) -> bool:
        """Whether the caller is gone."""
        return self._abandoned

    def check(self, stage: str) -> None:
        """Raise if the caller has gone away or the deadline has passed.

        Raises:
            AbandonedError: The caller hung up.
            DeadlinePassedError: No time is left.
        """
        if self._abandoned:
            raise AbandonedError(f"the caller hung up before {stage}")
        if self.left <= 0:
            raise DeadlinePassedError(f"the deadline passed before {stage}")

    def abandon(self) -> None:
        """Mark the caller as gone and stop what can be stopped. Thread-safe."""
        with self._lock:
            self._abandoned = True
            stops, self._stops = self._stops, []
        for stop in stops:
            stop()

    @contextmanager
    def stopped_by(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call ``stop`` if the caller goes away inside the block."""
        with self._lock:
            gone = self._abandoned
            if not gone:
                self._stops.append(stop)
        if gone:
            stop()
        try:
            yield
        finally:
            with self._lock:
                if stop in self._stops:
                    self._stops.remove(stop)
