"""Impressions as read from Parquet: checked row by row, then grouped into requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.file_systems import open_file_system
from components.seqvault_example_gen.errors import ImpressionsError
from components.uris import scheme_of
from laser_features.arrow_columns import to_type
from laser_features.errors import ColumnTypeError
from laser_features.ids import splitmix64
from laser_features.spec import FeatureSpec
from laser_features.time import EARLIEST_MS, LATEST_MS

ROW = "__row__"  # position of an impression in the whole log: the order of candidates


@dataclass(frozen=True)
class CheckedRows:
    """Impressions split into usable and malformed.

    Attributes:
        good: Columns of the spec's impression schema (and ``request_id``, if any), no nulls, and
            ``ROW`` int64.
        bad: The malformed rows as they were read, with ``ROW``.
        reasons: Why, one for each row of ``bad``.
    """

    good: pa.Table
    bad: pa.Table
    reasons: list[str]


def check_columns(schema: pa.Schema, spec: FeatureSpec, path: str) -> None:
    """Raise unless the file has the columns that the feature spec names.

    Raises:
        ImpressionsError: Names the file, the missing columns and those found.
    """
    missing = [name for name in spec.impression_schema().names if name not in schema.names]
    if missing:
        raise ImpressionsError(
            f"{path} lacks the column(s) {', '.join(missing)} that feature spec {spec.name!r} "
            f"names; it has {', '.join(schema.names)}: add them or remove them from the spec"
        )


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file, of a path or a URI.

    Raises:
        ImpressionsError: The file is not there or not readable as Parquet.
    """
    try:
        if scheme_of(path) is None:
            return pq.ParquetFile(path)
        file_system, name = open_file_system(path)
        return pq.ParquetFile(file_system.open_input_file(name))
    except (OSError, pa.ArrowException) as error:
        raise ImpressionsError(
            f"{path} cannot be read as Parquet ({error}): prepare the dataset again"
        ) from error


def check_rows(table: pa.Table, first_row: int, spec: FeatureSpec) -> CheckedRows:
    """Separate malformed impressions from usable ones.

    Malformed is: no user, a timestamp that is null or not in milliseconds, no item, a first label
    other than 0 and 1, another label that is null. A missing feature is not: it becomes the
    field's missing value.

    Args:
        table: Some rows of ``impressions.parquet``.
        first_row: Position of the first one in the whole log.
        spec: The feature spec.

    Raises:
        ImpressionsError: A column's type does not fit the spec.
    """
    table = _cast(table, spec)
    rows = pa.array(np.arange(first_row, first_row + table.num_rows, dtype=np.int64))
    table = table.append_column(ROW, rows)
    reasons = _reasons(table, spec)
    malformed = reasons != ""
    bad = table.filter(pa.array(malformed))
    good = _fill_missing(table.filter(pa.array(~malformed)), spec)
    return CheckedRows(good, bad, reasons[malformed].tolist())


def _cast(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    wanted = spec.impression_schema()
    names = list(wanted.names)
    if "request_id" in table.schema.names:
        names.append("request_id")
    types = [wanted.field(name).type if name in wanted.names else pa.int64() for name in names]
    try:
        columns = [
            to_type(table.column(name), kind, f"column {name} of the impressions")
            for name, kind in zip(names, types, strict=True)
        ]
    except ColumnTypeError as error:
        raise ImpressionsError(str(error)) from error
    return pa.table(columns, names=names)


def _reasons(table: pa.Table, spec: FeatureSpec) -> np.ndarray:
    """The first thing wrong with each row, "" where nothing is."""
    timestamps = _numpy(table.column("timestamp"), 0)
    first_label, *other_labels = spec.labels
    label = table.column(first_label)
    checks = {
        "no user": _null(table.column("user_id")) | (_numpy(table.column("user_id"), 0) == -1),
        "no timestamp": _null(table.column("timestamp")) | (timestamps <= 0),
        "timestamp looks like seconds, not milliseconds": timestamps < EARLIEST_MS,
        "timestamp looks like microseconds or nanoseconds, not milliseconds": (
            timestamps >= LATEST_MS
        ),
        "no item": _null(table.column("item_id")) | (_numpy(table.column("item_id"), 0) == -1),
        f"label {first_label} is neither 0 nor 1": (
            _null(label) | ~np.isin(_numpy(label, 0), [0, 1])
        ),
    }
    for name in other_labels:
        checks[f"label {name} is missing"] = _null(table.column(name))
    reasons = np.full(table.num_rows, "", dtype=object)
    for reason, wrong in reversed(checks.items()):
        reasons[wrong] = reason
    return reasons


def without_some_negatives(table: pa.Table, label: str, rate: float) -> pa.Table:
    """Keep all positive impressions, and about this share of the others.

    Which ones follows from the row's place in the log alone: the same log gives the same rows,
    whatever worker reads them.

    Args:
        table: ``CheckedRows.good``.
        label: The label that is 0 or 1.
        rate: Share to keep, above 0 and at most 1.
    """
    if rate >= 1:
        return table
    drawn = splitmix64(table.column(ROW).to_numpy()) / 2.0**64
    return table.filter(pa.array((table.column(label).to_numpy() > 0) | (drawn < rate)))


def _null(column: pa.ChunkedArray) -> np.ndarray:
    return column.is_null(nan_is_null=True).to_numpy()


def _numpy(column: pa.ChunkedArray, missing: int) -> np.ndarray:
    return pc.fill_null(column, pa.scalar(missing, column.type)).to_numpy()


def _fill_missing(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    for name, field in {**spec.request_fields, **spec.candidate_fields}.items():
        index = table.schema.get_field_index(name)
        filled = pc.fill_null(table.column(name), pa.scalar(field.missing, field.arrow_type))
        table = table.set_column(index, name, filled)
    return table


@dataclass(frozen=True)
class Requests:
    """Impressions grouped into requests, in the order of time.

    Attributes:
        table: The impressions, those of one request together.
        starts: [R + 1] int64; request r has the rows ``starts[r]`` to ``starts[r + 1]``.
    """

    table: pa.Table
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def slice(self, first: int, last: int) -> Requests:
        """The requests ``first`` (included) to ``last`` (excluded)."""
        starts = self.starts[first : last + 1]
        return Requests(self.table.slice(starts[0], starts[-1] - starts[0]), starts - starts[0])

    def take(self, positions: np.ndarray) -> Requests:
        """The requests at some positions, in that order."""
        counts = np.diff(self.starts)[positions]
        starts = np.concatenate([[0], np.cumsum(counts)])
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
        rows = np.repeat(self.starts[positions], counts) + within
        return Requests(self.table.take(pa.array(rows)), starts)

    def of_request(self, name: str) -> np.ndarray:
        """[R]: a column that is equal within each request."""
        return self.table.column(name).to_numpy()[self.starts[:-1]]

    def of_candidate(self, name: str) -> list[np.ndarray]:
        """R arrays [n]: a column of the candidates."""
        return np.split(self.table.column(name).to_numpy(), self.starts[1:-1])


def group_requests(table: pa.Table, spec: FeatureSpec) -> Requests:
    """Group checked impressions into requests.

    A request is what shares user, time, context (and ``request_id``, if the log has one): rows
    of the same millisecond in two scenarios are two requests. The answer does not depend on the
    order of the rows: requests come by (time, user), candidates by their place in the log.

    Args:
        table: ``CheckedRows.good``, of any number of files.
        spec: The feature spec.
    """
    keys = ["timestamp", "user_id", *spec.request_fields]
    if "request_id" in table.schema.names:
        keys.append("request_id")
    frame = table.select([*keys, ROW]).to_pandas()
    group = frame.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    first_row = pd.Series(frame[ROW].to_numpy()).groupby(group).transform("min").to_numpy()
    order = np.lexsort((frame[ROW], first_row, frame["user_id"], frame["timestamp"]))
    changes = np.flatnonzero(np.diff(group[order])) + 1
    starts = np.concatenate([[0], changes, [len(order)]]) if len(order) else np.zeros(1)
    return Requests(table.take(pa.array(order)), starts.astype(np.int64))
