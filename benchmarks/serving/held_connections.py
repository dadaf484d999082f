"""Half-open connections, kept until the server ends them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

# A server gives a request ten seconds to arrive, and looks for late ones once a second. The rest is
# for a machine that other work keeps busy.
_LONGEST_SECONDS = 40.0
_LOOK_SECONDS = 0.5
_DRIP_SECONDS = 1.0
_MOST = 500
_CONNECT_SECONDS = 15.0


@dataclass
class _Held:
    name: str
    connection: socket.socket
    since: float
    drip: bytes
    told: bytes = b""
    dripped_at: float = 0.0


class HeldConnections:
    """Holds many at once, so that waiting for a server's time-out holds up nobody.

    ``ended`` counts what came of them: ``rank.held_body 408``, ``dropped`` where the server ended
    one without a word, and ``still open`` after forty seconds, which no server may allow.

    Example:
        >>> with HeldConnections() as held:
        ...     held.waiting
        0
    """

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self._held: deque[_Held] = deque()
        self._room = threading.BoundedSemaphore(_MOST)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> HeldConnections:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until every server has ended its own, then stop."""
        self._closing.set()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Connections that are open now."""
        return len(self._held)

    def hold(self, name: str, address: str, begun: bytes, drip: bytes = b"") -> None:
        """Open a connection, send how a request begins, and leave it at that.

        Args:
            name: Of the kind.
            address: ``host:port``.
            begun: What is sent at once.
            drip: Sent again every second.
        """
        host, port = address.split(":")
        self._room.acquire()
        try:
            connection = socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
            connection.sendall(begun)
            connection.setblocking(False)
        except OSError:
            self._room.release()
            raise
        self._held.append(_Held(name, connection, time.monotonic(), drip))

    def _watch(self) -> None:
        while self._held or not self._closing.is_set():
            time.sleep(_LOOK_SECONDS)
            for _ in range(len(self._held)):
                held = self._held.popleft()
                ended = _look(held)
                if ended is None:
                    self._held.append(held)
                    continue
                held.connection.close()
                self._room.release()
                self.ended[f"{held.name} {ended}"] += 1


def _look(held: _Held) -> str | None:
    """How the server ended the connection; None if it has not."""
    try:
        # The server says why before it ends the connection, so what it said is read to the end.
        while piece := held.connection.recv(4096):
            held.told += piece
        return _status(held.told)
    except (BlockingIOError, InterruptedError):
        pass
    except OSError:
        return _status(held.told)
    now = time.monotonic()
    if now - held.since > _LONGEST_SECONDS:
        return "still open"
    if held.drip and now - held.dripped_at > _DRIP_SECONDS:
        held.dripped_at = now
        with contextlib.suppress(OSError):  # the next look finds out why
            held.connection.send(held.drip)
    return None


def _status(told: bytes) -> str:
    """Of an HTTP answer; ``dropped`` if there was none.

    Example:
        >>> _status(b"HTTP/1.1 408 Request Timeout\\r\\n"), _status(b"")
        ('408', 'dropped')
    """
    return told.split()[1].decode() if told.startswith(b"HTTP/") else "dropped"
