"""Numba kernel that cuts stored records down to the blocks and columns of an answer."""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import BAD_BLOCK, BAD_HEADER, BLOCK, MASK16, MASK32, OK
from seqvault.codec.primitives import crc32c, load_u64, store_u32, store_u64
from seqvault.codec.records import check_block, check_record


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
        out: uint8, as large as all records together.
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
        stop = blocks
        while stop > first_blocks[r] and (
            np.int64(load_u64(data, position + 12 * stop)) >= before[r]
        ):
            stop -= 1
        first = max(first_blocks[r], stop - 1 - (last_n[r] + BLOCK - 1) // BLOCK)
        if stop == first:
            ends[r] = write
            continue
        total = np.int64(load_u64(data, position + 8) & MASK32)
        start_of = position - shifts[r]
        head = 16 + 12 * (stop - first)
        target = write + head
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
            block, chunk = target, start + 4 + 2 * columns
            target += 4 + 2 * kept
            k = 0
            for c in range(columns):
                length = np.int64(load_u64(data, start + 4 + 2 * c) & MASK16)
                if k < kept and kept_columns[schema, k] == c:
                    out[block + 4 + 2 * k] = length & 255
                    out[block + 5 + 2 * k] = length >> 8
                    out[target : target + length] = data[chunk : chunk + length]
                    target += length
                    k += 1
                chunk += length
            store_u32(out, block, crc32c(out, block + 4, target))
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
