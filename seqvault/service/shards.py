"""Sharding: maps users to virtual shards by hash, and virtual shards to servers."""

from functools import lru_cache

import numpy as np

VIRTUAL_SHARDS = 4096  # for ever: another number would move every user


def shard_of(users: np.ndarray, servers: int) -> np.ndarray:
    """int64 [B]: the server of each user.

    A user belongs to virtual shard ``splitmix64(user) mod 4096``, a virtual shard to the server
    that jump consistent hashing (Lamping and Veach 2014, arXiv:1406.2294) gives. With one server
    more, one virtual shard of ``servers + 1`` moves, all of them to the new one.

    >>> shard_of(np.array([0, 1, 2, 3, 4, 5]), 2).tolist()
    [1, 1, 0, 1, 1, 0]
    >>> shard_of(np.array([0, 1, 2, 3, 4, 5]), 3).tolist()
    [1, 1, 2, 1, 1, 0]
    """
    return _servers_of(servers)[virtual_shard_of(users)]


def virtual_shard_of(users: np.ndarray) -> np.ndarray:
    """int64 [B]: the virtual shard of each user, ``splitmix64(user) mod 4096``."""
    with np.errstate(over="ignore"):
        mixed = users.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(VIRTUAL_SHARDS)).astype(np.int64)


@lru_cache
def _servers_of(servers: int) -> np.ndarray:
    """int64 [VIRTUAL_SHARDS]: the server of each virtual shard."""
    return np.array([jump(shard, servers) for shard in range(VIRTUAL_SHARDS)], np.int64)


def jump(key: int, buckets: int) -> int:
    """The bucket of a key, of ``buckets``; see ``shard_of``.

    >>> [jump(42, 57), jump(256, 1024)]
    [43, 520]
    """
    last, following = -1, 0
    while following < buckets:
        last = following
        key = (key * 2862933555777941757 + 1) % (1 << 64)
        following = int((last + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return last
