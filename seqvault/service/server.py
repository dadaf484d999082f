"""The server: a store behind gRPC."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from seqvault.errors import InvalidRequestError
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service import wire
from seqvault.service.bytes_in_flight import BytesInFlight
from seqvault.service.call import REQUEST_ID, Call
from seqvault.service.metrics import Metrics
from seqvault.service.store_service import WRITES, Handler, StoreService, StreamHandler
from seqvault.service.tokens import Tokens
from seqvault.store import SeqVault
from seqvault.warm_up import warm_up

LOG = logging.getLogger("seqvault.server")
WAITING_CALLS = 256  # under way or waiting; more get a retryable error
BYTES_IN_FLIGHT = 1 << 30  # of requests being worked on and replies not yet sent


@dataclass(frozen=True)
class Tls:
    """PEM bytes: the server's key and certificate, and whose clients it trusts (mutual TLS)."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None = None


class Server:
    """Serves a store until ``stop``.

    Args:
        vault: the store; it is closed by ``stop``.
        address: ``host:port``; port 0 takes a free one, see ``port``.
        tokens: who may do what; None: no tokens asked.
        tls: None: plain text.
        workers: calls answered at the same time.
        merge_seconds: how often the log is moved into segments; 0: never.
        waiting: calls under way and waiting; more are refused with a retryable ``LimitError``.
        bytes_in_flight: of requests being worked on and replies not yet sent; calls that come
            beyond it are refused with a retryable ``LimitError``.

    Raises:
        InvalidRequestError: the port is in use, or the certificates are not good.
    """

    def __init__(
        self,
        vault: SeqVault,
        address: str = "127.0.0.1:0",
        tokens: Tokens | Mapping[str, Any] | None = None,
        tls: Tls | None = None,
        workers: int = 8,
        merge_seconds: float = 60.0,
        waiting: int = WAITING_CALLS,
        bytes_in_flight: int = BYTES_IN_FLIGHT,
    ) -> None:
        warm_up()  # or the first caller waits for the compiler
        self.vault, self.metrics = vault, Metrics()
        self.bytes_in_flight = BytesInFlight(bytes_in_flight)
        self._tokens = Tokens(tokens) if isinstance(tokens, Mapping) else tokens
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(workers, "seqvault-call"),
            options=options,
            maximum_concurrent_rpcs=waiting,
        )
        self._server.add_generic_rpc_handlers((self._handlers(StoreService(vault)),))
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (wire.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self.port = self._listen(address, tls)
        self._server.start()
        self._set_health(True)
        seconds = 0.0 if vault.read_only else merge_seconds
        self._merge = BackgroundMerge(vault, seconds, tell_health=self._set_health)
        LOG.info(json.dumps({"event": "serving", "port": self.port, "path": vault.path}))

    def _listen(self, address: str, tls: Tls | None) -> int:
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.key, tls.certificate)], tls.client_ca, tls.client_ca is not None
                )
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise InvalidRequestError(
                f"cannot listen on {address}: is the port in use? Give another. With TLS: are key "
                "and certificate PEM, and of each other?"
            )
        return int(port)

    def _set_health(self, good: bool) -> None:
        """Tells health checks whether all is well; calls are answered in any case."""
        status = health_pb2.HealthCheckResponse
        for name in ("", wire.NAME):
            self._health.set(name, status.SERVING if good else status.NOT_SERVING)

    def stop(self, grace: float = 10.0) -> None:
        """Takes no more calls, lets those under way end, and closes the store.

        Merges and snapshots that go on after ``grace`` seconds are given up: the store is as it
        was before them.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self.vault.close()
        self._merge.stop()
        LOG.info(json.dumps({"event": "stopped", "path": self.vault.path}))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def metrics_text(self) -> str:
        """Prometheus metrics of the service and the store."""
        return self.metrics.text(
            self.vault.stats(), self._merge.failures, self._merge.failing_seconds
        )

    def _handlers(self, service: StoreService) -> Any:
        def serialize(reply: Any) -> bytes:
            data: bytes = reply.SerializeToString()
            return data

        handlers = {
            method: grpc.unary_unary_rpc_method_handler(
                self._guarded(method, function), request.FromString, serialize
            )
            for method, (request, function) in service.methods().items()
        }
        for method, (request, stream) in service.long_methods().items():
            handlers[method] = grpc.unary_stream_rpc_method_handler(
                self._guarded_stream(method, stream), request.FromString, serialize
            )
        return grpc.method_handlers_generic_handler(wire.NAME, handlers)

    def _guarded(
        self, method: str, function: Handler
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guard(method, request, context) as (call, hold):
                reply = function(request, call)
                hold(reply.ByteSize())
                return reply

        return answer

    def _guarded_stream(
        self, method: str, function: StreamHandler
    ) -> Callable[[Any, grpc.ServicerContext], Iterator[Any]]:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guard(method, request, context) as (call, _):
                yield from function(request, call)

        return answer

    @contextmanager
    def _guard(
        self, method: str, request: Any, context: grpc.ServicerContext
    ) -> Iterator[tuple[Call, Callable[[int], None]]]:
        """Puts a call behind access, deadline, errors with their type, metrics and log.

        Gives the call, and what its reply's bytes are to be told to.
        """
        call = Call.of(method, context)
        try:
            if self._tokens is not None:
                given = dict(context.invocation_metadata()).get("authorization", "")
                self._tokens.check(str(given), "write" if method in WRITES else "read")
            remaining = context.time_remaining()
            if not context.is_active() or (remaining is not None and remaining <= 0):
                # waited too long for a worker: nobody listens any more
                call.outcome = grpc.StatusCode.DEADLINE_EXCEEDED.name
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the call."
                )
            held = self.bytes_in_flight.hold(request.ByteSize())
            if not context.add_callback(held.end):
                held.end()  # it ended meanwhile
            yield call, held.add
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        except Exception as error:
            if call.outcome != "OK":  # aborted just above
                raise
            code = wire.code_of(error)
            call.outcome, call.error = code.name, f"{type(error).__name__}: {error}"
            if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
                LOG.exception(json.dumps({"event": "call failed", "request_id": call.request_id}))
            context.set_trailing_metadata(
                ((wire.ERROR_KEY, type(error).__name__), (REQUEST_ID, call.request_id))
            )
            context.abort(code, str(error))
            raise
        finally:
            seconds = call.seconds
            self.metrics.observe(call, seconds)
            call.log(seconds)
