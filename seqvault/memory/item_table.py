"""Side information of items in memory: stored once per item, joined on read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.disk.item_file import KEY, describe
from seqvault.errors import (
    SchemaError,
    UnknownFieldError,
    WrongTypeError,
)
from seqvault.item_batch import ItemBatch
from seqvault.memory.index import KeyTable


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """An item column as NumPy: strings as objects, vectors as [n, d]."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        chunks = [
            chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, kind.list_size)
            for chunk in column.chunks
        ]
        none = pa.array([], kind.value_type).to_numpy(zero_copy_only=False)
        return np.concatenate([none.reshape(0, kind.list_size), *chunks])
    values = column.to_numpy()
    return values.astype(object) if values.dtype == object else values


class Items:
    """The item table in memory. The store serialises its changes."""

    def __init__(self) -> None:
        self.schema: pa.Schema | None = None
        self.version = 0
        self._keys = KeyTable()
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def names(self) -> tuple[str, ...]:
        """Item fields beside ``item_id``."""
        return tuple(self._columns)

    def check(self, table: pa.Table) -> None:
        """Raises ``SchemaError`` unless the table has the columns of those before it."""
        if self.schema is not None and not table.schema.equals(self.schema):
            raise SchemaError(
                f"items have columns {describe(table.schema)}; this store's items have "
                f"{describe(self.schema)}. Give the same columns in the same order."
            )

    def apply(self, table: pa.Table, version: int) -> None:
        """Takes in a checked table: new items are added, known ones replaced."""
        self.schema, self.version = table.schema, version
        rows = self._keys.add(np.ascontiguousarray(table.column(KEY).to_numpy()))
        for name in table.column_names:
            if name == KEY:
                continue
            values = to_numpy(table.column(name))
            if name not in self._columns:
                self._columns[name] = np.zeros((0, *values.shape[1:]), values.dtype)
            old = self._columns[name]
            need = len(self._keys)
            # readers keep the array they have, so a known item is changed in a copy
            room = max(need, 2 * len(old)) if need > len(old) else len(old)
            fresh = np.full((room, *old.shape[1:]), "" if old.dtype == object else 0, old.dtype)
            fresh[: len(old)] = old
            fresh[rows] = values
            self._columns[name] = fresh

    def read(self, ids: Any, fields: Sequence[str] | None) -> ItemBatch:
        """See ``SeqVault.read_items``."""
        wanted = np.asarray(ids)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise WrongTypeError(f"item ids have type {wanted.dtype}; expected int64.")
        wanted = wanted.astype(np.int64)
        names = self.names if fields is None else tuple(dict.fromkeys(fields))
        for name in names:
            if name not in self._columns:
                raise UnknownFieldError(
                    f"unknown item field {name!r}; items have {', '.join(self.names) or 'none'}."
                )
        rows = self._keys.find(wanted.reshape(-1)).reshape(wanted.shape)
        found = rows >= 0
        safe = np.where(found, rows, 0)
        columns = {}
        for name in names:
            source = self._columns[name]
            values = (
                source[safe]
                if len(source)
                else np.zeros((*wanted.shape, *source.shape[1:]), source.dtype)
            )
            values[~found] = "" if source.dtype == object else 0
            columns[name] = values
        return ItemBatch(wanted, found, columns, self.version)

    def to_table(self) -> pa.Table | None:
        """The whole table as of now, or None if there never was one."""
        if self.schema is None:
            return None
        arrays = []
        for field in self.schema:
            if field.name == KEY:
                arrays.append(pa.array(self._keys.keys))
                continue
            values = self._columns[field.name][: len(self)]
            if pa.types.is_fixed_size_list(field.type):
                flat = pa.array(values.reshape(-1), field.type.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
            else:
                arrays.append(pa.array(values, field.type))
        return pa.Table.from_arrays(arrays, schema=self.schema)
