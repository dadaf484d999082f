"""What a read found in memory, and its plan."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqvault.disk.segment import Segment


@dataclass(frozen=True)
class Found:
    """What a read needs, taken under the lock; none of it changes afterwards."""

    users: np.ndarray
    starts: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    open_segments: dict[int, Segment]
    schema_ids: np.ndarray
    mem_starts: np.ndarray
    mem_rows: np.ndarray
    mem_columns: dict[str, np.ndarray]
    mem_arrivals: np.ndarray
    version: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Which stored event goes where: what ``unpack_column`` needs for each field."""

    found: Found
    data: np.ndarray
    blocks: int
    block_arrays: tuple[np.ndarray, ...]
    dest: np.ndarray
    mem_dest: np.ndarray
    counts: np.ndarray


def of_numbers(numbers: np.ndarray, known: Mapping[int, int]) -> np.ndarray:
    """int64 [R]: what is known of each of these, without a loop that would hold the GIL."""
    if not len(numbers):
        return np.empty(0, np.int64)
    keys = np.array(sorted(known), np.int64)
    values = np.array([known[key] for key in keys.tolist()], np.int64)
    return values[np.searchsorted(keys, numbers)]
