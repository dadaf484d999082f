"""Reads of one user and of 64, warm and cold, all stores taking turns in one loop."""

from typing import Any

import numpy as np

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.timing import MICRO, Sample, percentiles, timed
from benchmarks.seqvault.workload import LAST_N, Columns


def check_equal(peers: list[Peer], users: np.ndarray) -> None:
    """Raises unless all stores answer the same."""
    wanted = users[:: max(1, len(users) // 64)][:64]
    expected = peers[0].read(wanted)
    for peer in peers[1:]:
        got = peer.read(wanted)
        for field in expected:
            np.testing.assert_array_equal(
                got[field], expected[field], err_msg=f"{peer.name} {field}"
            )


def one_read(peer: Peer, wanted: np.ndarray, held: dict[str, Columns]) -> Sample:
    """Times a read as a loop over batches does it: the answer before is held until then."""

    def call() -> None:
        held[peer.name] = peer.read(wanted)

    return timed(call)


def warm(peers: list[Peer], users: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    """Microseconds of one call by store; which store is first changes from round to round."""
    rng = np.random.default_rng(1)
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    held: dict[str, Columns] = {}
    servers = {peer.name: peer.server for peer in peers if hasattr(peer, "server")}
    before = {name: server.cpu_seconds() for name, server in servers.items()}
    for turn in range(rounds):
        wanted = rng.choice(users, batch, replace=False)
        for k in range(len(peers)):
            peer = peers[(k + turn) % len(peers)]
            samples[peer.name].append(one_read(peer, wanted, held))
    result = {name: percentiles(sample) for name, sample in samples.items()}
    for name, server in servers.items():  # of another process, so not in cpu_p50
        used = (server.cpu_seconds() - before[name]) / rounds
        result[name]["server_cpu_mean"] = round(used * MICRO, 1)
    return result


def alone(peers: list[Peer], users: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    """As ``warm``, but each store by itself, so that the processor's caches are its own."""
    return {peer.name: warm([peer], users, batch, rounds)[peer.name] for peer in peers}


def cold(peers: list[Peer], users: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    """As ``warm``, from the disk: each store is opened anew without a cache of its own, and
    the page cache is emptied of its files before each call."""
    rng = np.random.default_rng(2)
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in peers}
    held: dict[str, Columns] = {}
    for _ in range(rounds):
        wanted = rng.choice(users, batch, replace=False)
        for peer in peers:
            peer.chill()
            samples[peer.name].append(one_read(peer, wanted, held))
    for peer in peers:
        peer.reopen(cached=True)
    return {name: percentiles(sample, warm_up=1) for name, sample in samples.items()}


def copy_of_answer(width: int, batch: int) -> float:
    """CPU microseconds to copy a padded answer once into fresh memory."""
    source = np.ones(batch * LAST_N * width, np.uint8)
    samples = [timed(source.copy) for _ in range(100)]
    return percentiles(samples)["cpu_p50"]
