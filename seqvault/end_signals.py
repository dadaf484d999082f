"""Signals that ask a process to end, as something that can be waited for."""

import signal
import socket
from collections.abc import Sequence

BOTH = (signal.SIGTERM, signal.SIGINT)


class EndSignals:
    """Tells whether a signal came since it was made; made and used by the main thread.

    The kernel may give a signal to any thread, which wakes no other that waits for a lock; and a
    handler that sets an event waits for ever if it interrupts the main thread while that holds the
    event's own lock. Python writes to a descriptor in all cases, and without a lock.

    Args:
        numbers: of the signals; others with a handler of Python's count as well.
    """

    def __init__(self, numbers: Sequence[signal.Signals] = BOTH) -> None:
        self._came, self._told = socket.socketpair()
        self._told.setblocking(False)
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        """What makes Python write to the descriptor; it keeps both open, too."""

    def wait(self, seconds: float | None = None) -> bool:
        """Whether one came, now or within so many seconds; None: waits until one comes."""
        self._came.settimeout(seconds)
        try:
            self._came.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, TimeoutError):
            return False
        return True
