"""SIGTERM and Ctrl-C while training: finish what is under way, save it, and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class TrainingStopped(KeyboardInterrupt):
    """A run that was asked to stop, and has saved its state: the same run again goes on there."""


@contextmanager
def stop_request(say: Callable[[str], None] = print) -> Iterator[Callable[[], bool]]:
    """Yields what tells whether somebody asked this process to stop.

    A second request ends it at once, as Python would. Outside the main thread nobody can ask.
    """
    came: list[int] = []  # no event: its lock may be held where a handler interrupts

    def asked() -> bool:
        return bool(came)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, _: Any) -> None:
        if came:
            raise KeyboardInterrupt("interrupted")
        came.append(number)
        with suppress(RuntimeError):  # it interrupted a print, which takes no other meanwhile
            say("asked to stop: finishing the files under way, then saving them")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
