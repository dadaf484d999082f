"""The read protocol's server: one thread that waits for all connections."""

import json
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable

from seqvault.codec import frames
from seqvault.errors import AccessDeniedError, InvalidRequestError, LimitError, ProtocolError
from seqvault.service import read_messages
from seqvault.service.bytes_in_flight import BytesInFlight
from seqvault.service.call import Call
from seqvault.service.call_log import CallLog
from seqvault.service.metrics import Metrics
from seqvault.service.read_answers import Answer, ReadAnswers, Request
from seqvault.service.read_connection import (
    MAX_BODY,
    Frame,
    ReadConnection,
    RefusedFrameError,
)
from seqvault.service.read_messages import ReadMessage
from seqvault.service.tokens import Tokens
from seqvault.service.work_pool import WorkPool
from seqvault.store import SeqVault

LOG = logging.getLogger("seqvault.server")
CONNECTIONS = 1024
AT_A_TIME = 16  # requests of a connection that are worked on
BACKLOG = 128
HELLO_SECONDS = 10.0  # that a caller has to say who it is
MOVE_SECONDS = 30.0  # that a frame may take to go on, in either direction
LINGER_SECONDS = 2.0  # that a caller has to close a connection that is over
LOOK_SECONDS = 1.0  # between two looks at the clock
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


class ReadServer:
    """Serves reads of a store over the protocol of ``docs/seqvault/protocol.md``.

    One thread takes in requests and sends answers; it never waits for a caller. What it holds is
    bounded: connections, requests of each that are worked on, bytes of frames that have come in
    part, answers that a caller does not take. A connection that breaks the protocol, or does not
    move in the middle of a frame, is closed; others do not notice.

    Args:
        vault: the store.
        host, port: where it listens; port 0 takes a free one, see ``port``.
        instance: 16 bytes by which callers know that they have reached this server.
        pool: workers for all but small reads.
        flight: the bytes of all calls.
        metrics: is told of every call. log: of the calls.
        tell_damage: called when a file turns out to be damaged.
        tokens: who may read; None: no tokens asked.
        tls: None: plain text.
        connections: at most; more are refused.
        shared_port: other processes listen on the port, too.

    Raises:
        InvalidRequestError: the port is in use.
    """

    def __init__(
        self,
        vault: SeqVault,
        host: str,
        port: int,
        instance: bytes,
        pool: WorkPool,
        flight: BytesInFlight,
        metrics: Metrics,
        log: CallLog,
        tell_damage: Callable[[], None],
        tokens: Tokens | None = None,
        tls: ssl.SSLContext | None = None,
        connections: int = CONNECTIONS,
        shared_port: bool = False,
    ) -> None:
        self._tokens, self._tls, self._flight, self._most = tokens, tls, flight, connections
        self._metrics, self._log = metrics, log
        self._welcome = read_messages.welcome(instance, MAX_BODY, AT_A_TIME)
        self._answers = ReadAnswers(
            vault, pool, flight, metrics, log, tell_damage, self._send, self._finish
        )
        self._listener = _listen(host, port, shared_port)
        self.port = int(self._listener.getsockname()[1])
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._epoll.register(self._listener, _IN)
        self._epoll.register(self._wake, _IN)
        self._connections: dict[int, ReadConnection] = {}
        self._again: dict[int, ReadConnection] = {}  # with frames that wait
        self._finished: deque[Answer] = deque()
        self._ends: float | None = None  # when to stop at the latest; None: not asked to
        self._look = self._pause = 0.0
        self._thread = threading.Thread(target=self._run, name="seqvault-read-server", daemon=True)
        self._thread.start()

    # ---- the thread

    def stop(self, grace: float = 10.0) -> None:
        """Takes no more requests, lets those under way end for so long, and closes all."""
        if self._ends is not None and not self._thread.is_alive():
            return  # stopped before
        self._ends = time.monotonic() + grace
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        with self._wake_lock:  # not by the thread, which may end before it is woken
            os.close(self._wake)
            self._wake = -1

    @property
    def _is_over(self) -> bool:
        if self._ends is None:
            return False
        busy = any(one.working or one.out for one in self._connections.values())
        return not busy or time.monotonic() >= self._ends

    def _run(self) -> None:
        while not self._is_over:
            try:
                self._turn()
            except Exception:  # no connection may end the service of all others
                LOG.exception(json.dumps({"event": "read server failed"}))
                time.sleep(0.1)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._epoll.close()

    def _turn(self) -> None:
        """Takes in what has come, answers it, and sends what waited."""
        events = self._epoll.poll(0 if self._again else LOOK_SECONDS)
        now = time.monotonic()
        ready, self._again = self._again, {}
        for fd, mask in events:
            connection = self._connections.get(fd)
            if connection is not None:
                if self._move(connection, mask, now):
                    ready[fd] = connection
            elif fd == self._wake:
                os.eventfd_read(self._wake)
            elif fd == self._listener.fileno():
                self._accept(now)
        while self._finished:
            request, data = self._finished.popleft()
            request.connection.working -= 1
            self._send(request.connection, data, request.held.end)
            if not request.connection.closed:  # another may have its number by now
                ready[request.connection.fd] = request.connection
        requests: list[Request] = []
        for connection in ready.values():
            self._take_frames(connection, requests)
        if requests:
            self._answers.answer(requests)
        if now - self._look >= LOOK_SECONDS:
            self._look = now
            self._close_those_that_hang(now)

    def _move(self, connection: ReadConnection, mask: int, now: float) -> bool:
        """Takes in and sends what can be; whether frames may have come."""
        try:
            if connection.shaking:
                connection.shake()
                if connection.shaking:
                    return False
            if mask & _OUT:
                connection.flush(now)
                if connection.closing and not connection.out:
                    self._end(connection)
            if mask & ~_OUT and not connection.receive(now):
                self._drop(connection)
                return False
        except OSError:
            self._drop(connection)
            return False
        except Exception:
            LOG.exception(json.dumps({"event": "connection failed", "peer": connection.peer}))
            self._drop(connection)
            return False
        self._watch(connection)
        return True

    def _take_frames(self, connection: ReadConnection, requests: list[Request]) -> None:
        """Adds the requests that have come whole to the list, a fair number of them."""
        taken = 0
        try:
            while not (connection.closed or connection.closing or connection.out or self._ends):
                if taken + connection.working >= AT_A_TIME:
                    if not connection.working:
                        self._again[connection.fd] = connection
                    return
                frame = connection.next_frame()
                if frame is None:
                    return
                taken += self._take(connection, frame, requests)
        except RefusedFrameError as refused:
            self._tell(connection, refused.error, refused.number)
            self._again[connection.fd] = connection
        except (ProtocolError, AccessDeniedError) as error:
            self._tell(connection, error, 0)
            self._end(connection)
        except Exception:
            LOG.exception(json.dumps({"event": "connection failed", "peer": connection.peer}))
            self._drop(connection)  # the requests of others go on
        finally:
            self._watch(connection)

    def _take(self, connection: ReadConnection, frame: Frame, requests: list[Request]) -> int:
        """Takes a frame in; the number of requests that it was."""
        request: Request | None = None
        try:
            if frame.kind == frames.HELLO:
                self._greet(connection, frame)
            else:
                request = self._request_of(connection, frame)
        finally:
            if request is None and frame.held is not None:
                frame.held.end()
        if request is None:
            return 0
        requests.append(request)
        return 1

    def _greet(self, connection: ReadConnection, frame: Frame) -> None:
        token = bytes(frame.body).decode(errors="replace")
        self._check(token)
        connection.token = token
        made = frames.frame(frames.WELCOME, frame.number, self._welcome)
        self._send(connection, memoryview(made), None)

    def _request_of(self, connection: ReadConnection, frame: Frame) -> Request | None:
        """The request of a frame; None: it is refused, and the connection goes on."""
        if frame.kind != frames.READ:
            raise ProtocolError(f"a server takes no frames of kind {frame.kind}.")
        if connection.token is None:
            raise AccessDeniedError("the first frame of a connection must be a hello.")
        try:
            self._check(connection.token)
            message = ReadMessage.parse(frame.body)
            held = frame.held or self._flight.hold(len(frame.body))
        except (AccessDeniedError, LimitError, ProtocolError) as error:
            self._tell(connection, error, frame.number)
            return None
        return Request(connection, frame.number, message, time.perf_counter(), held)

    def _check(self, token: str) -> None:
        if self._tokens is not None:
            self._tokens.check(token, "read")

    def _tell(self, connection: ReadConnection, error: Exception, number: int) -> None:
        """Sends an error that is told before a request is worked on."""
        call = Call("Read", f"{connection.peer}/{number}", connection.peer)
        data = self._answers.error_frame(error, number, call)
        self._metrics.observe(call, 0.0)
        self._log.write(call, 0.0)
        self._send(connection, data, None)

    # ---- connections

    def _accept(self, now: float) -> None:
        for _ in range(BACKLOG):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors are left: let those that are there go on
                self._epoll.modify(self._listener, 0)
                self._pause = now
                return
            try:
                self._open(sock, f"{address[0]}:{address[1]}", now)
            except OSError:
                sock.close()

    def _open(self, sock: socket.socket, peer: str, now: float) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if len(self._connections) >= self._most:
            error = LimitError(f"the server has {self._most} connections; try again later.")
            if self._tls is None:
                sock.send(frames.frame(frames.ERROR, 0, *read_messages.error_parts(error)))
            sock.close()
            return
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        connection = ReadConnection(sock, peer, self._flight, now)
        self._connections[connection.fd] = connection
        self._epoll.register(connection.fd, _IN)
        connection.watched = _IN

    def _watch(self, connection: ReadConnection) -> None:
        """Has the connection wake the thread for what can be done with it."""
        if connection.closed:
            return
        busy = connection.out or connection.working >= AT_A_TIME
        wanted = (_OUT if connection.out else 0) | (0 if busy else _IN)
        if wanted != connection.watched:
            self._epoll.modify(connection.fd, wanted)
            connection.watched = wanted

    def _send(
        self, connection: ReadConnection, data: memoryview, sent: Callable[[], None] | None
    ) -> None:
        if connection.closed:
            if sent is not None:
                sent()
            return
        try:
            connection.send(data, sent, time.monotonic())
        except OSError:
            self._drop(connection)
            return
        if connection.out:
            self._watch(connection)

    def _finish(self, answer: Answer) -> None:
        """Has the thread send what a worker answered."""
        self._finished.append(answer)
        with self._wake_lock:
            if self._wake >= 0:  # else it ended before this worker did
                os.eventfd_write(self._wake, 1)

    def _end(self, connection: ReadConnection) -> None:
        """Closes a connection once what waits is sent and the caller has closed it, too.

        A caller who still sends would lose the last answer by closing it at once.
        """
        connection.closing = connection.closing or time.monotonic()
        if connection.closed or connection.out:
            return
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)

    def _drop(self, connection: ReadConnection) -> None:
        if self._connections.pop(connection.fd, None) is not None:
            self._again.pop(connection.fd, None)
            self._epoll.unregister(connection.fd)
            connection.close()

    def _close_those_that_hang(self, now: float) -> None:
        if self._pause and now - self._pause >= LOOK_SECONDS:
            self._pause = 0.0
            self._epoll.modify(self._listener, _IN)
        for connection in list(self._connections.values()):
            silent = connection.token is None and now - connection.opened >= HELLO_SECONDS
            stuck = (connection.out or connection.unfinished) and not connection.working
            if (
                silent
                or (stuck and now - connection.moved >= MOVE_SECONDS)
                or (connection.closing and now - connection.closing >= LINGER_SECONDS)
            ):
                self._drop(connection)


def _listen(host: str, port: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port),
            family=family,
            backlog=BACKLOG,
            reuse_port=shared,
            dualstack_ipv6=host == "::",
        )
    except OSError as error:
        raise InvalidRequestError(
            f"cannot listen on {host}:{port} for reads: {error.strerror or error}. Give another "
            "read port, or 0 for a free one."
        ) from error
    listener.setblocking(False)
    return listener
