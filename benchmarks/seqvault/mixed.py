"""Reads while the store is written: under a steady load of appends, and during merges."""

import threading
import time
from typing import Any

import numpy as np

from benchmarks.seqvault.appends import BATCH, batches
from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.peers.seqvault import SeqVaultPeer
from benchmarks.seqvault.reads import one_read
from benchmarks.seqvault.timing import Sample, percentiles
from benchmarks.seqvault.workload import Columns, Histories


def _reads(store: Peer, users: np.ndarray, seconds: float, seed: int) -> list[Sample]:
    rng = np.random.default_rng(seed)
    held: dict[str, Columns] = {}
    samples, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        one = rng.choice(users, 1)
        samples.append(one_read(store, one, held))
    return samples


def _appends(
    store: Peer, parts: list[Columns], pause: float, stop: threading.Event, done: list[int]
) -> None:
    """An append every ``pause`` seconds, or as often as the store can."""
    due = time.perf_counter()
    for part in parts:
        if stop.is_set():
            return
        store.append(part)
        done[0] += BATCH
        due = max(due + pause, time.perf_counter())
        stop.wait(max(0.0, due - time.perf_counter()))


def reads_under_appends(
    stores: list[Peer], histories: Histories, turns: int = 4, seconds: float = 1.5
) -> dict[str, Any]:
    """Single reads while 1000 durable events of 100 users arrive every 20 ms, and without.

    Stores that cannot take as many get as many as they can. The stores take turns.
    """
    samples: dict[str, dict[str, list[Sample]]] = {
        store.name: {"idle": [], "appending": []} for store in stores
    }
    taken: dict[str, int] = {store.name: 0 for store in stores}
    for turn in range(turns):
        parts = batches(histories, int(seconds / 0.02) + 1, 100, seed=turn)
        for store in stores:
            own = samples[store.name]
            own["idle"] += _reads(store, histories.users, seconds / 3, seed=turn)
            stop, done = threading.Event(), [0]
            writer = threading.Thread(target=_appends, args=(store, parts, 0.02, stop, done))
            writer.start()
            own["appending"] += _reads(store, histories.users, seconds, seed=turn)
            stop.set()
            writer.join()
            taken[store.name] += done[0]
    return {
        name: {
            "idle": percentiles(own["idle"]),
            "appending": percentiles(own["appending"]),
            "events_per_second": round(taken[name] / (turns * seconds)),
        }
        for name, own in samples.items()
    }


def reads_during_merges(
    store: SeqVaultPeer, histories: Histories, turns: int = 6, seconds: float = 1.5
) -> dict[str, Any]:
    """Single reads of SeqVault, idle and while merges of 20,000 new events follow each other.

    Idle and merging take turns, so that both see the same machine.
    """
    idle: list[Sample] = []
    merging: list[Sample] = []
    merges = written = 0
    for turn in range(turns):
        idle += _reads(store, histories.users, seconds, seed=turn)
        stop = threading.Event()
        # made before: to make them holds the GIL, which is not the store's doing
        parts = batches(histories, 20, len(histories.users), seed=1000 * turn)

        def merge(parts: list[Columns] = parts, stop: threading.Event = stop) -> None:
            nonlocal merges, written
            while not stop.is_set():
                for part in parts:
                    store.append(part)
                written += store.vault.merge()["bytes"]
                merges += 1

        worker = threading.Thread(target=merge)
        worker.start()
        merging += _reads(store, histories.users, seconds, seed=turn)
        stop.set()
        worker.join()
    return {
        "idle": percentiles(idle),
        "merging": percentiles(merging),
        "merges": merges,
        "merged_bytes_per_new_event": round(written / (merges * 20 * BATCH), 1),
    }
