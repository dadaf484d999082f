"""The ordinary read in one kernel: pread, check, plan and unpack, user by user."""

# mypy: ignore-errors

import numpy as np
from numba import njit, types

from seqvault.codec.bundles import (
    BUFFER,
    COLUMNS_IN,
    COLUMNS_OF,
    DEFAULTS,
    DEPTHS,
    LINKS,
    MEM_ADDRESSES,
    MEM_COLUMNS,
    MEM_TIMES,
    RECORD_WIDTH,
    RECORDS,
    ROW_WIDTH,
    ROWS,
    RUNS,
    SIZES,
    SUMMARIES,
    int32_part,
    int64_part,
    uint8_part,
    uint64_part,
)
from seqvault.codec.chains import SUMMARY_WIDTH, newest_in_chain
from seqvault.codec.chunks import (
    BAD_BLOCK,
    BAD_HEADER,
    BLOCK,
    MASK32,
    OK,
    PADDING,
    put_same,
    put_value,
    unpack_times,
)
from seqvault.codec.coded_chunks import ROOM
from seqvault.codec.plan_kernel import plan_read
from seqvault.codec.primitives import address_of, bytes_at, crc32c, inner, load_u64
from seqvault.codec.records import blocks_before, check_record, chunk_places
from seqvault.codec.unpack_kernel import put_block, unpack_columns
from seqvault.times import NO_BOUND

# columns of the arrays that ``find_rows`` fills
RECORDS_END, HEAD, IN_MEMORY = 0, 1, 2
FD, OFFSET, LENGTH, COUNT, SCHEMA = 0, 1, 2, 3, 4

NO_ROOM, UNREADABLE = 10, 11
ALIGN, RAGGED_ALIGN = 64, 8  # of the fields of an answer
LONG_RECORD = 1 << 15  # bytes; of longer ones only the blocks needed are read
WILL_NEED, _NOT_WAITING = 3, 8  # POSIX_FADV_WILLNEED, RWF_NOWAIT

# of the C library; pointers are passed as integers of their size
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.uintp, types.uintp, types.intp)
)
_preadv2 = types.ExternalFunction(
    "preadv2", types.intp(types.intc, types.uintp, types.intc, types.intp, types.intc)
)
advise = types.ExternalFunction(
    "posix_fadvise", types.intc(types.intc, types.intp, types.intp, types.intc)
)


@inner
def _fill(fd, offset, size, buffer, at, vector, waiting):
    """Reads into the buffer; False where that fails or (not waiting) the disk is needed."""
    address = address_of(buffer) + at
    if waiting:
        return _pread(fd, address, size, offset) == size
    vector[0], vector[1] = address, size
    return _preadv2(fd, address_of(vector), 1, offset, _NOT_WAITING) == size


@inner
def _ask_for(rows, many_rows, records, first_row, last_n):
    """Has the kernel fetch what the rows from ``first_row`` on will want."""
    first = rows[first_row - 1, RECORDS_END] if first_row else 0
    for r in range(first, rows[many_rows - 1, RECORDS_END]):
        fd, offset, length = records[r, FD], records[r, OFFSET], records[r, LENGTH]
        if length <= LONG_RECORD:
            advise(fd, offset, length, WILL_NEED)
            continue
        share = (last_n + 2 * BLOCK) * length // records[r, COUNT] + 1
        advise(fd, offset, 4096, WILL_NEED)
        advise(fd, offset + max(length - share, 0), min(share, length), WILL_NEED)


@inner
def _load_record(record, before, last_n, buffer, at, vector, waiting):
    """Reads what is needed of a record.

    The record must hold as many events as the footer says: room for the answer is taken,
    and the directory read, by that number.

    Returns:
        (status, bytes in the buffer, bytes left out behind the directory, first block).
    """
    fd, offset, length = record[FD], record[OFFSET], record[LENGTH]
    if length <= LONG_RECORD:
        if not _fill(fd, offset, length, buffer, at, vector, waiting):
            return UNREADABLE, 0, 0, 0
        if np.int64(load_u64(buffer, at + 8) & MASK32) != record[COUNT]:
            return BAD_HEADER, 0, 0, 0
        return OK, length, 0, 0
    blocks = (record[COUNT] + BLOCK - 1) // BLOCK
    head = 16 + 12 * blocks
    if not _fill(fd, offset, head, buffer, at, vector, waiting):
        return UNREADABLE, 0, 0, 0
    check = at + head - 4
    if np.int64(load_u64(buffer, at + 8) & MASK32) != record[COUNT]:
        return BAD_HEADER, 0, 0, 0
    if crc32c(buffer, at, check) != load_u64(buffer, check) & MASK32:
        return BAD_HEADER, 0, 0, 0
    first, stop = blocks_before(buffer, at, 0, blocks, before, last_n)
    stop = max(stop, 1)  # the kernels that follow find out that no event is wanted
    start = head
    if first:
        start = np.int64(load_u64(buffer, at + 8 + 12 * first) & MASK32)
    end = np.int64(load_u64(buffer, at + 8 + 12 * stop) & MASK32)
    if not head <= start < end <= length:
        return BAD_HEADER, 0, 0, 0
    if not _fill(fd, offset + start, end - start, buffer, at + head, vector, waiting):
        return UNREADABLE, 0, 0, 0
    return OK, head + end - start, start - head, first


@inner
def _one_record(
    data, shift, first_block, length, user, columns, schema, before, oldest, last_n,
    fields, sizes, defaults, outputs, start, out, places, times,
):  # fmt: skip
    """A row whose events are all in one record at the start of ``data``.

    Returns:
        (status, number of events).
    """
    address = address_of(data)
    blocks = check_record(data, 0, length, user)
    if blocks < 0:
        return BAD_HEADER, 0
    total = np.int64(load_u64(data, 8) & MASK32)
    _, stop = blocks_before(data, 0, first_block, blocks, before, last_n)
    b = stop - 1
    count, newest_block = 0, b
    while b >= first_block and count < last_n:
        entry = 12 + 12 * b
        first = np.int64(load_u64(data, entry))
        begin = 16 + 12 * blocks
        if b > 0:
            begin = np.int64(load_u64(data, entry - 4) & MASK32)
        begin -= shift
        end = np.int64(load_u64(data, entry + 8) & MASK32) - shift
        n = min(BLOCK, total - b * BLOCK)
        if end < begin + 4 or crc32c(data, begin + 4, end) != load_u64(data, begin) & MASK32:
            return BAD_BLOCK, count
        if not chunk_places(data, begin, end, columns, places):
            return BAD_BLOCK, count
        low, high = 0, n - 1
        if (b == newest_block and before != NO_BOUND) or first < oldest:
            status = unpack_times(address, places[0], places[1] - places[0], n, first, times)
            if status != OK:
                return status, count
            # the newest comes first
            while high >= 0 and np.int64(load_u64(times, 8 * (n - 1 - high))) >= before:
                high -= 1
            while low <= high and np.int64(load_u64(times, 8 * (n - 1 - low))) < oldest:
                low += 1
        low = max(low, high + 1 - (last_n - count))
        if low <= high:
            status = put_block(
                address, places, n, first, b * BLOCK, low, high, fields, schema, outputs, sizes,
                defaults, start + count, out, times,
            )  # fmt: skip
            if status != OK:
                return status, count
            count += high - low + 1
        if first < oldest:
            break
        b -= 1
    return OK, count


@inner
def _several(
    data, at, lengths, shifts, first_blocks, schemas, columns_in, users, head, in_memory,
    memory, mem_columns, mem_addresses, before, oldest, last_n,
    fields, sizes, defaults, outputs, start, out,
):  # fmt: skip
    """A row with several records, or with events in memory.

    Returns:
        (status, number of events).
    """
    many = len(at)
    links, mem_times, depths, runs, summaries = memory
    room = min(in_memory, last_n)
    mem_rows = np.empty(room, np.int64)
    in_memory = 0
    if room:
        in_memory, _ = newest_in_chain(
            head, links, mem_times, depths, runs, summaries, before, room, mem_rows
        )
    mem_starts = np.zeros(2, np.int64)
    mem_starts[1] = in_memory
    times = np.empty(in_memory, np.int64)
    for i in range(in_memory):
        times[i] = mem_times[mem_rows[i]]
    record_columns = np.empty(many, np.int64)
    most = 0
    for s in range(many):
        record_columns[s] = columns_in[schemas[s]]
        total = np.int64(load_u64(data, at[s] + 8) & MASK32)
        most += min((total + BLOCK - 1) // BLOCK, lengths[s] // 12)
    row, place, count = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    first, columns = np.empty(most, np.int64), np.empty(most, np.int64)
    skip, record = np.empty(most, np.int64), np.empty(most, np.int64)
    low, high, newest = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
    dest = np.empty((most, BLOCK), np.int32)
    mem_dest = np.full(in_memory, -1, np.int32)
    record_starts, counts = np.zeros(2, np.int64), np.zeros(1, np.int64)
    record_starts[1] = many
    used, status, _ = plan_read(
        data, at, lengths, shifts, first_blocks, record_columns, record_starts, users,
        mem_starts, times, np.ones(in_memory, np.bool_),
        np.full(1, before, np.int64), np.full(1, oldest, np.int64), np.full(1, last_n, np.int64),
        np.full(1, -1, np.int64),
        np.empty((0, many), np.int64), np.zeros(1, np.int64), np.empty(0, np.int64),
        row, place, count, first, columns, skip, record, low, high, newest, dest, mem_dest, counts,
    )  # fmt: skip
    if status != OK:
        return status, 0
    status, _ = unpack_columns(
        data, used, row, place, count, first, columns, skip, record, low, high, newest, dest,
        schemas, fields, defaults, sizes, outputs, np.full(1, start, np.int64), out,
    )  # fmt: skip
    for c in range(len(sizes)):
        size = sizes[c]
        if in_memory == 0:
            break
        source = bytes_at(mem_addresses[mem_columns[c]], np.int64(1) << np.int64(62))
        for i in range(in_memory):
            if mem_dest[i] >= 0:
                to, bits = outputs[c] + (start + mem_dest[i]) * size, mem_rows[i] * size
                if size == 8:
                    put_value(out, to, 8, load_u64(source, bits))
                else:
                    for b in range(size):
                        out[to + b] = source[bits + b]
    return status, counts[0]


@njit(nogil=True, cache=True)
def read_rows(
    users, before, store, layout, room, last_n, oldest, places_in_all, ragged, out, lengths
):
    """Answers a read without filters and version.

    Args:
        users: int64 [B]. before: int64 [B], or [1] for all. last_n, oldest: numbers.
        store: the bundle ``ReadView.words``.
        layout: the bundle ``Layout.words``.
        room: a bundle; rows and records as ``find_rows`` filled them, and
            bytes for the records of one row.
        places_in_all: places per field in ``out``: B * last_n, or more than all events.
        ragged: rows follow each other without padding.
        out: uint8; fields one behind the other, each from a multiple of ``ALIGN`` on (of
            ``RAGGED_ALIGN``, if they are ragged), 64 spare.
        lengths: int32 [B] receives the number of events of each row.

    Returns:
        (status, bytes that the buffer must have if the status is NO_ROOM).
    """
    summaries = int64_part(store, SUMMARIES)
    memory = (
        int64_part(store, LINKS), int64_part(store, MEM_TIMES), int32_part(store, DEPTHS),
        int32_part(store, RUNS),
        summaries.reshape((len(summaries) // SUMMARY_WIDTH, SUMMARY_WIDTH)),
    )  # fmt: skip
    mem_addresses = int64_part(store, MEM_ADDRESSES)
    sizes, defaults = int64_part(layout, SIZES), uint64_part(layout, DEFAULTS)
    mem_columns, columns_in = int64_part(layout, MEM_COLUMNS), int64_part(layout, COLUMNS_IN)
    fields = int64_part(layout, COLUMNS_OF).reshape((len(sizes), len(columns_in)))
    rows = int64_part(room, ROWS)
    rows = rows.reshape((len(rows) // ROW_WIDTH, ROW_WIDTH))
    records = int64_part(room, RECORDS)
    records = records.reshape((len(records) // RECORD_WIDTH, RECORD_WIDTH))
    buffer = uint8_part(room, BUFFER)
    fields_asked = len(sizes)
    outputs = np.empty(fields_asked, np.int64)
    position, align = 0, RAGGED_ALIGN if ragged else ALIGN
    for c in range(fields_asked):
        outputs[c] = position
        position += (sizes[c] * places_in_all + align - 1) & -align
    values, vector = np.empty(ROOM, np.int64), np.empty(2, np.int64)
    times, out_at = address_of(values), address_of(out)
    most = 1
    for s in range(len(columns_in)):
        most = max(most, columns_in[s])
    places = np.empty(most + 1, np.int64)
    waiting = len(users) == 1
    start = 0
    for row in range(len(users)):
        bound = before[row if len(before) > 1 else 0]
        first = rows[row - 1, RECORDS_END] if row else 0
        many = rows[row, RECORDS_END] - first
        in_memory = rows[row, IN_MEMORY]
        if not ragged:
            start = row * last_n
        need = PADDING
        for r in range(first, first + many):
            need += records[r, LENGTH]
        if need > len(buffer):
            return NO_ROOM, need
        count = 0
        if many == 1 and in_memory == 0:
            record = records[first]
            status, _, shift, block = _load_record(
                record, bound, last_n, buffer, 0, vector, waiting
            )
            if status == UNREADABLE and not waiting:
                waiting = True
                _ask_for(rows, len(users), records, row, last_n)
                status, _, shift, block = _load_record(
                    record, bound, last_n, buffer, 0, vector, True
                )
            if status != OK:
                return status, 0
            schema = record[SCHEMA]
            status, count = _one_record(
                buffer, shift, block, record[LENGTH], users[row], columns_in[schema], schema,
                bound, oldest, last_n, fields, sizes, defaults, outputs, start, out_at,
                places, times,
            )  # fmt: skip
            if status != OK:
                return status, 0
        elif many or in_memory:
            at, whole = np.empty(many, np.int64), np.empty(many, np.int64)
            shifts, blocks = np.empty(many, np.int64), np.empty(many, np.int64)
            schemas = np.empty(many, np.int64)
            end = 0
            for s in range(many):
                record = records[first + s]
                at[s], whole[s], schemas[s] = end, record[LENGTH], record[SCHEMA]
                status, size, shift, block = _load_record(
                    record, bound, last_n, buffer, end, vector, waiting
                )
                if status == UNREADABLE and not waiting:
                    waiting = True
                    _ask_for(rows, len(users), records, row, last_n)
                    status, size, shift, block = _load_record(
                        record, bound, last_n, buffer, end, vector, True
                    )
                if status != OK:
                    return status, 0
                shifts[s], blocks[s] = shift, block
                end += size
            status, count = _several(
                buffer, at, whole, shifts, blocks, schemas, columns_in, users[row : row + 1],
                rows[row, HEAD], in_memory, memory, mem_columns, mem_addresses,
                bound, oldest, last_n, fields, sizes, defaults, outputs, start, out,
            )  # fmt: skip
            if status != OK:
                return status, 0
        lengths[row] = count
        if ragged:
            start += count
        elif count < last_n:
            for c in range(fields_asked):
                size = sizes[c]
                target = outputs[c] + (start + count) * size
                put_same(out_at, target, 1, np.uint64(0), (last_n - count) * size)
    values[0] = 0  # a use: numba frees an array behind its last one, whoever has its address
    return OK, 0
