"""A feature host: the requests of a log, joined on demand, a stream for each order."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from components.seqvault_example_gen.join import Store
from laser_features import FeatureSpec
from tfx_pipeline.feature_host.batch_stream import BatchStream
from tfx_pipeline.feature_host.host_metrics import HostMetrics
from tfx_pipeline.feature_host.ordered_batches import OrderedBatches
from tfx_pipeline.feature_host.request_shards import RequestShards
from tfx_pipeline.feature_host.stream_order import StreamOrder
from tfx_pipeline.feature_host.wire_layout import wire_fingerprint

IDLE_SECONDS = 1800.0
"""A stream to which nobody has been connected for so long is closed: its trainer is gone."""


class FeatureHost:
    """Opens and closes streams, and says what it has.

    Args:
        shards: The log's requests.
        store: An open SeqVault.
        spec: The feature spec.
        data: Fingerprint of everything that the batches depend on.
        host: Address at which streams are listened for.
    """

    def __init__(
        self, shards: RequestShards, store: Store, spec: FeatureSpec, data: str, host: str
    ) -> None:
        self._shards, self._store, self._spec = shards, store, spec
        self._data, self._host = data, host
        self._numbers = itertools.count(1)
        self._streams: dict[int, BatchStream] = {}
        self._lock = threading.Lock()
        self.metrics = HostMetrics()

    def describe(self) -> dict[str, Any]:
        """What a trainer must know before it asks for anything."""
        return {
            "schema": wire_fingerprint(self._spec),
            "spec": self._spec.name,
            "data": self._data,
            "negative_rate": self._shards.negative_rate,
            "splits": {split: self._shards.numbers(split) for split in self._shards.splits},
        }

    def open(self, order: StreamOrder) -> dict[str, int]:
        """Open a stream: its port, its number, and the batches of the whole shard.

        Raises:
            ValueError: There is no such split, shard or batch.
        """
        with self._lock:
            number = next(self._numbers)
        batches = OrderedBatches(order, self._shards, self._store, self._spec, number)
        stream = BatchStream(batches, order.first, self._spec, self._host, self.metrics.sent)
        with self._lock:
            self._streams[stream.port] = stream
        self._close_idle()
        return {"port": stream.port, "stream": number, "batches": len(batches)}

    def is_open(self, port: int) -> bool:
        """Whether a stream is there."""
        with self._lock:
            return port in self._streams

    def close_stream(self, port: int) -> bool:
        """Close a stream that is not needed any more; False if it is not there."""
        with self._lock:
            stream = self._streams.pop(port, None)
            self.metrics.streams(len(self._streams))
        if stream is not None:
            stream.close()
        return stream is not None

    def close(self) -> None:
        """Close all streams."""
        for port in list(self._streams):
            self.close_stream(port)

    def _close_idle(self) -> None:
        with self._lock:
            idle = [
                port for port, each in self._streams.items() if each.idle_seconds > IDLE_SECONDS
            ]
            self.metrics.streams(len(self._streams))
        for port in idle:
            self.close_stream(port)
