"""Clients that rank again and again."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

_HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Load:
    """Clients that ask again and again; what they got, and how long it took.

    All of them are coroutines of one thread: 64 threads would want more of the machine than the
    servers do.
    """

    def __init__(self, address: str, clients: int, patience: float, bodies: list[str]) -> None:
        self._host, port = address.rsplit(":", 1)
        self._port = int(port)
        self._patience = patience
        self._bodies = bodies
        self.statuses: Counter[str] = Counter()
        # The version that answered, when it was asked, and the seconds that it took.
        self.answers: list[tuple[int, float, float]] = []
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run_all(clients)))
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join()

    async def _run_all(self, clients: int) -> None:
        await asyncio.gather(*[self._run(number) for number in range(clients)])

    async def _run(self, number: int) -> None:
        connection: Connection | None = None
        while not self._stopping:
            number += 64
            started = time.perf_counter()
            kept: list[Connection] = [] if connection is None else [connection]
            try:
                status, content, last = await asyncio.wait_for(
                    self._ask(self._bodies[number % len(self._bodies)], kept), self._patience
                )
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
                status, content, last = type(error).__name__, b"", True
            connection = kept[0] if kept else None
            if last and connection is not None:
                connection[1].close()
                connection = None
            taken = time.perf_counter() - started
            self.statuses[status] += 1
            if status == "200":
                version = int(json.loads(content)["model_version"])
                self.answers.append((version, started, taken))
                if last:
                    self.statuses["last of its connection"] += 1
            elif status in ("503", "ConnectionRefusedError"):
                await asyncio.sleep(max(0.0, self._patience - taken))
        if connection is not None:
            connection[1].close()

    async def _ask(self, body: str, kept: list[Connection]) -> tuple[str, bytes, bool]:
        """Status, content, and whether the connection ends; ``kept`` gets a new connection."""
        if not kept:
            kept.append(await asyncio.open_connection(self._host, self._port))
        reader, writer = kept[0]
        writer.write(_HEAD % len(body) + body.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(line for line in head if line.startswith(b"content-length:"))
        content = await reader.readexactly(int(length.split(b":")[1]))
        return head[0].split()[1].decode(), content, b"connection: close" in head
