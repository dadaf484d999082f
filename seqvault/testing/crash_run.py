"""Crashes a store at random points and checks what it promises, against an oracle.

Run ``python -m seqvault.testing.crash_run --points 1000``; a failure prints the seed
that repeats it.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault import wal
from seqvault.errors import SeqVaultError
from seqvault.schema import Schema
from seqvault.store import SeqVault
from seqvault.testing.memory_files import Crash, MemoryFiles

SCHEMA = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("action", pa.int8())]))
USERS = 6
NOW = 1_700_000_000_000
PATH = "/vault"

Row = tuple[int, int, int]  # time, item, action


class Oracle:
    """What a store must answer: every user's events in order of arrival."""

    def __init__(self) -> None:
        self.events: dict[int, list[Row]] = defaultdict(list)
        self.items: dict[int, int] = {}
        self.offset = -1

    def copy(self) -> "Oracle":
        """A copy to change."""
        other = Oracle()
        other.events = defaultdict(list, {user: list(rows) for user, rows in self.events.items()})
        other.items, other.offset = dict(self.items), self.offset
        return other

    def add(self, events: dict[str, np.ndarray]) -> None:
        """Takes in an append."""
        for user, *row in zip(*(column.tolist() for column in events.values()), strict=True):
            self.events[user].append((row[0], row[1], row[2]))

    def difference(self, vault: SeqVault) -> str:
        """What the store answers wrongly, or "" if nothing."""
        batch = vault.read(np.arange(USERS), before=None, last_n=4096)
        for user in range(USERS):
            n = int(batch.lengths[user])
            columns = (
                batch[name][user, :n].tolist() for name in ("timestamp", "item_id", "action")
            )
            got = list(zip(*columns, strict=True))[::-1]
            expected = sorted(self.events[user], key=lambda row: row[0])
            if got != expected:
                return f"user {user}: {len(got)} events read, {len(expected)} expected"
        if self.items:
            read = vault.read_items(np.array(sorted(self.items)))
            if "value" not in read or read["value"].tolist() != [
                self.items[key] for key in sorted(self.items)
            ]:
                return "items differ"
        return ""


def _events(rng: random.Random, count: int) -> dict[str, np.ndarray]:
    late = rng.random() < 0.3
    return {
        "user_id": np.array([rng.randrange(USERS) for _ in range(count)], np.int64),
        "timestamp": np.array(
            [NOW + rng.randrange(1000) - (5000 if late else 0) for _ in range(count)], np.int64
        ),
        "item_id": np.array([rng.randrange(10**9) for _ in range(count)], np.int64),
        "action": np.array([rng.randrange(-5, 5) for _ in range(count)], np.int8),
    }


def step(vault: SeqVault, oracle: Oracle, rng: random.Random) -> tuple[Oracle, Callable[[], Any]]:
    """A random operation: what the oracle is after it, and the call that does it."""
    after, kind = oracle.copy(), rng.random()
    if kind < 0.6:
        events = _events(rng, rng.choice((1, 3, 50, 600)))
        if rng.random() < 0.5:
            after.offset += 1
            after.add(events)
            return after, lambda: vault.append(events, source="log-0", offset=after.offset)
        after.add(events)
        return after, lambda: vault.append(events)
    if kind < 0.7 and oracle.offset >= 0:  # a replay of what was there before
        return after, lambda: vault.append(_events(rng, 3), source="log-0", offset=oracle.offset)
    if kind < 0.85:
        return after, vault.merge
    if kind < 0.93:
        items = {key: rng.randrange(10**6) for key in rng.sample(range(50), 5)}
        after.items.update(items)
        table = {"item_id": list(items), "value": list(items.values())}
        return after, lambda: vault.put_items(table)
    events = _events(rng, 700)
    after.add(events)
    return after, lambda: vault.bulk_load(events)


def crash_once(disk: MemoryFiles, oracle: Oracle, rng: random.Random) -> tuple[MemoryFiles, Oracle]:
    """Opens the store, works until it crashes, and returns what is left of both.

    Raises:
        AssertionError: something acknowledged is lost, or something else is there.
    """
    possible = [oracle]
    left = rng.randint(1, 60)

    def fault(operation: str) -> None:
        nonlocal left
        if operation != "preadv":
            left -= 1
            if left <= 0:
                raise Crash

    disk.fault = fault
    try:
        vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
        wrong = oracle.difference(vault)
        assert not wrong, wrong
        while True:
            after, call = step(vault, oracle, rng)
            possible = [oracle, after]
            call()
            oracle = after
            possible = [oracle]
    except (Crash, SeqVaultError):
        if left > 0:
            raise
    disk.fault = lambda operation: None
    crashed = disk.after_crash(rng)
    if not any(name.endswith("/MANIFEST") for name in crashed.names):
        assert not oracle.events and not oracle.items, "the manifest is lost"
        return crashed, oracle
    # open, look, and crash again without having written: what was read must stay
    probe = crashed.after_crash(rng)
    vault = SeqVault.open(PATH, files=probe)
    vault.verify()
    answers = [candidate.difference(vault) for candidate in possible]
    assert "" in answers, f"neither before nor after the last call: {answers}"
    kept = possible[answers.index("")].copy()
    kept.offset = vault.stats()["sources"].get("log-0", -1)
    assert kept.offset >= oracle.offset, "a source's offset went back"
    return probe.after_crash(rng), kept


def run(points: int, seed: int, progress: bool = False) -> int:
    """Crashes at ``points`` points; a new store after every 12 crashes."""
    size, wal.FILE_SIZE = wal.FILE_SIZE, 1 << 14  # so that log files change often
    done = 0
    try:
        while done < points:
            rng = random.Random(f"{seed}-{done}")
            short = random.Random(done) if rng.random() < 0.5 else None
            disk, oracle = MemoryFiles(short=short), Oracle()
            for k in range(min(12, points - done)):
                try:
                    disk, oracle = crash_once(disk, oracle, rng)
                except BaseException:
                    print(f"failed: seed {seed}, store begun at point {done}, crash {k}")
                    raise
            done += 12
            if progress and sys.stderr.isatty():
                print(f"\r{min(done, points)} of {points} crashes", end="", file=sys.stderr)
    finally:
        wal.FILE_SIZE = size
    return points


def main(argv: list[str] | None = None) -> int:
    """Command line of the crash run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1000, help="crashes (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    done = run(arguments.points, arguments.seed, progress=True)
    print(f"{done} crashes, seed {arguments.seed}: nothing acknowledged was lost, no wrong read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
