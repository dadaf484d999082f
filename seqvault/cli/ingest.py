"""``seqvault ingest``: consumes a Kafka topic into a store until a signal ends it."""

import argparse
import logging
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seqvault.cli.targets import open_target
from seqvault.errors import InvalidRequestError
from seqvault.ingest.dead_letters import DeadLetters
from seqvault.ingest.kafka_ingest import KafkaIngest
from seqvault.ingest.messages import Columns
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service.address import is_address
from seqvault.service.metrics import serve_metrics
from seqvault.service.sharded_client import ShardedClient
from seqvault.service.shards import shard_of
from seqvault.store import SeqVault
from seqvault.warm_up import warm_up


def ingest(arguments: argparse.Namespace) -> dict[str, Any]:
    """Consumes until SIGTERM or SIGINT, or with ``--once`` to the end; prints what was stored."""
    start = time.perf_counter()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not is_address(arguments.path):
        warm_up()
    with open_target(arguments, read_only=False) as store:
        if isinstance(store, ShardedClient):
            raise InvalidRequestError(
                f"ingest fills one store, {arguments.path} are several servers; run one ingest for "
                "each, with --shard I/N if they are shards."
            )
        letters = DeadLetters(Path(arguments.dead_letters or _dead_letters_of(arguments)))
        merge = None
        if isinstance(store, SeqVault):  # a server merges by itself
            merge = BackgroundMerge(store, arguments.merge_seconds)
        try:
            _consume(arguments, consumer := _consumer(arguments, store, letters))
        finally:
            letters.close()
            if merge is not None:
                merge.stop()
    return {**consumer.counts, "seconds": round(time.perf_counter() - start, 3)}


def _consumer(arguments: argparse.Namespace, store: Any, letters: DeadLetters) -> KafkaIngest:
    return KafkaIngest(
        store,
        arguments.kafka,
        arguments.topic,
        arguments.group or default_group(arguments.path),
        letters,
        keep=partial(_of_shard, *arguments.shard) if arguments.shard else None,
        config=_config_of(arguments.kafka_config),
    )


def _consume(arguments: argparse.Namespace, consumer: KafkaIngest) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: consumer.stop())
    web = None
    if arguments.metrics_port is not None:
        web = serve_metrics("127.0.0.1", arguments.metrics_port, consumer.metrics_text)
    try:
        with tqdm(unit=" messages", unit_scale=True, disable=None) as bar:
            consumer.run(once=arguments.once, progress=bar.update)
    finally:
        if web is not None:
            web.shutdown()
        consumer.close()


def _dead_letters_of(arguments: argparse.Namespace) -> str:
    """Beside the store, or here if it is a server's."""
    beside = arguments.topic if is_address(arguments.path) else arguments.path.rstrip("/")
    return f"{beside}.dead.jsonl"


def default_group(target: str) -> str:
    """The default consumer group, one per store: replicas must not share a group."""
    if is_address(target):
        return f"seqvault-{target}"
    return f"seqvault-{socket.gethostname()}-{Path(target).resolve()}"


def _of_shard(place: int, count: int, columns: Columns) -> np.ndarray:
    return shard_of(columns["user_id"], count) == place


def _config_of(path: str | None) -> dict[str, str]:
    """librdkafka's properties from lines ``name=value``; ``#`` begins a comment."""
    if path is None:
        return {}
    entries = {}
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise InvalidRequestError(f"{path}, line {number}: expected name=value, got {line!r}.")
        entries[name.strip()] = value.strip()
    return entries
