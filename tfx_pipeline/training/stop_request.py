"""SIGTERM and Ctrl-C while training: finish what is under way, save it, and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class TrainingStopped(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state: the same run again goes on there."""


@contextmanager
def stop_request(say: Callable[[str], None] = print) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether somebody asked this process to stop.

    A second request ends it at once, as Python would. Outside the main thread nobody can ask.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt("interrupted")
        asked.set()
        say("asked to stop: finishing the files under way, then saving them")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
