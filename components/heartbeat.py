"""Lines that tell a person, a pipe or a pod's log that work goes on, and how much is left of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

EVERY_SECONDS = 10.0


class Done(NamedTuple):
    """How far work has come; ``whole`` is 0 while unknown."""

    done: int
    whole: int
    unit: str


@contextmanager
def heartbeat(
    what: str,
    say: Callable[[str], None] = print,
    progress: Callable[[], Done | None] = lambda: None,
    expected: float | None = None,
    every: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Say every few seconds what goes on while the block runs; nothing if it is over sooner.

    Args:
        what: Name of the work.
        say: Receives the lines, from a thread of its own.
        progress: How far it is.
        expected: How long it takes in all where ``progress`` knows nothing: last time's seconds.
        every: Seconds between two lines.
    """
    ended = threading.Event()
    began = time.monotonic()

    def beat() -> None:
        while not ended.wait(every):
            say(f"{what}: {describe(time.monotonic() - began, progress(), expected)}")

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of {what}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def describe(elapsed: float, progress: Done | None, expected: float | None = None) -> str:
    """What a line says of work that has gone on for some seconds.

    Example:
        >>> describe(30.0, Done(1000, 4000, "impressions"))
        '1,000 of 4,000 impressions, about 90 s left'
        >>> describe(30.0, None, expected=50.0)
        '30 s, about 20 s left'
    """
    if progress is not None and progress.whole:
        left = seconds_left(elapsed, progress.done / progress.whole)
        text = f"{progress.done:,} of {progress.whole:,} {progress.unit}".rstrip()
        return text if left is None else f"{text}, about {shown_time(left)} left"
    text = shown_time(elapsed)
    if expected is not None and expected > elapsed:
        text += f", about {shown_time(expected - elapsed)} left"
    return text


def seconds_left(elapsed: float, fraction: float) -> float | None:
    """Time left of even work; None while nothing is done."""
    return elapsed / fraction - elapsed if 0 < fraction <= 1 else None


def shown_time(seconds: float) -> str:
    """Seconds as a person reads them.

    Example:
        >>> [shown_time(seconds) for seconds in (9.6, 119, 150, 9000)]
        ['10 s', '119 s', '2 min', '2.5 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
