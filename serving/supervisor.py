"""Supervised child processes: restarted when they die, ended with their parent."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

log = logging.getLogger(__name__)
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
# One that ran so long before it died starts again as if it had never died.
_SETTLED_SECONDS = 60.0


@dataclass
class Child:
    """One ``laser-serving`` command that should run.

    Attributes:
        name: For messages.
        command: Called before each start; returns the arguments.
    """

    name: str
    command: Callable[[], Sequence[str]]
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    started_at: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS
    next_start: float = 0.0
    restarts: int = 0

    def start(self) -> None:
        """Start it; it ends by itself when this process does, however that ends."""
        # The pipe's other end is closed by the kernel, even if this process is killed; it is in
        # this process's group: whoever ends the group, ends all.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.cli", *self.command(), "--end_with_stdin"],
            stdin=subprocess.PIPE,
        )
        self.started_at = time.monotonic()

    @property
    def ended(self) -> int | None:
        """Its exit code, None while it runs or waits to be started."""
        return None if self.process is None else self.process.poll()

    def keep_running(self) -> None:
        """Restart it if it died, with exponential backoff; the failure is reported at once."""
        now = time.monotonic()
        code = self.ended
        if code is not None:
            if now - self.started_at > _SETTLED_SECONDS:
                self.pause = _FIRST_PAUSE_SECONDS
            log.error("%s ended with code %d; it starts again in %g s", self.name, code, self.pause)
            self._forget()
            self._wait_from(now)
        if self.process is None and now >= self.next_start:
            self.restarts += 1
            try:
                self.start()
            except OSError as error:  # no memory or processes are left for now
                log.error("%s cannot be started (%s); again in %g s", self.name, error, self.pause)
                self._wait_from(now)
                return
            log.info("%s started again as process %d", self.name, self._pid)

    def stop(self, seconds: float) -> None:
        """Ask it to end, wait, and kill it if it does not."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._forget()

    def _wait_from(self, now: float) -> None:
        self.next_start = now + self.pause
        self.pause = min(2 * self.pause, _LONGEST_PAUSE_SECONDS)

    @property
    def _pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def _forget(self) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.close()
        self.process = None
