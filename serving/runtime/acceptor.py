"""Accepts connections; under overload, requests wait in the kernel instead of being read."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from serving.runtime.tcp_info import read_tcp_info

log = logging.getLogger(__name__)
# Accepted in one turn of the loop, so that those accepted before are served in between.
_BATCH = 64
_BACKLOG = 1024
_POLL_SECONDS = 0.005
_SWEEP_SECONDS = 0.2
_PAUSE_SECONDS = 1.0
_ON_THE_WAY_SECONDS = 0.1


@dataclass(frozen=True)
class Parking:
    """Which requests wait unread while there is no room for them.

    Attributes:
        first_line: How they begin, for instance ``b"POST /v1/rank "``. Others are read at once.
        room: How many more may be read now.
        longest_seconds: Read after this time in any case, to be refused.
    """

    first_line: bytes
    room: Callable[[], int]
    longest_seconds: float


class Acceptor:
    """Listens on a port and makes a protocol of each connection.

    Reading and parsing a request costs the event loop many times what accepting a connection
    does. If callers hang up before they are answered and come back, reading every request would
    take all of the loop's time, the kernel's queue would grow, and each request read from it would
    be of a caller who is gone: no one is answered any more. Therefore

    * a connection whose caller has hung up is closed unread, and
    * while there is no room, requests are left unread in the kernel. When there is, the newest is
      read first: its caller will wait for longest.

    Runs on one event loop and is used from there alone.

    Args:
        factory: Makes the protocol of a connection.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        parking: Which requests may wait unread; None: none.
        max_parked: Beyond these the longest-waiting is closed.
    """

    def __init__(
        self,
        factory: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
        parking: Parking | None = None,
        max_parked: int = 1024,
    ) -> None:
        self._factory = factory
        self._host = host
        self._port = port
        self._parking = parking
        self._max_parked = max_parked
        self._listeners: list[socket.socket] = []
        # The oldest first, with the time at which each was accepted.
        self._parked: deque[tuple[socket.socket, float]] = deque()
        # Nothing of their request has come yet, so it is not known whether there must be room for
        # it; the oldest first, with the time at which each was accepted.
        self._silent: dict[socket.socket, float] = {}
        # Handed on at this time, but not yet counted by whoever knows the room; oldest first.
        self._on_the_way: dict[asyncio.BaseProtocol, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._poll: asyncio.TimerHandle | None = None
        self._swept_at = 0.0
        self.dropped = 0

    @property
    def parked(self) -> int:
        """Requests that wait unread."""
        return len(self._parked)

    def start(self) -> int:
        """Bind and accept; returns the bound port.

        Raises:
            OSError: The port is in use, or the address is not this machine's.
        """
        found = socket.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, address in sorted({(entry[0], entry[4]) for entry in found}):
                listener = socket.create_server(address, family=family, backlog=_BACKLOG)
                self._listeners.append(listener)
                listener.setblocking(False)
        except OSError:
            self._close_listeners()
            raise
        for listener in self._listeners:
            self._listen(listener)
        return int(self._listeners[0].getsockname()[1])

    def arrived(self, protocol: asyncio.BaseProtocol) -> None:
        """Say that a connection's first request is being handled, or that the connection ended."""
        self._on_the_way.pop(protocol, None)

    async def stop(self) -> None:
        """Close the port; requests that wait unread are read now."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
        self._close_listeners()
        for connection in list(self._silent):
            self._hear(connection)
        for connection, _ in self._parked:
            self._hand_on(connection)
        self._parked.clear()
        if self._poll is not None:
            self._poll.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                # No descriptor or memory is left: callers wait in the kernel until there is.
                log.error("Accepting connections pauses for %g s: %s", _PAUSE_SECONDS, error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(_PAUSE_SECONDS, self._listen, listener)
                return
            connection.setblocking(False)
            self._sort(connection)

    def _sort(self, connection: socket.socket) -> None:
        """Hand it on, park it or close it."""
        if self._is_gone(connection):
            return
        if self._parking is None:
            self._hand_on(connection)
            return
        begins = _first_bytes(connection, len(self._parking.first_line))
        if not begins:
            self._silent[connection] = time.monotonic()
            asyncio.get_running_loop().add_reader(connection, self._hear, connection)
            self._poll_soon()
        elif begins != self._parking.first_line:
            self._hand_on(connection)
        elif self._room() > 0:
            self._hand_on(connection, counted=True)
        else:
            self._park(connection)

    def _hear(self, connection: socket.socket) -> None:
        """Sort one that was silent, or hand it on if it still is."""
        del self._silent[connection]
        asyncio.get_running_loop().remove_reader(connection)
        if _first_bytes(connection, 1):
            self._sort(connection)
        elif not self._is_gone(connection):
            self._hand_on(connection)

    def _park(self, connection: socket.socket) -> None:
        self._parked.append((connection, time.monotonic()))
        if len(self._parked) > self._max_parked:
            self._drop(self._parked.popleft()[0])
        self._poll_soon()

    def _poll_soon(self) -> None:
        if self._poll is None:
            loop = asyncio.get_running_loop()
            self._poll = loop.call_later(_POLL_SECONDS, self._look_again)

    def _look_again(self) -> None:
        assert self._parking is not None
        self._poll = None
        now = time.monotonic()
        if now - self._swept_at > _SWEEP_SECONDS:
            self._swept_at = now
            self._parked = deque(each for each in self._parked if not self._is_gone(each[0]))
        longest = self._parking.longest_seconds
        while self._parked and now - self._parked[0][1] > longest:
            self._hand_on(self._parked.popleft()[0])
        for connection, since in list(self._silent.items()):
            if now - since <= longest and len(self._silent) <= self._max_parked:
                break
            self._hear(connection)
        while self._parked and self._room() > 0:
            connection, _ = self._parked.pop()
            if not self._is_gone(connection):
                self._hand_on(connection, counted=True)
        if self._parked or self._silent:
            self._poll_soon()

    def _room(self) -> int:
        assert self._parking is not None
        # One that sends its header byte by byte takes up no room.
        oldest = time.monotonic() - _ON_THE_WAY_SECONDS
        while self._on_the_way and next(iter(self._on_the_way.values())) < oldest:
            self._on_the_way.pop(next(iter(self._on_the_way)))
        return self._parking.room() - len(self._on_the_way)

    def _is_gone(self, connection: socket.socket) -> bool:
        """Whether the caller has hung up; such a connection is closed."""
        if not read_tcp_info(connection).hung_up:
            return False
        self._drop(connection)
        return True

    def _drop(self, connection: socket.socket) -> None:
        self.dropped += 1
        connection.close()

    def _hand_on(self, connection: socket.socket, counted: bool = False) -> None:
        protocol = self._factory()
        if counted:
            self._on_the_way[protocol] = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._connect(connection, protocol))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # the caller has hung up in the meantime
            self.arrived(protocol)
            connection.close()


def _first_bytes(connection: socket.socket, size: int) -> bytes:
    try:
        return connection.recv(size, socket.MSG_PEEK)
    except OSError:  # nothing has come yet, or the connection is gone
        return b""
