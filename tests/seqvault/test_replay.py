"""Replays of an ordered log: duplicate, late and interleaved, they end in the same answers."""

import random

import numpy as np
import pytest

from seqvault import SeqVault
from seqvault.disk import wal
from seqvault.testing.crash_run import PATH
from seqvault.testing.memory_files import Crash, MemoryFiles
from seqvault.testing.oracle import USERS
from seqvault.testing.random_workload import SCHEMA, random_events

PARTITIONS = 3


def partitions(rng: random.Random) -> list[list[dict[str, np.ndarray]]]:
    """A log keyed by user, as Kafka's are: every user is in one partition."""
    logs = []
    for partition in range(PARTITIONS):
        log = []
        for _ in range(12):
            events = random_events(rng, 40)
            events["user_id"] = events["user_id"] // PARTITIONS * PARTITIONS + partition
            log.append(events)
        logs.append(log)
    return logs


def answers(vault: SeqVault) -> list[bytes]:
    """All that reads can show, to the byte."""
    batch = vault.read(range(USERS + PARTITIONS), before=None, last_n=600)
    parts = [batch.lengths, batch.version, *(batch[name] for name in batch.columns)]
    return [part.tobytes() for part in parts]


def consume(disk: MemoryFiles, logs, rng: random.Random, crash_after: int) -> None:
    """Feeds the store as a consumer does that commits late: from behind where it was.

    Each partition in order, but begun again somewhere earlier, some appends twice, the
    partitions in any interleaving, merges in between; may end by a crash.
    """
    left = crash_after

    def fault(operation):
        nonlocal left
        left -= operation != "preadv"
        if crash_after and left <= 0:
            raise Crash

    disk.fault = fault
    vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
    known = vault.stats()["sources"]
    next_of = [rng.randint(0, known.get(f"log-{p}", -1) + 1) for p in range(PARTITIONS)]
    while any(next_of[p] < len(logs[p]) for p in range(PARTITIONS)):
        p = rng.choice([p for p in range(PARTITIONS) if next_of[p] < len(logs[p])])
        for _ in range(rng.choice((1, 1, 2))):
            vault.append(logs[p][next_of[p]], source=f"log-{p}", offset=next_of[p])
        next_of[p] += 1
        if rng.random() < 0.1:
            vault.merge()
    if rng.random() < 0.5:
        vault.merge()
    vault.close()


@pytest.mark.parametrize("crashes", [0, 4])
def test_replays_end_byte_identical(crashes, monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 13)
    logs = partitions(random.Random(0))
    plain = MemoryFiles()
    with SeqVault.open(PATH, schema=SCHEMA, files=plain) as vault:
        for p, log in enumerate(logs):
            for offset, events in enumerate(log):
                vault.append(events, source=f"log-{p}", offset=offset)
        expected = answers(vault)
        assert (
            sum(len(rows) for log in logs for rows in (e["user_id"] for e in log))
            == (vault.stats()["events"])
        )
    for seed in range(8):
        rng, disk = random.Random(seed), MemoryFiles()
        for _ in range(crashes):
            try:
                consume(disk, logs, rng, crash_after=rng.randint(5, 80))
            except BaseException as error:
                if not isinstance(error, Crash) and not isinstance(error.__cause__, Crash):
                    raise
            disk = disk.after_crash(rng)
        consume(disk, logs, rng, crash_after=0)
        with SeqVault.open(PATH, files=disk) as vault:
            assert answers(vault) == expected, seed
            vault.verify()


def test_a_replica_that_starts_from_a_snapshot_ends_byte_identical():
    logs = partitions(random.Random(1))
    first, rng = MemoryFiles(), random.Random(2)
    with SeqVault.open(PATH, schema=SCHEMA, files=first) as vault:
        for offset in range(12):
            for p in range(PARTITIONS):
                vault.append(logs[p][offset], source=f"log-{p}", offset=offset)
            if offset == 5:
                vault.snapshot("/copies/replica")
        expected = answers(vault)
    replica = first.after_crash(rng, "all")
    with SeqVault.open("/copies/replica", files=replica) as vault:
        assert vault.stats()["sources"] == {f"log-{p}": 5 for p in range(PARTITIONS)}
        for p in range(PARTITIONS):
            for offset in range(3, 12):  # from before the snapshot's offset on
                stored = vault.append(logs[p][offset], source=f"log-{p}", offset=offset)
                assert (stored > 0) == (offset > 5)
        assert answers(vault) == expected
