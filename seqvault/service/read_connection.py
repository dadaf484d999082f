"""One connection of the read protocol: bytes in, frames out, within bounds."""

import socket
import ssl
from collections import deque
from collections.abc import Callable

from seqvault.codec import frames
from seqvault.errors import LimitError, ProtocolError
from seqvault.service.bytes_in_flight import BytesInFlight, Held

MAX_BODY = 64 << 20  # bytes of a request
SMALL_BODY = 1 << 16  # up to which a request is taken in without asking for room
CHUNK = 1 << 16
_NOT_NOW = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
Sent = Callable[[], None]


class Frame:
    """A frame that has come whole.

    Args:
        kind: what it is.
        number: of the request.
        body: its bytes.
        held: what is held for them; None: nothing.
    """

    __slots__ = ("body", "held", "kind", "number")

    def __init__(self, kind: int, number: int, body: memoryview, held: Held | None) -> None:
        self.kind, self.number, self.body, self.held = kind, number, body, held


class ReadConnection:
    """A connection; of the thread that serves it.

    At most one chunk beyond an unfinished frame is taken in, and a large frame only when there is
    room for it. Answers wait in ``out`` while the caller takes none; nothing more is taken from
    him then.

    Args:
        sock: connected, not blocking; of TLS: its handshake is not done yet.
        peer: address of the caller.
        flight: the bytes of all calls.
        now: monotonic seconds.
    """

    def __init__(self, sock: socket.socket, peer: str, flight: BytesInFlight, now: float) -> None:
        self.sock, self.peer, self._flight = sock, peer, flight
        self.fd = sock.fileno()
        self.secure = sock if isinstance(sock, ssl.SSLSocket) else None
        self.shaking = self.secure is not None
        self.token: str | None = None  # None: it has not said hello
        self.working = 0  # requests that workers have
        self.closed, self.watched = False, 0
        self.closing = 0.0  # since when it is over; 0: it is not
        self.opened = self.moved = now  # of the last bytes in or out
        self.out: deque[tuple[memoryview, Sent | None]] = deque()
        self._buffer = bytearray()
        self._skip = 0  # bytes of a refused frame that are still to come
        self._held: Held | None = None

    @property
    def unfinished(self) -> bool:
        """Whether a frame has come in part."""
        return bool(self._buffer) or self._skip > 0

    def shake(self) -> None:
        """Goes on with the handshake of TLS.

        Raises:
            OSError: it failed.
        """
        assert self.secure is not None
        try:
            self.secure.do_handshake()
        except _NOT_NOW:
            return
        self.shaking = False

    def receive(self, now: float) -> bool:
        """Takes in a chunk; False: the caller is gone.

        Raises:
            OSError: the connection broke.
        """
        while True:
            try:
                data = self.sock.recv(CHUNK)
            except _NOT_NOW:
                return True
            if not data:
                return False
            if self.closing:
                return True  # nobody wants it any more
            self.moved = now
            if self._skip:
                dropped = min(self._skip, len(data))
                self._skip -= dropped
                data = data[dropped:]
            self._buffer += data
            # what TLS has taken from the socket already wakes nobody
            if self.secure is None or not self.secure.pending():
                return True

    def next_frame(self) -> Frame | None:
        """The next frame that has come whole; None: none has.

        Raises:
            LimitError: it is too large for now, and is passed over.
            ProtocolError: what comes are no frames of this protocol.
        """
        buffer = self._buffer
        if len(buffer) < frames.HEADER:
            if not frames.MAGIC.startswith(bytes(buffer[:4])):
                raise ProtocolError("what came is no frame of the read protocol.")
            return None
        magic, version, kind, size, number = frames.header_of(buffer)
        if magic != frames.MAGIC:
            raise ProtocolError("what came is no frame of the read protocol.")
        if version != frames.PROTOCOL:
            raise ProtocolError(
                f"the frame is of version {version} of the read protocol; this server speaks "
                f"{frames.PROTOCOL}."
            )
        if size > MAX_BODY:
            raise ProtocolError(
                f"a frame says that it has {size} bytes; the most that are taken are {MAX_BODY}."
            )
        total = frames.HEADER + size
        if size > SMALL_BODY and self._held is None:
            try:
                self._held = self._flight.hold(size)
            except LimitError as error:
                self._skip = max(total - len(buffer), 0)
                del buffer[:total]
                raise RefusedFrameError(number, error) from None
        if len(buffer) < total:
            return None
        whole = memoryview(bytes(memoryview(buffer)[:total]))
        if not frames.is_whole(whole):
            raise ProtocolError("the checksum of a frame does not fit.")
        del buffer[:total]
        held, self._held = self._held, None
        return Frame(kind, number, whole[frames.HEADER :], held)

    def send(self, data: memoryview, sent: Sent | None, now: float) -> None:
        """Sends now what the caller takes, and keeps the rest.

        Args:
            data: one or more whole frames.
            sent: called when all of it is sent, or never will be.
            now: monotonic seconds.

        Raises:
            OSError: the connection broke.
        """
        self.out.append((data, sent))
        if len(self.out) == 1:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Sends of what waits as much as the caller takes.

        Raises:
            OSError: the connection broke.
        """
        out = self.out
        while out:
            data, sent = out[0]
            try:
                count = self.sock.send(data)
            except _NOT_NOW:
                return
            self.moved = now
            if count < len(data):
                out[0] = data[count:], sent
                continue
            out.popleft()
            if sent is not None:
                sent()

    def close(self) -> None:
        """Closes the connection and gives back what it holds."""
        self.closed = True
        if self._held is not None:
            self._held.end()
        for _, sent in self.out:
            if sent is not None:
                sent()
        self.out.clear()
        self._buffer.clear()
        self.sock.close()


class RefusedFrameError(Exception):
    """There is no room for a frame; it is passed over, and others may follow.

    Args:
        number: of the request.
        error: what the caller is told.
    """

    def __init__(self, number: int, error: LimitError) -> None:
        super().__init__(str(error))
        self.number, self.error = number, error
