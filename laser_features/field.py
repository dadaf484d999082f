"""One field of a feature spec."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

TYPES: dict[str, pa.DataType] = {
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
}

POOLS = ("mean", "sum", "max")


@dataclass(frozen=True)
class Field:
    """A column of one section (event, item, user, context, candidate or label) of a feature spec.

    Attributes:
        name: Column name.
        section: The section that declares it.
        type: Key of ``TYPES``. The missing value of integers is -1, of floats NaN, of strings "".
        table: Embedding table, or None for a field that is stored but not embedded.
        boundaries: Increasing numbers; row = 1 + the number of boundaries at or below the value.
        quantiles: Number of equally filled buckets; Transform finds their limits.
        shape: Of a content vector, ``(width,)``; None for scalars.
        derive: Function of the request's time that gives the value; such a field has no column.
        utc_offset_hours: Offset of the derived value's clock.
        time_zone: IANA name of the clock's zone in place of an offset; it knows daylight saving.
        of: The item field that ``age_minutes`` starts from, int64 milliseconds UTC.
        values: Most values that the field holds at once, such as an item's tags; None for one.
        pool: How the embeddings of several values become one: ``mean``, ``sum`` or ``max``.

    Example:
        >>> field = Field("tag", section="item", type="int64", table="tag")
        >>> field.dtype, field.missing
        (dtype('int64'), -1)
    """

    name: str
    section: str
    type: str
    table: str | None = None
    boundaries: tuple[float, ...] | None = None
    quantiles: int | None = None
    shape: tuple[int, ...] | None = None
    derive: str | None = None
    utc_offset_hours: float = 0.0
    time_zone: str | None = None
    of: str | None = None
    values: int | None = None
    pool: str = "mean"

    @property
    def arrow_type(self) -> pa.DataType:
        """Arrow type of the column; content vectors and several values are fixed-size lists."""
        scalar = TYPES[self.type]
        if self.values is not None:
            return pa.list_(scalar, self.values)
        return scalar if self.shape is None else pa.list_(scalar, self.shape[0])

    @property
    def dtype(self) -> np.dtype:
        """NumPy dtype of raw values."""
        return np.dtype(object) if self.type == "string" else np.dtype(self.type)

    @property
    def is_float(self) -> bool:
        """Whether raw values are floating point numbers."""
        return self.type.startswith("float")

    @property
    def missing(self) -> int | float | str:
        """The raw value that means "not known"."""
        if self.type == "string":
            return ""
        return float("nan") if self.is_float else -1

    def to_dict(self) -> dict[str, object]:
        """The entry of this field in a feature spec."""
        entry: dict[str, object] = {}
        if self.derive is None:
            entry["type"] = self.type
        else:
            entry["derive"] = self.derive
            if self.time_zone is not None:
                entry["time_zone"] = self.time_zone
            elif self.of is None:
                entry["utc_offset_hours"] = self.utc_offset_hours
            else:
                entry["of"] = self.of
        if self.table is not None:
            entry["table"] = self.table
        if self.boundaries is not None:
            entry["boundaries"] = list(self.boundaries)
        if self.quantiles is not None:
            entry["quantiles"] = self.quantiles
        if self.shape is not None:
            entry["shape"] = list(self.shape)
        if self.values is not None:
            entry["values"], entry["pool"] = self.values, self.pool
        return entry
