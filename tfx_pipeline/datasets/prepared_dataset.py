"""The prepared dataset: one folder with three Parquet tables, the feature spec and a summary."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laser_features import (
    FeatureSpec,
    FeatureSpecError,
    Field,
    TimeUnitError,
    check_milliseconds,
)
from laser_features.arrow_columns import to_schema
from laser_features.errors import ColumnTypeError
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.errors import DatasetError

SUMMARY = "dataset.json"
SPEC = "features.yaml"
TABLES = ("events", "items", "impressions")


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset on disk.

    Attributes:
        path: Its folder.
        spec: The feature spec.
        counts: Rows of ``events``, ``items`` and ``impressions``, and ``users``.
        splits: Name to ``(from_ms, to_ms)``, the end excluded.
        source: Where the data comes from.
        facts: What else the adapter found, e.g. the AUC of a generated dataset's truth.
    """

    path: Path
    spec: FeatureSpec
    counts: Mapping[str, int]
    splits: Mapping[str, tuple[int, int]]
    source: str
    facts: Mapping[str, object]

    @property
    def events_path(self) -> Path:
        """``events.parquet``, sorted by (user_id, timestamp)."""
        return self.path / "events.parquet"

    @property
    def items_path(self) -> Path:
        """``items.parquet``, one row per item."""
        return self.path / "items.parquet"

    @property
    def impressions_path(self) -> Path:
        """``impressions.parquet``, sorted by time."""
        return self.path / "impressions.parquet"

    @property
    def spec_path(self) -> Path:
        """``features.yaml``."""
        return self.path / SPEC

    @classmethod
    def load(cls, path: str | Path) -> PreparedDataset:
        """Open a folder that ``write`` made.

        Raises:
            DatasetError: The folder is not a complete prepared dataset.
        """
        folder = Path(path)
        for name in (SUMMARY, SPEC, *(f"{table}.parquet" for table in TABLES)):
            if not (folder / name).is_file():
                raise DatasetError(
                    f"{folder} is not a prepared dataset: {name} is missing; prepare it again"
                )
        try:
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            dataset = cls(
                path=folder,
                spec=FeatureSpec.load(folder / SPEC),
                counts=summary["counts"],
                splits={name: (start, end) for name, (start, end) in summary["splits"].items()},
                source=summary["source"],
                facts=summary["facts"],
            )
        except (OSError, ValueError, KeyError, TypeError, FeatureSpecError) as error:
            raise DatasetError(f"{folder}: {SUMMARY} or {SPEC} is damaged ({error})") from error
        _check_columns(dataset.events_path, dataset.spec.event_schema())
        _check_columns(dataset.items_path, dataset.spec.item_schema())
        _check_columns(dataset.impressions_path, dataset.spec.impression_schema())
        return dataset

    @classmethod
    def write(
        cls, tables: DatasetTables, path: str | Path, progress: Progress = no_progress
    ) -> PreparedDataset:
        """Check the tables and write them; the folder appears whole or not at all.

        An older prepared dataset at ``path`` is replaced.

        Args:
            tables: What an adapter made.
            path: The folder to create.
            progress: Called after each file.

        Raises:
            DatasetError: The tables do not fit the spec, a split holds no impression, ``path`` is
                something else than a prepared dataset, or the disk is full.
        """
        folder = Path(path)
        _check_replaceable(folder)
        spec = tables.spec
        checked = {
            "events": _filled(
                check_table(tables.events, spec.event_schema(), "events"), spec.event_fields
            ),
            "items": _filled(_checked_items(tables.items, spec), spec.item_fields),
            "impressions": _checked_impressions(tables),
        }
        checked["events"] = checked["events"].sort_by(
            [("user_id", "ascending"), ("timestamp", "ascending")]
        )
        counts = {name: table.num_rows for name, table in checked.items()}
        counts["users"] = len(pc.unique(checked["events"]["user_id"]))
        summary = {
            "name": tables.spec.name,
            "source": tables.source,
            "counts": counts,
            "splits": {name: list(times) for name, times in tables.splits.items()},
            "facts": tables.facts,
            "spec_fingerprint": tables.spec.fingerprint(),
        }

        def fill(partial: Path) -> None:
            for done, (name, table) in enumerate(checked.items(), start=1):
                pq.write_table(table, partial / f"{name}.parquet", compression="zstd")
                progress("write tables", done, len(checked))
            tables.spec.save(partial / SPEC)
            text = json.dumps(summary, indent=2, ensure_ascii=False)
            (partial / SUMMARY).write_text(text + "\n", encoding="utf-8")

        _replace(folder, fill)
        return cls.load(folder)

    def copy(self, path: str | Path) -> PreparedDataset:
        """Copy the dataset; the folder appears whole or not at all.

        An older prepared dataset at ``path`` is replaced; ``path`` may be the dataset itself.

        Raises:
            DatasetError: ``path`` is something else than a prepared dataset, or cannot be written.
        """
        folder = Path(path)
        if folder.exists() and folder.samefile(self.path):
            return self
        _check_replaceable(folder)

        def fill(partial: Path) -> None:
            for name in (SUMMARY, SPEC, *(f"{table}.parquet" for table in TABLES)):
                shutil.copyfile(self.path / name, partial / name)

        _replace(folder, fill)
        return self.load(folder)


def _replace(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder aside, then put it in place of an older one."""
    partial = folder.parent / f".{folder.name}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        _swap(partial, folder)
    except OSError as error:
        advice = "free some space" if error.errno == errno.ENOSPC else "choose another folder"
        raise DatasetError(f"{folder} cannot be written ({error}); {advice}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_columns(path: Path, schema: pa.Schema) -> None:
    """Check the schema in the file's footer; rows are checked when they are read."""
    try:
        has = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{path} cannot be read as Parquet ({reason}); prepare the dataset again"
        ) from error
    if missing := [name for name in schema.names if name not in has]:
        raise DatasetError(
            f"{path} lacks the columns {missing}; it has {has}: prepare the dataset again"
        )


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / SUMMARY).is_file()):
        raise DatasetError(
            f"{folder} exists and is not a prepared dataset; choose another folder or remove it"
        )


def _swap(partial: Path, folder: Path) -> None:
    """Put the finished folder in place of an older one."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def check_table(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The schema's columns of a table in the schema's types.

    Raises:
        DatasetError: It has no rows, a column is missing or does not fit, an id or a time is null,
            or the times are no milliseconds.
    """
    if table.num_rows == 0:
        raise DatasetError(f"the {name} table is empty: nothing in the source could be used")
    missing = [column for column in schema.names if column not in table.column_names]
    if missing:
        raise DatasetError(
            f"the {name} table lacks the columns {missing}; it has {table.column_names}"
        )
    try:
        table = to_schema(table, schema, name)
    except ColumnTypeError as error:
        raise DatasetError(str(error)) from error
    for column in ("user_id", "timestamp", "item_id"):
        if column in table.column_names and table[column].null_count:
            count = table[column].null_count
            raise DatasetError(f"{name}.{column} is null in {count} rows; drop these rows")
    if "timestamp" in table.column_names:
        _check_times(table["timestamp"].to_numpy(), f"{name}.timestamp")
    return table


def _check_times(times: NDArray, what: str) -> None:
    try:
        check_milliseconds(times, what)
    except TimeUnitError as error:
        raise DatasetError(str(error)) from error


def _filled(table: pa.Table, fields: Mapping[str, Field]) -> pa.Table:
    """Replace nulls by the missing value of their field: the store has no nulls."""
    for name, field in fields.items():
        if not table[name].null_count:
            continue
        if field.shape is not None:
            raise DatasetError(
                f"{field.section}.{name} is null in {table[name].null_count} rows; give every "
                "item a vector (zeros, if it has none)"
            )
        filled = pc.fill_null(table[name], pa.scalar(field.missing, field.arrow_type))
        table = table.set_column(table.column_names.index(name), table.schema.field(name), filled)
    return table


def _checked_items(items: pa.Table, spec: FeatureSpec) -> pa.Table:
    for name, field in spec.item_fields.items():
        if field.values is not None and name in items.column_names:
            items = _with_fixed_lists(items, field)
    checked = check_table(items, spec.item_schema(), "items")
    distinct = len(pc.unique(checked["item_id"]))
    if distinct < checked.num_rows:
        raise DatasetError(
            f"the items table has {checked.num_rows} rows for {distinct} items; keep one per item"
        )
    for field in spec.derived_candidate_fields.values():
        starts = pc.fill_null(checked[field.of], 0).to_numpy()
        _check_times(starts[starts > 0], f"items.{field.of}")
    return checked


def _with_fixed_lists(items: pa.Table, field: Field) -> pa.Table:
    """The items with lists of any length as ones of ``field.values``: cut, or filled up."""
    place = items.column_names.index(field.name)
    column = items[field.name]
    if column.num_chunks == 0 or pa.types.is_fixed_size_list(column.type):
        return items
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        raise DatasetError(
            f"items.{field.name} is {column.type}; give a list of {field.type} per item"
        )
    assert field.values is not None
    filled = np.full((len(column), field.values), field.missing, np.int64)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    kept = np.arange(field.values) < np.minimum(lengths, field.values)[:, None]
    values = pc.fill_null(pc.list_flatten(column).cast(pa.int64()), -1).to_numpy()
    starts = np.cumsum(lengths) - lengths
    filled[kept] = values[(starts[:, None] + np.arange(field.values))[kept]]
    flat = pa.array(filled.ravel()).cast(pa.from_numpy_dtype(field.dtype))
    fixed = pa.FixedSizeListArray.from_arrays(flat, field.values)
    return items.set_column(place, pa.field(field.name, fixed.type), fixed)


def _checked_impressions(tables: DatasetTables) -> pa.Table:
    schema = tables.spec.impression_schema()
    if "request_id" in tables.impressions.column_names:
        schema = schema.append(pa.field("request_id", pa.int64()))
    checked = check_table(tables.impressions, schema, "impressions")
    times = checked["timestamp"].to_numpy()
    for name, (start, end) in tables.splits.items():
        if not ((times >= start) & (times < end)).any():
            raise DatasetError(
                f"split {name!r} from {start} to {end} ms holds no impression; they lie "
                f"within {times.min()} and {times.max()}"
            )
    return checked.sort_by([("timestamp", "ascending"), ("user_id", "ascending")])
