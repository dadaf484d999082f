"""An HTTP server with bounded connections and graceful shutdown."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from serving.runtime.acceptor import Acceptor, Parking
from serving.runtime.errors import BodyError, RuntimeRefusal, TooLargeError
from serving.runtime.memory_budget import Allowance
from serving.runtime.tcp_info import read_tcp_info

log = logging.getLogger(__name__)
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_JSON = "application/json"
_SWEEP_SECONDS = 1.0
_POLL_SECONDS = 0.02


class HttpServer:
    """Serves one handler on the running event loop.

    A connection that sends no complete request in time is closed; so is the one idle for longest
    when there are too many. The handler is cancelled when its client disconnects. Invalid HTTP is
    answered with a JSON error.

    Args:
        handler: Answers a request; it handles its own exceptions and may be cancelled.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        body_seconds: Time for a request's header, and again for its body.
        busy_seconds: Longest time that a request may take in all, including sending the answer.
        max_connections: Beyond these, the one that has waited longest is closed.
        parking: Requests on new connections that wait unread while there is no room; None: none.
    """

    def __init__(
        self,
        handler: Handler,
        host: str,
        port: int,
        body_seconds: float = 10.0,
        busy_seconds: float = 120.0,
        max_connections: int = 1024,
        parking: Parking | None = None,
    ) -> None:
        self._handler = handler
        self._acceptor = Acceptor(self._connection, host, port, parking, max_connections)
        self._body_seconds = body_seconds
        self._busy_seconds = busy_seconds
        self._max_connections = max_connections
        self._server: _Server | None = None
        self._runner: web.ServerRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._draining = False

    async def start(self) -> int:
        """Bind and serve; returns the bound port.

        Raises:
            OSError: The port is in use, or the address is not this machine's.
        """
        # Bodies are inflated by their readers, against a limit.
        self._server = _Server(
            self._handle,
            self._acceptor.arrived,
            max_connections=self._max_connections,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            lingering_time=2.0,
            logger=_Quiet(log),
        )
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            port = self._acceptor.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        return port

    @property
    def connections(self) -> int:
        """Open connections."""
        return 0 if self._server is None else len(self._server.since)

    @property
    def parked(self) -> int:
        """Requests that wait unread."""
        return self._acceptor.parked

    @property
    def dropped(self) -> int:
        """Connections closed unread, because the caller had hung up or too many waited."""
        return self._acceptor.dropped

    def close_after_answers(self) -> None:
        """Close every connection after its next answer; new ones are still served."""
        self._draining = True

    async def stop(self, seconds: float = 5.0) -> None:
        """Close the port, let requests under way be answered, then close the connections.

        A second time does nothing.
        """
        self._draining = True
        runner, self._runner = self._runner, None
        if runner is None:
            return
        await self._acceptor.stop()
        await asyncio.sleep(_POLL_SECONDS)  # what these connections have sent is read
        end = time.monotonic() + seconds
        while self._server is not None and self._server.busy and time.monotonic() < end:
            await asyncio.sleep(_POLL_SECONDS)
        if self._sweeper is not None:
            self._sweeper.cancel()
        await runner.cleanup()

    def _connection(self) -> RequestHandler:
        assert self._server is not None
        return self._server()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._server is not None
        # Until the answer is written: see ``_Connection.finish_response``.
        self._server.begin(request.protocol)
        self._acceptor.arrived(request.protocol)
        response = await self._handler(request)
        if self._draining:
            response.force_close()
        return response

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                self._close_idle()
            except Exception:
                log.exception("Closing idle connections failed and goes on")

    def _close_idle(self) -> None:
        assert self._server is not None
        now = time.monotonic()
        for connection, since in list(self._server.since.items()):
            busy = connection in self._server.busy
            # aiohttp itself closes connections that idle between two requests.
            if connection.answered and not busy:
                continue
            if now - since > (self._busy_seconds if busy else self._body_seconds):
                connection.drop()


async def read_body(
    request: web.BaseRequest, max_bytes: int, seconds: float, allowance: Allowance
) -> bytes:
    """The request's body as it was sent, maybe compressed.

    Args:
        request: The request.
        max_bytes: Most that its route takes.
        seconds: Time for all of it.
        allowance: Asked before each piece is read.

    Raises:
        BodyError: 408 it came too slowly, 400 its framing is wrong.
        TooLargeError: It is longer than ``max_bytes``.
        OverloadedError: Requests under way hold too much.
    """
    announced = request.content_length
    if announced is not None and announced > max_bytes:
        raise TooLargeError(f"the body has {announced} bytes; the limit is {max_bytes}")
    if request.headers.get("Expect", "").lower() == "100-continue":
        # curl waits a second for this before it sends a body beyond a kilobyte.
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    if request.content.is_eof():  # all of it came with the header: no timer, no task
        return _read_now(request, max_bytes, allowance)
    try:
        return await asyncio.wait_for(_read(request, max_bytes, allowance), seconds)
    except asyncio.TimeoutError as error:
        raise BodyError(408, f"the body did not arrive within {seconds:g} s") from error
    except RuntimeRefusal:
        raise
    except Exception as error:  # wrong framing, or a client that hung up within it
        raise BodyError(400, f"the body cannot be read: {error}") from error


def _read_now(request: web.BaseRequest, max_bytes: int, allowance: Allowance) -> bytes:
    if request.content.at_eof():
        return b""
    try:
        body = request.content.read_nowait()
    except Exception as error:  # wrong framing
        raise BodyError(400, f"the body cannot be read: {error}") from error
    if len(body) > max_bytes:
        raise TooLargeError(f"the body has more than {max_bytes} bytes, which is the limit")
    allowance.take(len(body), "the body")
    return body


async def _read(request: web.BaseRequest, max_bytes: int, allowance: Allowance) -> bytes:
    pieces: list[bytes] = []
    total = 0
    while not request.content.at_eof():
        piece = await request.content.readany()
        total += len(piece)
        if total > max_bytes:
            raise TooLargeError(f"the body has more than {max_bytes} bytes, which is the limit")
        allowance.take(len(piece), "the body")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def json_error(status: int, message: str) -> web.Response:
    """``{"error": message}``."""
    return web.Response(
        status=status, body=json.dumps({"error": message}).encode(), content_type=_JSON
    )


def first_byte_at(request: web.BaseRequest) -> float:
    """When the request's first byte came, of ``time.monotonic``."""
    at = getattr(request.protocol, "first_byte_at", None)
    return time.monotonic() if at is None else float(at)


class _Connection(RequestHandler):
    """A connection that answers protocol errors in JSON and does not log them."""

    answered = False
    first_byte_at: float | None = None

    def data_received(self, data: bytes) -> None:
        if self.first_byte_at is None:
            # Under load the bytes may have waited in the kernel, and their caller may be gone.
            info = read_tcp_info(self.transport.get_extra_info("socket"))  # type: ignore[union-attr]
            if info.hung_up:
                self.drop()
                return
            self.first_byte_at = time.monotonic() - info.idle_seconds
        super().data_received(data)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500:
            log.error("A request of %s failed", request.remote, exc_info=exc)
            message = "internal error; the server's log has the details"
        else:
            first = (message or "bad request").strip().splitlines()[0]
            message = f"this is not a valid HTTP request: {first}"
        response = json_error(status, message)
        response.force_close()
        return response

    async def finish_response(self, request: Any, resp: Any, start_time: Any) -> Any:
        server = self._manager
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.first_byte_at = None
            if isinstance(server, _Server):
                server.end(self)

    def drop(self) -> None:
        """End the connection now, whatever state it is in."""
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]


class _Server(web.Server):
    """Tracks how long each connection has been in its state."""

    def __init__(
        self,
        handler: Any,
        ended: Callable[[RequestHandler], object],
        max_connections: int,
        **settings: Any,
    ) -> None:
        super().__init__(handler, **settings)
        self._ended = ended
        self._settings = settings
        self._max_connections = max_connections
        self.since: dict[_Connection, float] = {}
        self.busy: set[_Connection] = set()

    def __call__(self) -> RequestHandler:
        settings = {k: v for k, v in self._settings.items() if k != "handler_cancellation"}
        return _Connection(self, loop=self._loop, **settings)

    def connection_made(self, handler: Any, transport: Any) -> None:
        super().connection_made(handler, transport)
        self.since[handler] = time.monotonic()
        if len(self.since) > self._max_connections:
            # The oldest of those that are not being answered; dicts keep the order of insertion.
            for connection in self.since:
                if connection not in self.busy and connection is not handler:
                    connection.drop()
                    break

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._ended(handler)
        self.since.pop(handler, None)
        self.busy.discard(handler)

    def begin(self, connection: Any) -> None:
        self.busy.add(connection)
        self._renew(connection)

    def end(self, connection: Any) -> None:
        self.busy.discard(connection)
        connection.answered = True
        self._renew(connection)

    def _renew(self, connection: Any) -> None:
        if self.since.pop(connection, None) is not None:
            self.since[connection] = time.monotonic()


class _Quiet(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Logger for aiohttp's messages about client errors, at debug level."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        self.debug(msg, *args, **kwargs)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(min(level, logging.DEBUG), msg, *args, **kwargs)
