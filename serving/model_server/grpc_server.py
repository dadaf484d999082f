"""The gRPC shell: messages are received on the event loop, worked on in threads.

Messages are read as bytes and parsed by those who work on them, for three reasons: bytes that are
no message are an INVALID_ARGUMENT and no traceback, a message is received only when there is room
for it, and one that does not arrive in full cannot hold a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import grpc

from serving.model_server.limits import Limits
from serving.model_server.status import ServingError, invalid, refusal
from serving.runtime.call import Call
from serving.runtime.errors import RuntimeRefusal
from serving.runtime.memory_budget import Allowance, MemoryBudget
from serving.runtime.work_queue import WorkQueue

log = logging.getLogger(__name__)
# From a message's bytes to the reply's.
Method = Callable[[bytes, Call, Allowance], bytes]
_FOREVER_SECONDS = 1e9
_MAX_REPLY_BYTES = 2**31 - 1


class GrpcServer:
    """Serves unary methods on the running event loop.

    Args:
        methods: By full name, ``/package.Service/Method``, and the queue that each runs in.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        limits: Of size and time.
        budget: Memory of requests under way.
    """

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, WorkQueue]],
        host: str,
        port: int,
        limits: Limits,
        budget: MemoryBudget,
    ) -> None:
        self._methods = methods
        self._host = host
        self._port = port
        self._limits = limits
        self._budget = budget
        self._server: grpc.aio.Server | None = None
        self._receiving = asyncio.Semaphore(max(16, 2 * limits.threads))

    async def start(self) -> int:
        """Bind and serve; returns the port.

        Raises:
            OSError: The port is in use or the address is not this machine's.
        """
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self._limits.request_bytes),
                ("grpc.max_send_message_length", _MAX_REPLY_BYTES),
                # Without this a second server on the port would start and share its calls.
                ("grpc.so_reuseport", 0),
                # A connection that does not get to its first call is ended.
                (
                    "grpc.server_handshake_timeout_ms",
                    int(1000 * self._limits.body_seconds),
                ),
                # Peers that are gone without a word are noticed.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ]
        )
        self._server.add_generic_rpc_handlers((_Methods(self._handler),))
        try:
            port = self._server.add_insecure_port(f"{self._host}:{self._port}")
        except RuntimeError as error:
            raise OSError(f"{self._host}:{self._port} cannot be bound: {error}") from error
        if not port:
            raise OSError(f"{self._host}:{self._port} cannot be bound")
        await self._server.start()
        return port

    async def stop(self, seconds: float) -> None:
        """Refuse new calls; those under way are answered first."""
        if self._server is not None:
            await self._server.stop(seconds)

    def _handler(self, name: str) -> grpc.RpcMethodHandler | None:
        found = self._methods.get(name)
        if found is None:
            return None
        # A stream to this library, so that it is ours when the message is received; on the wire
        # one message is one message.
        return grpc.stream_unary_rpc_method_handler(partial(self._answer, *found))

    async def _answer(
        self,
        method: Method,
        queue: WorkQueue,
        _: Any,
        context: grpc.aio.ServicerContext,
    ) -> bytes:
        call = Call(min(_time_left(context), self._limits.run_seconds))
        allowance = self._budget.open()
        begun = False
        try:
            message = await self._receive(context, call)
            allowance.take(len(message), "the message")
            begun = True  # from here on the queue gives the memory back
            work = partial(method, message, call, allowance)
            del message
            return await queue.run(work, call, allowance.close)
        except ServingError as error:
            await _abort(context, error)
        except RuntimeRefusal as error:
            await _abort(context, refusal(error))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            log.exception("A call failed")
            await _abort(context, ServingError("INTERNAL", f"Internal error: {error}"))
        finally:
            if not begun:
                allowance.close()

    async def _receive(self, context: grpc.aio.ServicerContext, call: Call) -> bytes:
        seconds = min(self._limits.body_seconds, call.left)
        try:
            async with self._receiving:
                message = await asyncio.wait_for(context.read(), seconds)
        except asyncio.TimeoutError:
            raise ServingError(
                "DEADLINE_EXCEEDED", f"the message did not arrive within {seconds:g} s"
            ) from None
        if message is grpc.aio.EOF:
            raise invalid("the call ended without a message")
        return message


class _Methods(grpc.GenericRpcHandler):
    """Finds a method by its name."""

    def __init__(self, find: Callable[[str], grpc.RpcMethodHandler | None]) -> None:
        self._find = find

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler | None:
        return self._find(handler_call_details.method)


def _time_left(context: grpc.aio.ServicerContext) -> float:
    """Seconds to the call's deadline; gRPC reports a call without one as centuries away."""
    seconds = context.time_remaining()
    return _FOREVER_SECONDS if seconds is None else seconds


async def _abort(context: grpc.aio.ServicerContext, error: ServingError) -> NoReturn:
    await context.abort(grpc.StatusCode[error.code], error.grpc_message)
    raise AssertionError("abort raises")
