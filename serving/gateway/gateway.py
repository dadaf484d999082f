"""The gateway's HTTP shell: routes, threads, start and stop."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

from aiohttp import web

from laser_features import FeatureSpec, FeatureSpecError, RequestError
from seqvault import SeqVault
from seqvault.errors import InvalidRequestError, SeqVaultError
from seqvault.merge.background_merge import BackgroundMerge
from serving.gateway.errors import GatewayError
from serving.gateway.events import parse_events
from serving.gateway.metrics import Metrics
from serving.gateway.model_client import ModelClient
from serving.gateway.options import GatewayOptions
from serving.gateway.ranker import Ranker
from serving.gateway.store import Store, check_store, open_store
from serving.ready_file import write_ready_file

log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 32 * 2**20
_HEALTH_SECONDS = 1.0
_CHECK_SECONDS = 60.0
_MERGE_SECONDS = 60.0


class Gateway:
    """Answers rank requests and takes in events.

    ``POST /v1/rank``, ``POST /v1/events``, ``GET /healthz``, ``GET /metrics``. Every answer but
    the metrics is JSON; an error is ``{"error": "..."}``.

    Args:
        spec: The feature spec.
        store: Histories and items; closed by whoever opened it.
        model: The model server.
        deadline_seconds: Longest time that one rank request may take.
        threads: Requests worked on at once.
        merge: What merges an embedded store; ``/healthz`` and ``/metrics`` tell how it goes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        store: Store,
        model: ModelClient,
        deadline_seconds: float = 1.0,
        threads: int = 4,
        merge: BackgroundMerge | None = None,
    ) -> None:
        self._spec = spec
        self._store = store
        self._model = model
        self._ranker = Ranker(spec, store, model)
        self._deadline_seconds = deadline_seconds
        self._merge = merge
        self._metrics = Metrics()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="gateway")

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._middleware])
        app.router.add_post("/v1/rank", self._rank)
        app.router.add_post("/v1/events", self._events)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics_page)
        return app

    def close(self) -> None:
        """Finish what was accepted and let the threads go."""
        self._executor.shutdown()

    async def _rank(self, request: web.Request) -> web.Response:
        deadline = time.perf_counter() + self._deadline_seconds
        body = await request.read()
        answer = await self._in_thread(lambda: self._ranker.rank(_parse(body), deadline))
        self._metrics.observe(answer["latency"])
        return web.json_response(answer)

    async def _events(self, request: web.Request) -> web.Response:
        body = await request.read()
        number = await self._in_thread(lambda: self._append(_parse(body)))
        self._metrics.count_events(number)
        return web.json_response({"appended": number})

    async def _healthz(self, request: web.Request) -> web.Response:
        versions = await self._in_thread(lambda: self._model.available_versions(_HEALTH_SECONDS))
        if not versions:
            raise GatewayError(503, "the model server has no version of the model available")
        if self._merge is not None and not self._merge.healthy:
            seconds = round(self._merge.failing_seconds)
            raise GatewayError(
                503, f"the store's merges have failed for {seconds} s; the gateway's log says why"
            )
        return web.json_response({"status": "ok", "model_versions": versions})

    async def _metrics_page(self, request: web.Request) -> web.Response:
        text = self._metrics.text()
        if self._merge is not None:
            name = "laser_gateway_merge_failures_total"
            text += f"# TYPE {name} counter\n{name} {self._merge.failures}\n"
        return web.Response(text=text)

    def _append(self, content: object) -> int:
        try:
            events = parse_events(self._spec, content)
        except RequestError as error:
            raise GatewayError(400, str(error)) from error
        try:
            self._store.append(events)
        except InvalidRequestError as error:
            raise GatewayError(400, str(error)) from error
        except (SeqVaultError, OSError) as error:
            raise GatewayError(503, f"the events were not stored: {error}") from error
        return len(events["user_id"])

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Count every request, and turn every error into JSON."""
        known = request.match_info.route.resource
        path = known.canonical if known is not None else "other"
        try:
            response = await handler(request)
        except GatewayError as error:
            response = _error(error.status, error.message)
        except web.HTTPException as error:
            response = _error(error.status, error.text or error.reason)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = _error(500, "internal error; the gateway's log has the details")
        self._metrics.count_request(path, response.status)
        return response


def serve(options: GatewayOptions) -> int:
    """Run a gateway until SIGINT or SIGTERM; returns the exit code."""
    try:
        spec = FeatureSpec.load(options.features)
        with _checked_store(spec, options) as (store, merge):
            asyncio.run(_serve(spec, store, merge, options))
    except (FeatureSpecError, SeqVaultError, OSError) as error:
        print(f"laser-serving gateway: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _checked_store(
    spec: FeatureSpec, options: GatewayOptions
) -> Iterator[tuple[Store, BackgroundMerge | None]]:
    """The open store, which fits the spec; an embedded one is merged while it is open.

    Its one writer is the gateway, so nobody else can; a SeqVault server merges by itself.
    """
    with closing(open_store(options.store, _CHECK_SECONDS, options.access)) as store:
        check_store(store, spec, options.store)
        if isinstance(store, SeqVault):
            merge = BackgroundMerge(store, _MERGE_SECONDS)
            try:
                yield store, merge
            finally:
                store.close()  # a merge under way gives up
                merge.stop()
            return
    # A server may be slow to its first reader; from here on the deadline holds.
    with closing(open_store(options.store, options.deadline_seconds, options.access)) as store:
        yield store, None


async def _serve(
    spec: FeatureSpec, store: Store, merge: BackgroundMerge | None, options: GatewayOptions
) -> None:
    model = ModelClient(options.model_server, options.model_name)
    gateway = Gateway(spec, store, model, options.deadline_seconds, options.threads, merge)
    runner = web.AppRunner(gateway.app(), access_log=None, shutdown_timeout=5.0)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, options.host, options.port).start()
        except OSError as error:
            raise OSError(
                f"{options.host}:{options.port} cannot be bound ({error.strerror}); choose another "
                "with --port, or stop what listens there"
            ) from error
        address = f"{options.host}:{runner.addresses[0][1]}"
        log.info(
            "Ranking at http://%s/v1/rank with store %s and model %r of %s",
            address,
            options.store,
            options.model_name,
            options.model_server,
        )
        if options.ready_file is not None:
            write_ready_file(options.ready_file, gateway=address)
        await stop.wait()
    finally:
        await runner.cleanup()
        gateway.close()
        model.close()


def _parse(body: bytes) -> object:
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise GatewayError(400, f"the body is not JSON: {error}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
