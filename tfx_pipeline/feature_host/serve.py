"""Runs a feature host until the process is told to end: ``laser-pipeline feature-host``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from components.seqvault_example_gen.open_store import open_store
from laser_features import FeatureSpec
from seqvault.end_signals import EndSignals
from tfx_pipeline.cluster.exit_codes import EXIT_PORT_IN_USE
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import ClusterError, PipelineError
from tfx_pipeline.feature_host.address import parse_address
from tfx_pipeline.feature_host.control_server import ControlServer
from tfx_pipeline.feature_host.feature_host import FeatureHost
from tfx_pipeline.feature_host.request_shards import RequestShards
from tfx_pipeline.fingerprint import code_fingerprint, combine, file_fingerprint


def serve(
    config: PipelineConfig,
    listen: str,
    say: Callable[[str], None] = print,
    ended: EndSignals | None = None,
) -> None:
    """Load the log, open the store, and serve until a signal comes or an exception does.

    Args:
        config: Dataset, store, splits, rows per file, bounds.
        listen: "host:port" for control; each stream gets a port of its own beside it.
        say: Takes lines for people; the last one before it serves names the address.
        ended: The signals that end it; None: only an exception does.

    Raises:
        PipelineError: Dataset or store is missing, or the address is wrong or in use.
        ImpressionsError: The log cannot be used.
    """
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise PipelineError(f"--listen: {error}") from error
    config.check_inputs()
    spec = config.load_spec()
    shards = RequestShards(config, spec)
    for reason, count in shards.malformed.most_common():
        say(f"left out {count:,} impressions: {reason}")
    with open_store(config.store) as store:
        feature_host = FeatureHost(shards, store, spec, requests_fingerprint(config, spec), host)
        try:
            control = ControlServer(feature_host, host, port)
        except OSError as error:
            raise ClusterError(
                f"{listen} cannot be listened at ({error.strerror}): end what uses it, or give "
                "another address",
                EXIT_PORT_IN_USE,
            ) from error
        try:
            counts = ", ".join(
                f"{shards.impressions(split):,} impressions of {split} in "
                f"{len(shards.numbers(split))} shards"
                for split in shards.splits
            )
            say(f"{spec.name}: {counts}")
            say(f"serves at {host}:{control.port}")
            while ended is None or not ended.wait():
                time.sleep(1.0)
        finally:
            control.close()
            feature_host.close()


def requests_fingerprint(config: PipelineConfig, spec: FeatureSpec) -> str:
    """Hash of what decides which requests come in which batch, and of the code that joins them.

    The store is no part of it: histories end before their requests, and so a store may grow while
    hosts start one after another. All hosts of a training must read the same one.
    """
    splits = {name: [split.start, split.end] for name, split in config.splits.items()}
    return combine(
        code_fingerprint(["tfx_pipeline.feature_host.serve"]),
        file_fingerprint(config.dataset / "impressions.parquet"),
        spec.fingerprint(),
        json.dumps([splits, config.rows_per_file, config.negative_rate]),
    )
