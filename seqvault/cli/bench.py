"""``seqvault bench``: latency of calls, in this process or over the network."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from seqvault.cli.store_commands import table
from seqvault.cli.targets import open_target
from seqvault.errors import InvalidRequestError
from seqvault.schema import Schema
from seqvault.service.address import is_address
from seqvault.store import SeqVault

FIRST_NEW_USER = 1 << 62
WARM_UP_CALLS = 3


def bench(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Measures the latency of single-user reads, batch reads and appends."""
    if arguments.batch < 1 or arguments.last_n < 1 or arguments.seconds <= 0:
        raise InvalidRequestError("--batch, --last-n and --seconds must be above 0.")
    rng = np.random.default_rng(0)
    with open_target(arguments, read_only=not arguments.append) as store:
        users = _users(arguments, store)

        def read(count: int) -> int:
            batch = store.read(rng.choice(users, count), before=None, last_n=arguments.last_n)
            return int(batch.lengths.sum())

        calls: dict[str, Callable[[], int]] = {
            "read 1 user": lambda: read(1),
            f"read {arguments.batch} users": lambda: read(arguments.batch),
        }
        if arguments.append:
            calls[f"append {arguments.append} events"] = lambda: store.append(
                new_events(store.schema, arguments.append, rng)
            )
        results = {
            name: timed(call, arguments.seconds)
            for name, call in tqdm(calls.items(), unit=" lines", disable=None, leave=False)
        }
    if arguments.json:
        return {"target": arguments.path, "last_n": arguments.last_n, "results": results}
    shown = {"": list(results)}
    for column in next(iter(results.values())):
        shown[column] = [f"{result[column]:,.6g}" for result in results.values()]
    print(table(shown), end="")
    return None


def _users(arguments: argparse.Namespace, store: Any) -> np.ndarray:
    """Ids to draw from."""
    if arguments.users:
        low, _, high = arguments.users.partition(":")
        if not (low.lstrip("-").isdigit() and high.lstrip("-").isdigit() and int(low) < int(high)):
            raise InvalidRequestError(f"--users {arguments.users} is not LOW:HIGH, e.g. 1:20000.")
        size = min(1_000_000, int(high) - int(low))
        return np.random.default_rng(1).integers(int(low), int(high), size)
    if is_address(arguments.path):
        raise InvalidRequestError("bench cannot list the users of a server; give --users LOW:HIGH.")
    assert isinstance(store, SeqVault)
    users = stored_users(store)
    if not len(users):
        raise InvalidRequestError(f"{arguments.path} has no users; load events first.")
    return users


def timed(call: Callable[[], int], seconds: float) -> dict[str, float]:
    """Repeats a call for a given time and measures the wall-clock time of each.

    Returns:
        ``calls``, ``p50_ms``, ``p99_ms``, ``cpu_ms`` (mean, this process) and ``events_per_s``.
    """
    for _ in range(WARM_UP_CALLS):
        call()
    taken: list[float] = []
    events = 0
    cpu, end = time.process_time(), time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        events += call()
        taken.append(time.perf_counter() - start)
    return {
        "calls": len(taken),
        "p50_ms": round(float(np.percentile(taken, 50)) * 1e3, 4),
        "p99_ms": round(float(np.percentile(taken, 99)) * 1e3, 4),
        "cpu_ms": round((time.process_time() - cpu) / len(taken) * 1e3, 4),
        "events_per_s": round(events / sum(taken)),
    }


def new_events(schema: Schema, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Events of now, of users from ``FIRST_NEW_USER`` on, with small values in every field."""
    return {
        "user_id": FIRST_NEW_USER + rng.integers(0, 10_000, count),
        "timestamp": np.full(count, int(time.time() * 1000)),
        **{name: rng.integers(0, 100, count).astype(schema.dtype(name)) for name in schema.names},
    }


def stored_users(vault: SeqVault) -> np.ndarray:
    """int64 of the ids of all users that the store has seen."""
    return vault._state.index.users.keys
