"""What a read looked up in memory, and its plan."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqvault.disk.segment import Segment
from seqvault.memory.version import Version


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a read needs, taken under the lock; none of it changes afterwards.

    Args:
        store: the version of the store that it was found in.
        oldest: time from which on events are kept, ms.
        users: int64 [B].
        starts: int64 [B + 1], bounds of each user's records.
        segments, offsets, lengths, counts, schema_ids: int64 [R], of each record.
        open_segments: files of the records, by number.
        mem_starts: int64 [B + 1], bounds of each user's events in memory.
        mem_rows: int64 [M], their rows in the columns.
        mem_columns, mem_arrivals: of the memtable.
        version: int64 [B], events that had arrived for each user: the token of the answer.
    """

    store: Version
    oldest: int
    users: np.ndarray
    starts: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    schema_ids: np.ndarray
    open_segments: dict[int, Segment]
    mem_starts: np.ndarray
    mem_rows: np.ndarray
    mem_columns: dict[str, np.ndarray]
    mem_arrivals: np.ndarray
    version: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which stored event goes where: what ``unpack_columns`` needs for each field."""

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
