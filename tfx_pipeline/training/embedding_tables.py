"""Sparse embedding tables: sharded by rows, read and trained by the rows that a batch needs.

A step reads each distinct row once and sends back one gradient per distinct row, so what travels
between a worker and the parameter servers follows the batch and not the size of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfx_pipeline.training.traffic import bytes_of
from tfx_pipeline.training.transmission import NONE, decoded, encoded

_INIT_BLOCK = 8192


class EmbeddingTable(tf.Module):
    """A table of ``rows`` embeddings with its Adagrad accumulators.

    Row 0 means missing or padding: it is zero from the start and is never trained. Under a
    parameter-server strategy whose partitioner splits matrices, both variables come back as one
    shard per server; without, as one variable. Checkpoints fit either way.

    Args:
        name: Names the table in checkpoints and keys its initial values.
        rows: Rows including row 0.
        width: Numbers per row.
        seed: Initial values follow from (seed, name, row) alone, not from the sharding.
        init_scale: Initial values are uniform in [-init_scale, init_scale].
        initial_accumulator: First value of Adagrad's sum of squares.
        transmission: How rows and gradients travel, one of ``transmission.CODECS``.

    Example:
        >>> table = EmbeddingTable("item", rows=5, width=2, seed=1)
        >>> table.gather(tf.constant([0, 3])).shape
        TensorShape([2, 2])
    """

    def __init__(
        self,
        name: str,
        rows: int,
        width: int,
        *,
        seed: int,
        init_scale: float = 0.05,
        initial_accumulator: float = 0.1,
        transmission: str = NONE,
    ) -> None:
        super().__init__(name=name)
        self.rows, self.width = rows, width
        self.transmission = transmission

        def initial_rows(
            partition_shape: Sequence[int] = (rows, width), partition_offset: Sequence[int] = (0, 0)
        ) -> tf.Tensor:
            first, count = int(partition_offset[0]), int(partition_shape[0])
            return initial_embeddings(name, first, count, width, seed=seed, scale=init_scale)

        def initial_accumulators(
            partition_shape: Sequence[int] = (rows, width), partition_offset: Sequence[int] = (0, 0)
        ) -> tf.Tensor:
            return tf.fill(list(partition_shape), tf.constant(initial_accumulator, tf.float32))

        self._initial_rows, self._initial_accumulator = initial_rows, initial_accumulator
        shape = [rows, width]
        self.values = tf.Variable(
            initial_rows, shape=shape, dtype=tf.float32, name=name, trainable=False
        )
        self.accumulators = tf.Variable(
            initial_accumulators,
            shape=shape,
            dtype=tf.float32,
            name=f"{name}_adagrad",
            trainable=False,
        )

    def gather(self, ids: tf.Tensor, sizes: list[tf.Tensor] | None = None) -> tf.Tensor:
        """Rows of distinct ``ids`` [U] (int32): float32 [U, width].

        ``sizes`` gets the bytes of what each shard sends, int64 scalars.
        """
        return gather_rows(shards_of(self.values), ids, self.transmission, sizes)

    def apply_gradient(
        self,
        ids: tf.Tensor,
        gradient: tf.Tensor,
        learning_rate: tf.Tensor | float,
        sizes: list[tf.Tensor] | None = None,
    ) -> None:
        """One Adagrad step (Duchi et al. 2011) on the distinct rows ``ids``.

        Args:
            ids: int32 [U], distinct.
            gradient: float32 [U, width]; that of row 0 is dropped.
            learning_rate: Step size.
            sizes: Gets the bytes of what each shard is sent, int64 scalars.
        """
        trained = tf.where(ids > 0)[:, 0]
        ids, gradient = tf.gather(ids, trained), tf.gather(gradient, trained)
        values, accumulators = shards_of(self.values), shards_of(self.accumulators)
        parts = _split_by_shard(values, ids)
        for value, accumulator, (local_ids, positions) in zip(
            values, accumulators, parts, strict=True
        ):
            part = gradient if positions is None else tf.gather(gradient, positions)
            sent = encoded(part, self.transmission)
            if sizes is not None:
                sizes.append(bytes_of(sent))
            with tf.device(value.device):
                tf.raw_ops.ResourceSparseApplyAdagradV2(
                    var=value.handle,
                    accum=accumulator.handle,
                    lr=tf.cast(learning_rate, tf.float32),
                    epsilon=tf.constant(1e-7, tf.float32),
                    grad=decoded(sent, self.transmission, tf.size(local_ids), self.width),
                    indices=local_ids,
                    use_locking=True,
                    update_slots=True,
                )

    def reset(self, rows: NDArray[np.int32]) -> None:
        """Give rows and their accumulators their first values again. No step may be running."""
        ids = tf.constant(rows, tf.int32)
        for block in np.unique(rows // _INIT_BLOCK):
            within = tf.boolean_mask(ids, ids // _INIT_BLOCK == block)
            first = int(block) * _INIT_BLOCK
            count = min(_INIT_BLOCK, self.rows - first)
            fresh = tf.gather(self._initial_rows([count, self.width], [first, 0]), within - first)
            sums = tf.fill([tf.size(within), self.width], self._initial_accumulator)
            for variable, values in ((self.values, fresh), (self.accumulators, sums)):
                shards = shards_of(variable)
                for shard, (local, positions) in zip(
                    shards, _split_by_shard(shards, within), strict=True
                ):
                    part = values if positions is None else tf.gather(values, positions)
                    shard.scatter_update(tf.IndexedSlices(part, local))


def initial_embeddings(
    name: str, first: int, count: int, width: int, *, seed: int, scale: float
) -> tf.Tensor:
    """Initial rows ``first`` to ``first + count`` of a table, the same however it is split.

    Args:
        name: The table's name.
        first: First row.
        count: Number of rows.
        width: Numbers per row.
        seed: Of the run.
        scale: Largest absolute value.

    Returns:
        float32 [count, width]; row 0 of the table is zero.
    """
    key = tf.constant(crc32(f"{name}/{seed}".encode()) & 0x7FFFFFFF, tf.int32)
    blocks = []
    for block in range(first // _INIT_BLOCK, (first + count - 1) // _INIT_BLOCK + 1):
        values = tf.random.stateless_uniform(
            [_INIT_BLOCK, width], seed=tf.stack([key, block]), minval=-scale, maxval=scale
        )
        start, end = block * _INIT_BLOCK, (block + 1) * _INIT_BLOCK
        blocks.append(values[max(first, start) - start : min(first + count, end) - start])
    rows = tf.concat(blocks, axis=0)
    is_padding = tf.range(first, first + count)[:, None] == 0
    return tf.where(is_padding, 0.0, rows)


def shards_of(variable: tf.Variable) -> list[tf.Variable]:
    """The variables that a sharded variable consists of; a plain one is its only shard."""
    return list(getattr(variable, "variables", [variable]))


def gather_rows(
    shards: Sequence[tf.Variable],
    ids: tf.Tensor,
    transmission: str = NONE,
    sizes: list[tf.Tensor] | None = None,
) -> tf.Tensor:
    """Read rows where their shards live and put them together in the order of ``ids`` [U]."""
    width = int(shards[0].shape[1])
    parts, positions = [], []
    for shard, (local_ids, position) in zip(shards, _split_by_shard(shards, ids), strict=True):
        with tf.device(shard.device):
            rows = tf.raw_ops.ResourceGather(
                resource=shard.handle, indices=local_ids, dtype=shard.dtype
            )
            sent = encoded(rows, transmission)
        if sizes is not None:
            sizes.append(bytes_of(sent))
        parts.append(decoded(sent, transmission, tf.size(local_ids), width))
        positions.append(position)
    if len(parts) == 1:
        return parts[0]
    return tf.reshape(tf.dynamic_stitch(positions, parts), [-1, width])


def _split_by_shard(
    shards: Sequence[tf.Variable], ids: tf.Tensor
) -> list[tuple[tf.Tensor, tf.Tensor | None]]:
    """For each shard: ids counted from its first row, and where they stand in ``ids``."""
    if len(shards) == 1:
        return [(ids, None)]
    parts = []
    first = 0
    for shard in shards:
        after = first + int(shard.shape[0])
        position = tf.cast(tf.where((ids >= first) & (ids < after))[:, 0], tf.int32)
        parts.append((tf.gather(ids, position) - first, position))
        first = after
    return parts
