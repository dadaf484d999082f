"""What merges write per new event, over a long run of few events per user and merge.

    python -m benchmarks.seqvault.write_amplification [--users 20000] [--merges 200] [--events 5]

A store of life-cycle histories takes new events: each round appends a few for every user and
merges. Counted are the bytes that merges write (whole segments, as the file system sees
them) against the bytes that the new events take in a store that holds nothing else, the
records that a cold read of a user touches, and the disk in use. The log's bytes are shown
beside: it is written once. The raw result goes to ``results/write_amplification.json``.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.seqvault.timing import provenance
from benchmarks.seqvault.workload import generate
from seqvault import Schema, SeqVault

SEED = 0


def new_events(
    events: dict[str, np.ndarray], users: np.ndarray, per_user: int, place: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Events of the kind that the store has, ``per_user`` of each user, mixed, later."""
    who = rng.permutation(np.repeat(users, per_user))
    rows = rng.integers(0, len(events["user_id"]), len(who))
    part = {name: values[rows] for name, values in events.items()}
    part["user_id"] = who
    start = 1_800_000_000_000 + place * 3_600_000
    part["timestamp"] = start + np.sort(rng.integers(0, 3_600_000, len(who)))
    return part


def bytes_alone(parts: list[dict[str, np.ndarray]], root: str) -> float:
    """Bytes per event of a store that gets these events at once."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with SeqVault.open(f"{root}/alone", Schema.from_arrow(pa.table(whole).schema)) as vault:
        vault.bulk_load(whole)
        return float(vault.stats()["bytes_per_event"])


def run(users: int, merges: int, per_user: int, hold_small: bool, root: str) -> dict[str, object]:
    events = dict(generate(users, SEED).events)
    everybody = np.unique(events["user_id"])
    rng = np.random.default_rng([SEED, 1])
    vault = SeqVault.open(f"{root}/vault", Schema.from_arrow(pa.table(events).schema))
    vault.bulk_load(events)
    first = vault.stats()
    written, seconds, sample = 0, 0.0, []
    extents, disk = [], []
    for place in range(merges):
        part = new_events(events, everybody, per_user, place, rng)
        vault.append(part)
        if place % max(1, merges // 20) == 0:
            sample.append(part)
        start = time.process_time()
        written += vault.merge(hold_small=hold_small)["bytes"]
        seconds += time.process_time() - start
        if (place + 1) % max(1, merges // 20) == 0:
            stats = vault.stats()
            slots = np.arange(stats["users"])
            extents.append(float(np.diff(vault._state.index.extents(slots)[0]).mean()))
            disk.append(stats["segment_bytes"] / max(1, stats["live_bytes"]))
    last = vault.stats()
    log = sum(entry.stat().st_size for entry in os.scandir(f"{root}/vault/wal"))
    vault.verify()
    vault.close()
    count = users * per_user * merges
    alone = bytes_alone(sample, root)
    return {
        "users": users,
        "merges": merges,
        "new_events_per_user_and_merge": per_user,
        "hold_small": hold_small,
        "events_before": first["events"],
        "new_events": count,
        "bytes_written_per_new_event": round(written / count, 2),
        "bytes_of_a_new_event_alone": round(alone, 2),
        "write_amplification": round(written / count / alone, 2),
        "write_amplification_against_the_whole_store": round(
            written / count / first["bytes_per_event"], 2
        ),
        "records_per_user_mean": round(float(np.mean(extents)), 2),
        "segment_bytes_of_live_bytes_max": round(max(disk), 2),
        "segments_at_the_end": last["segments"],
        "log_bytes_at_the_end": log,
        "events_in_log_at_the_end": last["events_in_log"],
        "memtable_bytes_at_the_end": last["memtable_bytes"],
        "merge_cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--merges", type=int, default=200)
    parser.add_argument("--events", type=int, default=5)
    arguments = parser.parse_args()
    source = provenance("write_amplification", SEED)
    results = []
    for hold_small in (True, False):
        with tempfile.TemporaryDirectory() as root:
            merges = arguments.merges if hold_small else max(1, arguments.merges // 4)
            results.append(run(arguments.users, merges, arguments.events, hold_small, root))
        print(json.dumps(results[-1], indent=2))
    result = {**source, "runs": results}
    path = Path(__file__).parent / "results" / "write_amplification.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
