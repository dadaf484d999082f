"""Health probes of store and model, independent of requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.runtime.steady_thread import SteadyThread

_SECONDS = 1.0
# A probe that takes longer than this says nothing about now.
_STALE_SECONDS = 6.0


@dataclass(frozen=True)
class Finding:
    """What the last probe found.

    Attributes:
        problem: What was wrong; empty if all was well.
        detail: What the probe returned.
    """

    problem: str
    detail: object = None


class Probe:
    """Polls one dependency in a thread of its own.

    Args:
        name: ``"store"`` or ``"model"``.
        ask: Returns a detail to report, or raises.

    Example:
        >>> probe = Probe("store", lambda: 7)
        >>> probe.finding.problem
        'store: not asked yet'
        >>> probe.ask_now()
        >>> probe.finding
        Finding(problem='', detail=7)
    """

    def __init__(self, name: str, ask: Callable[[], object], seconds: float = _SECONDS) -> None:
        self._name = name
        self._ask = ask
        self._asked_at = 0.0
        self._finding = Finding(f"{name}: not asked yet")
        self._thread = SteadyThread(f"probe-{name}", self.ask_now, seconds)

    @property
    def finding(self) -> Finding:
        """The last answer, unless it is too old."""
        found = self._finding
        age = time.monotonic() - self._asked_at
        if self._asked_at and age > _STALE_SECONDS:
            return Finding(f"{self._name}: no answer for {age:.0f} s")
        return found

    @property
    def ok(self) -> bool:
        """Whether it answered."""
        return not self.finding.problem

    def ask_now(self) -> None:
        """Ask once, and keep what was found."""
        try:
            found = Finding("", self._ask())
        except Exception as error:
            found = Finding(f"{self._name}: {error}")
        self._finding, self._asked_at = found, time.monotonic()

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def wake(self) -> None:
        """Ask again at once."""
        self._thread.wake()

    def stop(self) -> None:
        """Stop polling, without waiting for a call that hangs."""
        self._thread.stop(timeout=2.0)
