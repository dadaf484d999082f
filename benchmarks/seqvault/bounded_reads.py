"""How long reads take at worst: while an item is replaced, behind a million unmerged events.

    python -m benchmarks.seqvault.bounded_reads [--items 1000000] [--fields 64] [--events 1000000]

Part ``items``: a thread reads one user's last 100 events, or 100 items, again and again; meanwhile
one item of a table of a million items with 64 columns is replaced, twenty times. One replacement
in eight writes the files of all items as one again, which is timed with the others. The goal: a
read stalls for at most 5 ms. ``idle`` are the same reads while nothing is written, which tells
what of the longest waits is the machine's.

Part ``unmerged``: one user has a million events in the memtable that no merge has seen; his last
100 are read, all of them and those of one action in ten. The goal: below 5 ms. ``few`` is a user
with 100 events. The raw result goes to ``results/``.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.seqvault.timing import provenance
from seqvault import Field, Schema, SeqVault
from seqvault.warm_up import warm_up

SEED, LAST_N, USERS, PART = 0, 100, 1000, 100_000
REPLACED = 20
SCHEMA = Schema((Field("item_id", "int64", "item"), Field("action", "int8", "action")))


def events_of(users: np.ndarray, each: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """So many events of each user, sorted by time."""
    count = len(users) * each
    return {
        "user_id": np.repeat(users, each),
        "timestamp": 10**12 + np.tile(np.arange(each), len(users)) * 1000,
        "item_id": rng.integers(0, 10**6, count),
        "action": rng.integers(0, 10, count).astype(np.int8),
    }


def waits(read: Callable[[], Any], seconds: float, until: threading.Event | None = None) -> list:
    """Milliseconds of one read after another, for so long or until told."""
    found, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end and not (until is not None and until.is_set()):
        read()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def told(samples: list[float]) -> dict[str, Any]:
    """Count, percentiles and how many took longer than 5 ms."""
    array = np.array(samples)
    shares = {f"p{p}_ms": round(float(np.percentile(array, p)), 3) for p in (50, 99, 99.9, 100)}
    return {"reads": len(array), **shares, "over_5_ms": int((array > 5).sum())}


def while_items_change(
    vault: SeqVault, read: Callable[[], Any], one: dict[str, np.ndarray]
) -> tuple[dict[str, Any], list[float]]:
    """Waits of a reading thread while one item is replaced, and milliseconds of each time."""
    ended, found = threading.Event(), []
    reader = threading.Thread(target=lambda: found.extend(waits(read, 600, ended)))
    reader.start()
    took = []
    for number in range(REPLACED):
        one["field_0"] = np.array([number], np.float32)
        start = time.perf_counter()
        vault.put_items(one)
        took.append(round((time.perf_counter() - start) * 1e3, 1))
        time.sleep(0.05)
    ended.set()
    reader.join()
    return told(found), took


def items_part(folder: str, items: int, fields: int) -> dict[str, Any]:
    """Reads beside replacements of one item."""
    rng = np.random.default_rng(SEED)
    result: dict[str, Any] = {"items": items, "fields": fields, "replaced": REPLACED}
    with SeqVault.open(f"{folder}/items", schema=SCHEMA) as vault:
        vault.bulk_load(pa.table(events_of(np.arange(USERS), 1000, rng)))
        columns = {f"field_{n}": rng.random(items).astype(np.float32) for n in range(fields)}
        vault.put_items({"item_id": np.arange(items), **columns})
        one = {
            "item_id": np.array([7]),
            **{name: each[7:8].copy() for name, each in columns.items()},
        }
        del columns
        reads = {
            "history": lambda: vault.read([int(rng.integers(USERS))], before=None, last_n=LAST_N),
            "items": lambda: vault.read_items(rng.integers(0, items, LAST_N)),
        }
        for name, read in reads.items():
            waits(read, 0.5)
            idle = told(waits(read, 3))
            beside, took = while_items_change(vault, read, one)
            result[name] = {"idle": idle, "while_replacing": beside, "replacement_ms": took}
            print(f"items, {name}: {result[name]}", flush=True)
    return result


def unmerged_part(folder: str, events: int) -> dict[str, Any]:
    """Reads of one user's last events, none of them merged."""
    rng = np.random.default_rng(SEED)
    result: dict[str, Any] = {"events": events}
    with SeqVault.open(f"{folder}/unmerged", schema=SCHEMA) as vault:
        vault.append(pa.table(events_of(np.array([1]), LAST_N, rng)))
        many = pa.table(events_of(np.array([2]), events, rng))
        for first in range(0, events, PART):
            vault.append(many.slice(first, PART))
        if vault.events_in_log != events + LAST_N:
            raise RuntimeError(f"a merge took some of the events: {vault.events_in_log:,} left")
        for name, user, actions in (("few", 1, None), ("many", 2, None), ("one_action", 2, [3])):
            read = partial(vault.read, [user], None, LAST_N, actions=actions)
            waits(read, 0.2)
            result[name] = told(waits(read, 3))
            print(f"unmerged, {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--fields", type=int, default=64)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    warm_up()
    result = {**provenance("bounded_reads", SEED), "switch_ms": sys.getswitchinterval() * 1e3}
    with tempfile.TemporaryDirectory() as folder:
        result["unmerged"] = unmerged_part(folder, arguments.events)
        result["items"] = items_part(folder, arguments.items, arguments.fields)
    path = Path(__file__).parent / "results" / "bounded_reads.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
