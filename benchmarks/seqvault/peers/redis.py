"""Redis over a Unix socket: one packed blob per user, and a list with an entry per event."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.workload import LAST_N, Columns, Histories, pieces

# one reply instead of 1000: the client would spend its time in taking them apart
NEWEST = f"return table.concat(redis.call('LRANGE', KEYS[1], 0, {LAST_N - 1}))"


def installed() -> bool:
    """Whether there is a ``redis-server``."""
    return shutil.which("redis-server") is not None


class Server:
    """A ``redis-server`` of our own that listens on a Unix socket in a folder."""

    def __init__(self, path: str, durable: bool) -> None:
        Path(path).mkdir(parents=True)
        # socket paths must be short
        self._folder = tempfile.TemporaryDirectory(prefix="sv")
        socket = f"{self._folder.name}/s"
        always = ["--appendonly", "yes", "--appendfsync", "always"] if durable else []
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", socket, "--dir", path, "--save", "",
             *always],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.client: Any = redis.Redis(unix_socket_path=socket)
        for _ in range(200):
            try:
                self.client.ping()
                return
            except redis.exceptions.ConnectionError:
                time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def cpu_seconds(self) -> float:
        """CPU time of the server, which is not in this process's."""
        info = self.client.info("cpu")
        return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])

    def close(self) -> None:
        """Ends the server."""
        self.client.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()


class RedisPeer(Peer):
    """In memory.

    Args:
        lists: an entry per event; otherwise a blob per user, and no appends.
        durable: appends are on the disk before they are acknowledged.
    """

    def __init__(
        self, path: str, histories: Histories, lists: bool = True, durable: bool = False
    ) -> None:
        super().__init__(path, histories)
        self.name = "redis lists" if lists else "redis blob"
        self._lists = lists
        self.server = Server(path, durable)
        self._client = self.server.client
        self._newest = self._client.register_script(NEWEST)
        self._empty = int(self._client.info("memory")["used_memory"])

    def fill(self, histories: Histories) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for place, user in enumerate(histories.users.tolist()):
            columns = histories.of_user(place)
            if self._lists:
                pipeline.lpush(user, *pieces(self.blobs.rows(columns)))
            else:
                pipeline.set(user, self.blobs.pack(columns))
            if place % 100 == 99:
                pipeline.execute()
        pipeline.execute()

    def append(self, events: Columns) -> None:
        parts = Histories.of("", events)
        pipeline = self._client.pipeline(transaction=False)
        for place, user in enumerate(parts.users.tolist()):
            pipeline.lpush(user, *pieces(self.blobs.rows(parts.of_user(place))))
        pipeline.execute()

    def read(self, users: np.ndarray) -> Columns:
        out = self.blobs.empty(len(users))
        if self._lists:
            pipeline = self._client.pipeline(transaction=False)
            for user in users.tolist():
                self._newest(keys=[user], client=pipeline)
            for row, entries in enumerate(pipeline.execute()):
                self.blobs.fill_rows(out, row, entries)
        else:
            for row, blob in enumerate(self._client.mget(users.tolist())):
                if blob is not None:
                    self.blobs.fill(out, row, blob)
        return out

    def bytes_stored(self) -> int:
        return int(self._client.info("memory")["used_memory"]) - self._empty

    def reopen(self, cached: bool) -> None:
        raise NotImplementedError("it is in memory: there are no cold reads")

    def close(self) -> None:
        self.server.close()
