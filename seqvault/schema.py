"""The event schema: which fields an event has beside its user and its time."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import SchemaError, UnknownFieldError

ROLE_KEY = b"seqvault.role"
DEFAULT_KEY = b"seqvault.default"
ROLES = ("scenario", "action", "item")
RESERVED = ("user_id", "timestamp")
DTYPES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
)  # fmt: skip
# Cached: NumPy computes the name of a type on every access.
DTYPE_NAMES = {np.dtype(name): name for name in DTYPES}


# Arrow's names of the types that NumPy names otherwise.
_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Field:
    """One event field.

    Args:
        name: name of the field.
        dtype: NumPy name of its type, one of the integers or floats.
        role: ``"scenario"``, ``"action"`` or ``"item"`` if the field is what
            ``read(scenarios=)``, ``read(actions=)`` or the item table go by,
            else ``""``.
        default: value read for events written before the field existed.
    """

    name: str
    dtype: str
    role: str = ""
    default: float = 0


@dataclass(frozen=True)
class Schema:
    """Fields of an event beside ``user_id`` and ``timestamp`` (int64, ms).

    Example:
        >>> import pyarrow as pa
        >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("action", pa.int8())]))
        >>> [(field.name, field.dtype, field.role) for field in schema.fields]
        [('item_id', 'int64', 'item'), ('action', 'int8', 'action')]
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        for field in self.fields:
            if not field.name or field.name in RESERVED or names.count(field.name) > 1:
                raise SchemaError(
                    f"field name {field.name!r} is empty, reserved or used twice; "
                    "give each field a name of its own."
                )
            if field.dtype not in DTYPES:
                raise SchemaError(
                    f"field {field.name!r} has type {field.dtype}; expected one of "
                    f"{', '.join(DTYPES)}."
                )
            if field.role and field.role not in ROLES:
                raise SchemaError(
                    f"field {field.name!r} has role {field.role!r}; expected one of {ROLES}."
                )
        for role in ROLES:
            if sum(field.role == role for field in self.fields) > 1:
                raise SchemaError(f"more than one field has the role {role!r}; keep one.")

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> "Schema":
        """Builds the schema from an Arrow schema.

        Field metadata: ``seqvault.role`` (``scenario``, ``action``, ``item``;
        without any, the fields named ``scenario``, ``action`` and ``item_id``
        have them) and ``seqvault.default``. ``user_id`` and ``timestamp`` may
        be there (int64) or not.

        Raises:
            SchemaError: for a type that is neither integer nor float, a name used
                twice, a nullable default or an unknown role.
        """
        fields = []
        for entry in schema:
            if entry.name in RESERVED:
                if entry.type != pa.int64():
                    raise SchemaError(
                        f"field {entry.name!r} has type {entry.type}; it must be int64."
                    )
                continue
            dtype = _FLOATS.get(str(entry.type), str(entry.type))
            metadata = entry.metadata or {}
            fields.append(
                Field(
                    name=entry.name,
                    dtype=dtype,
                    role=metadata.get(ROLE_KEY, b"").decode(),
                    default=json.loads(metadata.get(DEFAULT_KEY, b"0")),
                )
            )
        taken = {field.role for field in fields}
        usual = {"scenario": "scenario", "action": "action", "item_id": "item"}
        return cls(
            tuple(
                replace(field, role=usual[field.name])
                if not field.role and usual.get(field.name, "") not in taken and field.name in usual
                else field
                for field in fields
            )
        )

    def to_arrow(self) -> pa.Schema:
        """The Arrow schema of an events table, with ``user_id`` and ``timestamp``."""
        entries = [pa.field(name, pa.int64(), nullable=False) for name in RESERVED]
        for field in self.fields:
            metadata = {DEFAULT_KEY: json.dumps(field.default)}
            if field.role:
                metadata[ROLE_KEY] = field.role
            entries.append(
                pa.field(
                    field.name,
                    pa.from_numpy_dtype(np.dtype(field.dtype)),
                    nullable=False,
                    metadata=metadata,
                )
            )
        return pa.schema(entries)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all fields, ``user_id`` and ``timestamp`` left out."""
        return tuple(field.name for field in self.fields)

    def field(self, name: str) -> Field:
        """The field of that name.

        Raises:
            UnknownFieldError: there is none.
        """
        if name not in self.names:
            raise UnknownFieldError(
                f"unknown field {name!r}; the schema has {', '.join(('timestamp', *self.names))}."
            )
        return self.fields[self.names.index(name)]

    def dtype(self, name: str) -> np.dtype[Any]:
        """NumPy dtype of a field; ``timestamp`` and ``user_id`` are int64."""
        return np.dtype("int64") if name in RESERVED else np.dtype(self.field(name).dtype)

    @cached_property
    def columns(self) -> dict[str, np.dtype[Any]]:
        """NumPy dtypes of the columns of an event, ``user_id`` and ``timestamp`` first."""
        return {name: self.dtype(name) for name in (*RESERVED, *self.names)}

    @cached_property
    def _all(self) -> tuple[str, ...]:
        return ("timestamp", *self.names)

    def with_role(self, role: str) -> Field | None:
        """The field that has the role, if any."""
        return next((field for field in self.fields if field.role == role), None)

    def select(self, fields: Sequence[str] | None) -> tuple[str, ...]:
        """Checks asked-for field names; None means ``timestamp`` and all fields."""
        if fields is None:
            return self._all
        for name in fields:
            if name != "timestamp":
                self.field(name)
        return tuple(dict.fromkeys(fields))

    def check_extends(self, old: "Schema") -> None:
        """Raises ``SchemaError`` unless events of the ``old`` schema can be read under this one.

        Old fields stay, in their order, with their role and default; integers may become
        wider, and float32 float64; new fields come behind them.
        """
        for place, before in enumerate(old.fields):
            now = self.fields[place] if place < len(self.fields) else None
            if now is None or now.name != before.name:
                raise SchemaError(
                    f"the store has the field {before.name!r} at place {place}; a new schema must "
                    "keep all fields in their order and add new ones behind them."
                )
            wider = now.dtype == before.dtype or (
                np.dtype(before.dtype).kind in "iu"
                and np.dtype(now.dtype).kind in "iu"
                and np.can_cast(before.dtype, now.dtype, "safe")
            )
            if (before.dtype, now.dtype) == ("float32", "float64"):
                wider = before.role in ("", "item")  # filters compare integers
            if not wider or (now.role, now.default) != (before.role, before.default):
                raise SchemaError(
                    f"field {before.name!r} is {before.dtype} with role {before.role!r} and "
                    f"default {before.default} in the store and {now.dtype}, {now.role!r}, "
                    f"{now.default} in the new schema; only integers and float32 may change, and "
                    "only to wider ones: int8 to int32, float32 to float64."
                )

    def to_json(self) -> list[dict[str, Any]]:
        """The fields as plain data."""
        return [
            {"name": f.name, "dtype": f.dtype, "role": f.role, "default": f.default}
            for f in self.fields
        ]

    @classmethod
    def from_json(cls, entries: Iterable[dict[str, Any]]) -> "Schema":
        """Undoes ``to_json``."""
        return cls(tuple(Field(**entry) for entry in entries))
