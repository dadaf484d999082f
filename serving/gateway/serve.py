"""The gateway as a process: opens store and model, serves, and drains on a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from laser_features import FeatureSpec, FeatureSpecError
from seqvault import SeqVault
from seqvault.errors import SeqVaultError
from seqvault.merge.background_merge import BackgroundMerge
from serving.gateway.gateway import Gateway
from serving.gateway.impression_log import ImpressionLog
from serving.gateway.model_client import ModelClient
from serving.gateway.options import GatewayOptions
from serving.gateway.ranker import Model
from serving.gateway.store import Store, check_store, open_store
from serving.ready_file import write_ready_file
from serving.runtime.collector import freeze_heap
from serving.runtime.http_server import HttpServer

log = logging.getLogger(__name__)
_CHECK_SECONDS = 60.0
_MERGE_SECONDS = 60.0


def serve(options: GatewayOptions) -> int:
    """Run a gateway until SIGINT or SIGTERM; returns the exit code."""
    try:
        spec = FeatureSpec.load(options.features)
        with (
            _checked_store(spec, options) as (store, merge),
            closing(_open_model(options)) as model,
            _impression_log(options.impression_log) as impressions,
        ):
            asyncio.run(_serve(spec, store, model, merge, impressions, options))
    except (FeatureSpecError, SeqVaultError, OSError) as error:
        print(f"laser-serving gateway: {error}", file=sys.stderr)
        return 1
    return 0


def _open_model(options: GatewayOptions) -> Model:
    if options.model_base_path is None:
        freeze_heap()
        return ModelClient(options.model_server, options.model_name)
    from serving.gateway.in_process_model import InProcessModel  # loads TensorFlow

    freeze_heap()  # the store lives as long as the process; versions of the model do not
    return InProcessModel(options.model_base_path, options.model_name)


@contextmanager
def _checked_store(
    spec: FeatureSpec, options: GatewayOptions
) -> Iterator[tuple[Store, BackgroundMerge | None]]:
    """The open store, which fits the spec; an embedded one is merged while it is open.

    The gateway is its only writer, so no other process can merge it; a SeqVault server merges by
    itself.
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
    # A server may be slow to its first reader; from here on the deadline holds, and where the
    # answer may do without the store, half of it is left for the model.
    seconds = options.rules.deadline_seconds * (0.5 if options.rules.degrade_history else 1.0)
    with closing(open_store(options.store, seconds, options.access)) as store:
        yield store, None


@contextmanager
def _impression_log(folder: Path | None) -> Iterator[ImpressionLog | None]:
    if folder is None:
        yield None
        return
    with closing(ImpressionLog(folder)) as impressions:
        impressions.start()
        yield impressions


async def _serve(
    spec: FeatureSpec,
    store: Store,
    model: Model,
    merge: BackgroundMerge | None,
    impressions: ImpressionLog | None,
    options: GatewayOptions,
) -> None:
    gateway = Gateway(spec, store, model, options.rules, merge, impressions)
    http = HttpServer(
        gateway.answer,
        options.host,
        options.port,
        body_seconds=options.rules.body_seconds,
        busy_seconds=options.rules.body_seconds + options.rules.append_seconds + 10.0,
        parking=gateway.parking(),
    )
    gateway.watch(http)
    stop: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.put_nowait, number)
    try:
        port = await http.start()
    except OSError as error:
        gateway.close()
        raise OSError(
            f"{options.host}:{options.port} cannot be bound ({error.strerror}); choose another "
            "with --port, or stop what listens there"
        ) from error
    gateway.start()
    try:
        address = f"{options.host}:{port}"
        log.info(
            "Ranking at http://%s/v1/rank with store %s and model %r of %s",
            address,
            options.store,
            options.model_name,
            options.model_base_path or options.model_server,
        )
        if options.ready_file is not None:
            write_ready_file(options.ready_file, gateway=address)
        sent = await stop.get()
        # Not ready any more, but still there for those who have not noticed; every answer asks
        # its client to reconnect elsewhere. Ctrl-C, or a second signal, does not wait.
        gateway.drain()
        http.close_after_answers()
        if sent == signal.SIGTERM and options.drain_seconds > 0:
            log.info("Draining for %g s", options.drain_seconds)
            await _wait(stop, options.drain_seconds)
    finally:
        await http.stop(options.rules.append_seconds)
        await asyncio.to_thread(gateway.close)


async def _wait(stop: asyncio.Queue[int], seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.get(), seconds)
    except asyncio.TimeoutError:
        return
