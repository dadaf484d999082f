"""Events as messages of a log: JSON lines or an Arrow IPC stream.

The first byte tells them apart: an Arrow IPC stream begins with ``0xFF``, which no JSON text does.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import InvalidRequestError, UnknownFieldError, ValueRangeError, WrongTypeError
from seqvault.schema import RESERVED, Schema
from seqvault.write.event_columns import to_columns

Columns = dict[str, np.ndarray]
_ARROW_START = b"\xff\xff\xff\xff"


def columns_of(value: bytes | None, schema: Schema) -> Columns:
    """The events of one message, checked.

    Args:
        value: events as JSON lines (an object each) or as an Arrow IPC stream, with ``user_id``,
            ``timestamp`` (int64, ms) and the schema's fields. A field without a role may be
            left out, because messages may be older than it: it gets its default.
        schema: of the store.

    Returns:
        One array of the schema's type per column, ``user_id`` and ``timestamp`` first.

    Raises:
        InvalidRequestError: and its kinds; says why the message is malformed.

    Example:
        >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
        >>> columns_of(b'{"user_id": 7, "timestamp": 1700000000000, "item_id": 5}', schema)
        {'user_id': array([7]), 'timestamp': array([1700000000000]), 'item_id': array([5])}
    """
    if not value:
        raise InvalidRequestError("the message is empty.")
    if value.startswith(_ARROW_START):
        return _columns_of_arrow(value, schema)
    return columns_of_json(value, schema)


def columns_of_json(value: bytes, schema: Schema) -> Columns:
    """Events of JSON lines; see ``columns_of``."""
    rows = []
    for number, line in enumerate(value.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InvalidRequestError(f"line {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise WrongTypeError(f"line {number} is not a JSON object.")
        rows.append(row)
    if not rows:
        raise InvalidRequestError("the message has no events.")
    names = rows[0].keys()
    for row in rows:
        if row.keys() != names:
            raise UnknownFieldError(
                f"events of one message have different fields: {sorted(names)} and {sorted(row)}."
            )
    given = {name: _array([row[name] for row in rows], name, schema) for name in names}
    return to_columns(_with_defaults(given, len(rows), schema), schema)


def _array(values: list[Any], name: str, schema: Schema) -> np.ndarray:
    """JSON numbers as an array; a whole number stays exact, whatever stands beside it."""
    if name not in RESERVED and name not in schema.names:
        return np.zeros(len(values))  # to_columns names it
    whole = schema.dtype(name).kind in "iu"
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            expected = "a whole number" if whole else "a number"
            raise WrongTypeError(
                f"field {name!r} is {json.dumps(value)[:80]}; expected {expected}."
            )
    if not whole:
        return np.array(values, np.float64)
    for dtype in (np.int64, np.uint64):
        limits = np.iinfo(dtype)
        if min(values) >= limits.min and max(values) <= limits.max:
            return np.array(values, dtype)
    raise ValueRangeError(f"field {name!r} has values from {min(values)} to {max(values)}.")


def _columns_of_arrow(value: bytes, schema: Schema) -> Columns:
    try:
        with pa.ipc.open_stream(value) as reader:
            table = reader.read_all()
        table.validate(full=True)  # untrusted input: offsets may be invalid
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidRequestError(f"not an Arrow IPC stream: {error}.") from error
    if not len(table):
        raise InvalidRequestError("the message has no events.")
    given = {name: table.column(name) for name in table.column_names}
    return to_columns(_with_defaults(given, len(table), schema), schema)


def _with_defaults(given: dict[str, Any], count: int, schema: Schema) -> dict[str, Any]:
    absent = [field for field in schema.fields if field.name not in given and not field.role]
    return given | {field.name: np.full(count, field.default, field.dtype) for field in absent}


def decode(
    values: Sequence[bytes | None], schema: Schema, first: int = 0
) -> tuple[list[Columns], dict[int, str]]:
    """The events of many messages, and why the malformed ones are malformed.

    Args:
        values: the messages.
        schema: of the store.
        first: the place that the first message is counted by.

    Returns:
        Columns of the sound messages in order, those of neighbours together, and reasons by place.
    """
    if not values:
        return [], {}
    if len(values) == 1:
        try:
            return [columns_of(values[0], schema)], {}
        except InvalidRequestError as error:
            return [], {first: f"{type(error).__name__}: {error}"}
    if all(value and value.startswith(b"{") for value in values):
        # Messages as one text take a third of the time; which of them is malformed, halves tell.
        with suppress(InvalidRequestError):
            return [columns_of_json(b"\n".join(filter(None, values)), schema)], {}
    middle = len(values) // 2
    left, left_reasons = decode(values[:middle], schema, first)
    right, right_reasons = decode(values[middle:], schema, first + middle)
    return left + right, left_reasons | right_reasons


def joined(parts: Sequence[Columns], schema: Schema) -> Columns:
    """Columns one behind the other."""
    names = (*RESERVED, *schema.names)
    return {
        name: np.concatenate([part[name] for part in parts])
        if parts
        else np.empty(0, schema.dtype(name))
        for name in names
    }
