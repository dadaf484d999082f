"""Durable appends of 1000 events, by one thread and by four, the stores taking turns."""

import threading
import time
from typing import Any

import numpy as np

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.timing import MICRO
from benchmarks.seqvault.workload import Columns, Histories

BATCH = 1000


def batches(histories: Histories, count: int, users: int, seed: int) -> list[Columns]:
    """Batches of 1000 new events of up to ``users`` users each."""
    rng = np.random.default_rng(seed)
    made: list[Columns] = []
    for number in range(count):
        rows = rng.integers(0, len(histories), BATCH)
        part = {name: values[rows] for name, values in histories.events.items()}
        part["user_id"] = rng.choice(rng.choice(histories.users, users), BATCH)
        part["timestamp"] = 1_750_000_000_000 + number * BATCH + np.arange(BATCH)
        made.append(part)
    return made


def by_threads(store: Peer, parts: list[Columns], threads: int) -> tuple[float, float]:
    """Wall and CPU seconds until all is acknowledged; each thread has one append under way."""

    def work(own: list[Columns]) -> None:
        for part in own:
            store.append(part)

    workers = [threading.Thread(target=work, args=(parts[k::threads],)) for k in range(threads)]
    server = getattr(store, "server", None)
    remote = server.cpu_seconds() if server else 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu + (server.cpu_seconds() - remote if server else 0.0)


def durable(
    stores: list[Peer], histories: Histories, threads: int, turns: int = 8, each: int = 24
) -> dict[str, Any]:
    """Events a second and CPU microseconds for 1000 events, median of the turns."""
    samples: dict[str, list[tuple[float, float]]] = {store.name: [] for store in stores}
    for turn in range(turns + 1):
        parts = batches(histories, each, min(1000, len(histories.users)), seed=turn)
        for store in stores:
            samples[store.name].append(by_threads(store, parts, threads))
    result = {}
    for name, sample in samples.items():
        wall, cpu = np.median(np.array(sample[1:]), axis=0)
        result[name] = {
            "events_per_second": round(each * BATCH / wall),
            "cpu_us_per_1000": round(cpu * MICRO / each),
        }
    return result
