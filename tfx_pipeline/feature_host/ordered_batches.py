"""The batches of an order, joined and laid out one after another."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from components.seqvault_example_gen.join import Store, join_batch
from laser_features import FeatureSpec
from tfx_pipeline.feature_host.encode_batch import encode_batch
from tfx_pipeline.feature_host.request_shards import RequestShards
from tfx_pipeline.feature_host.stream_order import StreamOrder
from tfx_pipeline.training.example_files import shuffled_positions


class OrderedBatches:
    """Any batch of an order by its number; nothing is kept between two calls.

    Args:
        order: What was asked for.
        shards: The log's requests.
        store: An open SeqVault.
        spec: The feature spec.
        stream: A number for the seal of each batch.

    Raises:
        ValueError: There is no such split or shard, or it has no such batch.
    """

    def __init__(
        self,
        order: StreamOrder,
        shards: RequestShards,
        store: Store,
        spec: FeatureSpec,
        stream: int,
    ) -> None:
        if order.split not in shards.splits:
            raise ValueError(f"no split {order.split!r}; there are {', '.join(shards.splits)}")
        if order.shard not in shards.numbers(order.split):
            raise ValueError(f"split {order.split} has no shard {order.shard}")
        self._order, self._shards = order, shards
        self._store, self._spec, self._stream = store, spec, stream
        self.requests = len(shards.requests(order.split, order.shard))
        self._positions = shuffled_positions(self.requests, order.shuffle_buffer, order.seed)
        if order.first >= len(self):
            raise ValueError(
                f"shard {order.shard} of split {order.split} has {len(self)} batches, so none is "
                f"left from batch {order.first} on"
            )

    def __len__(self) -> int:
        """Batches of the shard, with those that the order leaves out."""
        return -(-self.requests // self._order.batch_size)

    def make(self, number: int) -> tuple[pa.RecordBatch, Counter[str]]:
        """Join and lay out a batch.

        Returns:
            One row of a stream, and what the join counted.
        """
        order = self._order
        within = self._positions[number * order.batch_size : (number + 1) * order.batch_size]
        requests = self._shards.requests(order.split, order.shard).take(within)
        joined = join_batch(requests, self._store, self._spec)
        labels = {
            name: requests.table.column(name).to_numpy().astype(np.float32)
            for name in self._spec.labels
        }
        seal = (self._stream, number, len(self), len(requests))
        return encode_batch(self._spec, joined, labels, seal), joined.counts
