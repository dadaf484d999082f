"""A server as a child process that is always stopped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.1
# Twice this, for the signal and then by force, is below what a pipeline gets to end in.
_STOP_SECONDS = 5.0


class ServerError(RuntimeError):
    """A server that did not start, or ended early: the message holds its last words."""


class ServerProcess:
    """Runs a command until the ``with`` block ends; whatever it started ends with it.

    Args:
        command: The program and its arguments.
        ready_url: Answers 200 once the server is ready.
        start_seconds: How long that may take.
        log: File for what the server prints; without one it is kept only while it runs.
        ends_with_us: Where the system is Linux the server ends also when this process is killed.

    Raises:
        ServerError: On entry, if the program is not there, ends early or is not ready in time.
    """

    def __init__(
        self,
        command: Sequence[str],
        ready_url: str,
        start_seconds: float = 120,
        log: Path | None = None,
        ends_with_us: bool = False,
    ) -> None:
        self._ends_with_us = ends_with_us and sys.platform == "linux"
        self._command = list(command)
        self._ready_url = ready_url
        self._start_seconds = start_seconds
        # Closed by stop().
        self._log = log.open("w+b") if log else tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        command = self._command
        try:
            if self._ends_with_us:
                if shutil.which(command[0]) is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
                # A function to call between fork and exec would be simpler, but gRPC's threads
                # complain of such forks.
                command = [sys.executable, "-c", _ENDS_WITH_PARENT, str(os.getpid()), *command]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerError(
                f"cannot start {self._command[0]!r} ({error.strerror}): install it or set another "
                "command"
            ) from error
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the process and its children: SIGTERM, then SIGKILL."""
        process = self._process
        if process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sign)
            except ProcessLookupError:
                break
            try:
                process.wait(timeout=_STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None
        self._log.close()

    def detach(self) -> None:
        """Leave the process running: ``stop`` does nothing from now on."""
        self._process = None
        self._log.close()

    def last_words(self) -> str:
        """The end of what the process printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        return self._log.read().decode(errors="replace").strip()

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        shown = " ".join(self._command)
        deadline = time.monotonic() + self._start_seconds
        while not self._answers():
            code = self._process.poll()
            if code is not None:
                raise ServerError(
                    f"`{shown}` ended with exit code {code} before it was ready: "
                    f"{self.last_words()}"
                )
            if time.monotonic() > deadline:
                raise ServerError(
                    f"`{shown}` was not ready after {self._start_seconds:.0f} s: "
                    f"{self.last_words()}"
                )
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self._ready_url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


# Linux ends a process with its parent if it asks for that; it does so before it becomes the server.
# The parent may have ended before it asked.
_PR_SET_PDEATHSIG = 1
_ENDS_WITH_PARENT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
