"""Numba kernel that merges a user's records and events in memory, newest first."""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import (
    BAD_BLOCK,
    BAD_CHUNK,
    BAD_HEADER,
    BLOCK,
    MASK32,
    OK,
    put_chunk,
    unpack_times,
)
from seqvault.codec.coded_chunks import ROOM, begin_block, put_column
from seqvault.codec.primitives import address_of, inner, load_u64
from seqvault.codec.records import (
    ARRIVAL,
    TIMESTAMP,
    blocks_before,
    check_block,
    check_record,
    chunk_of,
    chunk_places,
)


@inner
def _contains(ordered, value):
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < len(ordered) and ordered[low] == value


@inner
def _first_at_least(ordered, last, bound):
    """First place up to ``last`` whose value is at least ``bound``; that of ``last`` is."""
    if ordered[0] >= bound:
        return 0
    low, high = 0, last
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _scatter(dest, k, block_low, block_high, block_newest):
    """Says the places of a block event by event in ``dest`` from now on."""
    if block_newest[k] == -2:
        return
    for j in range(BLOCK):
        dest[k, j] = -1
    if block_newest[k] >= 0:
        for j in range(block_low[k], block_high[k] + 1):
            dest[k, j] = block_newest[k] + block_high[k] - j
    block_low[k], block_high[k], block_newest[k] = 0, BLOCK - 1, -2


@njit(nogil=True, cache=True)
def plan_read(
    data, records, lengths, shifts, first_blocks, record_columns, record_starts, users,
    mem_starts, mem_times, mem_keep,
    before, not_before, last_n, versions, filter_columns, filter_starts, filter_values,
    block_row, block_at, block_count, block_first, block_columns, block_skip, block_record,
    block_low, block_high, block_newest, dest, mem_dest, counts,
):  # fmt: skip
    """Decides which stored event goes to which place of the output.

    Args:
        data: packed records, one behind the other.
        records, lengths, record_columns: [R] position, bytes, columns of each record.
        shifts, first_blocks: [R] of a record of which only the blocks from a first one
            on were read: how many bytes are left out behind the directory.
        record_starts: [B + 1] each row's records, oldest first.
        users: [B] user ids, checked against the records.
        mem_starts: [B + 1] each row's events in memory, in (time, arrival) order.
        mem_times, mem_keep: [M] their times and whether they pass the filters.
        before, not_before, last_n, versions: [B] bounds on time, number and arrival
            number; a negative version means no bound.
        filter_columns: [F, R] column of each filter in each record (-1: the record
            has none, its default was checked: -1 keep, -2 drop).
        filter_starts, filter_values: [F + 1] and sorted values kept by each filter.
        block_*: receive row, position, events, first time, columns, events before it
            in its record, and record of each block that is needed.
        block_low, block_high, block_newest: receive the run of events that is needed of
            each block, and the place of its newest; the places go down towards it.
            ``block_newest`` is -1 where nothing is needed and -2 where ``dest`` says it.
        dest: int32 [blocks, 256], mem_dest: int32 [M]: the place, or -1.
        counts: [B] receives the number of events of each row.

    Returns:
        (number of blocks needed, status, record at fault).
    """
    used = 0
    most = 1
    for r in range(len(users)):
        most = max(most, record_starts[r + 1] - record_starts[r] + 1)
    times = np.empty((most, BLOCK), np.int64)
    keep = np.empty((most, BLOCK), np.bool_)
    values = np.empty(ROOM, np.uint64)  # of a chunk, the last one first
    room, address = address_of(values), address_of(data)
    block_no = np.empty(most, np.int64)
    index = np.empty(most, np.int64)
    slot = np.empty(most, np.int64)
    filters = filter_columns.shape[0]
    widest = 1
    for r in range(len(record_columns)):
        widest = max(widest, record_columns[r])
    places = np.empty(widest + 1, np.int64)
    for row in range(len(users)):
        plain = filters == 0 and versions[row] < 0
        first_record = record_starts[row]
        sources = record_starts[row + 1] - first_record
        memory = sources
        for s in range(sources):
            position = records[first_record + s]
            blocks = check_record(data, position, lengths[first_record + s], users[row])
            if blocks < 0:
                return used, BAD_HEADER, first_record + s
            _, stop = blocks_before(
                data, position, first_blocks[first_record + s], blocks, before[row], last_n[row]
            )  # filters may want events further back than these
            block_no[s] = stop - 1
            index[s] = -1
        j = mem_starts[row + 1] - 1
        while j >= mem_starts[row] and mem_times[j] >= before[row]:
            j -= 1
        index[memory] = j
        n = 0
        while n < last_n[row]:
            # the source whose next event is newest; of equal times the later arrival
            best, best_time = -1, not_before[row] - 1
            limit, limit_source = not_before[row] - 1, -1
            for s in range(sources + 1):
                if s == memory:
                    if index[s] < mem_starts[row]:
                        continue
                    time = mem_times[index[s]]
                else:
                    while index[s] < 0 and block_no[s] >= first_blocks[first_record + s]:
                        record = first_record + s
                        position = records[record]
                        b = block_no[s]
                        header = position + 12 + 12 * b
                        first = np.int64(load_u64(data, header))
                        end = position + np.int64(load_u64(data, header + 8) & MASK32)
                        total = np.int64(load_u64(data, position + 8) & MASK32)
                        blocks = (total + BLOCK - 1) // BLOCK
                        start = position + 16 + 12 * blocks
                        if b > 0:
                            start = position + np.int64(load_u64(data, header - 4) & MASK32)
                        size = min(BLOCK, total - b * BLOCK)
                        start -= shifts[record]
                        end -= shifts[record]
                        columns = record_columns[record]
                        if not check_block(data, start, end, columns):
                            return used, BAD_BLOCK, record
                        at, length = chunk_of(data, start, columns, TIMESTAMP)
                        if unpack_times(address, at, length, size, first, room) != OK:
                            return used, BAD_CHUNK, record
                        for i in range(size):
                            times[s, i] = np.int64(values[size - 1 - i])
                        if not plain:
                            for i in range(size):
                                keep[s, i] = True
                        for f in range(filters):
                            column = filter_columns[f, record]
                            if column == -2:
                                for i in range(size):
                                    keep[s, i] = False
                            if column < 0:
                                continue
                            chunk_places(address, start, end, columns, places)
                            begin_block(room)
                            status = put_column(
                                address, places, column, size, 0, size - 1, room, 0, 8, room
                            )
                            if status != OK:
                                return used, BAD_CHUNK, record
                            wanted = filter_values[filter_starts[f] : filter_starts[f + 1]]
                            for i in range(size):
                                value = np.int64(values[size - 1 - i])
                                if not _contains(wanted, value):
                                    keep[s, i] = False
                        if versions[row] >= 0:
                            at, length = chunk_of(data, start, columns, ARRIVAL)
                            if put_chunk(address, at, length, size, 0, size - 1, room, 0, 8) != OK:
                                return used, BAD_CHUNK, record
                            for i in range(size):
                                if np.int64(values[size - 1 - i]) + b * BLOCK + i >= versions[row]:
                                    keep[s, i] = False
                        i = size - 1
                        while i >= 0 and times[s, i] >= before[row]:
                            i -= 1
                        index[s] = i
                        block_no[s] = b - 1
                        if used == len(block_row):  # more blocks than the footer says
                            return used, BAD_HEADER, record
                        slot[s] = used
                        block_row[used] = row
                        block_at[used] = start
                        block_count[used] = size
                        block_first[used] = first
                        block_columns[used] = columns
                        block_skip[used] = b * BLOCK
                        block_record[used] = record
                        block_newest[used] = -1
                        used += 1
                    if index[s] < 0:
                        continue
                    time = times[s, index[s]]
                if time >= best_time and time >= not_before[row]:
                    limit, limit_source = best_time, best
                    best, best_time = s, time
                elif time >= limit:
                    limit, limit_source = time, s
            if best < 0:
                break
            # as long as it stays ahead of the second newest
            i = index[best]
            if best == memory:
                while i >= mem_starts[row] and n < last_n[row]:
                    if mem_times[i] < limit or mem_times[i] < not_before[row]:
                        break
                    if mem_keep[i]:
                        mem_dest[i] = n
                        n += 1
                    i -= 1
                index[best] = i
                if i >= mem_starts[row] and mem_times[i] < not_before[row]:
                    index[best] = mem_starts[row] - 1
            else:
                # events from `low` on are newer than those of the other sources
                bound = max(not_before[row], limit + 1 if best < limit_source else limit)
                low = _first_at_least(times[best], i, bound)
                k = slot[best]
                if plain:
                    low = max(low, i + 1 - (last_n[row] - n))
                    if block_newest[k] == -1:
                        block_low[k], block_high[k], block_newest[k] = low, i, n
                    else:
                        _scatter(dest, k, block_low, block_high, block_newest)
                        for j in range(low, i + 1):
                            dest[k, j] = n + i - j
                    n += i + 1 - low
                    i = low - 1
                else:
                    _scatter(dest, k, block_low, block_high, block_newest)
                    while i >= low and n < last_n[row]:
                        if keep[best, i]:
                            dest[k, i] = n
                            n += 1
                        i -= 1
                if i >= 0 and times[best, i] < not_before[row]:
                    i = -1
                    block_no[best] = -1
                index[best] = i
        counts[row] = n
    return used, OK, -1
