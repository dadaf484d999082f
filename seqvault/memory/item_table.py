"""The in-memory table of item side information: stored once per item, joined on read."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.disk.item_file import KEY, describe
from seqvault.errors import SchemaError, UnknownFieldError, WrongTypeError
from seqvault.give_way import give_way
from seqvault.item_batch import ItemBatch
from seqvault.memory.key_table import KeyTable

KEYS_AT_ONCE = 4096  # added in one hold of the lock
ROWS_AT_ONCE = 1 << 16  # copied in one go: strings are copied with the GIL held


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


@dataclass(frozen=True)
class ItemVersion:
    """The item table as of one write; rows that it names never change.

    Args:
        schema: of the table; None: there never was one.
        version: number of the write.
        places: int64 [K], row of each known item by its number among the keys, -1: none.
        columns: values by field name, with room behind the ``used`` rows.
        used: rows written, those of items replaced since among them.
        items: how many there are.
    """

    schema: pa.Schema | None = None
    version: int = 0
    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    used: int = 0
    items: int = 0


class Items:
    """The item table in memory: any number of readers, and one writer at a time.

    A write appends rows, for known items too, while readers use the previous version; readers only
    ever wait for the swap of one reference.
    """

    def __init__(self) -> None:
        self.content_hash: tuple[int, bytes] = (-1, b"")  # by version, once it was asked for
        self._lock = threading.Lock()  # guards the two below
        self._keys = KeyTable()
        self._now = ItemVersion()

    def __len__(self) -> int:
        return self._now.items

    @property
    def schema(self) -> pa.Schema | None:
        """Arrow schema of the table, None before the first write."""
        return self._now.schema

    @property
    def version(self) -> int:
        """Number of the last write."""
        return self._now.version

    @property
    def names(self) -> tuple[str, ...]:
        """Item fields beside ``item_id``."""
        return tuple(self._now.columns)

    def check(self, table: pa.Table) -> None:
        """Raises ``SchemaError`` unless the table has the columns of those before it."""
        if self.schema is not None and not table.schema.equals(self.schema):
            raise SchemaError(
                f"items have columns {describe(table.schema)}; this store's items have "
                f"{describe(self.schema)}. Give the same columns in the same order."
            )

    def apply(self, table: pa.Table, version: int) -> None:
        """Applies a checked table: adds new items and replaces known ones."""
        self.show(self.prepared(table, version))

    def show(self, fresh: ItemVersion) -> None:
        """Makes the result of ``prepared`` visible to readers."""
        with self._lock:
            self._now = fresh

    def prepared(self, table: pa.Table, version: int) -> ItemVersion:
        """The version with a checked table in it, not yet visible to readers."""
        old = self._now
        numbers = self._number(np.ascontiguousarray(table.column(KEY).to_numpy()))
        places = np.empty(max(len(old.places), int(numbers.max(initial=-1)) + 1), np.int64)
        places[: len(old.places)] = old.places
        places[len(old.places) :] = -1
        replaced = int((places[numbers] >= 0).sum())
        items, used = old.items + len(numbers) - replaced, old.used
        fresh = {name: to_numpy(table.column(name)) for name in table.column_names if name != KEY}
        room = min((len(values) for values in old.columns.values()), default=0)
        if used + len(numbers) > room:  # move to larger arrays, without rows of items replaced
            places[numbers] = -1
            kept = np.flatnonzero(places >= 0)
            rows, used = places[kept], len(kept)
            places[kept] = np.arange(used)
            columns = {
                name: _moved(old.columns.get(name), rows, values, 2 * items)
                for name, values in fresh.items()
            }
        else:
            columns = old.columns
        places[numbers] = used + np.arange(len(numbers))
        for name in list(fresh):
            columns[name][used : used + len(numbers)] = fresh.pop(name)
            give_way()
        return ItemVersion(table.schema, version, places, columns, used + len(numbers), items)

    def _number(self, ids: np.ndarray) -> np.ndarray:
        """int64 number of each item, adding new ones in small batches under the lock."""
        keys = self._keys.with_room(len(ids))  # copied without the lock: only this thread adds
        with self._lock:
            self._keys = keys
        numbers = np.empty(len(ids), np.int64)
        for first in range(0, len(ids), KEYS_AT_ONCE):
            some = slice(first, first + KEYS_AT_ONCE)
            with self._lock:
                numbers[some] = keys.add(ids[some])
        return numbers

    def width(self, fields: Sequence[str] | None) -> int:
        """About how many bytes an item of these fields takes; unknown ones count nothing."""
        total = 1
        for name, values in self._now.columns.items():
            if fields is None or name in fields:
                one = 64 if values.dtype == object else values.dtype.itemsize
                total += one * int(np.prod(values.shape[1:]))
        return total

    def read(self, ids: Any, fields: Sequence[str] | None) -> ItemBatch:
        """See ``SeqVault.read_items``."""
        wanted = np.asarray(ids)
        if wanted.dtype.kind not in "iu" and wanted.size:
            raise WrongTypeError(f"item ids have type {wanted.dtype}; expected int64.")
        wanted = wanted.astype(np.int64)
        with self._lock:
            numbers, now = self._keys.find(wanted.reshape(-1)), self._now
        names = tuple(now.columns) if fields is None else tuple(dict.fromkeys(fields))
        for name in names:
            if name not in now.columns:
                raise UnknownFieldError(
                    f"unknown item field {name!r}; items have {', '.join(now.columns) or 'none'}."
                )
        known = (numbers >= 0) & (numbers < len(now.places))
        rows = np.full(len(numbers), -1, np.int64)
        rows[known] = now.places[numbers[known]]
        rows = rows.reshape(wanted.shape)
        found = rows >= 0
        safe = np.where(found, rows, 0)
        columns = {}
        for name in names:
            source = now.columns[name]
            values = (
                source[safe]
                if len(source)
                else np.zeros((*wanted.shape, *source.shape[1:]), source.dtype)
            )
            values[~found] = "" if source.dtype == object else 0
            columns[name] = values
        return ItemBatch(wanted, found, columns, now.version)

    def clear(self) -> None:
        """Gives the memory of the columns back, one by one: all at once would hold readers up."""
        now, self._now = self._now, ItemVersion()
        while now.columns:
            now.columns.popitem()
            give_way()

    def to_table(self) -> pa.Table | None:
        """The whole table as of now, or None if there never was one."""
        now = self._now
        if now.schema is None:
            return None
        there = np.flatnonzero(now.places >= 0)
        rows = now.places[there]
        arrays = []
        for one in now.schema:
            if one.name == KEY:
                arrays.append(pa.array(self._keys.keys[there]))
                continue
            whole = now.columns[one.name]
            values = _moved(whole, rows, whole, len(rows))
            if pa.types.is_fixed_size_list(one.type):
                flat = pa.array(values.reshape(-1), one.type.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, one.type.list_size))
            else:
                arrays.append(pa.array(values, one.type))
        return pa.Table.from_arrays(arrays, schema=now.schema)


def _moved(old: np.ndarray | None, rows: np.ndarray, like: np.ndarray, room: int) -> np.ndarray:
    """An array with ``room`` for rows like those of ``like`` that starts with rows of ``old``.

    What is in the room is undefined and never read; to fill it would hold readers up.
    """
    fresh = np.empty((room, *like.shape[1:]), like.dtype)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        assert old is not None
        some = rows[first : first + ROWS_AT_ONCE]
        fresh[first : first + len(some)] = old[some]
        give_way()
    return fresh
