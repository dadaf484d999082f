"""Strict conversion of columns to the types of a feature spec.

Casts of Arrow read ``"007"`` as 7 and take the microseconds of a timestamp for milliseconds; ids
that went through a float are rounded beyond 2**53 without a trace. What cannot be told from a
mistake is refused here, with what to do.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from laser_features.errors import ColumnTypeError

_EXACT = 2**53 - 1  # 2**53 + 1 is read as 2**53, which therefore is not exact either


def to_type(column: pa.ChunkedArray, wanted: pa.DataType, what: str) -> pa.ChunkedArray:
    """A column in the type that the spec says; nulls stay null.

    * Integers fit if every value does, and booleans count as 0 and 1.
    * Floats become integers if every value is whole and below 2**53, where floats are exact; NaN
      becomes null.
    * Timestamps and dates become milliseconds UTC (int64); without a time zone they are UTC.
    * Text never becomes a number.

    Args:
        column: As it was read.
        wanted: Type of the field.
        what: Name of the column, for the message.

    Raises:
        ColumnTypeError: The column's type or one of its values does not fit.

    Example:
        >>> to_type(pa.chunked_array([[1.0, 2.0]]), pa.int64(), "item_id").to_pylist()
        [1, 2]
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type == wanted:
        return column
    is_number = pa.types.is_integer(wanted) or pa.types.is_floating(wanted)
    if is_number and _is_text(column.type):
        raise ColumnTypeError(_text(column, wanted, what))
    if pa.types.is_integer(wanted):
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            column = _milliseconds(column, wanted, what)
        elif pa.types.is_floating(column.type):
            column = _whole(column, wanted, what)
        elif pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
    try:
        return column.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ColumnTypeError(
            f"{what} is {column.type} where the feature spec says {wanted}, and not every value "
            f"fits ({reason}): store it as {wanted}"
        ) from error


def to_schema(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    """The schema's columns of a table, each in the schema's type; other columns are left out.

    Args:
        table: Has all columns of the schema.
        schema: Names and types.
        what: Name of the table, for the message.

    Raises:
        ColumnTypeError: A column does not fit.
    """
    columns = [
        to_type(table.column(field.name), field.type, f"{what}.{field.name}") for field in schema
    ]
    return pa.table(columns, schema=schema)


def _is_text(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_binary,
            pa.types.is_large_binary,
        )
    )


def _text(column: pa.ChunkedArray, wanted: pa.DataType, what: str) -> str:
    known = column.drop_null()
    example = known[0].as_py() if len(known) else ""
    advice = "give integers: number the texts, or hash them"
    if what.rpartition(".")[2] == "timestamp":
        advice = "give integers, milliseconds since 1970 UTC, or a column of type timestamp"
    return (
        f"{what} is text, such as {example!r}, where the feature spec says {wanted}; text is "
        f"never read as a number: {advice}"
    )


def _milliseconds(column: pa.ChunkedArray, wanted: pa.DataType, what: str) -> pa.ChunkedArray:
    if wanted != pa.int64():
        raise ColumnTypeError(
            f"{what} is {column.type} where the feature spec says {wanted}; times are int64"
        )
    # Rounds down: what happened within a millisecond happened in it.
    times = column.cast(pa.timestamp("ns"), safe=False) if pa.types.is_date(column.type) else column
    return pc.floor_temporal(times, unit="millisecond").cast(pa.timestamp("ms")).cast(pa.int64())


def _whole(column: pa.ChunkedArray, wanted: pa.DataType, what: str) -> pa.ChunkedArray:
    known = pc.if_else(pc.is_nan(column), None, column)
    wrong = known.filter(
        pc.fill_null(
            pc.or_(pc.not_equal(pc.floor(known), known), pc.greater(pc.abs(known), float(_EXACT))),
            False,
        )
    )
    if len(wrong):
        value = wrong[0].as_py()
        reason = (
            "which is not whole"
            if value == value and abs(value) <= _EXACT
            else "from 2**53 on a float is not exact: it may stand for another id"
        )
        raise ColumnTypeError(
            f"{what} is {column.type} and holds {value!r}, {reason}; store it as {wanted}"
        )
    return known.cast(pa.int64(), safe=False)
