"""Commands that create, fill, read and maintain a store."""

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from seqvault.cli.progress import ShownProgress
from seqvault.cli.targets import open_target
from seqvault.errors import InvalidRequestError
from seqvault.progress import Progress
from seqvault.read.read_request import USERS_A_PAGE
from seqvault.schema import DTYPES, RESERVED, Schema
from seqvault.store import SeqVault


def init(arguments: argparse.Namespace) -> dict[str, Any]:
    """Creates a store."""
    with SeqVault.open(arguments.path, schema=_schema_of(arguments)) as vault:
        return {"path": vault.path, "schema": vault.schema.to_json()}


def _schema_of(arguments: argparse.Namespace) -> Schema:
    if arguments.like:
        return Schema.from_arrow(pq.read_schema(arguments.like).remove_metadata())
    pairs = [field.partition(":")[::2] for field in arguments.field]
    if any(dtype not in DTYPES for _, dtype in pairs):  # raises, naming the field
        return Schema.from_json({"name": name, "dtype": dtype} for name, dtype in pairs)
    return Schema.from_arrow(pa.schema([(name, pa.from_numpy_dtype(kind)) for name, kind in pairs]))


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Bulk-loads Parquet files straight into segments, bypassing the log."""
    start = time.perf_counter()
    files = [file for given in arguments.parquet for file in _files_of(Path(given))]
    total = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    with open_target(arguments, read_only=False) as store, ShownProgress("load") as shown:
        shown("events", 0, total)  # the first batch may wait for the kernels to be compiled
        loaded = store.bulk_load(_batches(files, store.schema, arguments.shard, total, shown))
        if arguments.items:
            store.put_items(pq.read_table(arguments.items))
        stats = store.stats()
    return {
        "events": loaded,
        "seconds": round(time.perf_counter() - start, 3),
        "bytes_per_event": round(
            stats["segment_bytes"] / max(1, stats["events"] - stats["events_in_log"]), 2
        ),
        "items": stats["items"],
    }


def _files_of(given: Path) -> list[Path]:
    """The Parquet files of a folder, in the order of their names, or the file itself."""
    if not given.is_dir():
        return [given]
    files = sorted(
        file for file in given.rglob("*.parquet") if not file.name.startswith(("_", "."))
    )
    if not files:
        raise InvalidRequestError(f"{given} holds no *.parquet file; name a folder that does.")
    return files


def _batches(
    files: list[Path],
    schema: Schema,
    shard: tuple[int, int] | None,
    total: int,
    progress: Progress,
) -> Iterator[pa.RecordBatch]:
    """Reads the columns of the schema, for the users of the shard."""
    wanted, done = [*RESERVED, *schema.names], 0
    for path in files:
        file = pq.ParquetFile(path)
        names = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=1 << 18, columns=names):
            yield batch if shard is None else batch.filter(_of_shard(batch, *shard))
            done += len(batch)
            progress("events", done, total)


def _of_shard(batch: pa.RecordBatch, place: int, count: int) -> pa.Array:
    from seqvault.service.shards import shard_of

    return pa.array(shard_of(batch.column("user_id").to_numpy(), count) == place)


def append(arguments: argparse.Namespace) -> dict[str, Any]:
    """Appends JSON lines or Parquet files."""
    from seqvault.ingest.messages import columns_of_json

    with open_target(arguments, read_only=False) as store:
        if arguments.parquet:
            tables = tqdm(arguments.parquet, unit=" files", disable=None)
            stored = sum(store.append(pq.read_table(path)) for path in tables)
        else:
            text = "".join(sys.stdin).encode()
            stored = store.append(columns_of_json(text, store.schema)) if text.strip() else 0
    return {"events": stored}


def get(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Prints a user's history as a table, or returns it for JSON."""
    with open_target(arguments, read_only=True) as store:
        batch = store.read(
            [arguments.user],
            before=arguments.before,
            last_n=arguments.last_n,
            scenarios=arguments.scenario,
            actions=arguments.action,
            fields=arguments.fields.split(",") if arguments.fields else None,
        )
    count = int(batch.lengths[0])
    columns = {name: values[0, :count].tolist() for name, values in batch.columns.items()}
    if arguments.json:
        return {"user_id": arguments.user, "length": count, **columns}
    print(f"user {arguments.user}: {count} events, newest first")
    print(table({name: _shown(name, values) for name, values in columns.items()}), end="")
    return None


def _shown(name: str, values: list[Any]) -> list[str]:
    if name == "timestamp":
        return [_readable_time(value) for value in values]
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]


def _readable_time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds // 1000, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{milliseconds % 1000:03d}"


def table(columns: dict[str, list[str]]) -> str:
    """Columns of text side by side, each as wide as it needs, to the right.

    >>> print(table({"item": ["5", "123"], "score": ["0.5", "1"]}), end="")
    item  score
       5    0.5
     123      1
    """
    padded = []
    for name, values in columns.items():
        width = max(map(len, [name, *values]))
        padded.append([name.rjust(width), *(value.rjust(width) for value in values)])
    return "".join("  ".join(row) + "\n" for row in zip(*padded, strict=True))


def users(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Prints the ids of users in ascending order, one per line, or returns them for JSON."""
    listed: list[int] = []
    with open_target(arguments, read_only=True) as store:
        for page in _pages(store, arguments.after, arguments.limit):
            if arguments.json:
                listed += page
            else:
                print("".join(f"{user}\n" for user in page), end="")
    return {"user_ids": listed} if arguments.json else None


def _pages(store: Any, after: int | None, limit: int | None) -> Iterator[list[int]]:
    """Ids of users page by page, ``limit`` in all; None: every one."""
    left = limit
    while left is None or left > 0:
        size = USERS_A_PAGE if left is None else min(left, USERS_A_PAGE)
        page = store.user_ids(after, size).tolist()
        if page:
            yield page
        if len(page) < size:
            return
        after = page[-1]
        left = None if left is None else left - len(page)


def stats(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizes and counts."""
    with open_target(arguments, read_only=True) as store:
        return store.stats()


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads and checks every byte."""
    with open_target(arguments, read_only=True) as store, ShownProgress("verify") as shown:
        return store.verify(shown)


def merge(arguments: argparse.Namespace) -> dict[str, Any]:
    """Moves the log into segments."""
    with open_target(arguments, read_only=False) as store, ShownProgress("merge") as shown:
        return store.merge(progress=shown)


def snapshot(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes a complete copy."""
    with open_target(arguments, read_only=False) as store, ShownProgress("snapshot") as shown:
        store.snapshot(arguments.target, shown)
    return {"snapshot": arguments.target}


def warm_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compiles the kernels."""
    from seqvault.warm_up import warm_up as compile_kernels

    start = time.perf_counter()
    compile_kernels()
    return {"seconds": round(time.perf_counter() - start, 3)}
