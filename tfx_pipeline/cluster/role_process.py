"""One role as a child process: its log, its end, and what it uses of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from tfx_pipeline.cluster.end_with_supervisor import SUPERVISOR_PID


class RoleProcess:
    """Starts one role and starts it again; its output goes to ``<role>.log``.

    Args:
        role: ``chief:0``, ``ps:1``, ...
        command: What to run.
        addresses: Of all tasks by job; TF_CONFIG is made of them.
        folder: Where the log lies.
        heard: Takes each line of its output, from a thread; None listens to none.
        environment: Variables beside this process's own.
    """

    def __init__(
        self,
        role: str,
        command: Sequence[str],
        addresses: Mapping[str, list[str]],
        folder: Path,
        heard: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.role = role
        self.job, _, index = role.partition(":")
        self.address = addresses[self.job][int(index)]
        self.last_line = ""
        self._command, self._heard = list(command), heard
        self._log = folder / f"{role.replace(':', '-')}.log"
        task = {"type": self.job, "index": int(index)}
        self._environment = {
            **(environment or {}),
            "TF_CONFIG": json.dumps({"cluster": dict(addresses), "task": task}),
            SUPERVISOR_PID: str(os.getpid()),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        }
        self._process: subprocess.Popen[str] | None = None
        self._reader: Thread | None = None
        self._cpu = (0.0, 0.0)

    def start(self) -> None:
        """Start it; it must not be running."""
        assert not self.is_running
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # A session of its own: Ctrl-C reaches the supervisor alone, which ends all in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; negative is a signal's number, None while it runs."""
        if self._process is None or self._process.poll() is None:
            return None
        if self._reader is not None:  # its last line says why
            self._reader.join(5.0)
        return self._process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.is_running and self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it and whatever it started, and wait for it."""
        if self._process is None or not self.is_running:  # its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def usage(self) -> tuple[float, int]:
        """Cores in use since the last call, and bytes of memory; zeros where nobody tells."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0, 0
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        now = time.monotonic()
        (before, then), self._cpu = self._cpu, (seconds, now)
        cores = max(seconds - before, 0.0) / (now - then) if then else 0.0
        return cores, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")

    def _read(self, output: IO[str]) -> None:
        with output, self._log.open("a", encoding="utf-8") as log:
            for line in output:
                text = line.rstrip("\n")
                self.last_line = text or self.last_line
                with contextlib.suppress(OSError):  # a full disk must not stop the role
                    log.write(line)
                    log.flush()
                if self._heard is not None:
                    self._heard(text)
