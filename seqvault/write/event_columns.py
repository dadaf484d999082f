"""Converts events as callers pass them to checked, typed columns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import (
    InvalidRequestError,
    UnknownFieldError,
    ValueRangeError,
    WrongTypeError,
)
from seqvault.schema import RESERVED, Schema
from seqvault.times import check_times


def to_dtype(values: Any, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """Casts to the type of a field without changing values (floats may be rounded).

    Raises:
        WrongTypeError: text, missing values, fractions for an integer field.
        ValueRangeError: a value that the type cannot hold.
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    if isinstance(values, pa.Array):
        if values.null_count:
            raise WrongTypeError(
                f"{what} has {values.null_count} missing values; fill them before the call."
            )
        values = values.to_numpy(zero_copy_only=False)
    array = np.asarray(values)
    if array.dtype == dtype:
        return array
    if array.size == 0:
        return array.astype(dtype)
    if array.dtype.kind not in "iuf":
        raise WrongTypeError(f"{what} has type {array.dtype}; expected {dtype}.")
    if dtype.kind == "f":
        return array.astype(dtype)
    if array.dtype.kind == "f" and (
        not np.isfinite(array).all() or (array != np.trunc(array)).any()
    ):
        raise WrongTypeError(
            f"{what} has type {array.dtype} with fractions or missing values; expected {dtype}."
        )
    low, high = array.min(), array.max()
    limits = np.iinfo(dtype)
    if int(low) < limits.min or int(high) > limits.max:
        raise ValueRangeError(
            f"{what} has values from {low} to {high}; {dtype} holds {limits.min} to {limits.max}."
        )
    return array.astype(dtype)


def check_source(source: str, offset: int) -> None:
    """Raises ``InvalidRequestError`` for a source without an offset.

    Without one, every append of the source but the first would be taken for a replay."""
    if source and offset < 0:
        raise InvalidRequestError(
            f"source {source!r} was given with offset {offset}; give the events' position in it, "
            "0 or more, so that the store can tell a replay, or leave the source out."
        )


def to_columns(events: Any, schema: Schema) -> dict[str, np.ndarray]:
    """Checks events against the schema and returns one array per column.

    Args:
        events: ``pyarrow.Table`` or ``RecordBatch``, ``pandas.DataFrame`` or a
            mapping of names to arrays.
        schema: what an event of the store has; fields with a default other than
            the plain one may not be left out either: say what is meant.

    Raises:
        UnknownFieldError: a column that the schema lacks, or lacks a column.
        InvalidRequestError: columns of different lengths.
        WrongTypeError, ValueRangeError, TimeUnitError: see ``to_dtype``, ``check_times``.
    """
    ready = _ready_columns(events, schema)
    if ready is not None:
        return ready
    if isinstance(events, pa.Table | pa.RecordBatch):
        given = {name: events.column(i) for i, name in enumerate(events.schema.names)}
    elif isinstance(events, Mapping):
        given = dict(events)
    elif hasattr(events, "columns") and hasattr(events, "to_numpy"):
        given = {str(name): events[name].to_numpy() for name in events.columns}
    else:
        raise WrongTypeError(
            f"events have type {type(events).__name__}; expected an Arrow table or record "
            "batch, a pandas data frame or a dict of arrays."
        )
    expected = (*RESERVED, *schema.names)
    for name in expected:
        if name not in given:
            raise UnknownFieldError(f"events have no column {name!r}; they need {list(expected)}.")
    for name in given:
        if name not in expected:
            raise UnknownFieldError(
                f"events have a column {name!r} that the schema lacks; it has {list(expected)}."
            )
    columns = {
        name: to_dtype(given[name], schema.dtype(name), f"column {name!r}") for name in expected
    }
    shapes = {name: column.shape for name, column in columns.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        raise InvalidRequestError(f"columns must be flat and of one length; received {shapes}.")
    check_times(columns["timestamp"], "column 'timestamp'")
    return columns


def _ready_columns(events: Any, schema: Schema) -> dict[str, np.ndarray] | None:
    """Fast path: the columns if they already have the types of the schema, else None."""
    expected = schema.columns
    if type(events) is not dict or len(events) != len(expected):
        return None
    columns: dict[str, np.ndarray] = {}
    first = events.get("user_id")
    if type(first) is not np.ndarray or first.ndim != 1:
        return None
    for name, dtype in expected.items():
        column = events.get(name)
        if type(column) is not np.ndarray or column.dtype != dtype or column.shape != first.shape:
            return None
        columns[name] = column
    check_times(columns["timestamp"], "column 'timestamp'")
    return columns
