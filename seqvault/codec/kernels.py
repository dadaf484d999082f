"""Numba kernels: pack events into records, plan a batched read, unpack into padded arrays.

A *chunk* is up to 256 values of one column: frame of reference, bit-packed, with
exceptions patched in (PFOR). A *block* is up to 256 events of one user: a checksum,
the chunks' lengths and the chunks. A *record* is one user's run of blocks behind a
checked header. The byte layout is written down in ``docs/seqvault/format.md``.

Arrays that hold packed bytes must be readable for ``PADDING`` bytes behind their last
used byte, because loads are up to 32 bytes wide.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.primitives import (
    bit_length,
    crc32c,
    load_u64,
    store_backward_u8,
    store_backward_u16,
    store_backward_u32,
    store_backward_u64,
    store_u8,
    store_u16,
    store_u32,
    store_u64,
    unpack_lanes,
)

BLOCK = 256
LANES_FROM = 128  # chunks of at least so many values are laid out in lanes
PADDING = 64
TIMESTAMP, ARRIVAL = 0, 1  # the first two columns of every record

OK, BAD_HEADER, BAD_BLOCK, BAD_CHUNK = 0, 1, 2, 3

_MASK32 = np.uint64(0xFFFFFFFF)
_MASK16 = np.uint64(0xFFFF)


@njit(nogil=True, cache=True)
def chunk_bound(n):
    """Most bytes that a chunk of ``n`` values can take."""
    return 11 + 8 * n


@njit(nogil=True, cache=True)
def _plane_bytes(n, width):
    """Bytes of ``n`` values of ``width`` <= 32 bits in eight lanes of whole words."""
    return 32 * ((((n + 7) >> 3) * width + 31) >> 5)


@njit(nogil=True, cache=True)
def _packed_bytes(n, width):
    if n < LANES_FROM or width > 57:
        return (n * width + 7) >> 3
    if width <= 32:
        return _plane_bytes(n, width)
    return _plane_bytes(n, 32) + _plane_bytes(n, width - 32)


@njit(nogil=True, cache=True)
def _put_lane(out, stream, i, value, width):
    """Adds value ``i`` of a chunk to lane ``i % 8``; the bits there are still 0."""
    bit = (i >> 3) * width
    at = stream + 32 * (bit >> 5) + 4 * (i & 7)
    shifted = value << np.uint64(bit & 31)
    low = (load_u64(out, at) & _MASK32) | (shifted & _MASK32)
    store_u32(out, at, low)
    if (bit & 31) + width > 32:
        high = (load_u64(out, at + 32) & _MASK32) | (shifted >> np.uint64(32))
        store_u32(out, at + 32, high)


@njit(nogil=True, cache=True)
def _get_lanes(data, stream, width, n, out):
    """Unpacks ``n`` values of one plane into ``out`` (uint32 [256], rounded up to 8)."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    for row in range((n + 7) >> 3):
        bit = row * width
        unpack_lanes(data, stream + 32 * (bit >> 5), np.uint64(bit & 31), mask, out, 8 * row)


@njit(nogil=True, cache=True)
def _pack_chunk(values, n, out, position):
    """Packs ``values[:n]`` (int64) into ``out`` at ``position``; returns the end.

    Bytes: width, base length | exception size log2 << 4, number of exceptions, base
    (zigzag), n * width bits, exception positions, exception values (value >> width).
    """
    base = values[0]
    for i in range(1, n):
        base = min(base, values[i])
    histogram = np.zeros(65, np.int64)
    top = 0
    for i in range(n):
        bits = bit_length(np.uint64(values[i]) - np.uint64(base))
        histogram[bits] += 1
        top = max(top, bits)
    width = 64 if top > 57 else top
    best = _packed_bytes(n, width)
    exceptions = 0
    size_log = 0
    above = 0
    for candidate in range(top - 1, -1, -1):
        above += histogram[candidate + 1]
        if candidate > 57:
            continue
        if above > 255:
            break
        rest = top - candidate
        log = 0 if rest <= 8 else 1 if rest <= 16 else 2 if rest <= 32 else 3
        size = _packed_bytes(n, candidate) + above * (1 + (1 << log))
        if size < best:
            best, width, exceptions, size_log = size, candidate, above, log
    zigzag = (np.uint64(base) << np.uint64(1)) ^ np.uint64(base >> 63)
    base_bytes = (bit_length(zigzag) + 7) >> 3
    out[position] = width
    out[position + 1] = base_bytes | (size_log << 4)
    out[position + 2] = exceptions
    store_u64(out, position + 3, zigzag)
    stream = position + 3 + base_bytes
    end = stream + best
    out[stream : end + 8] = 0
    uwidth = np.uint64(width)
    mask = (np.uint64(1) << uwidth) - np.uint64(1)
    places = stream + _packed_bytes(n, width)
    patches = places + exceptions
    for i in range(n):
        value = np.uint64(values[i]) - np.uint64(base)
        if width == 64:
            store_u64(out, stream + 8 * i, value)
            continue
        low = value & mask
        if n >= LANES_FROM:
            _put_lane(out, stream, i, low & _MASK32, min(width, 32))
            if width > 32:
                upper = stream + _plane_bytes(n, 32)
                _put_lane(out, upper, i, low >> np.uint64(32), width - 32)
        else:
            bit = i * width
            at = stream + (bit >> 3)
            store_u64(out, at, load_u64(out, at) | (low << np.uint64(bit & 7)))
        if value != low:
            out[places] = i
            places += 1
    if exceptions:
        places = stream + _packed_bytes(n, width)
        for j in range(exceptions):
            i = out[places + j]
            value = (np.uint64(values[i]) - np.uint64(base)) >> uwidth
            for b in range(1 << size_log):
                out[patches] = np.uint8((value >> np.uint64(8 * b)) & np.uint64(0xFF))
                patches += 1
    return end


@njit(nogil=True, cache=True)
def _unpack_chunk(data, position, length, n, out, scratch):
    """Unpacks a chunk of ``length`` bytes into ``out[:n]`` (uint64 bits); returns a status.

    ``scratch`` is uint32 [2, 256].
    """
    if not _chunk_is_sound(data, position, length, n):
        return BAD_CHUNK
    width = np.int64(data[position])
    base_bytes = np.int64(data[position + 1] & 15)
    size = np.int64(1) << np.int64(data[position + 1] >> 4)
    exceptions = np.int64(data[position + 2])
    packed = _packed_bytes(n, width)
    zigzag = np.uint64(0)
    if base_bytes:
        zigzag = load_u64(data, position + 3) & (
            np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * base_bytes)
        )
    base = (zigzag >> np.uint64(1)) ^ (np.uint64(0) - (zigzag & np.uint64(1)))
    stream = position + 3 + base_bytes
    if width == 0:
        for i in range(n):
            out[i] = base
    elif width == 64:
        for i in range(n):
            out[i] = load_u64(data, stream + 8 * i) + base
    elif n >= LANES_FROM:
        _get_lanes(data, stream, min(width, 32), n, scratch[0])
        if width > 32:
            _get_lanes(data, stream + _plane_bytes(n, 32), width - 32, n, scratch[1])
            for i in range(n):
                high = np.uint64(scratch[1, i]) << np.uint64(32)
                out[i] = (high | np.uint64(scratch[0, i])) + base
        else:
            for i in range(n):
                out[i] = np.uint64(scratch[0, i]) + base
    else:
        mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
        for i in range(n):
            bit = i * width
            word = load_u64(data, stream + (bit >> 3)) >> np.uint64(bit & 7)
            out[i] = (word & mask) + base
    if exceptions:
        places = stream + packed
        patches = places + exceptions
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * size)
        for j in range(exceptions):
            i = np.int64(data[places + j])
            patch = load_u64(data, patches + j * size) & keep
            out[i] += patch << np.uint64(width)
    return OK


@njit(nogil=True, cache=True)
def _unpack_low(data, position, n, width, out):
    """The low 32 bits of a sound chunk in lanes, into ``out`` (uint32 [256])."""
    base_bytes = np.int64(data[position + 1] & 15)
    size = np.int64(1) << np.int64(data[position + 1] >> 4)
    exceptions = np.int64(data[position + 2])
    stream = position + 3 + base_bytes
    zigzag = np.uint64(0)
    if base_bytes:
        zigzag = load_u64(data, position + 3) & (
            np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * base_bytes)
        )
    base = np.uint32(
        ((zigzag >> np.uint64(1)) ^ (np.uint64(0) - (zigzag & np.uint64(1)))) & _MASK32
    )
    _get_lanes(data, stream, min(width, 32), n, out)
    if width < 32:
        places = stream + _packed_bytes(n, width)
        patches = places + exceptions
        keep = np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * size)
        for j in range(exceptions):
            i = np.int64(data[places + j])
            patch = (load_u64(data, patches + j * size) & keep) << np.uint64(width)
            out[i] = np.uint32((np.uint64(out[i]) | patch) & _MASK32)
    return base


@njit(nogil=True, cache=True)
def _chunk_is_sound(data, position, length, n):
    """Whether the parts of a chunk add up and its exceptions lie within it."""
    if length < 3:
        return False
    width = np.int64(data[position])
    base_bytes = np.int64(data[position + 1] & 15)
    size = np.int64(1) << np.int64(data[position + 1] >> 4)
    exceptions = np.int64(data[position + 2])
    packed = _packed_bytes(n, width)
    if (
        (width > 57 and width != 64)
        or base_bytes > 8
        or size > 8
        or 3 + base_bytes + packed + exceptions * (1 + size) != length
    ):
        return False
    places = position + 3 + base_bytes + packed
    for j in range(exceptions):  # noqa: SIM110 (plain loops compile quicker)
        if data[places + j] >= n:
            return False
    return True


@njit(nogil=True, cache=True)
def pack_array(values, out):
    """Packs a whole int64 array as a run of chunks; returns the number of bytes."""
    position = 0
    for start in range(0, len(values), BLOCK):
        n = min(BLOCK, len(values) - start)
        end = _pack_chunk(values[start : start + n], n, out, position + 2)
        store_u64(out, end, np.uint64(0))
        length = end - position - 2
        out[position] = length & 255
        out[position + 1] = length >> 8
        position = end
    return position


@njit(nogil=True, cache=True)
def unpack_array(data, length, values):
    """Undoes ``pack_array``; ``values`` (uint64) says how many. Returns a status."""
    scratch = np.empty((2, BLOCK), np.uint32)
    position = 0
    for start in range(0, len(values), BLOCK):
        n = min(BLOCK, len(values) - start)
        if position + 2 > length:
            return BAD_CHUNK
        size = np.int64(data[position]) | (np.int64(data[position + 1]) << 8)
        if position + 2 + size > length:
            return BAD_CHUNK
        status = _unpack_chunk(data, position + 2, size, n, values[start : start + n], scratch)
        if status != OK:
            return status
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
    values = np.empty(BLOCK, np.int64)
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
                end = _pack_chunk(values, n, out, chunk)
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
    return PADDING + users * 32 + blocks * (16 + 13 * columns) + 8 * events * columns


@njit(nogil=True, cache=True)
def _check_record(data, position, length, user):
    """Number of blocks of the record, or -1 if its header is not what it must be."""
    if length < 16:
        return -1
    count = np.int64(load_u64(data, position + 8) & _MASK32)
    blocks = (count + BLOCK - 1) // BLOCK
    check = position + 12 + 12 * blocks
    if count == 0 or check + 4 > position + length:
        return -1
    if np.int64(load_u64(data, position)) != user:
        return -1
    if crc32c(data, position, check) != load_u64(data, check) & _MASK32:
        return -1
    last = 16 + 12 * blocks
    for b in range(blocks):
        end = np.int64(load_u64(data, position + 20 + 12 * b) & _MASK32)
        if end <= last or end > length:
            return -1
        last = end
    return blocks


@njit(nogil=True, cache=True)
def _chunk_of(data, block, n_columns, column):
    """Position and length of a column's chunk in a block."""
    lengths = block + 4
    position = lengths + 2 * n_columns
    for c in range(column):
        position += np.int64(load_u64(data, lengths + 2 * c) & _MASK16)
    return position, np.int64(load_u64(data, lengths + 2 * column) & _MASK16)


@njit(nogil=True, cache=True)
def _check_block(data, block, end, n_columns):
    """True if the block's checksum and chunk lengths are right."""
    if block + 4 + 2 * n_columns > end:
        return False
    if crc32c(data, block + 4, end) != load_u64(data, block) & _MASK32:
        return False
    position, length = _chunk_of(data, block, n_columns, n_columns - 1)
    return position + length == end


@njit(nogil=True, cache=True)
def _contains(ordered, value):
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) >> 1
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < len(ordered) and ordered[low] == value


@njit(nogil=True, cache=True)
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


@njit(nogil=True, cache=True)
def _scatter(dest, k, block_low, block_high, block_newest):
    """Says the places of a block event by event in ``dest`` from now on."""
    if block_newest[k] == -2:
        return
    dest[k, :] = -1
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
    values = np.empty(BLOCK, np.uint64)
    scratch = np.empty((2, BLOCK), np.uint32)
    block_no = np.empty(most, np.int64)
    index = np.empty(most, np.int64)
    slot = np.empty(most, np.int64)
    filters = filter_columns.shape[0]
    for row in range(len(users)):
        plain = filters == 0 and versions[row] < 0
        first_record = record_starts[row]
        sources = record_starts[row + 1] - first_record
        memory = sources
        for s in range(sources):
            position = records[first_record + s]
            blocks = _check_record(data, position, lengths[first_record + s], users[row])
            if blocks < 0:
                return used, BAD_HEADER, first_record + s
            b = blocks - 1
            while b >= first_blocks[first_record + s] and (
                np.int64(load_u64(data, position + 12 + 12 * b)) >= before[row]
            ):
                b -= 1
            block_no[s] = b
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
                        end = position + np.int64(load_u64(data, header + 8) & _MASK32)
                        total = np.int64(load_u64(data, position + 8) & _MASK32)
                        blocks = (total + BLOCK - 1) // BLOCK
                        start = position + 16 + 12 * blocks
                        if b > 0:
                            start = position + np.int64(load_u64(data, header - 4) & _MASK32)
                        size = min(BLOCK, total - b * BLOCK)
                        start -= shifts[record]
                        end -= shifts[record]
                        columns = record_columns[record]
                        if not _check_block(data, start, end, columns):
                            return used, BAD_BLOCK, record
                        at, length = _chunk_of(data, start, columns, TIMESTAMP)
                        if _unpack_chunk(data, at, length, size, values, scratch) != OK:
                            return used, BAD_CHUNK, record
                        running = first
                        for i in range(size):
                            running += np.int64(values[i])
                            times[s, i] = running
                        if not plain:
                            keep[s, :size] = True
                        for f in range(filters):
                            column = filter_columns[f, record]
                            if column == -2:
                                keep[s, :size] = False
                            if column < 0:
                                continue
                            at, length = _chunk_of(data, start, columns, column)
                            if _unpack_chunk(data, at, length, size, values, scratch) != OK:
                                return used, BAD_CHUNK, record
                            wanted = filter_values[filter_starts[f] : filter_starts[f + 1]]
                            for i in range(size):
                                value = np.int64(values[i])
                                if not _contains(wanted, value):
                                    keep[s, i] = False
                        if versions[row] >= 0:
                            at, length = _chunk_of(data, start, columns, ARRIVAL)
                            if _unpack_chunk(data, at, length, size, values, scratch) != OK:
                                return used, BAD_CHUNK, record
                            for i in range(size):
                                if np.int64(values[i]) + b * BLOCK + i >= versions[row]:
                                    keep[s, i] = False
                        i = size - 1
                        while i >= 0 and times[s, i] >= before[row]:
                            i -= 1
                        index[s] = i
                        block_no[s] = b - 1
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


@njit(nogil=True, cache=True)
def unpack_columns(
    data, blocks, block_row, block_at, block_count, block_first, block_columns, block_skip,
    block_record, block_low, block_high, block_newest, dest,
    columns_of, defaults, sizes, outputs, row_starts, out,
):  # fmt: skip
    """Unpacks columns of the planned blocks into their places.

    Args:
        blocks: number of planned blocks; the ``block_*`` arrays and ``dest`` as
            ``plan_read`` left them.
        columns_of: [C, R] each field's column in each record, -1 where it is missing.
        defaults: uint64 [C] bits that stand in for a missing column.
        sizes, outputs: [C] bytes of a value, and where the field starts in ``out``.
        row_starts: [B] the place of each row's first event within a field.
        out: uint8.

    Returns:
        (status, record at fault).
    """
    values = np.empty(BLOCK, np.uint64)
    scratch = np.empty((2, BLOCK), np.uint32)
    for k in range(blocks):
        record = block_record[k]
        n = block_count[k]
        start = row_starts[block_row[k]]
        if block_newest[k] == -1:
            continue
        solid = block_newest[k] >= 0
        low, high = block_low[k], min(block_high[k], n - 1)
        newest = start + block_newest[k]
        for c in range(len(sizes)):
            column = columns_of[c, record]
            size, base = sizes[c], outputs[c]
            if column < 0:
                for i in range(n):
                    values[i] = defaults[c]
            else:
                at, length = _chunk_of(data, block_at[k], block_columns[k], column)
                width = np.int64(data[at])
                if solid and size <= 4 and n >= LANES_FROM and 0 < width <= 57:
                    if not _chunk_is_sound(data, at, length, n):
                        return BAD_CHUNK, record
                    shift = _unpack_low(data, at, n, width, scratch[0])
                    at = base + newest * size
                    run = high - low + 1
                    whole = run & ~7
                    low32, shift64 = scratch[0], np.uint64(shift)
                    if size == 4:
                        for i in range(0, whole, 8):
                            store_backward_u32(out, at + 4 * i, low32, high - 7 - i, shift64)
                        for i in range(whole, run):
                            store_u32(out, at + 4 * i, np.uint64(low32[high - i] + shift))
                    elif size == 2:
                        for i in range(0, whole, 8):
                            store_backward_u16(out, at + 2 * i, low32, high - 7 - i, shift64)
                        for i in range(whole, run):
                            store_u16(out, at + 2 * i, np.uint64(low32[high - i] + shift))
                    else:
                        for i in range(0, whole, 8):
                            store_backward_u8(out, at + i, low32, high - 7 - i, shift64)
                        for i in range(whole, run):
                            store_u8(out, at + i, np.uint64(low32[high - i] + shift))
                    continue
                if _unpack_chunk(data, at, length, n, values, scratch) != OK:
                    return BAD_CHUNK, record
                if column == TIMESTAMP:
                    running = np.uint64(block_first[k])
                    for i in range(n):
                        running += values[i]
                        values[i] = running
                elif column == ARRIVAL:
                    for i in range(n):
                        values[i] += np.uint64(block_skip[k] + i)
            if solid:
                at = base + newest * size
                if size == 8:
                    whole = (high - low + 1) & ~7
                    for i in range(0, whole, 8):
                        store_backward_u64(out, at + 8 * i, values, high - 7 - i, np.uint64(0))
                    for i in range(whole, high - low + 1):
                        store_u64(out, at + 8 * i, values[high - i])
                elif size == 4:
                    for i in range(high - low + 1):
                        store_u32(out, at + 4 * i, values[high - i])
                elif size == 2:
                    for i in range(high - low + 1):
                        store_u16(out, at + 2 * i, values[high - i])
                else:
                    for i in range(high - low + 1):
                        store_u8(out, at + i, values[high - i])
            else:
                for i in range(low, high + 1):
                    if dest[k, i] >= 0:
                        at = base + (start + dest[k, i]) * size
                        if size == 8:
                            store_u64(out, at, values[i])
                        elif size == 4:
                            store_u32(out, at, values[i])
                        elif size == 2:
                            store_u16(out, at, values[i])
                        else:
                            store_u8(out, at, values[i])
    return OK, -1


@njit(nogil=True, cache=True)
def collect_chains(heads, links, starts, rows):
    """Walks each row's chain of events in memory; rows come out in arrival order."""
    for b in range(len(heads)):
        at = starts[b + 1]
        row = heads[b]
        while row >= 0:
            at -= 1
            rows[at] = row
            row = links[row]


@njit(nogil=True, cache=True)
def sort_chains(starts, rows, times):
    """Sorts each user's rows by (time, arrival), in place; rows are in arrival order."""
    for b in range(len(starts) - 1):
        low, high = starts[b], starts[b + 1]
        in_order = True
        for i in range(low + 1, high):
            if times[rows[i]] < times[rows[i - 1]]:
                in_order = False
                break
        if in_order:
            continue
        source = rows[low:high].copy()
        target = np.empty_like(source)
        n = high - low
        width = 1
        while width < n:
            for left in range(0, n, 2 * width):
                middle, right = min(left + width, n), min(left + 2 * width, n)
                i, j = left, middle
                for k in range(left, right):
                    if i < middle and (j >= right or times[source[i]] <= times[source[j]]):
                        target[k] = source[i]
                        i += 1
                    else:
                        target[k] = source[j]
                        j += 1
            source, target = target, source
            width *= 2
        rows[low:high] = source
