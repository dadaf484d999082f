"""Numba kernels that unpack blocks straight into their places of an answer."""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import (
    MASK16,
    OK,
    put_same,
    put_value,
    unpack_times,
)
from seqvault.codec.coded_chunks import ROOM, begin_block, put_column
from seqvault.codec.primitives import address_of, inner, load_u64, store_u64, widened
from seqvault.codec.records import ARRIVAL, TIMESTAMP

WIDENED = 1 << 16  # no record has so many columns


@inner
def put_block(
    data, places, n, first, skip, low, high, fields, schema, outputs, sizes, defaults,
    place, out, times,
):  # fmt: skip
    """Values ``low`` to ``high`` of all wanted fields of a block, the last one first.

    Args:
        places: [columns + 1] where each chunk starts.
        n, first, skip: events in the block, the first one's time, events before it.
        fields: [C, S] column of each field under each schema, -1: it has its default; and
            ``WIDENED`` more where it holds float32 and the field is float64 now.
        outputs, sizes, defaults: [C] where the field starts in ``out``, bytes per value.
        place: of the newest event, within each field.
        data, out, times: addresses; ``times`` has room for ``ROOM`` numbers.

    Returns:
        OK or BAD_CHUNK.
    """
    begin_block(times)
    for c in range(len(sizes)):
        column, size = fields[c, schema], sizes[c]
        widen = column >= WIDENED
        if widen:
            column -= WIDENED
        target = outputs[c] + place * size
        if column < 0:
            put_same(out, target, size, defaults[c], high - low + 1)
            continue
        at, length = places[column], places[column + 1] - places[column]
        if column == TIMESTAMP:
            status = unpack_times(data, at, length, n, first, times)
            if status != OK:
                return status
            for i in range(0, 8 * (high - low + 1), 8):
                store_u64(out, target + i, load_u64(times, 8 * (n - 1 - high) + i))
            continue
        status = put_column(data, places, column, n, low, high, out, target, size, times)
        if status != OK:
            return status
        if column == ARRIVAL:
            for i in range(low, high + 1):
                at = target + 8 * (high - i)
                store_u64(out, at, load_u64(out, at) + np.uint64(skip + i))
        if widen:
            for i in range(0, 8 * (high - low + 1), 8):
                store_u64(out, target + i, widened(load_u64(out, target + i)))
    return OK


@inner
def scatter_block(
    data, places, n, first, skip, low, high, fields, schema, outputs, sizes, defaults,
    start, dest, out, values,
):  # fmt: skip
    """The same where events go one by one to ``start + dest[i]``, or nowhere (-1)."""
    begin_block(values)
    for c in range(len(sizes)):
        column, size = fields[c, schema], sizes[c]
        widen = column >= WIDENED
        if widen:
            column -= WIDENED
        if column < 0:
            put_same(values, 0, 8, defaults[c], n)
        else:
            at, length = places[column], places[column + 1] - places[column]
            if column == TIMESTAMP:
                status = unpack_times(data, at, length, n, first, values)
            else:
                status = put_column(data, places, column, n, 0, n - 1, values, 0, 8, values)
            if status != OK:
                return status
            if column == ARRIVAL:
                for i in range(n):
                    place = 8 * (n - 1 - i)
                    store_u64(values, place, load_u64(values, place) + np.uint64(skip + i))
            if widen:
                for i in range(0, 8 * n, 8):
                    store_u64(values, i, widened(load_u64(values, i)))
        for i in range(low, min(high, n - 1) + 1):
            if dest[i] >= 0:
                value = load_u64(values, 8 * (n - 1 - i))
                put_value(out, outputs[c] + (start + dest[i]) * size, size, value)
    return OK


@njit(nogil=True, cache=True)
def unpack_columns(
    data, blocks, block_row, block_at, block_count, block_first, block_columns, block_skip,
    block_record, block_low, block_high, block_newest, dest, schemas,
    fields, defaults, sizes, outputs, row_starts, out,
):  # fmt: skip
    """Unpacks columns of the planned blocks into their places.

    Args:
        blocks: number of planned blocks; the ``block_*`` arrays and ``dest`` as
            ``plan_read`` left them.
        schemas: [R] schema of each record.
        fields, defaults, sizes, outputs: see ``put_block``.
        row_starts: [B] the place of each row's first event within a field.
        out: uint8, readable 8 bytes behind the last value.

    Returns:
        (status, record at fault).
    """
    values = np.empty(ROOM, np.uint64)
    data_at, out_at, room = address_of(data), address_of(out), address_of(values)
    most = 0
    for k in range(blocks):
        most = max(most, block_columns[k])
    places = np.empty(most + 1, np.int64)
    for k in range(blocks):
        if block_newest[k] == -1:
            continue
        record, columns, n = block_record[k], block_columns[k], block_count[k]
        block, start = block_at[k], row_starts[block_row[k]]
        position = block + 4 + 2 * columns
        for c in range(columns):
            places[c] = position
            position += np.int64(load_u64(data, block + 4 + 2 * c) & MASK16)
        places[columns] = position
        if block_newest[k] >= 0:
            status = put_block(
                data_at, places, n, block_first[k], block_skip[k], block_low[k],
                min(block_high[k], n - 1), fields, schemas[record], outputs, sizes, defaults,
                start + block_newest[k], out_at, room,
            )  # fmt: skip
        else:
            status = scatter_block(
                data_at, places, n, block_first[k], block_skip[k], block_low[k], block_high[k],
                fields, schemas[record], outputs, sizes, defaults, start, dest[k], out_at, room,
            )  # fmt: skip
        if status != OK:
            return status, record
    values[0] = 0  # a use: numba frees an array behind its last one, whoever has its address
    return OK, -1
