"""Memory of processes that read one store: each by itself, and all together.

    python -m benchmarks.seqvault.attached_memory [--users 10000000]

A process opens a store of so many users with two events each, and shares it; 1, 2 and 4 others
attach to it and look up enough users at random to touch every page of the index. Of each process
the result has, in bytes, from ``/proc/PID/smaps_rollup``: ``rss`` (what it can see), ``pss`` (what
is shared counts in parts), ``pss_shared`` (of it, in the writer's shared memory) and ``uss`` (what
it alone has). ``empty`` is one that attached to a store with no users, that is, interpreter and
kernels; ``copy`` one that opened the store by itself (``read_only=True``). The raw result goes to
``results/``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.seqvault.timing import provenance
from seqvault import Field, Schema, SeqVault
from seqvault.warm_up import warm_up

SEED, PART = 0, 1_000_000
PROCESSES = (1, 2, 4)
_NAMES = {"Rss": "rss", "Pss": "pss", "Pss_Shmem": "pss_shared"}

WORK = """
import ctypes, sys
import numpy as np
from seqvault import SeqVault

path, how, users, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if how == "attach":
    vault = SeqVault.attach(path)
else:
    vault = SeqVault.open(path, read_only=how == "copy", share=how == "share")
rng = np.random.default_rng(seed)
for _ in range(300 if users else 1):
    vault.read(rng.integers(0, max(users, 1), 1000), before=None, last_n=1)
ctypes.CDLL(None).malloc_trim(0)
print("ready", flush=True)
sys.stdin.readline()
"""


def parts(users: int) -> Iterator[dict[str, np.ndarray]]:
    """Two events of each user, sorted, so many users at a time."""
    rng = np.random.default_rng(SEED)
    for first in range(0, users, PART):
        ids = np.repeat(np.arange(first, min(first + PART, users)), 2)
        yield {
            "user_id": ids,
            "timestamp": 10**12 + np.sort(rng.integers(0, 10**6, (len(ids) // 2, 2))).reshape(-1),
            "item_id": rng.integers(0, 10**6, len(ids)),
            "action": rng.integers(0, 8, len(ids)).astype(np.int8),
        }


@contextmanager
def process(path: str, how: str, users: int, seed: int = 0) -> Iterator[int]:
    """One that has a store open and has read from it; its number."""
    command = [sys.executable, "-c", WORK, path, how, str(users), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            yield running.pid
        finally:
            running.kill()


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process, by kind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    told = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    found = {ours: told[theirs] for theirs, ours in _NAMES.items()}
    return {**found, "uss": told["Private_Clean"] + told["Private_Dirty"]}


def case_of(
    writer: dict[str, int], readers: list[dict[str, int]], result: dict[str, Any]
) -> dict[str, Any]:
    """What writer and readers have, by itself and per user."""
    every, users, empty = [writer, *readers], result["users"], result["empty"]["uss"]
    shared = sum(one["pss_shared"] for one in every)
    own = float(np.mean([one["uss"] - empty for one in readers]))
    return {
        "attached": len(readers),
        "writer": writer,
        "readers": readers,
        "pss_in_all": sum(one["pss"] for one in every),
        "shared_bytes_per_user_in_all": round(shared / users, 1),
        "own_bytes_per_user_and_reader": round(own / users, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=10_000_000)
    arguments = parser.parse_args()
    users = arguments.users
    warm_up()
    result: dict[str, Any] = {**provenance("attached_memory", SEED), "users": users, "cases": []}
    schema = Schema((Field("item_id", "int64", "item"), Field("action", "int8", "action")))
    with tempfile.TemporaryDirectory(prefix="seqvault-attached-") as root:
        SeqVault.open(f"{root}/empty", schema).close()
        with SeqVault.open(f"{root}/vault", schema) as vault:
            vault.bulk_load(parts(users))
        with process(f"{root}/empty", "share", 0), process(f"{root}/empty", "attach", 0) as one:
            result["empty"] = memory_of(one)
        with process(f"{root}/vault", "copy", users) as one:
            result["copy"] = memory_of(one)
        with ExitStack() as stack:
            writer = stack.enter_context(process(f"{root}/vault", "share", users))
            readers: list[int] = []
            for count in PROCESSES:
                while len(readers) < count:
                    readers.append(
                        stack.enter_context(
                            process(f"{root}/vault", "attach", users, len(readers) + 1)
                        )
                    )
                case = case_of(memory_of(writer), [memory_of(one) for one in readers], result)
                result["cases"].append(case)
                print(json.dumps(case), flush=True)
        result["copy_bytes_per_user"] = round(
            (result["copy"]["uss"] - result["empty"]["uss"]) / users, 1
        )
    target = Path(__file__).parent / "results" / "attached_memory.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
