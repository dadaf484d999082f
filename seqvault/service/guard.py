"""Interceptor of every call: authorisation, limits, typed errors, metrics and logging."""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc

from seqvault.errors import DamagedFileError, LimitError
from seqvault.service import wire
from seqvault.service.bytes_in_flight import BytesInFlight
from seqvault.service.call import REQUEST_ID, Call
from seqvault.service.call_log import CallLog
from seqvault.service.metrics import Metrics
from seqvault.service.store_service import WRITES, Handler, StoreService, StreamHandler
from seqvault.service.tokens import Tokens
from seqvault.service.work_pool import WorkPool

LOG = logging.getLogger("seqvault.server")


class Guard(grpc.GenericRpcHandler):
    """Wraps the service in authorisation, limits, typed errors, metrics and logging.

    Each kind of call has its own workers, so that no kind delays another; a call beyond the limit
    of its kind is refused with a retryable ``LimitError``.

    Args:
        service: what answers.
        pool_of: the workers by method.
        flight: the bytes of all calls.
        tokens: who may do what; None: no tokens asked.
        metrics: is told of every call.
        tell_damage: called when a file turns out to be damaged.
        log: of the calls.
    """

    def __init__(
        self,
        service: StoreService,
        pool_of: dict[str, WorkPool],
        flight: BytesInFlight,
        tokens: Tokens | None,
        metrics: Metrics,
        tell_damage: Callable[[], None],
        log: CallLog,
    ) -> None:
        self._log = log
        self._pool_of, self._flight, self._tokens = pool_of, flight, tokens
        self._metrics, self._tell_damage = metrics, tell_damage
        self._refusing = ThreadPoolExecutor(1, "seqvault-refuse")
        self._answers = {
            method: (request, self._unary(method, function))
            for method, (request, function) in service.methods().items()
        }
        self._streams = {
            method: (request, self._stream(method, function))
            for method, (request, function) in service.long_methods().items()
        }
        self._refusals = {method: self._refusal(method) for method in pool_of}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None: there is no such method."""
        room, _, method = str(details.method).lstrip("/").rpartition("/")
        if room != wire.NAME or (method not in self._answers and method not in self._streams):
            return None
        full = self._pool_of[method].full
        if method in self._streams:
            request, stream = self._streams[method]
            chosen = self._refusals[method] if full else stream
            return grpc.unary_stream_rpc_method_handler(chosen, request.FromString, _to_bytes)
        request, answer = self._answers[method]
        chosen = self._refusals[method] if full else answer
        return grpc.unary_unary_rpc_method_handler(chosen, request.FromString, _to_bytes)

    def _unary(self, method: str, function: Handler) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._around(method, request, context) as (call, built):
                reply = function(request, call)
                built(reply.ByteSize())
                return reply

        # gRPC has the behaviours that say so answered by workers of their own
        answer.experimental_thread_pool = self._pool_of[method]  # type: ignore[attr-defined]
        return answer

    def _stream(self, method: str, function: StreamHandler) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._around(method, request, context) as (call, _):
                yield from function(request, call)

        answer.experimental_thread_pool = self._pool_of[method]  # type: ignore[attr-defined]
        return answer

    def _refusal(self, method: str) -> Any:
        pool = self._pool_of[method]

        def refuse(request: Any, context: grpc.ServicerContext) -> Any:
            call = Call.of(method, context)
            call.outcome = grpc.StatusCode.RESOURCE_EXHAUSTED.name
            self._metrics.observe(call, call.seconds)
            context.set_trailing_metadata(((wire.ERROR_KEY, LimitError.__name__),))
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{pool.held} {pool.name} are under way or waiting, the server's limit is "
                f"{pool.most}; try again later.",
            )

        refuse.experimental_thread_pool = self._refusing  # type: ignore[attr-defined]
        return refuse

    @contextmanager
    def _around(
        self, method: str, request: Any, context: grpc.ServicerContext
    ) -> Iterator[tuple[Call, Callable[[int], None]]]:
        """Yields the call and the reservation for the bytes of its answer."""
        call = Call.of(method, context)
        try:
            if self._tokens is not None:
                given = dict(context.invocation_metadata()).get("authorization", "")
                self._tokens.check(str(given), "write" if method in WRITES else "read")
            remaining = context.time_remaining()
            if not context.is_active() or (remaining is not None and remaining <= 0):
                # waited too long for a worker: the caller has gone away
                call.outcome = grpc.StatusCode.DEADLINE_EXCEEDED.name
                context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the call."
                )
            held = self._flight.hold(request.ByteSize())
            if not context.add_callback(held.end):
                held.end()  # it ended meanwhile
            call.hold = held.make_room
            yield call, held.built
            context.set_trailing_metadata(((REQUEST_ID, call.request_id),))
        except Exception as error:
            if call.outcome != "OK":  # aborted just above
                raise
            code = wire.code_of(error)
            call.outcome, call.error = code.name, f"{type(error).__name__}: {error}"
            if isinstance(error, DamagedFileError):
                self._tell_damage()
            if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
                LOG.exception(json.dumps({"event": "call failed", "request_id": call.request_id}))
            context.set_trailing_metadata(
                ((wire.ERROR_KEY, type(error).__name__), (REQUEST_ID, call.request_id))
            )
            context.abort(code, str(error))
            raise
        finally:
            seconds = call.seconds
            self._metrics.observe(call, seconds)
            self._log.write(call, seconds)

    def close(self) -> None:
        """Shuts the workers down once they are idle."""
        for pool in {*self._pool_of.values(), self._refusing}:
            pool.shutdown(wait=False)


def _to_bytes(reply: Any) -> bytes:
    data: bytes = reply.SerializeToString()
    return data
