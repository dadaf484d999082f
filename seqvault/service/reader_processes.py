"""Starts and watches the processes that answer reads beside a server."""

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from seqvault.errors import InvalidRequestError, StoreFailedError
from seqvault.service.metrics import Metrics

LOG = logging.getLogger("seqvault.server")
START_SECONDS = 120.0  # that a process has to begin to serve; kernels may have to be compiled
END_SECONDS = 5.0  # that one has to end, beyond what reads have
AGAIN_SECONDS = 1.0  # before one that ended is started again
PORT_SECONDS = 3.0  # that those of a server that was killed have to leave the port


class ReaderProcesses:
    """Processes that share a port, on which the kernel spreads connections over them.

    Each attaches to the store of this process (see ``SeqVault.attach``) and speaks the read
    protocol. One that ends is started again; all end with this process.

    Args:
        count: how many, at least 1.
        settings: of each, see ``reader_process``; the port is set here.
        port: where they listen; 0 takes a free one, see ``port``.
        metrics: is told what they count.
        tell_damage: called when one finds a damaged file.

    Raises:
        InvalidRequestError: the port is in use.
        StoreFailedError: they do not start.
    """

    def __init__(
        self,
        count: int,
        settings: dict[str, Any],
        port: int,
        metrics: Metrics,
        tell_damage: Callable[[], None],
    ) -> None:
        self._metrics, self._tell_damage = metrics, tell_damage
        self._reserved = _reserve(settings["host"], port)  # nobody else can take it meanwhile
        self.port = int(self._reserved.getsockname()[1])
        self._settings = json.dumps({**settings, "port": self.port}) + "\n"
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str] | None] = [None] * count
        self._serving = [threading.Event() for _ in range(count)]
        self._threads = [
            threading.Thread(
                target=self._keep, args=(place,), name=f"seqvault-reader-{place}", daemon=True
            )
            for place in range(count)
        ]
        for thread in self._threads:
            thread.start()
        ends = time.monotonic() + START_SECONDS
        for serving in self._serving:
            if not serving.wait(ends - time.monotonic()):
                self.stop(0.0)
                raise StoreFailedError(
                    f"reader processes did not begin to serve within {START_SECONDS:.0f} s; what "
                    "they wrote to standard error says why."
                )

    @property
    def pids(self) -> list[int]:
        """Of the processes that are there now."""
        with self._lock:
            return [one.pid for one in self._processes if one is not None and one.poll() is None]

    def stop(self, grace: float) -> None:
        """Lets reads under way end for so many seconds, and ends all processes."""
        self._stopping.set()
        with self._lock:
            for one in self._processes:
                if one is not None and one.stdin is not None:
                    with suppress(OSError, ValueError):
                        one.stdin.write(f"{grace}\n")
                        one.stdin.close()
        ends = time.monotonic() + grace + END_SECONDS
        for place, thread in enumerate(self._threads):
            thread.join(max(0.0, ends - time.monotonic()))
            process = self._processes[place]
            if thread.is_alive() and process is not None:
                process.kill()
                thread.join()
        self._reserved.close()

    def _keep(self, place: int) -> None:
        """Keeps one process running."""
        while not self._stopping.is_set():
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", "seqvault.service.reader_process"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
            except OSError:
                LOG.exception(json.dumps({"event": "reader not started"}))
                self._stopping.wait(AGAIN_SECONDS)
                continue
            with self._lock:
                self._processes[place] = process
            self._follow(process, place)
            if not self._stopping.is_set():
                ended = {"event": "reader ended", "pid": process.pid, "status": process.returncode}
                LOG.error(json.dumps(ended))
                self._metrics.count_reader_end()
                self._stopping.wait(AGAIN_SECONDS)

    def _follow(self, process: subprocess.Popen[str], place: int) -> None:
        """Tells a process what to do, and takes in what it tells, until it ends."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError, ValueError):  # it ended, so does its output; or all are to stop
            process.stdin.write(self._settings)
            process.stdin.flush()
            if self._stopping.is_set():
                process.stdin.close()
        for line in process.stdout:
            try:
                told = json.loads(line)
            except ValueError:  # it was killed amid a line
                continue
            if "serving" in told:
                self._serving[place].set()
                continue
            if self._metrics.add(told):
                self._tell_damage()
        process.wait()
        with suppress(OSError):
            process.stdin.close()
        process.stdout.close()


def _reserve(host: str, port: int) -> socket.socket:
    """A socket bound to the port, so that others can share it and nobody else has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ends = time.monotonic() + PORT_SECONDS
    while True:
        try:
            # not shared at first: another server's readers would let us in beside them
            with socket.create_server((host, port), family=family) as alone:
                taken = int(alone.getsockname()[1])
            one = socket.socket(family, socket.SOCK_STREAM)
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind((host, taken))
            except BaseException:
                one.close()
                raise
            return one
        except OSError as error:
            if time.monotonic() < ends:
                time.sleep(0.1)
                continue
            raise InvalidRequestError(
                f"cannot listen on {host}:{port} for reads: {error.strerror or error}. Give "
                "another read port, or 0 for a free one."
            ) from error
