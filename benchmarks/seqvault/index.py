"""DRAM, lookups and building of the index alone."""

import time

import numpy as np

from seqvault.memory.index import Index


def measure(users: int) -> dict[str, float]:
    """An index of so many users, one record each."""
    index, rng = Index(), np.random.default_rng(4)
    keys = np.unique(rng.integers(0, 1 << 62, users))
    rng.shuffle(keys)
    n = len(keys)
    ones = np.ones(n, np.int64)
    start = time.perf_counter()
    index.add_records(1, keys, np.arange(n) * 64, ones * 64, ones, ones, ones)
    built = time.perf_counter() - start
    wanted = rng.choice(keys, 100_000)
    index.users.find(wanted[:10])
    start = time.perf_counter()
    index.users.find(wanted)
    lookup = (time.perf_counter() - start) / len(wanted) * 1e9
    return {
        "users": n,
        "bytes_per_user": round(index.bytes / n, 1),
        "lookup_ns": round(lookup, 1),
        "built_users_per_second": round(n / built),
    }
