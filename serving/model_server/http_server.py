"""The HTTP shell around the REST API: bodies are read on the event loop, answered in threads."""

from __future__ import annotations

import math
from functools import partial

from aiohttp import web

from serving.model_server.json_tensors import error_body
from serving.model_server.limits import Limits
from serving.model_server.rest_api import JSON_HEADERS, RestApi, RestReply
from serving.model_server.status import refusal
from serving.runtime.call import Call
from serving.runtime.errors import BodyError, OverloadedError, RuntimeRefusal, TooLargeError
from serving.runtime.http_server import HttpServer, read_body
from serving.runtime.memory_budget import MemoryBudget
from serving.runtime.work_queue import WorkQueue

_LOOK_SECONDS = 5.0


class RestServer:
    """Serves a ``RestApi`` on the running event loop.

    Predictions use the given queue; status and metadata requests have their own and do not wait for
    them.

    Args:
        api: Answers the requests.
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        limits: Of size and time.
        budget: Memory of requests under way.
        work: Where predictions are run.
        looks: Where states and metadata are read.
        timeout_seconds: Longest time of one call.
    """

    def __init__(
        self,
        api: RestApi,
        host: str,
        port: int,
        limits: Limits,
        budget: MemoryBudget,
        work: WorkQueue,
        looks: WorkQueue,
        timeout_seconds: float,
    ) -> None:
        self._api = api
        self._limits = limits
        self._budget = budget
        self._work = work
        self._looks = looks
        self._timeout_seconds = timeout_seconds
        self._http = HttpServer(
            self._handle,
            host,
            port,
            body_seconds=limits.body_seconds,
            busy_seconds=limits.body_seconds + 2 * timeout_seconds + 30.0,
        )

    async def start(self) -> int:
        """Bind and serve; returns the port.

        Raises:
            OSError: The port is in use or the address is not this machine's.
        """
        return await self._http.start()

    async def stop(self, seconds: float) -> None:
        """Close the port; requests under way are answered first."""
        await self._http.stop(seconds)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        posted = request.method == "POST"
        call = Call(self._timeout_seconds if posted else _LOOK_SECONDS)
        allowance = self._budget.open()
        begun = False
        try:
            body = await read_body(
                request, self._limits.request_bytes, self._limits.body_seconds, allowance
            )
            begun = True  # from here on the queue gives the memory back
            reply = await (self._work if posted else self._looks).run(
                partial(
                    self._api.answer,
                    request.method,
                    request.raw_path,
                    request.headers,
                    body,
                    call,
                    allowance,
                ),
                call,
                allowance.close,
            )
        except RuntimeRefusal as error:
            reply = refused(error)
        finally:
            if not begun:
                allowance.close()
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def refused(error: RuntimeRefusal) -> RestReply:
    """The reply to a request that is not worked on."""
    headers = dict(JSON_HEADERS)
    told = refusal(error)
    status = told.http_status
    if isinstance(error, BodyError):
        status = error.status
    elif isinstance(error, TooLargeError):
        status = 413
    elif isinstance(error, OverloadedError):
        status = 429
        headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    return RestReply(status, headers, error_body(told.message))
