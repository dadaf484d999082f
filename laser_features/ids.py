"""From a field's raw values to embedding rows. Row 0 always means missing or padding.

Everything is vectorised and takes and returns arrays of the same shape. The missing raw value is
-1 for integers, NaN for floats, the empty string for strings.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laser_features.field import Field
from laser_features.table import Table

MISSING_ID = -1


def direct_rows(ids: ArrayLike, rows: int) -> NDArray[np.int32]:
    """Row = id + 1; an id outside [0, rows - 2] is missing: row 0.

    Example:
        >>> direct_rows([-1, 0, 2, 3], rows=4)
        array([0, 1, 3, 0], dtype=int32)
    """
    # As unsigned numbers, ids below -1 lie beyond every table: one comparison finds both ends.
    shifted = np.asarray(np.add(ids, 1, dtype=np.int64))
    return shifted.astype(np.int32) * (shifted.view(np.uint64) < np.uint64(rows))


def splitmix64(ids: ArrayLike) -> NDArray[np.uint64]:
    """The splitmix64 mixing function of each id, taken as an unsigned 64-bit number.

    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

    Example:
        >>> splitmix64([0])
        array([16294208416658607535], dtype=uint64)
    """
    mixed = np.asarray(ids, np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def hash_rows(ids: ArrayLike, rows: int) -> NDArray[np.int32]:
    """Row = 1 + splitmix64(id) % (rows - 1); the missing id -1 keeps row 0.

    Example:
        >>> hash_rows([-1, 0, 1], rows=11)
        array([0, 6, 6], dtype=int32)
    """
    values = np.atleast_1d(np.asarray(ids, np.int64))
    hashed = (splitmix64(values) % np.uint64(rows - 1)).astype(np.int32) + np.int32(1)
    found = np.where(values == MISSING_ID, np.int32(0), hashed)
    return found.reshape(np.shape(ids))


def boundary_rows(values: ArrayLike, boundaries: ArrayLike) -> NDArray[np.int32]:
    """Row = 1 + the number of boundaries at or below the value; missing values get row 0.

    Example:
        >>> boundary_rows([5.0, 10.0, 25.0, float("nan")], [10.0, 20.0])
        array([1, 2, 3, 0], dtype=int32)
    """
    raw = np.asarray(values)
    buckets = np.searchsorted(np.asarray(boundaries, np.float64), raw, side="right")
    return np.where(is_missing(raw), 0, buckets + 1).astype(np.int32)


def is_missing(values: NDArray) -> NDArray[np.bool_]:
    """True where a raw numeric value is the missing value of its kind (-1 or NaN)."""
    return np.isnan(values) if values.dtype.kind == "f" else values == MISSING_ID


@lru_cache(maxsize=1 << 16)
def hash_string(text: str) -> int:
    """A stable id of a string: 8 bytes of BLAKE2b(utf-8) as a little-endian 63-bit number.

    The empty string is the missing id -1.

    Example:
        >>> hash_string("Comedy") == hash_string("Comedy"), hash_string("")
        (True, -1)
    """
    if not text:
        return MISSING_ID
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & 0x7FFF_FFFF_FFFF_FFFF


def hash_strings(texts: ArrayLike) -> NDArray[np.int64]:
    """``hash_string`` of each element; None counts as the empty string."""
    values = np.asarray(texts, dtype=object)
    flat = [hash_string(str(text)) if text is not None else MISSING_ID for text in values.ravel()]
    return np.array(flat, np.int64).reshape(values.shape)


def model_values(field: Field, table: Table, values: ArrayLike) -> NDArray:
    """What the model takes for a field's raw values: rows, or raw values for Transform to map.

    Args:
        field: The field, with ``table`` set.
        table: Its table.
        values: Raw values of any shape.

    Returns:
        Same shape: int32 rows; raw int64 ids if Transform looks them up in a vocabulary (missing
        -1); raw float32 if Transform finds the quantiles (missing NaN).
    """
    if field.quantiles is not None:
        raw = np.asarray(values)
        return np.where(is_missing(raw), np.float32(np.nan), raw.astype(np.float32))
    if field.boundaries is not None:
        return boundary_rows(values, field.boundaries)
    ids = hash_strings(values) if field.type == "string" else np.asarray(values)
    if table.ids == "vocabulary":
        return ids.astype(np.int64)
    return hash_rows(ids, table.rows) if table.ids == "hash" else direct_rows(ids, table.rows)
