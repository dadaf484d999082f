"""Readers of published files, with one-line errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from laser_features import TimeUnitError, check_milliseconds
from laser_features.time import EARLIEST_MS
from tfx_pipeline.errors import DatasetError


def find_file(folder: Path, name: str) -> Path:
    """The file of that name in the folder, or in its ``data`` folder.

    Raises:
        DatasetError: It is not there.
    """
    return find_files(folder, name)[0]


def find_files(folder: Path, pattern: str) -> list[Path]:
    """The files that fit a glob pattern, in the folder or in its ``data`` folder; at least one.

    Raises:
        DatasetError: None is there.
    """
    found = sorted(folder.glob(pattern)) or sorted((folder / "data").glob(pattern))
    if not found:
        has = sorted(entry.name for entry in folder.iterdir())[:10]
        raise DatasetError(f"{folder} has no {pattern}; it has {has}: add the missing file")
    return found


def read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """The named columns of a Parquet file; an optional one that is absent is left out.

    Raises:
        DatasetError: The file is unreadable or empty, or a column is missing.
    """
    try:
        names = pq.read_schema(path).names
        _check_columns(path, names, columns)
        wanted = [*columns, *(name for name in optional if name in names)]
        table = pq.read_table(path, columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as Parquet ({_line(error)}); get it again"
        ) from error
    return _not_empty(path, table)


def read_csv(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The named columns of a CSV file with a header, in the given types.

    Raises:
        DatasetError: The file is unreadable or empty, a column is missing or a value does not fit.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline().rstrip("\n").split(",")
        _check_columns(path, [name.strip('"\r') for name in header], list(columns))
        convert = csv.ConvertOptions(
            column_types=dict(columns),
            include_columns=list(columns),
            null_values=["", "NaN", "nan", "NULL", "null"],
            strings_can_be_null=True,
        )
        parse = csv.ParseOptions(newlines_in_values=True)
        table = csv.read_csv(path, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} cannot be read as CSV ({_line(error)}); get it again"
        ) from error
    return _not_empty(path, table)


def column(table: pa.Table, name: str, dtype: DTypeLike, missing: float = -1) -> NDArray:
    """A column as a NumPy array of ``dtype``; null and NaN become ``missing``."""
    values = table[name]
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    if pa.types.is_floating(values.type):
        raw = values.to_numpy()
        return np.where(np.isnan(raw), missing, raw).astype(dtype)
    # Published ids may be unsigned, where the missing value would not fit.
    return pc.fill_null(values.cast(pa.int64()), int(missing)).to_numpy().astype(dtype)


def strings(table: pa.Table, name: str) -> NDArray:
    """A text column as an object array; null becomes the empty string."""
    values = table[name].cast(pa.string())
    return pc.fill_null(values, "").to_numpy()


def seconds_to_ms(values: NDArray, what: str) -> NDArray[np.int64]:
    """Times in seconds since 1970 as milliseconds.

    Raises:
        DatasetError: The times are not plausible as seconds.
    """
    seconds = values.astype(np.int64)
    if seconds.size and int(seconds.max()) >= EARLIEST_MS:
        raise DatasetError(
            f"{what} holds {seconds.max()}, which looks like milliseconds; this dataset is "
            "published in seconds since 1970: get the original file"
        )
    return checked_ms(seconds * 1000, what)


def checked_ms(values: NDArray, what: str) -> NDArray[np.int64]:
    """The same times, after a check that they are milliseconds since 1970.

    Raises:
        DatasetError: They are not.
    """
    try:
        check_milliseconds(values, what)
    except TimeUnitError as error:
        raise DatasetError(str(error)) from error
    return values.astype(np.int64)


def timestamps_ms(values: pa.ChunkedArray, what: str) -> NDArray[np.int64]:
    """An Arrow timestamp column as int64 milliseconds; null becomes 0.

    Raises:
        DatasetError: The column is not a timestamp.
    """
    if not pa.types.is_timestamp(values.type):
        raise DatasetError(f"{what} is {values.type}; expected a timestamp, as published")
    ms = values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    return pc.fill_null(ms, 0).to_numpy()


def _check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise DatasetError(f"{path} lacks the columns {missing}; it has {list(names)}")


def _not_empty(path: Path, table: pa.Table) -> pa.Table:
    if table.num_rows == 0:
        raise DatasetError(f"{path} has no rows; get it again")
    return table


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
