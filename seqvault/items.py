"""Side information of items: stored once per item, joined on read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.codec.primitives import checksum
from seqvault.disk.files import Files
from seqvault.errors import (
    DamagedFileError,
    InvalidRequestError,
    SchemaError,
    UnknownFieldError,
    WrongTypeError,
)
from seqvault.item_batch import ItemBatch
from seqvault.memory.index import KeyTable

MAGIC = b"SEQVITM\x01"
KEY = "item_id"


def path_of(directory: str, number: int) -> str:
    """Path of an item file."""
    return f"{directory}/items/{number:010d}.items"


def to_table(items: Any) -> pa.Table:
    """Makes a checked Arrow table of item rows.

    Raises:
        WrongTypeError: not a table, or a column of a type that cannot be stored.
        UnknownFieldError: no ``item_id`` column.
        InvalidRequestError: missing values, or an item given twice.
    """
    if isinstance(items, pa.RecordBatch):
        table = pa.Table.from_batches([items])
    elif isinstance(items, pa.Table):
        table = items
    elif isinstance(items, dict):
        table = pa.table(
            {
                name: pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
                )
                if isinstance(values, np.ndarray) and values.ndim == 2
                else values
                for name, values in items.items()
            }
        )
    elif hasattr(items, "columns"):
        table = pa.Table.from_pandas(items, preserve_index=False)
    else:
        raise WrongTypeError(
            f"items have type {type(items).__name__}; expected an Arrow table, a record batch, "
            "a pandas data frame or a dict of arrays."
        )
    if KEY not in table.column_names:
        raise UnknownFieldError(f"items have no column {KEY!r}; they have {table.column_names}.")
    if table.schema.field(KEY).type != pa.int64():
        raise WrongTypeError(
            f"column {KEY!r} has type {table.schema.field(KEY).type}; expected int64."
        )
    for field in table.schema:
        kind = field.type
        vector = pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type)
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or vector
        ):
            raise WrongTypeError(
                f"item column {field.name!r} has type {kind}; expected an integer, a float, a "
                "string or a fixed-size list of floats."
            )
        if table.column(field.name).null_count:
            raise InvalidRequestError(
                f"item column {field.name!r} has missing values; fill them before the call."
            )
    if len(table.column(KEY).unique()) != len(table):
        raise InvalidRequestError(f"an item is given twice in one call; {KEY!r} must be unique.")
    return table.replace_schema_metadata(None)


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
                f"items have columns {_describe(table.schema)}; this store's items have "
                f"{_describe(self.schema)}. Give the same columns in the same order."
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


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def save(files: Files, directory: str, number: int, table: pa.Table) -> None:
    """Writes an item file, durable when this returns."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    body = sink.getvalue().to_pybytes()
    head = MAGIC + len(body).to_bytes(8, "little") + checksum(body).to_bytes(8, "little")
    files.publish(path_of(directory, number), head + body)


def load(files: Files, directory: str, number: int, expected: pa.Schema | None = None) -> pa.Table:
    """Reads and checks an item file.

    Args:
        expected: columns of the files before it; None: it is the first.

    Raises:
        DamagedFileError: it is not what was written, or has other columns than those
            before it.
    """
    path = path_of(directory, number)
    fd = files.open_read(path)
    try:
        data = files.read_all(fd, files.size(fd), 0).tobytes()
    finally:
        files.close(fd)
    body = data[24:]
    head = MAGIC + len(body).to_bytes(8, "little") + checksum(body).to_bytes(8, "little")
    if data[:24] != head:
        raise DamagedFileError(f"{path} is damaged: its checksum does not fit; restore it.")
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
        table = to_table(table)
    except (pa.ArrowException, OSError, InvalidRequestError) as error:
        raise DamagedFileError(
            f"{path} is damaged from byte 24 on, though its checksum fits: {error}. Restore it."
        ) from error
    if expected is not None and not table.schema.equals(expected):
        raise DamagedFileError(
            f"{path} has the columns {_describe(table.schema)}; the item files before it have "
            f"{_describe(expected)}. Restore the store from a snapshot or a replica."
        )
    return table
