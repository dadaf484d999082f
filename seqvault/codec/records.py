"""Numba kernels of records: one user's events in blocks of up to 256, and packed arrays.

A *block* is a checksum, the chunks' lengths and one chunk per column. A *record* is a run
of blocks behind a checked header. See ``docs/seqvault/format.md``.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import (
    BAD_CHUNK,
    BLOCK,
    MASK16,
    MASK32,
    OK,
    PADDING,
    pack_chunk,
    put_chunk,
)
from seqvault.codec.coded_chunks import pack_coded
from seqvault.codec.primitives import address_of, crc32c, inner, load_u8, load_u64, store_u64

TIMESTAMP, ARRIVAL = 0, 1  # the first two columns of every record
CODED_FROM = 32  # values; shorter chunks are not worth a try


@njit(nogil=True, cache=True)
def pack_array(values, out):
    """Packs a whole int64 array as a run of chunks; returns the number of bytes."""
    position = 0
    for start in range(0, len(values), BLOCK):
        n = min(BLOCK, len(values) - start)
        end = pack_chunk(values[start : start + n], n, out, position + 2)
        store_u64(out, end, np.uint64(0))
        length = end - position - 2
        out[position] = length & 255
        out[position + 1] = length >> 8
        position = end
    return position


@njit(nogil=True, cache=True)
def unpack_array(data, length, values):
    """Unpacks what ``pack_array`` packed; ``values`` (uint64) says how many. Returns a status."""
    position = 0
    at, scratch = address_of(data), np.empty(BLOCK + 8, np.uint64)
    room = address_of(scratch)
    for start in range(0, len(values), BLOCK):
        n = min(BLOCK, len(values) - start)
        if position + 2 > length:
            return BAD_CHUNK
        size = load_u8(at, position) | (load_u8(at, position + 1) << 8)
        if position + 2 + size > length:
            return BAD_CHUNK
        status = put_chunk(at, position + 2, size, n, 0, n - 1, room, 0, 8)
        if status != OK:
            return status
        for i in range(n):
            values[start + i] = scratch[n - 1 - i]
        position += 2 + size
    return OK if position == length else BAD_CHUNK


@njit(nogil=True, cache=True)
def pack_records(users, starts, columns, out, offsets):
    """Packs users' sorted events into records.

    Args:
        users: int64 [U].
        starts: int64 [U + 1], bounds of each user's events.
        columns: int64 [C, N]; row 0 timestamps (not decreasing within a user),
            row 1 arrival numbers, the others field values or their bits.
        out: uint8, large enough (see ``records_bound``).
        offsets: int64 [U + 1], receives where each record starts. A user without
            events has no bytes.
    """
    n_columns = columns.shape[0]
    values, leader_codes = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    position = 0
    for u in range(len(users)):
        offsets[u] = position
        start, count = starts[u], starts[u + 1] - starts[u]
        if count == 0:
            continue
        blocks = (count + BLOCK - 1) // BLOCK
        store_u64(out, position, np.uint64(users[u]))
        store_u64(out, position + 8, np.uint64(count))
        block = position + 16 + 12 * blocks
        for b in range(blocks):
            first = start + b * BLOCK
            n = min(BLOCK, count - b * BLOCK)
            chunk = block + 4 + 2 * n_columns
            leader, leader_size = -1, 0
            for c in range(n_columns):
                for i in range(n):
                    values[i] = columns[c, first + i]
                if c == TIMESTAMP:
                    for i in range(n - 1, 0, -1):
                        values[i] -= values[i - 1]
                    values[0] = 0
                elif c == ARRIVAL:
                    for i in range(n):
                        values[i] -= b * BLOCK + i
                end = pack_chunk(values, n, out, chunk)
                if c > ARRIVAL and n >= CODED_FROM:
                    end, size = pack_coded(
                        values, n, end, out, chunk, leader, leader_codes, leader_size
                    )
                    if size:
                        leader, leader_size = c, size
                out[block + 4 + 2 * c] = (end - chunk) & 255
                out[block + 5 + 2 * c] = (end - chunk) >> 8
                chunk = end
            crc = crc32c(out, block + 4, chunk)
            for i in range(4):
                out[block + i] = np.uint8((crc >> np.uint64(8 * i)) & np.uint64(255))
            entry = position + 12 + 12 * b
            store_u64(out, entry, np.uint64(columns[TIMESTAMP, first]))
            for i in range(4):
                out[entry + 8 + i] = ((chunk - position) >> (8 * i)) & 255
            block = chunk
        check = position + 12 + 12 * blocks
        crc = crc32c(out, position, check)
        for i in range(4):
            out[check + i] = np.uint8((crc >> np.uint64(8 * i)) & np.uint64(255))
        end = (block + 7) & ~7
        out[block:end] = 0
        position = end
    offsets[len(users)] = position


def records_bound(users: int, events: int, columns: int) -> int:
    """Bytes that ``pack_records`` may need for its output."""
    blocks = users + events // BLOCK
    # a chunk is tried coded before it is found to be larger
    return PADDING + 4096 + users * 32 + blocks * (16 + 13 * columns) + 8 * events * columns


@njit(nogil=True, cache=True)
def blocks_before(data, position, first, blocks, before, last_n):
    """The blocks of a record that can hold its newest ``last_n`` events before a time.

    Args:
        data, position: the record's directory; it is all that is read.
        first: the first block to be considered. blocks: of the record.
        before: bound on time. last_n: how many events.

    Returns:
        (the first of them, the one behind the last): all events before the bound are before the
        latter, whose last block may hold some that are not.
    """
    stop = blocks
    while stop > first and np.int64(load_u64(data, position + 12 * stop)) >= before:
        stop -= 1
    return max(first, stop - 1 - (last_n + BLOCK - 1) // BLOCK), stop


@inner
def check_record(data, position, length, user):
    """Number of blocks of the record, or -1 if its header is invalid."""
    if length < 16:
        return -1
    count = np.int64(load_u64(data, position + 8) & MASK32)
    blocks = (count + BLOCK - 1) // BLOCK
    check = position + 12 + 12 * blocks
    if count == 0 or check + 4 > position + length:
        return -1
    if np.int64(load_u64(data, position)) != user:
        return -1
    if crc32c(data, position, check) != load_u64(data, check) & MASK32:
        return -1
    last = 16 + 12 * blocks
    for b in range(blocks):
        end = np.int64(load_u64(data, position + 20 + 12 * b) & MASK32)
        if end <= last or end > length:
            return -1
        last = end
    return blocks


@inner
def chunk_of(data, block, n_columns, column):
    """Position and length of a column's chunk in a block."""
    lengths = block + 4
    position = lengths + 2 * n_columns
    for c in range(column):
        position += np.int64(load_u64(data, lengths + 2 * c) & MASK16)
    return position, np.int64(load_u64(data, lengths + 2 * column) & MASK16)


@inner
def check_block(data, block, end, n_columns):
    """True if the block's checksum and chunk lengths are right."""
    if block + 4 + 2 * n_columns > end:
        return False
    if crc32c(data, block + 4, end) != load_u64(data, block) & MASK32:
        return False
    position, length = chunk_of(data, block, n_columns, n_columns - 1)
    return position + length == end


@inner
def chunk_places(data, block, end, columns, places):
    """Where each chunk of a checked block starts, and the end; False if they do not fit."""
    position = block + 4 + 2 * columns
    if position > end:
        return False
    for c in range(columns):
        places[c] = position
        position += np.int64(load_u64(data, block + 4 + 2 * c) & MASK16)
    places[columns] = position
    return position == end
