"""SeqVault beside RocksDB and LMDB: the same events, the same reads, in one run.

    pip install rocksdict lmdb
    python benchmarks/seqvault/compare.py [--users 4000] [--data events.parquet]

Every store holds the same histories and answers the same requests: the last 1000 events
of a user, all fields, as arrays padded to [B, 1000]. Calls of the stores alternate within
one loop, so that all of them see the same machine. Reported are wall and CPU time of one
call in microseconds. The raw result goes to ``results/``.
"""

import argparse
import json
import os
import platform
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rocksdict
import zstandard

import seqvault
from seqvault import Schema, SeqVault

LAST_N = 1000
MICRO = 1e6


def generate(users: int, seed: int) -> dict[str, np.ndarray]:
    """Events of 10 fields and 34 bytes beside the user: skewed items, long-tailed histories."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.lognormal(np.log(537) - 0.5, 1.0, users).astype(int), 1, 20000)
    total = int(counts.sum())
    gaps = rng.exponential(300_000, total).astype(np.int64)
    ends = np.cumsum(counts)
    running = np.cumsum(gaps)
    base = np.repeat(np.concatenate([[0], running[ends[:-1] - 1]]), counts)
    times = 1_600_000_000_000 + running - base
    items = (rng.zipf(1.2, total) % (1 << 24)).astype(np.int64) * 65537 + (1 << 39)
    return {
        "user_id": np.repeat(np.arange(users, dtype=np.int64) * 7919 + 10**12, counts),
        "timestamp": times,
        "item_id": items,
        "author_id": ((items * 2654435761) % (1 << 31)).astype(np.int32),
        "category": (items % 300).astype(np.int16),
        "scenario": rng.integers(0, 3, total).astype(np.int8),
        "action": rng.choice(8, total, p=[0.6, 0.2, 0.1, 0.04, 0.02, 0.02, 0.01, 0.01]).astype(
            np.int8
        ),
        "duration": rng.integers(1000, 60000, total).astype(np.int32),
        "watch": rng.integers(0, 60000, total).astype(np.int32),
        "device": rng.integers(0, 6, total).astype(np.int8),
        "hour": ((times // 3_600_000) % 24).astype(np.int8),
    }


class Blobs:
    """Packs a user's history as a struct of arrays, newest last: what a blob store holds."""

    def __init__(self, events: dict[str, np.ndarray]) -> None:
        self.dtypes = {k: v.dtype for k, v in events.items() if k != "user_id"}
        self.width = sum(dtype.itemsize for dtype in self.dtypes.values())

    def pack(self, columns: dict[str, np.ndarray]) -> bytes:
        return b"".join(columns[name].tobytes() for name in self.dtypes)

    def pad(self, blobs: list[bytes | None]) -> dict[str, np.ndarray]:
        out = {k: np.zeros((len(blobs), LAST_N), d) for k, d in self.dtypes.items()}
        for row, blob in enumerate(blobs):
            if blob is None:
                continue
            count, at = len(blob) // self.width, 0
            n = min(count, LAST_N)
            for name, dtype in self.dtypes.items():
                at += count * dtype.itemsize
                newest = np.frombuffer(blob, dtype, n, at - n * dtype.itemsize)
                out[name][row, :n] = newest[::-1]
        return out


def key_of(user: int) -> bytes:
    return struct.pack(">Q", user)


def size_of(path: str) -> int:
    return sum(f.stat().st_blocks * 512 for f in Path(path).rglob("*") if f.is_file())


def rocks(path: str, compression: str) -> rocksdict.Rdict:
    options = rocksdict.Options(raw_mode=True)
    kind = {
        "lz4": rocksdict.DBCompressionType.lz4,
        "zstd": rocksdict.DBCompressionType.zstd,
    }[compression]
    options.set_compression_type(kind())
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(1 << 30))
    options.set_block_based_table_factory(table)
    return rocksdict.Rdict(path, options)


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return (time.perf_counter() - wall) * MICRO, (time.process_time() - cpu) * MICRO


def percentiles(samples: list[tuple[float, float]]) -> dict[str, float]:
    array = np.array(samples[3:])
    p = np.percentile
    return {
        "wall_p50": round(p(array[:, 0], 50), 1),
        "wall_p99": round(p(array[:, 0], 99), 1),
        "cpu_p50": round(p(array[:, 1], 50), 1),
        "cpu_p99": round(p(array[:, 1], 99), 1),
    }


def build(events: dict[str, np.ndarray], root: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fills all stores; returns their readers and bytes per event."""
    blobs = Blobs(events)
    users, first = np.unique(events["user_id"], return_index=True)
    bounds = np.append(first, len(events["user_id"]))
    total = len(events["user_id"])
    names = list(blobs.dtypes)
    slices = [{n: events[n][bounds[i] : bounds[i + 1]] for n in names} for i in range(len(users))]
    packed = [blobs.pack(columns) for columns in slices]
    keys = [key_of(int(user)) for user in users]
    readers: dict[str, Any] = {}
    sizes: dict[str, Any] = {}

    vault = SeqVault.open(f"{root}/vault", Schema.from_arrow(pa.table(events).schema))
    vault.bulk_load(events)
    readers["seqvault"] = lambda batch: vault.read(batch, before=None, last_n=LAST_N).columns
    sizes["seqvault"] = vault.stats()["segment_bytes"] / total

    for compression in ("lz4", "zstd"):
        name = f"rocksdb blob {compression}"
        store = rocks(f"{root}/{compression}", compression)
        for key, blob in zip(keys, packed, strict=True):
            store[key] = blob
        store.flush()
        store.compact_range(None, None)
        readers[name] = lambda batch, store=store: blobs.pad(
            store.get([key_of(int(user)) for user in batch])
        )
        sizes[name] = size_of(f"{root}/{compression}") / total

    for compression in ("lz4", "zstd"):
        name = f"rocksdb event keys {compression}"
        path = f"{root}/event-{compression}"
        store = rocks(path, compression)
        for i, columns in enumerate(slices):
            rows = np.frombuffer(blobs.pack(columns), np.uint8)
            cut, at = [], 0
            for n in names:
                width = columns[n].itemsize * len(columns[n])
                cut.append(rows[at : at + width].reshape(len(columns[n]), -1))
                at += width
            merged = np.concatenate(cut, axis=1)
            for j, (stamp, row) in enumerate(zip(columns["timestamp"], merged, strict=True)):
                store[keys[i] + struct.pack(">QI", int(stamp), j)] = row.tobytes()
        store.flush()
        store.compact_range(None, None)
        sizes[name] = size_of(path) / total
        store.close()

    for name, squeeze, stretch in (
        ("lmdb raw", bytes, bytes),
        (
            "lmdb zstd",
            zstandard.ZstdCompressor(3).compress,
            zstandard.ZstdDecompressor().decompress,
        ),
    ):
        path = f"{root}/{name.replace(' ', '-')}"
        database = lmdb.open(path, map_size=4 << 30)
        with database.begin(write=True) as transaction:
            for key, blob in zip(keys, packed, strict=True):
                transaction.put(key, squeeze(blob))

        def read(batch: np.ndarray, database: Any = database, stretch: Any = stretch) -> Any:
            with database.begin() as transaction:
                found = [transaction.get(key_of(int(user))) for user in batch]
            return blobs.pad([None if blob is None else stretch(blob) for blob in found])

        readers[name] = read
        sizes[name] = size_of(path) / total
    readers["_close"] = vault.close
    return readers, {name: round(size, 2) for name, size in sizes.items()}


def reads(readers: dict[str, Any], users: np.ndarray, batch: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for _ in range(rounds):
        wanted = rng.choice(users, batch, replace=False)
        for name, reader in readers.items():
            samples[name].append(timed(lambda reader=reader, wanted=wanted: reader(wanted)))
    return {name: percentiles(sample) for name, sample in samples.items()}


def check_equal(readers: dict[str, Any], users: np.ndarray) -> None:
    wanted = users[:: max(1, len(users) // 64)][:64]
    expected = readers["lmdb raw"](wanted)
    for name, reader in readers.items():
        got = reader(wanted)
        for field in expected:
            np.testing.assert_array_equal(got[field], expected[field], err_msg=f"{name} {field}")


def floors(batch: int, blobs_width: int) -> float:
    """CPU microseconds to copy the padded answer once."""
    source = np.ones(batch * LAST_N * blobs_width, np.uint8)
    target = np.empty_like(source)
    samples = [timed(lambda: np.copyto(target, source)) for _ in range(50)]
    return round(float(np.percentile([cpu for _, cpu in samples], 50)), 1)


def durable_appends(events: dict[str, np.ndarray], root: str, batches: int) -> dict[str, float]:
    """Events a second when each append of 1000 events is synced before the next."""
    rng = np.random.default_rng(2)
    chosen = [rng.integers(0, len(events["user_id"]), 1000) for _ in range(batches)]
    vault = SeqVault.open(f"{root}/append", Schema.from_arrow(pa.table(events).schema))
    parts = [{name: values[rows] for name, values in events.items()} for rows in chosen]
    vault.append(parts[0])
    start, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        vault.append(part)
    ours = batches * 1000 / (time.perf_counter() - start)
    ours_cpu = (time.process_time() - cpu) * MICRO / batches
    vault.close()

    store = rocks(f"{root}/append-rocks", "lz4")
    options = rocksdict.WriteOptions()
    options.sync = True
    names = [name for name in events if name != "user_id"]
    sequence = 0
    start, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        batch = rocksdict.WriteBatch(raw_mode=True)
        merged = np.concatenate([part[n].view(np.uint8).reshape(1000, -1) for n in names], axis=1)
        for user, stamp, row in zip(
            part["user_id"].tolist(), part["timestamp"].tolist(), merged, strict=True
        ):
            sequence += 1
            batch.put(struct.pack(">QQI", user, stamp, sequence), row.tobytes())
        store.write(batch, options)
    theirs = batches * 1000 / (time.perf_counter() - start)
    theirs_cpu = (time.process_time() - cpu) * MICRO / batches
    store.close()
    return {
        "seqvault": round(ours),
        "rocksdb event keys": round(theirs),
        "seqvault_cpu_us_per_1000": round(ours_cpu),
        "rocksdb_cpu_us_per_1000": round(theirs_cpu),
    }


def merge_while_reading(events: dict[str, np.ndarray], root: str) -> dict[str, float]:
    """p99 wall of a single read, idle and while another thread appends and merges."""
    import threading

    vault = SeqVault.open(f"{root}/mixed", Schema.from_arrow(pa.table(events).schema))
    vault.bulk_load(events)
    users = np.unique(events["user_id"])
    rng = np.random.default_rng(3)

    def measure(seconds: float) -> list[float]:
        samples, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            one = rng.choice(users, 1)
            samples.append(timed(lambda one=one: vault.read(one, before=None, last_n=LAST_N))[0])
        return samples

    idle = measure(3.0)
    stop = threading.Event()
    written = {"events": 0, "bytes": 0}

    def work() -> None:
        while not stop.is_set():
            rows = np.sort(rng.integers(0, len(events["user_id"]), 20_000))
            part = {name: values[rows] for name, values in events.items()}
            part["timestamp"] = part["timestamp"] + 10**10
            vault.append(part)
            result = vault.merge()
            written["events"] += 20_000
            written["bytes"] += result["bytes"]

    thread = threading.Thread(target=work)
    thread.start()
    busy = measure(6.0)
    stop.set()
    thread.join()
    vault.close()
    return {
        "idle_p50": round(float(np.percentile(idle, 50)), 1),
        "idle_p99": round(float(np.percentile(idle, 99)), 1),
        "merging_p50": round(float(np.percentile(busy, 50)), 1),
        "merging_p99": round(float(np.percentile(busy, 99)), 1),
        "merged_bytes_per_new_event": round(written["bytes"] / written["events"], 1),
    }


def index_of(users: int) -> dict[str, float]:
    """DRAM and lookup time of the index alone."""
    from seqvault.index import Index

    index = Index()
    rng = np.random.default_rng(4)
    keys = np.unique(rng.integers(0, 1 << 62, users))
    rng.shuffle(keys)
    n = len(keys)
    ones = np.ones(n, np.int64)
    start = time.perf_counter()
    index.add_records(1, keys, np.arange(n) * 64, ones * 64, ones, ones, ones)
    built = time.perf_counter() - start
    wanted = rng.choice(keys, 100_000)
    index.users.find(wanted[:10])
    start = time.perf_counter()
    index.users.find(wanted)
    lookup = (time.perf_counter() - start) / len(wanted) * 1e9
    return {
        "users": n,
        "bytes_per_user": round(index.bytes / n, 1),
        "lookup_ns": round(lookup, 1),
        "built_users_per_second": round(n / built),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--index-users", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="events.parquet instead of generated events")
    parser.add_argument("--time-factor", type=int, default=1, help="1000 if its times are seconds")
    parser.add_argument("--fields", default="item_id,scenario,action", help="fields of --data")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"))
    arguments = parser.parse_args()
    if arguments.data:
        names = ["user_id", "timestamp", *arguments.fields.split(",")]
        table = pq.read_table(arguments.data, columns=names)
        events = {name: table.column(name).to_numpy().copy() for name in names}
        events["user_id"] = events["user_id"].astype(np.int64)
        events["timestamp"] = events["timestamp"].astype(np.int64) * arguments.time_factor
        order = np.lexsort((events["timestamp"], events["user_id"]))
        events = {name: values[order] for name, values in events.items()}
        source = Path(arguments.data).parent.name
    else:
        events, source = generate(arguments.users, arguments.seed), "generated"
    users = np.unique(events["user_id"])
    root = tempfile.mkdtemp(prefix="seqvault-bench-")
    width = Blobs(events).width
    try:
        readers, sizes = build(events, root)
        close = readers.pop("_close")
        check_equal(readers, users)
        result = {
            "source": source,
            "seed": arguments.seed,
            "events": len(events["user_id"]),
            "users": len(users),
            "raw_bytes_per_event": width,
            "machine": {
                "cpu": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "load": os.getloadavg(),
                "python": platform.python_version(),
                "numpy": np.__version__,
                "rocksdict": rocksdict.__version__ if hasattr(rocksdict, "__version__") else "",
                "lmdb": ".".join(map(str, lmdb.version())),
            },
            "bytes_per_event": sizes,
            "one_user": reads(readers, users, 1, arguments.rounds * 2),
            "batch_of_64": reads(readers, users, 64, arguments.rounds),
            "memcpy_of_batch_64_cpu": floors(64, width),
        }
        close()
        result["durable_append_events_per_second"] = durable_appends(events, root, 60)
        result["read_while_merging"] = merge_while_reading(events, root)
        result["index"] = index_of(arguments.index_users)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    path = Path(arguments.out) / f"compare-{source}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(f"written to {path}; seqvault at {Path(seqvault.__file__).parent}")


if __name__ == "__main__":
    main()
