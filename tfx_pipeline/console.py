"""Console output: stages, progress on an overwritten line, times."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_REDRAW_SECONDS = 0.2


class Console:
    """Prints stages and their progress.

    A terminal shows progress in place; a file or pipe gets no progress lines, so that logs stay
    readable.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._drawn = 0.0

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
        """Show how far a stage is, a few times a second."""
        now = time.monotonic()
        if self._is_terminal and (now - self._drawn > _REDRAW_SECONDS or done == whole):
            self._drawn = now
            print(f"\r\033[K   {stage}: {done:,} of {whole:,}", end="", flush=True)

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\033[K", end="")
