"""Shards of a log: which impressions are joined, written and read together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRAIN_SPLIT = "train"
"""The split whose negatives may be sampled: the others tell how good a model is."""


def number_of_shards(impressions: int, rows_per_file: int) -> int:
    """Shards of a log of so many impressions, at least one.

    Example:
        >>> number_of_shards(20_000, rows_per_file=16_384)
        2
    """
    return max(1, -(-impressions // rows_per_file))


def shard_of_users(user_ids: NDArray[np.int64], shards: int) -> NDArray[np.uint64]:
    """The shard of each user.

    A user's requests stay together: the store decodes neighbours of one sequence in one go.

    Example:
        >>> shard_of_users(np.array([1, 2, 1]), 4)
        array([0, 1, 0], dtype=uint64)
    """
    mixed = user_ids.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    return mixed % np.uint64(shards)
