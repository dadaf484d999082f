"""The HTTP routes of the gateway."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import orjson
from aiohttp import web

from laser_features import FeatureSpec, RequestError
from seqvault.errors import InvalidRequestError, SeqVaultError
from seqvault.merge.background_merge import BackgroundMerge
from serving.gateway.errors import GatewayError
from serving.gateway.events import parse_events
from serving.gateway.health import Probe
from serving.gateway.impression_log import ImpressionLog
from serving.gateway.item_rules import ItemRules
from serving.gateway.metrics import Metrics
from serving.gateway.options import Rules
from serving.gateway.ranker import Model, Ranker
from serving.gateway.store import Store
from serving.runtime.acceptor import Parking
from serving.runtime.call import Call
from serving.runtime.errors import (
    AbandonedError,
    BodyError,
    DeadlinePassedError,
    OverloadedError,
    RuntimeRefusal,
    TooLargeError,
)
from serving.runtime.http_server import HttpServer, first_byte_at, read_body
from serving.runtime.inflate import inflate
from serving.runtime.json_cost import json_cost, tree_cost
from serving.runtime.memory_budget import Allowance, MemoryBudget
from serving.runtime.memory_trimmer import MemoryTrimmer
from serving.runtime.work_queue import WorkQueue

log = logging.getLogger(__name__)
_PROBE_SECONDS = 1.0
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_TEXT = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
_APPEND_THREADS = 2
# Enough that no thread is idle until the next ones are read.
_WAITING_PER_THREAD = 2
Result = TypeVar("Result")
Work = Callable[[Any, Call], Result]


class Gateway:
    """Answers rank requests and stores events.

    ``POST /v1/rank``, ``POST /v1/events``, ``GET /livez``, ``/readyz``, ``/healthz`` and
    ``/metrics``. Every answer but the metrics is JSON; an error is ``{"error": "..."}``.

    Rank requests and appends have separate queues; health and metrics are answered without
    queueing. Made on the event loop that serves it.

    Args:
        spec: The feature spec.
        store: Histories and items; the caller closes it.
        model: The model that scores candidates; the caller closes it.
        rules: Limits and options for requests.
        merge: The background merge of an embedded store, reported in ``/healthz`` and ``/metrics``.
        impressions: Takes what was shown; the caller starts and closes it.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        store: Store,
        model: Model,
        rules: Rules | None = None,
        merge: BackgroundMerge | None = None,
        impressions: ImpressionLog | None = None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._rules = rules = rules or Rules()
        self._items = ItemRules(spec, rules.max_ahead_seconds)
        self._store_probe = Probe("store", partial(_ask_store, store))
        self._model_probe = Probe("model", partial(_ask_model, model))
        self._ranker = Ranker(spec, store, model, rules, lambda: self._store_probe.ok)
        self._metrics = Metrics()
        self._budget = MemoryBudget(rules.request_bytes, rules.in_flight_bytes)
        self._trimmer = MemoryTrimmer(self._budget)
        self._ranks = WorkQueue(rules.threads, rules.waiting, "rank")
        self._appends = WorkQueue(_APPEND_THREADS, rules.waiting, "events")
        self._merge = merge
        self._impressions = impressions
        self._draining = False
        self._routes: dict[str, tuple[str, Callable[[web.BaseRequest], Awaitable[web.Response]]]]
        self._routes = {
            "/v1/rank": ("POST", self._rank),
            "/v1/events": ("POST", self._events),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/healthz": ("GET", self._healthz),
            "/metrics": ("GET", self._metrics_page),
        }
        self._tell_gauges()

    def start(self) -> None:
        """Start the threads that watch store, model and memory."""
        self._trimmer.start()
        self._store_probe.start()
        self._model_probe.start()

    def drain(self) -> None:
        """Make ``/readyz`` report not ready from now on."""
        self._draining = True

    def close(self) -> None:
        """Finish accepted requests and stop the threads."""
        self._trimmer.stop()
        for probe in (self._store_probe, self._model_probe):
            probe.stop()
        for queue in (self._ranks, self._appends):
            queue.close()

    def parking(self) -> Parking:
        """Rank requests on new connections wait unread while enough of them wait for a thread."""
        rules = self._rules

        def room() -> int:
            return _WAITING_PER_THREAD * rules.threads - self._ranks.waiting

        return Parking(b"POST /v1/rank ", room, rules.deadline_seconds)

    def watch(self, http: HttpServer) -> None:
        """Report the server's connections in the metrics."""
        tell, total = self._metrics.gauge, self._metrics.total
        tell("connections", "Open connections.", lambda: http.connections)
        tell("unread_requests", "Rank requests that wait unread.", lambda: http.parked)
        total(
            "dropped_connections",
            "Connections closed unread: their callers had hung up, or too many waited.",
            lambda: http.dropped,
        )

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """Answer one request, whatever it is; every error is JSON and counted."""
        path = request.path if request.path in self._routes else "other"
        try:
            response = await self._dispatch(request)
        except GatewayError as error:
            response = _error(error.status, error.message)
        except RuntimeRefusal as error:
            response = self._refuse(error)
        except asyncio.CancelledError:  # the client hung up
            self._metrics.count_refused("abandoned")
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = _error(500, "internal error; the gateway's log has the details")
        self._metrics.count_request(path, response.status)
        return response

    async def _dispatch(self, request: web.BaseRequest) -> web.Response:
        method, handler = self._routes.get(request.path, (None, None))
        if handler is None:
            return _error(404, f"nothing is here; there are {sorted(self._routes)}")
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            response = _error(405, f"{request.path} takes {method}")
            response.headers["Allow"] = str(method)
            return response
        return await handler(request)

    async def _rank(self, request: web.BaseRequest) -> web.Response:
        call = Call(self._rules.deadline_seconds, first_byte_at(request))
        if self._impressions is None:
            answer = await self._work(request, call, self._ranks, self._ranker.rank)
        else:
            work = self._ranker.rank_and_show
            answer, shown = await self._work(request, call, self._ranks, work)
            self._impressions.add(shown)
        self._metrics.observe(answer["latency"])
        if "unknown_candidates" in answer:
            self._metrics.count_unknown(len(answer["unknown_candidates"]))
        self._metrics.count_outside("rank", answer.get("outside_ids", {}))
        for without in answer.get("degraded", ()):
            self._metrics.count_degraded(without)
        return _json(answer)

    async def _events(self, request: web.BaseRequest) -> web.Response:
        call = Call(self._rules.append_seconds, first_byte_at(request))
        answer = await self._work(request, call, self._appends, self._append)
        self._metrics.count_events(answer["appended"])
        self._metrics.count_outside("events", answer.get("outside_ids", {}))
        return _json(answer)

    async def _livez(self, request: web.BaseRequest) -> web.Response:
        return _json({"status": "ok"})

    async def _readyz(self, request: web.BaseRequest) -> web.Response:
        store, model = self._store_probe.finding, self._model_probe.finding
        told: dict[str, Any] = {"status": "ok", "model_versions": model.detail or []}
        if self._draining:
            raise GatewayError(503, "draining: the gateway is about to stop")
        if store.problem and self._rules.degrade_history:
            told["degraded"] = ["history"]
        problems = (
            [model.problem] if self._rules.degrade_history else [store.problem, model.problem]
        )
        problem = "; ".join(filter(None, problems))
        if problem:
            raise GatewayError(503, problem)
        return _json(told)

    async def _healthz(self, request: web.BaseRequest) -> web.Response:
        if self._merge is not None and not self._merge.healthy:
            seconds = round(self._merge.failing_seconds)
            raise GatewayError(
                503, f"the store's merges have failed for {seconds} s; the gateway's log says why"
            )
        return await self._readyz(request)

    async def _metrics_page(self, request: web.BaseRequest) -> web.Response:
        return web.Response(body=self._metrics.text(), headers=_TEXT)

    async def _work(
        self, request: web.BaseRequest, call: Call, queue: WorkQueue, work: Work[Result]
    ) -> Result:
        """Read the body and have the work done on it; the memory is given back at its end."""
        allowance = self._budget.open()
        begun = False
        try:
            longest = self._rules.rank_bytes if queue is self._ranks else self._rules.event_bytes
            call.check("the body was read")
            seconds = min(self._rules.body_seconds, call.left)
            body = await read_body(request, longest, seconds, allowance)
            begun = True  # from here on the queue gives the memory back
            zipped = "gzip" in request.headers.get("Content-Encoding", "").lower()
            parsed = partial(_parse_and_work, body, zipped, allowance, work, call)
            del body
            return await queue.run(parsed, call, allowance.close)
        finally:
            if not begun:
                allowance.close()

    def _append(self, content: object, call: Call) -> dict[str, Any]:
        try:
            events = parse_events(self._spec, content, self._rules.max_events)
            self._items.check_ids(events["item_id"], "events[{}].item_id")
            self._items.check_times(events["timestamp"], "events[{}].timestamp")
        except RequestError as error:
            raise GatewayError(400, str(error)) from error
        outside = self._items.outside_tables(events)
        call.check("the events were stored")
        try:
            self._store.append(events)
        except InvalidRequestError as error:
            raise GatewayError(400, str(error)) from error
        except (SeqVaultError, OSError) as error:
            raise GatewayError(503, f"the events were not stored: {error}") from error
        answer: dict[str, Any] = {"appended": len(events["user_id"])}
        return {**answer, "outside_ids": outside} if outside else answer

    def _refuse(self, error: RuntimeRefusal) -> web.Response:
        status, reason = next(
            (how for kind, how in _REFUSALS.items() if isinstance(error, kind)), (400, "body")
        )
        self._metrics.count_refused(reason)
        response = _error(error.status if isinstance(error, BodyError) else status, str(error))
        if isinstance(error, OverloadedError):
            response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
        return response

    def _tell_gauges(self) -> None:
        tell = self._metrics.gauge
        tell("waiting_requests", "Rank requests that wait.", lambda: self._ranks.waiting)
        tell("running_requests", "Rank requests worked on.", lambda: self._ranks.running)
        tell("request_memory_bytes", "Memory of requests under way.", lambda: self._budget.held)
        if (merge := self._merge) is not None:
            self._metrics.total("merge_failures", "Merges that failed.", lambda: merge.failures)
        if (shown := self._impressions) is not None:
            total = self._metrics.total
            total("impressions_logged", "Impressions written to the log.", lambda: shown.logged)
            total(
                "impressions_dropped",
                "Impressions that the log had no room for or could not write.",
                lambda: shown.dropped,
            )
        tell("store_up", "Whether the store answers.", lambda: self._store_probe.ok)
        tell("model_up", "Whether the model answers.", lambda: self._model_probe.ok)


_REFUSALS: dict[type[RuntimeRefusal], tuple[int, str]] = {
    TooLargeError: (413, "too_large"),
    OverloadedError: (503, "overloaded"),
    DeadlinePassedError: (504, "deadline"),
    AbandonedError: (499, "abandoned"),
}


def _parse_and_work(
    body: bytes, zipped: bool, allowance: Allowance, work: Work[Result], call: Call
) -> Result:
    """In a thread."""
    try:
        if zipped:
            body = inflate(body, allowance)
        allowance.take(json_cost(body) + tree_cost(body), "the parsed JSON")
        content = orjson.loads(body)
    except ValueError as error:
        raise GatewayError(400, f"the body is not JSON: {error}") from error
    return work(content, call)


def _ask_store(store: Store) -> None:
    store.read(np.zeros(1, np.int64), np.ones(1, np.int64), 1, fields=["timestamp"])


def _ask_model(model: Model) -> list[int]:
    versions = model.available_versions(_PROBE_SECONDS)
    if not versions:
        raise GatewayError(503, "the model server has no version of the model available")
    return versions


def _json(content: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(content), headers=_JSON)


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)
