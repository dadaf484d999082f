"""Seconds to open a store after its process ended, and the DRAM it then holds.

python -m benchmarks.seqvault.recovery [--users 1000000] [--events 1000000]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.seqvault.timing import provenance
from seqvault import Field, Schema, SeqVault
from seqvault.warm_up import warm_up

SEED = 0


def events(rng: np.random.Generator, users: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "user_id": users,
        "timestamp": 10**12 + rng.integers(0, 10**6, len(users)),
        "item_id": rng.integers(0, 10**6, len(users)),
        "action": rng.integers(0, 8, len(users)).astype(np.int8),
    }


RESIDENT = """
import ctypes, os, sys
from seqvault import SeqVault

def resident():
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

SeqVault.open(sys.argv[1], read_only=True).close()  # compiled code is not the store's
before = resident()
vault = SeqVault.open(sys.argv[2], read_only=True)
print(resident() - before)
"""


def resident_bytes(path: str, empty: str) -> int:
    """What a process grows by when it opens the store, temporary memory given back."""
    command = [sys.executable, "-c", RESIDENT, empty, path]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    warm_up()
    source = provenance("recovery", SEED)
    root = tempfile.mkdtemp(prefix="seqvault-recovery-")
    schema = Schema((Field("item_id", "int64", "item"), Field("action", "int8", "action")))
    rng = np.random.default_rng(SEED)
    try:
        with SeqVault.open(f"{root}/vault", schema=schema) as vault:
            vault.bulk_load(events(rng, np.repeat(np.arange(arguments.users), 2)))
            for _ in range(0, arguments.events, 50_000):
                vault.append(events(rng, rng.integers(0, arguments.users, 50_000)))
        opened = []
        for _ in range(3):
            wall, cpu = time.perf_counter(), time.process_time()
            vault = SeqVault.open(f"{root}/vault")
            opened.append((time.perf_counter() - wall, time.process_time() - cpu))
            stats = vault.stats()
            vault.close()
        with SeqVault.open(f"{root}/vault") as vault:
            vault.merge()
            merged = vault.stats()
        SeqVault.open(f"{root}/empty", schema=schema).close()
        resident = resident_bytes(f"{root}/vault", f"{root}/empty")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    result = {
        **source,
        "users": arguments.users,
        "events_in_log": stats["events_in_log"],
        "wall_seconds": [round(wall, 3) for wall, _ in opened],
        "cpu_seconds": [round(cpu, 3) for _, cpu in opened],
        "index_bytes_per_user": round(stats["index_bytes"] / arguments.users, 1),
        "merged_index_bytes_per_user": round(merged["index_bytes"] / arguments.users, 1),
        "merged_resident_bytes_per_user": round(resident / arguments.users, 1),
    }
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    path = Path(arguments.out) / f"recovery-{arguments.users}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
