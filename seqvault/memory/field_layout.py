"""Where each field is in the records of each schema, worked out once per choice of fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqvault.codec.bits import to_bits
from seqvault.codec.bundles import bundle
from seqvault.codec.read_kernel import ALIGN
from seqvault.codec.unpack_kernel import WIDENED
from seqvault.schema import DTYPE_NAMES, Schema

_FLOAT_TO_DOUBLE = (np.dtype("float32"), np.dtype("float64"))
MAX_SHAPES = 256


@dataclass(frozen=True)
class Shape:
    """Where each field of a padded answer of some shape is.

    Args:
        names: of the fields.
        size: bytes of all fields.
        record: the answer as one record whose fields are [B, L], from multiples of 64 on.
    """

    names: tuple[str, ...]
    size: int
    record: np.dtype[Any]

    def columns(self, out: np.ndarray) -> dict[str, np.ndarray]:
        """[B, L] arrays by field name, views of the bytes ``out``."""
        # a third of the time that an array of its own for each takes
        answer: np.ndarray = np.ndarray((), self.record, out)
        return {name: answer[name] for name in self.names}


@dataclass(frozen=True)
class Layout:
    """Types, sizes, defaults and columns (per schema) of the fields of a read.

    Args:
        names, dtypes: of each field.
        sizes: int64 [C], bytes of a value.
        defaults: uint64 [C], bits that stand in where a record lacks the field.
        columns_of: int64 [C, S], each field's column under each schema, -1: it lacks it; and
            ``WIDENED`` more where the column has float32 and the field float64.
        mem_columns: int64 [C], each field's place among the columns of the memtable.
        columns_in: int64 [S], columns of a record of each schema.
        words: bundle of these, as ``read_rows`` takes it.
        width: bytes of an event.
        described: uint8, names and types as answers of the read protocol have them.
        shapes: what ``shape`` worked out before.
    """

    names: tuple[str, ...]
    dtypes: list[np.dtype[Any]]
    sizes: np.ndarray
    defaults: np.ndarray
    columns_of: np.ndarray
    mem_columns: np.ndarray
    columns_in: np.ndarray
    words: np.ndarray
    width: int
    described: np.ndarray
    shapes: dict[tuple[int, int], Shape]

    def shape(self, rows: int, width: int) -> Shape:
        """Of an answer of ``rows`` times ``width`` events, less than 2 GiB in all."""
        known = self.shapes.get((rows, width))
        if known is None:
            starts, size = self.offsets(rows * width)
            record = np.dtype(
                {
                    "names": list(self.names),
                    "formats": [np.dtype((dtype, (rows, width))) for dtype in self.dtypes],
                    "offsets": starts,
                    "itemsize": size,
                }
            )
            if len(self.shapes) >= MAX_SHAPES:
                self.shapes.clear()
            known = self.shapes[rows, width] = Shape(self.names, size, record)
        return known

    def offsets(self, places: int) -> tuple[list[int], int]:
        """Where each field of ``places`` values starts, and bytes of all."""
        starts, size = self.places(places, ALIGN)
        return starts.tolist(), size

    def places(self, places: int, align: int) -> tuple[np.ndarray, int]:
        """``offsets`` with int64 [C] starts, which are multiples of ``align``, a power of two."""
        padded = (self.sizes * places + align - 1) & -align
        ends = padded.cumsum()
        return ends - padded, int(ends[-1]) if len(ends) else 0


class Layouts:
    """Layouts of records under all schemas of a store; "" names the arrival number.

    Args:
        schemas: all schemas of the store, the one in force last.
    """

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self._schema = schemas[-1]
        names = ("timestamp", "", *self._schema.names)
        self._rows = {name: row for row, name in enumerate(names)}
        self._table = np.empty((len(names), len(schemas)), np.int64)
        for s, schema in enumerate(schemas):
            known = ("timestamp", "", *schema.names)
            self._table[:, s] = [known.index(name) if name in known else -1 for name in names]
            for name in schema.names:  # floats are packed as their bits
                if (schema.dtype(name), self._schema.dtype(name)) == _FLOAT_TO_DOUBLE:
                    self._table[self._rows[name], s] += WIDENED
        self.columns_in = np.array([2 + len(schema.fields) for schema in schemas], np.int64)
        self._known: dict[tuple[str, ...], Layout] = {}

    def columns_of(self, name: str) -> np.ndarray:
        """int64 [S], the field's column under each schema, -1 where it lacks it."""
        row: np.ndarray = self._table[self._rows[name]]
        return row

    def of(self, names: tuple[str, ...]) -> Layout:
        """What is the same for all reads of these fields."""
        known = self._known.get(names)
        if known is None:
            known = self._known[names] = self._make(names)
        return known

    def _make(self, names: tuple[str, ...]) -> Layout:
        schema = self._schema
        dtypes = [np.dtype("int64") if name == "" else schema.dtype(name) for name in names]
        defaults = np.zeros(len(names), np.uint64)
        for c, name in enumerate(names):
            if name in schema.names and schema.field(name).default:
                value = np.array([schema.field(name).default]).astype(dtypes[c])
                defaults[c] = to_bits(value).view(np.uint64)[0]
        sizes = np.array([dtype.itemsize for dtype in dtypes], np.int64)
        columns_of = self._table[[self._rows[name] for name in names]]
        mem_columns = np.array([max(self._rows[name] - 1, 0) for name in names], np.int64)
        # in the order of ``codec.bundles``
        words = bundle((columns_of, sizes, defaults, mem_columns, self.columns_in))
        return Layout(
            names, dtypes, sizes, defaults, columns_of, mem_columns, self.columns_in, words,
            int(sizes.sum()), _described(names, dtypes), {},
        )  # fmt: skip


def _described(names: Sequence[str], dtypes: Sequence[np.dtype[Any]]) -> np.ndarray:
    """Of each field the lengths of name and type, as two uint16, and both."""
    parts = []
    for name, dtype in zip(names, dtypes, strict=True):
        words = name.encode(), DTYPE_NAMES[dtype].encode()
        parts += [len(word).to_bytes(2, "little") for word in words]
        parts += words
    return np.frombuffer(b"".join(parts), np.uint8).copy()
