"""Where each field is in the records of each schema, worked out once per choice of fields."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqvault.events import to_bits
from seqvault.schema import Schema

MAX_SHAPES = 256


@dataclass(frozen=True)
class Layout:
    """Types, sizes, defaults and columns (per schema) of the fields of a read.

    Args:
        dtypes: of each field.
        sizes: int64 [C], bytes of a value.
        defaults: uint64 [C], bits that stand in where a record lacks the field.
        columns_of: int64 [C, S], each field's column under each schema, -1: it lacks it.
        mem_columns: int64 [C], each field's place among the columns of the memtable.
        shapes: what ``offsets`` worked out before.
    """

    dtypes: list[np.dtype[Any]]
    sizes: np.ndarray
    defaults: np.ndarray
    columns_of: np.ndarray
    mem_columns: np.ndarray
    shapes: dict[tuple[int, int], tuple[int, list[tuple[str, np.dtype[Any], int]]]]

    def offsets(
        self, names: tuple[str, ...], rows: int, width: int
    ) -> tuple[int, list[tuple[str, np.dtype[Any], int]]]:
        """Bytes of an answer of ``rows`` times ``width`` events, and where each field is."""
        known = self.shapes.get((rows, width))
        if known is None:
            padded = (self.sizes * (rows * width) + 63) & ~63
            ends = np.cumsum(padded)
            known = (
                int(ends[-1]) if len(ends) else 0,
                list(zip(names, self.dtypes, (ends - padded).tolist(), strict=True)),
            )
            if len(self.shapes) >= MAX_SHAPES:
                self.shapes.clear()
            self.shapes[rows, width] = known
        return known


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
        self.columns_in = np.array([2 + len(schema.fields) for schema in schemas])
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
        return Layout(
            dtypes,
            np.array([dtype.itemsize for dtype in dtypes], np.int64),
            defaults,
            self._table[[self._rows[name] for name in names]],
            np.array([max(self._rows[name] - 1, 0) for name in names], np.int64),
            {},
        )
