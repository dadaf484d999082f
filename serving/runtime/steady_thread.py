"""A thread that calls a function periodically and survives its exceptions."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class SteadyThread:
    """Calls a function, waits, and calls it again until it is stopped.

    An exception does not end it: it is logged (with its traceback, unless it repeats the previous
    one), counted in ``failures``, and the function is called again after the pause.

    Args:
        name: Of the thread.
        step: What to do.
        seconds: Pause between the end of one call and the next.

    Example:
        >>> done = threading.Event()
        >>> thread = SteadyThread("example", done.set, seconds=60.0)
        >>> thread.start()
        >>> done.wait(10)
        True
        >>> thread.stop()
    """

    def __init__(self, name: str, step: Callable[[], object], seconds: float) -> None:
        self._step = step
        self._seconds = seconds
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._last = ""
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._thread.start()

    def wake(self) -> None:
        """End the pause now."""
        self._wake.set()

    def ask_to_stop(self) -> None:
        """Stop after the current call, if any, without waiting for it."""
        self._stopping.set()
        self._wake.set()

    def stop(self, timeout: float | None = None) -> None:
        """Let the call under way finish, and make no other."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stopping.is_set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            if self._stopping.is_set():
                return
            try:
                self._step()
                self._last = ""
            except BaseException as error:  # a MemoryError, too, must not end it
                self._report(error)
            self._wake.wait(self._seconds)

    def _report(self, error: BaseException) -> None:
        self.failures += 1
        told = f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):  # not even a full disk under the log ends it
            log.error(
                "%s failed and goes on (failure %d): %s",
                self._thread.name,
                self.failures,
                told,
                exc_info=error if told != self._last else None,
            )
        self._last = told
