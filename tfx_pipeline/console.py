"""Console output: stages, progress on an overwritten line, times."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from components.heartbeat import EVERY_SECONDS, Done, describe

_REDRAW_SECONDS = 0.2


class Console:
    """Prints stages and their progress.

    A terminal shows progress in place, several times a second; a file, a pipe or a pod's log gets
    a line every few seconds. Both say how much time is left.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._stage, self._began, self._drawn = "", 0.0, 0.0

    def say(self, line: str = "") -> None:
        """Print a line."""
        self._clear()
        print(line, flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Print the start of a stage, and its duration on success."""
        started = time.monotonic()
        self.say(f"== {title}")
        yield
        self.say(f"   {time.monotonic() - started:.1f} s")

    def progress(self, stage: str, done: int, whole: int) -> None:
        """Show how far a stage is."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, now
            self._drawn = now if not self._is_terminal else 0.0
        text = f"   {stage}: {describe(now - self._began, Done(done, whole, ''))}"
        if self._is_terminal and (now - self._drawn > _REDRAW_SECONDS or done == whole):
            self._drawn = now
            print(f"\r\033[K{text}", end="", flush=True)
        elif not self._is_terminal and now - self._drawn > EVERY_SECONDS:
            self._drawn = now
            print(text, flush=True)

    def say_if_silent(self, line: str) -> None:
        """Print a line unless progress is being shown."""
        if time.monotonic() - self._drawn > EVERY_SECONDS / 2:
            self.say(line)

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\033[K", end="")
