"""Reads segments with changed fields and right checksums in every way there is.

Run ``python -m seqvault.testing.fuzz_run --rounds 5000``. A decoder that follows a wrong
number ends the process; each round is written down before it begins, so that the last one
in the output is what did it.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile

import numpy as np
import pyarrow as pa

from seqvault.errors import SeqVaultError
from seqvault.read.packed_answer import unpack_batch
from seqvault.schema import Schema
from seqvault.store import SeqVault
from seqvault.testing.field_mutations import KINDS, mutate

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("author", pa.int32()), ("action", pa.int8())])
)
COUNTS = {1: 9000, 2: 300, 3: 256, 4: 1, 5: 40, -6: 5000}  # the long ones are read in part
NOW = 1_700_000_000_000


def make_store(path: str) -> None:
    """A store with two segments of records of all lengths, and a few events in the log."""
    with SeqVault.open(path, schema=SCHEMA) as vault:
        vault.bulk_load(make_events(0, COUNTS))
        vault.bulk_load(make_events(1, {1: 300, 2: 10, 5: 20, 7: 600}))
        vault.append(make_events(2, {1: 3, 8: 2}))


def make_events(seed: int, counts: dict[int, int]) -> dict[str, np.ndarray]:
    """Events that make every kind of chunk: wide, narrow, runs, dictionaries."""
    rng, total = np.random.default_rng(seed), sum(counts.values())
    items = np.where(rng.random(total) < 0.7, rng.integers(0, 1 << 60, total), 7919)
    users = np.repeat(list(counts), list(counts.values()))
    few = rng.integers(0, 60, total)
    return {
        "user_id": users,
        "timestamp": NOW + np.sort(rng.integers(0, 1 << 24, total)),
        "item_id": np.where(users % 2 == 0, few * 104729, items),
        "author": (few * 31 % 50 + (1 << 20)).astype(np.int32),
        "action": (rng.random(total) < 0.01).astype(np.int8),
    }


def read_everything(path: str, rng: random.Random) -> str:
    """Reads, checks and now and then merges; the error's name if it was refused.

    Raises:
        AssertionError: an answer that no store can give.
    """
    users = np.array([*COUNTS, 7, 8, 99])
    try:
        with SeqVault.open(path, read_only=rng.random() < 0.7) as vault:
            for before, last_n in ((None, 12_000), (NOW + rng.randrange(1 << 24), 300)):
                for fields in (None, ["author"], ["timestamp", "action"]):
                    batch = vault.read(users, before, last_n, fields=fields)
                    assert ((batch.lengths >= 0) & (batch.lengths <= last_n)).all()
                    lengths, _, flat = vault.read_ragged(users, before, last_n, fields=fields)
                    assert all(len(values) == lengths.sum() for values in flat.values())
                    unpack_batch(vault.read_packed(users, before, last_n, fields=fields))
            vault.read(users, None, 100, actions=[1])
            vault.read(users, None, 9000, version=np.full(len(users), 40))
            vault.verify()
            if not vault.read_only and rng.random() < 0.3:
                vault.merge()
                vault.read(users, None, 100)
        return ""
    except SeqVaultError as error:
        return type(error).__name__


def fuzz_run(rounds: int, seed: int, log: bool = False) -> dict[str, dict[str, int]]:
    """Outcomes by kind of mutation; "" counts those that were harmless."""
    outcomes: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        sound, path = f"{folder}/sound", f"{folder}/store"
        make_store(sound)
        segments = sorted(os.listdir(f"{sound}/segments"))
        for turn in range(rounds):
            kind = KINDS[turn % len(KINDS)]
            rng = random.Random(f"{seed}-{turn}")
            shutil.copytree(sound, path)
            name = rng.choice(segments)
            with open(f"{sound}/segments/{name}", "rb") as file:
                content = file.read()
            with open(f"{path}/segments/{name}", "wb") as file:
                file.write(mutate(content, kind, rng))
            if log:
                print(f"seed {seed}, round {turn}: {kind} of {name}", flush=True)
            found = read_everything(path, rng)
            outcomes[kind][found] = outcomes[kind].get(found, 0) + 1
            shutil.rmtree(path)
    return outcomes


def main(argv: list[str] | None = None) -> int:
    """Command line of the fuzz run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for kind, counts in fuzz_run(arguments.rounds, arguments.seed, log=True).items():
        print(f"{kind}: {counts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
