"""Loads a prepared dataset into a SeqVault: old history in bulk, recent events appended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laser_features import FeatureSpec
from laser_features.arrow_columns import to_schema
from laser_features.errors import ColumnTypeError
from seqvault import Schema, SeqVault
from seqvault.errors import SeqVaultError, StoreLockedError
from seqvault.progress import Progress, no_progress
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.fingerprint import file_fingerprint

APPEND_ROWS = 8192
_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True)
class LoadSummary:
    """What a load put into the store.

    Attributes:
        bulk_events: Events of life-cycle history.
        appended_events: Events of the recent part, through the durable log.
        items: Items with side information.
        users: Users with at least one event.
        bytes_per_event: On disk, after the merge.
    """

    bulk_events: int
    appended_events: int
    items: int
    users: int
    bytes_per_event: float


def load_store(
    dataset: Path,
    store: Path,
    recent_hours: float = 24,
    replace: bool = False,
    progress: Progress = no_progress,
) -> LoadSummary:
    """Load a prepared dataset's events and items into a new SeqVault.

    The events of the last ``recent_hours`` are appended as if they came in live; all before them
    are loaded in bulk. The store appears whole or not at all.

    Args:
        dataset: Folder of a prepared dataset.
        store: Folder to create.
        recent_hours: Length of the recent part.
        replace: Replace an existing store.
        progress: Called with stage, events done and all events.

    Raises:
        PipelineError: The store is there already, or a file of the dataset cannot be read.
    """
    if store.exists() and not replace:
        raise PipelineError(f"{store} exists; choose another folder, or replace it with --replace")
    if store.exists() and not (store / "segments").is_dir():
        raise PipelineError(f"{store} is not a SeqVault and is not replaced; choose another folder")
    if store.exists():
        _check_unused(store)
    partial = store.parent / f".{store.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        summary = _load(dataset, partial, recent_hours, progress)
        if store.exists():
            shutil.rmtree(store)
        os.rename(partial, store)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _load(dataset: Path, store: Path, recent_hours: float, progress: Progress) -> LoadSummary:
    spec = FeatureSpec.load(dataset / "features.yaml")
    events = _open(dataset / "events.parquet", spec.event_schema())
    items = _open(dataset / "items.parquet", spec.item_schema())
    total = events.metadata.num_rows
    if total == 0:
        raise PipelineError(f"{dataset / 'events.parquet'} holds no events: prepare it again")
    cut = _newest(events, dataset / "events.parquet") - round(recent_hours * _MS_PER_HOUR)
    # The log keeps the name of what was loaded: a store of other events has another fingerprint.
    source = f"{spec.name}:{file_fingerprint(dataset / 'events.parquet')[:16]}"
    recent: list[pa.Table] = []
    done = 0

    def old_events() -> Iterator[pa.Table]:
        nonlocal done
        for batch in _batches(events, dataset / "events.parquet", batch_size=1 << 18):
            table = _typed(pa.Table.from_batches([batch]), spec.event_schema(), "events")
            is_recent = pc.greater(table["timestamp"], cut)
            recent.append(table.filter(is_recent))
            yield table.filter(pc.invert(is_recent))
            done += table.num_rows
            progress("bulk load", done, total)

    with SeqVault.open(store, schema=Schema.from_arrow(spec.event_schema())) as vault:
        sides = list(_batches(items, dataset / "items.parquet"))
        table = pa.Table.from_batches(sides, items.schema_arrow)
        vault.put_items(_typed(table, spec.item_schema(), "items"))
        bulk = vault.bulk_load(old_events())
        live = pa.concat_tables(recent).sort_by("timestamp")
        for first in range(0, live.num_rows, APPEND_ROWS):
            vault.append(live.slice(first, APPEND_ROWS), source=source, offset=first)
            progress("append", min(first + APPEND_ROWS, live.num_rows), live.num_rows)
        vault.merge()
        stats = vault.stats()
    return LoadSummary(
        bulk, live.num_rows, stats["items"], stats["users"], stats["bytes_per_event"]
    )


def _typed(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    try:
        return to_schema(table, schema, what)
    except ColumnTypeError as error:
        raise PipelineError(str(error)) from error


def _check_unused(store: Path) -> None:
    try:
        SeqVault.open(store).close()
    except StoreLockedError:
        raise
    except SeqVaultError:
        pass  # damaged, or of another format: no reason to keep it


def _open(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    has = file.schema_arrow.names
    if missing := [name for name in schema.names if name not in has]:
        raise PipelineError(
            f"{path} lacks the columns {missing} that the feature spec names; it has {has}: "
            "prepare the dataset again"
        )
    return file


def _batches(file: pq.ParquetFile, path: Path, **options: Any) -> Iterator[pa.RecordBatch]:
    """The file's batches; a damaged page shows only when it is read."""
    try:
        yield from file.iter_batches(**options)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> PipelineError:
    reason = " ".join(str(error).split())
    return PipelineError(f"{path} cannot be read as Parquet ({reason}): prepare the dataset again")


def _newest(events: pq.ParquetFile, path: Path) -> int:
    schema = pa.schema([("timestamp", pa.int64())])
    batches = _batches(events, path, columns=["timestamp"])
    tables = (_typed(pa.Table.from_batches([batch]), schema, "events") for batch in batches)
    return max(int(pc.max(table["timestamp"]).as_py() or 0) for table in tables)
