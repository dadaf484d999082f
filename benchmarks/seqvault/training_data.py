"""Training data joined from SeqVault per request, against histories written out per impression.

    python -m benchmarks.seqvault.training_data [--requests 20000]

Both ways hold the same: each impression's last 200 events with three event fields and the
side information of their items (author, category, duration, a content vector of 16
float16). *Materialised*: one Parquet row (zstd) per impression with everything in it.
*Joined*: the store's segments and item table as they are, and a Parquet table of the
impressions' own columns; histories are read once per request, side information once per
item, and indexed into when a batch is made. Seconds are those to get from the store to
what the trainer reads (written, and read back) and from there to dense arrays.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.seqvault.timing import provenance
from seqvault import Schema, SeqVault
from seqvault.warm_up import warm_up

LENGTH, CANDIDATES, BATCH, VECTOR = 200, 8, 64, 16
SIDE = ("author_id", "category", "duration_ms", "content")


def generate(users: int, items: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.lognormal(np.log(537) - 0.5, 1.0, users).astype(int), 1, 20000)
    total = int(counts.sum())
    ends = np.cumsum(counts)
    running = np.cumsum(rng.exponential(300_000, total).astype(np.int64))
    base = np.repeat(np.concatenate([[0], running[ends[:-1] - 1]]), counts)
    events = {
        "user_id": np.repeat(np.arange(users, dtype=np.int64), counts),
        "timestamp": 1_600_000_000_000 + running - base,
        "item_id": rng.zipf(1.2, total).astype(np.int64) % items,
        "scenario": rng.integers(0, 3, total).astype(np.int8),
        "action": rng.integers(0, 8, total).astype(np.int8),
    }
    table = {
        "item_id": np.arange(items, dtype=np.int64),
        "author_id": rng.integers(0, items // 5, items),
        "category": rng.integers(0, 300, items).astype(np.int16),
        "duration_ms": rng.integers(1000, 60000, items).astype(np.int32),
        "content": rng.normal(size=(items, VECTOR)).astype(np.float16),
    }
    return events, table


def bytes_below(path: str) -> int:
    return sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file())


def joined(vault: SeqVault, users: np.ndarray, times: np.ndarray) -> tuple[dict[str, Any], Any]:
    """Arrays of a batch of requests: histories, and side information once per item."""
    batch = vault.read(users, before=times, last_n=LENGTH)
    known, where = np.unique(batch["item_id"], return_inverse=True)
    side = vault.read_items(known, SIDE)
    columns = dict(batch.columns)
    for name in SIDE:
        columns[name] = side[name][where.reshape(len(users), LENGTH)]
    return columns, batch.lengths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    warm_up()
    root = tempfile.mkdtemp(prefix="seqvault-training-")
    try:
        result = provenance("training_data", arguments.seed) | measure(arguments, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    path = Path(arguments.out) / "training_data.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(arguments: argparse.Namespace, root: str) -> dict[str, Any]:
    events, items = generate(arguments.users, arguments.items, arguments.seed)
    rng = np.random.default_rng(arguments.seed + 1)
    rows = rng.integers(0, len(events["user_id"]), arguments.requests)
    users, times = events["user_id"][rows], events["timestamp"][rows]
    impressions = pa.table(
        {
            "user_id": np.repeat(users, CANDIDATES),
            "timestamp": np.repeat(times, CANDIDATES),
            "item_id": rng.integers(0, arguments.items, arguments.requests * CANDIDATES),
            "click": rng.integers(0, 2, arguments.requests * CANDIDATES).astype(np.int8),
        }
    )
    pq.write_table(impressions, f"{root}/impressions.parquet", compression="zstd")
    schema = Schema.from_arrow(pa.table(events).schema)
    with SeqVault.open(f"{root}/vault", schema=schema) as vault:
        vault.bulk_load(events)
        vault.put_items(items)
        stats = vault.stats()
        share = {"segments": stats["segment_bytes"], "items": bytes_below(f"{root}/vault/items")}
        share["impressions"] = os.path.getsize(f"{root}/impressions.parquet")

        start, cpu, total = time.perf_counter(), time.process_time(), 0
        for first in range(0, arguments.requests, BATCH):
            part = slice(first, first + BATCH)
            _, lengths = joined(vault, users[part], times[part])
            total += int(lengths.sum())
        joined_seconds = time.perf_counter() - start
        joined_cpu = time.process_time() - cpu

        start, cpu = time.perf_counter(), time.process_time()
        writer = None
        for first in range(0, arguments.requests, BATCH):
            part = slice(first, first + BATCH)
            columns, lengths = joined(vault, users[part], times[part])
            mask = np.arange(LENGTH)[None, :] < lengths[:, None]
            offsets = np.concatenate([[0], np.cumsum(np.repeat(lengths, CANDIDATES))])
            arrays: dict[str, Any] = {}
            for name, values in columns.items():
                flat = np.concatenate(
                    [values[r][mask[r]] for r in range(len(lengths)) for _ in range(CANDIDATES)]
                )
                inner = (
                    pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1).view("u2")), VECTOR)
                    if flat.ndim == 2  # Parquet has no float16: the bits
                    else pa.array(flat)
                )
                arrays[name] = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), inner)
            table = pa.table(arrays)
            if writer is None:
                writer = pq.ParquetWriter(
                    f"{root}/materialised.parquet", table.schema, compression="zstd"
                )
            writer.write_table(table)
        assert writer is not None
        writer.close()
        written = time.perf_counter() - start
        for group in range(pq.ParquetFile(f"{root}/materialised.parquet").num_row_groups):
            pq.ParquetFile(f"{root}/materialised.parquet").read_row_group(group)
        materialised_seconds = time.perf_counter() - start
        materialised_cpu = time.process_time() - cpu
    materialised = os.path.getsize(f"{root}/materialised.parquet")
    ours = sum(share.values())
    return {
        "requests": arguments.requests,
        "impressions": arguments.requests * CANDIDATES,
        "history_events_per_request": total / arguments.requests,
        "stored_events": len(events["user_id"]),
        "joined_bytes": {**share, "total": ours},
        "materialised_bytes": materialised,
        "bytes_ratio": round(materialised / ours, 2),
        "bytes_ratio_beyond_the_store": round(materialised / share["impressions"], 1),
        "joined_seconds": round(joined_seconds, 3),
        "joined_cpu_seconds": round(joined_cpu, 3),
        "materialised_write_seconds": round(written, 3),
        "materialised_seconds": round(materialised_seconds, 3),
        "materialised_cpu_seconds": round(materialised_cpu, 3),
        "cpu_ratio": round(materialised_cpu / joined_cpu, 1),
    }


if __name__ == "__main__":
    main()
