"""Answers of the read protocol, written as whole frames in one kernel."""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.frames import CHECKED_FROM, HEADER
from seqvault.codec.primitives import (
    address_of,
    crc32c,
    inner,
    load_u8,
    load_u64,
    store_u8,
    store_u64,
)

ANSWER_HEAD = 24  # bytes of an answer before the names of its fields


@inner
def _copy(source, at, size):
    """Copies bytes to an address and fills up to a multiple of 8 with zeros; where that ends.

    They may come from further behind, or be where they belong already.
    """
    whole = size & ~7
    if source == at:
        if whole != size:
            kept = (np.uint64(1) << np.uint64(8 * (size - whole))) - np.uint64(1)
            store_u64(at, whole, load_u64(at, whole) & kept)
        return at + ((size + 7) & ~7)
    for i in range(0, whole, 8):
        store_u64(at, i, load_u64(source, i))
    if whole == size:
        return at + size
    store_u64(at, whole, np.uint64(0))
    for i in range(whole, size):
        store_u8(at, i, np.uint64(load_u8(source, i)))
    return at + whole + 8


@njit(nogil=True, cache=True)
def write_answers(
    columns, sizes, lengths, version, ends, ids, frame_start, encoding, described, out,
    frame_ends,
):  # fmt: skip
    """Writes one frame for each request of a read that answered several together.

    Args:
        columns: int64 [C], addresses of each field's values, one row's behind the other's. Those
            of one request alone may be in ``out``, from ``fields_from`` on.
        sizes: int64 [C], bytes of a value.
        lengths: int32 [B], events of each row. version: int64 [B].
        ends: int64 [Q], first row behind those of each request.
        ids: uint64 [Q], of the requests.
        frame_start: ``frames.ANSWER_START``.
        encoding: of the answers.
        described: uint8, names and types of the fields.
        out: uint8, room for all frames, 8 bytes more.
        frame_ends: int64 [Q] receives where each ends.
    """
    start, first_row, first_event = address_of(out), 0, np.int64(0)
    lengths_at, version_at = address_of(lengths), address_of(version)
    begin = np.int64(0)
    for q in range(len(ends)):
        rows = ends[q] - first_row
        events = np.int64(0)
        for row in range(first_row, ends[q]):
            events += lengths[row]
        body = start + begin + HEADER
        store_u64(body, 0, np.uint64(encoding) | (np.uint64(rows) << np.uint64(32)))
        store_u64(body, 8, np.uint64(events))
        store_u64(body, 16, np.uint64(len(described)))
        at = _copy(address_of(described), body + ANSWER_HEAD, len(described))
        at = _copy(lengths_at + 4 * first_row, at, 4 * rows)
        at = _copy(version_at + 8 * first_row, at, 8 * rows)
        for c in range(len(sizes)):
            at = _copy(columns[c] + sizes[c] * first_event, at, sizes[c] * events)
        end = at - start
        store_u64(
            start + begin, CHECKED_FROM,
            np.uint64(frame_start[1]) | (np.uint64(end - begin - HEADER) << np.uint64(32)),
        )  # fmt: skip
        store_u64(start + begin, 16, ids[q])
        check = crc32c(out, begin + CHECKED_FROM, end)
        store_u64(start + begin, 0, np.uint64(frame_start[0]) | (check << np.uint64(32)))
        frame_ends[q] = end
        begin, first_row, first_event = end, ends[q], first_event + events


def room_for_answers(
    requests: int, rows: int, events: int, fields: int, width: int, described: int
) -> int:
    """Bytes that ``write_answers`` can need.

    Args:
        requests, rows, events: of all answers, at most.
        fields: of an answer; ``width``: bytes of an event; ``described``: of names and types.
    """
    each = HEADER + ANSWER_HEAD + described + 8 + 8 + 8 * fields
    return requests * each + 12 * rows + width * events + 8


def fields_from(rows: int, described: int) -> int:
    """Where the fields begin in the frame of an answer of so many rows; see the above."""
    return HEADER + ANSWER_HEAD + (described + 7 & ~7) + (4 * rows + 7 & ~7) + 8 * rows
