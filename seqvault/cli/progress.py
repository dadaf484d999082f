"""Progress on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 10.0  # between lines; a command that takes less prints none


class ShownProgress:
    """A ``seqvault.progress.Progress`` that a person sees.

    Args:
        command: what begins each line.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._on_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._unit = ""
        self._told = time.monotonic()

    def __call__(self, unit: str, done: int, total: int) -> None:
        """See ``seqvault.progress.Progress``."""
        if self._on_terminal:
            self._draw(unit, done, total)
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            line = f"seqvault {self._command}: {done:,} of {total:,} {unit}"
            print(line, file=sys.stderr, flush=True)

    def _draw(self, unit: str, done: int, total: int) -> None:
        if self._bar is None or unit != self._unit:
            self.close()
            self._unit = unit
            self._bar = tqdm(
                desc=self._command, total=total, unit=f" {unit}", unit_scale=True, file=sys.stderr
            )
        self._bar.total = total  # more servers may have told theirs
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "ShownProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
