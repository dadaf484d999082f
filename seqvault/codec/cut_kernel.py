"""Numba kernel that cuts stored records down to the blocks and columns of an answer."""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import BAD_BLOCK, BAD_HEADER, BLOCK, MASK16, MASK32, OK, PADDING
from seqvault.codec.coded_chunks import LISTED, SHARED, SORTED
from seqvault.codec.primitives import crc32c, inner, load_u8, load_u64, store_u32, store_u64
from seqvault.codec.records import blocks_before, check_block, check_record, chunk_of


@inner
def _copy(data, start, end, out, target):
    """Copies bytes, in whole words: up to 7 more are written behind. Returns where they end."""
    for i in range(0, end - start, 8):
        store_u64(out, target + i, load_u64(data, start + i))
    return target + end - start


@inner
def _cut_chunk(data, block, columns, chunk, length, column, kept, k, out, target):
    """Copies a chunk; one that shares another column's codes finds them there, or gets them.

    Returns:
        Where it ends, -1: it is not sound.
    """
    leader = load_u8(data, chunk + 1)
    if length < 4 or load_u8(data, chunk) != SHARED:
        return _copy(data, chunk, chunk + length, out, target)
    for j in range(k):
        if kept[j] == leader:
            end = _copy(data, chunk, chunk + length, out, target)
            out[target + 1] = j
            return end
    if leader >= column:
        return -1
    lead, lead_length = chunk_of(data, block, columns, leader)
    kind, skip = load_u8(data, lead), 4 + np.int64(load_u64(data, lead + 2) & MASK16)
    if (kind != SORTED and kind != LISTED) or lead_length < skip:
        return -1
    out[target], out[target + 1] = LISTED, load_u8(data, chunk + 2)
    out[target + 2], out[target + 3] = (length - 3) & 255, (length - 3) >> 8
    if target + length + lead_length + PADDING > len(out):
        return -1
    end = _copy(data, chunk + 3, chunk + length, out, target + 4)
    return _copy(data, lead + skip, lead + lead_length, out, end)


@inner
def _cut_block(data, start, end, columns, kept_columns, kept, out, block):
    """Copies a checked block with the first ``kept`` of ``kept_columns``.

    Returns:
        Where it ends, -1: it is not sound, or there is no room.
    """
    if kept == columns:  # all of it goes on as it is, its checksum too
        if block + end - start + PADDING > len(out):
            return -1
        return _copy(data, start, end, out, block)
    chunk, target, k = start + 4 + 2 * columns, block + 4 + 2 * kept, 0
    for c in range(columns):
        length = np.int64(load_u64(data, start + 4 + 2 * c) & MASK16)
        if k < kept and kept_columns[k] == c:
            if target + length + PADDING > len(out):
                return -1
            last = _cut_chunk(data, start, columns, chunk, length, c, kept_columns, k, out, target)
            if last < 0:
                return -1
            out[block + 4 + 2 * k] = (last - target) & 255
            out[block + 5 + 2 * k] = (last - target) >> 8
            target = last
            k += 1
        chunk += length
    store_u32(out, block, crc32c(out, block + 4, target))
    return target


@njit(nogil=True, cache=True)
def cut_records(
    data, records, lengths, shifts, first_blocks, columns_in, schemas, users, before, last_n,
    kept_columns, kept_counts, out, ends,
):  # fmt: skip
    """Writes records that hold only what an answer can need; their chunks are not unpacked.

    Args:
        data: packed records, one behind the other, readable behind the last.
        records, lengths, shifts, first_blocks, schemas: [R], see ``plan_read``; the
            schema of each record.
        columns_in: [S] columns of a record of each schema.
        users, before, last_n: [R] what the record must belong to, and which events count.
        kept_columns, kept_counts: [S, C] and [S] columns to keep of each schema, ascending.
        out: uint8, as large as all records together, and 300 more for each chunk.
        ends: int64 [R] receives where each record ends in ``out``; one that holds no
            event before the bound takes no bytes.

    Returns:
        (status, record at fault).
    """
    write = 0
    for r in range(len(records)):
        position, schema = records[r], schemas[r]
        columns, kept = columns_in[schema], kept_counts[schema]
        blocks = check_record(data, position, lengths[r], users[r])
        if blocks < 0:
            return BAD_HEADER, r
        first, stop = blocks_before(data, position, first_blocks[r], blocks, before[r], last_n[r])
        if stop == first:
            ends[r] = write
            continue
        total = np.int64(load_u64(data, position + 8) & MASK32)
        start_of = position - shifts[r]
        head = 16 + 12 * (stop - first)
        target = write + head
        if target + PADDING > len(out):
            return BAD_BLOCK, r
        store_u64(out, write, np.uint64(users[r]))
        store_u64(out, write + 8, np.uint64(min(total, stop * BLOCK) - first * BLOCK))
        for b in range(first, stop):
            entry = position + 12 + 12 * b
            start = start_of + 16 + 12 * blocks
            if b > 0:
                start = start_of + np.int64(load_u64(data, entry - 4) & MASK32)
            end = start_of + np.int64(load_u64(data, entry + 8) & MASK32)
            if not check_block(data, start, end, columns):
                return BAD_BLOCK, r
            target = _cut_block(data, start, end, columns, kept_columns[schema], kept, out, target)
            if target < 0:
                return BAD_BLOCK, r
            entry_out = write + 12 + 12 * (b - first)
            store_u64(out, entry_out, load_u64(data, entry))
            store_u32(out, entry_out + 8, np.uint64(target - write))
        check = write + head - 4
        store_u32(out, check, crc32c(out, write, check))
        end = (target + 7) & ~7
        out[target:end] = 0
        write = end
        ends[r] = write
    return OK, -1
