"""The read protocol's client: connections to one server, kept from call to call."""

import os
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress

import numpy as np

from seqvault.codec import frames
from seqvault.errors import AccessDeniedError, ProtocolError, SeqVaultError, ServerUnavailableError
from seqvault.service import read_messages
from seqvault.service.read_messages import ReadMessage

KEPT = 64  # idle connections
MAX_ANSWER = 1 << 30  # bytes of an answer that is taken in
CONNECT_SECONDS = 2.0  # that a connection may take to come about


class BrokenChannelError(SeqVaultError):
    """A server cannot be asked over the read protocol."""

    retryable = True


class OtherServerError(BrokenChannelError):
    """Another server answers, or the same one after a restart."""


class ReadChannel:
    """Asks one server for reads. Safe for many threads: each call has a connection of its own.

    Args:
        host, port: where the server speaks the protocol.
        instance: 16 bytes; the server there must say that it is this one, so that a port that
            leads elsewhere gives no wrong answers.
        token: of the caller, or "".
        tls: None: plain text.

    Raises:
        BrokenChannelError: of each call, if the server cannot be reached this way.
    """

    def __init__(
        self, host: str, port: int, instance: bytes, token: str, tls: ssl.SSLContext | None
    ) -> None:
        self._address, self._instance, self._tls = (host, port), instance, tls
        self._token, self._idle = token.encode(), list[socket.socket]()
        self._lock, self._process, self._number = threading.Lock(), os.getpid(), 0
        self.largest = 0  # bytes of a request that the server takes; 0: it was not asked yet

    def read(self, message: ReadMessage, timeout: float) -> np.ndarray:
        """The body of the answer to a read, uint8.

        Args:
            message: what is asked; it is told how long its caller waits.
            timeout: seconds.

        Raises:
            BrokenChannelError: it cannot be asked this way; another may work.
            ServerUnavailableError: it did not answer in time.
            SeqVaultError: what the server says of the request.
        """
        ends = time.monotonic() + timeout
        with self._lock:
            self._number += 1
            number = self._number
        while True:
            sock, fresh = self._connection(ends)
            try:
                message.seconds = max(ends - time.monotonic(), 0.001)
                sock.settimeout(message.seconds)
                sock.sendall(frames.frame(frames.READ, number, *message.parts()))
                answered, answer = _receive(sock, number, ends)
                if answered not in (frames.ANSWER, frames.ERROR):
                    raise ProtocolError(f"a frame of kind {answered} came in place of an answer.")
            except TimeoutError:
                sock.close()
                raise ServerUnavailableError(
                    f"the SeqVault server at {self._address[0]}:{self._address[1]} took too long "
                    f"to answer a read ({timeout} s); check that it runs there, and try again."
                ) from None
            except (OSError, ProtocolError) as error:
                sock.close()
                if fresh or isinstance(error, ProtocolError):
                    raise BrokenChannelError(str(error)) from error
                continue  # the server closed what lay idle
            except BaseException:
                sock.close()
                raise
            if answered == frames.ERROR:
                self._give_back(sock)
                raise read_messages.error_of(answer.tobytes())
            self._give_back(sock)
            return answer

    def _connection(self, ends: float) -> tuple[socket.socket, bool]:
        """A connection for exclusive use, and whether it is new."""
        with self._lock:
            if self._process != os.getpid():  # those of the process before the fork are its own
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop(), False
        return self._connect(ends), True

    def _connect(self, ends: float) -> socket.socket:
        timeout = max(min(ends - time.monotonic(), CONNECT_SECONDS), 0.001)
        try:
            sock = socket.create_connection(self._address, timeout)
        except OSError as error:
            raise BrokenChannelError(str(error)) from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
            sock.sendall(frames.frame(frames.HELLO, 0, self._token))
            kind, answer = _receive(sock, 0, time.monotonic() + timeout)
            if kind == frames.ERROR:
                told = read_messages.error_of(answer.tobytes())
                if isinstance(told, AccessDeniedError):
                    raise told
                raise BrokenChannelError(str(told))
            if kind != frames.WELCOME:
                raise ProtocolError(f"a frame of kind {kind} came in place of a welcome.")
            instance, self.largest, _ = read_messages.welcomed(answer)
            if instance != self._instance:
                raise OtherServerError("another server answers there.")
        except (OSError, struct.error, ProtocolError) as error:
            sock.close()
            raise BrokenChannelError(str(error)) from error
        except BaseException:
            sock.close()
            raise
        return sock

    def _give_back(self, sock: socket.socket) -> None:
        with self._lock:
            if len(self._idle) < KEPT and self._process == os.getpid():
                self._idle.append(sock)
                return
        sock.close()

    def close(self) -> None:
        """Closes the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for sock in idle:
            with suppress(OSError):
                sock.close()


def _receive(sock: socket.socket, number: int, ends: float) -> tuple[int, np.ndarray]:
    """Kind and body of the frame that comes next.

    Raises:
        ProtocolError: it is no answer to the request of that number.
        OSError: the connection broke or took too long.
    """
    head = bytearray(frames.HEADER)
    _fill(sock, memoryview(head), ends)
    magic, version, kind, size, answered = frames.header_of(head)
    if magic != frames.MAGIC or version != frames.PROTOCOL:
        raise ProtocolError("what answers there does not speak this read protocol.")
    if size > MAX_ANSWER:
        raise ProtocolError(f"an answer says that it has {size} bytes.")
    whole = np.empty(frames.HEADER + size, np.uint8)
    whole[: frames.HEADER] = head
    _fill(sock, whole.data[frames.HEADER :], ends)
    if not frames.is_whole(whole):
        raise ProtocolError("the checksum of an answer does not fit.")
    if answered != number and kind != frames.ERROR:
        raise ProtocolError(f"an answer to request {answered} came to request {number}.")
    return kind, whole[frames.HEADER :]


def _fill(sock: socket.socket, room: memoryview, ends: float) -> None:
    at = 0
    while at < len(room):
        count = sock.recv_into(room[at:])
        if not count:
            raise ConnectionResetError("the server closed the connection.")
        at += count
        if at < len(room) and time.monotonic() > ends:
            raise TimeoutError
