"""A chief that trains one table by each codec over a cluster, and writes what they hold.

Usage: codecs.py OUTPUT_NPZ
"""

import os
import sys

import numpy as np
import tensorflow as tf

from tfx_pipeline.training.cluster import Cluster
from tfx_pipeline.training.embedding_tables import EmbeddingTable, initial_embeddings, shards_of
from tfx_pipeline.training.row_frames import load_ops
from tfx_pipeline.training.transmission import CODECS, damage_of


def main(output: str) -> None:
    strategy = Cluster.from_environment().connect()
    coordinator = tf.distribute.experimental.coordinator.ClusterCoordinator(strategy)
    written = {}
    for codec in CODECS:
        with strategy.scope():
            table = EmbeddingTable("item", 50, 5, seed=1, transmission=codec)

        @tf.function
        def step(ids, table=table):
            rows = table.gather(ids)
            table.apply_gradient(ids, 0.3 * rows + 0.017, 0.1)
            return rows

        for ids in ([0, 3, 49, 20], [7], [30, 31, 32], [3, 26]):
            read = coordinator.schedule(step, args=(tf.constant(ids),))
        coordinator.join()
        written[f"read_{codec}"] = read.fetch()
        for name in ("values", "accumulators"):
            shards = shards_of(getattr(table, name))
            assert len(shards) == 2
            written[f"{name}_{codec}"] = np.concatenate([shard.numpy() for shard in shards])

    first = initial_embeddings("item", 0, 50, 5, seed=1, scale=0.05)
    table.reset(np.array([3, 49], np.int32))
    whole = np.concatenate([shard.numpy() for shard in shards_of(table.values)])
    np.testing.assert_array_equal(whole[[3, 49]], first.numpy()[[3, 49]])

    @tf.function
    def damaged():
        with tf.device("/job:ps/task:0"):
            frame = load_ops().laser_pack_rows(rows=tf.ones([4, 5]))
        return load_ops().laser_unpack_rows(frame=frame[1:], count=4, T=tf.float32, width=5)

    coordinator.schedule(damaged)
    try:
        coordinator.join()
    except tf.errors.DataLossError as error:
        written["damaged"] = damage_of(error)
    np.savez(output, **written)


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
