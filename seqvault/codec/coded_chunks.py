"""Numba kernels of coded chunks: run-length and dictionary coding, also by another column.

Runs (128), a dictionary of the block's values (129, 130), or values that go with the
codes of an earlier column's dictionary (131). See ``docs/seqvault/format.md``.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.chunks import (
    BAD_CHUNK,
    BLOCK,
    MASK16,
    OK,
    pack_chunk,
    put_chunk,
    put_value,
)
from seqvault.codec.primitives import inner, load_u8, load_u64, store_u32, store_u64

RUNS, SORTED, LISTED, SHARED = 128, 129, 130, 131
ROOM = 3 * (BLOCK + 8)  # numbers of scratch: for times, values and codes
_VALUES, _CODES, _HELD = 8 * (BLOCK + 8), 16 * (BLOCK + 8), 20 * (BLOCK + 8)
DICTIONARY_SAVES = 0.5  # bytes a value at least: looking values up takes time


@inner
def _codes_of(values, n, limit, distinct, codes):
    """Numbers the distinct values, ascending; returns how many, or 0 above ``limit``."""
    table = np.empty(1024, np.int16)
    for place in range(1024):
        table[place] = -1
    used = 0
    for i in range(n):
        mixed = np.uint64(values[i]) * np.uint64(0x9E3779B97F4A7C15)
        place = np.int64(mixed >> np.uint64(54))
        while table[place] >= 0 and distinct[table[place]] != values[i]:
            place = (place + 1) & 1023
        if table[place] < 0:
            if used == limit:
                return 0
            table[place] = used
            distinct[used] = values[i]
            used += 1
        codes[i] = table[place]
    # a Shell sort: NumPy's would take seconds to compile
    order, rank = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for j in range(used):
        order[j] = j
    gap = 121
    while gap > 0:
        for j in range(gap, used):
            moving = order[j]
            k = j
            while k >= gap and distinct[order[k - gap]] > distinct[moving]:
                order[k] = order[k - gap]
                k -= gap
            order[k] = moving
        gap //= 3
    for j in range(used):
        rank[order[j]] = j
    for i in range(n):
        codes[i] = rank[codes[i]]
    for j in range(used):
        rank[j] = distinct[order[j]]
    for j in range(used):
        distinct[j] = rank[j]
    return used


@inner
def pack_coded(values, n, end, out, position, leader, leader_codes, leader_size):
    """Replaces the plain chunk by a coded one if that is smaller.

    Args:
        values, n: int64 [256] and how many of them.
        end: where the plain chunk at ``position`` of ``out`` ends.
        leader, leader_codes, leader_size: column of the block with a dictionary that
            others may share (-1: none), int64 [256] its codes, and how many there are.

    Returns:
        (end of the chunk, size of its dictionary if it may lead now, else 0).
    """
    best = end - position
    if best < 24:
        return end, 0
    worth = best - np.int64(DICTIONARY_SAVES * n)
    kept = np.empty(best + 8, np.uint8)  # the best so far
    for i in range(best):
        kept[i] = out[position + i]
    runs = np.empty(BLOCK, np.int64)
    many = 0
    for i in range(n):
        if i == 0 or values[i] != values[i - 1]:
            runs[many] = values[i]
            many += 1
            if 2 * many > n:
                break
    if 2 * many <= n:
        out[position], out[position + 1] = RUNS, many
        j = 0
        for i in range(1, n + 1):
            if i == n or values[i] != values[i - 1]:
                out[position + 2 + j] = i - 1
                j += 1
        last = pack_chunk(runs, many, out, position + 2 + many)
        if last - position < best:
            best = last - position
            for i in range(best):
                kept[i] = out[position + i]
    if 0 <= leader < 256:
        follows = True
        seen = np.empty(BLOCK, np.bool_)
        for i in range(leader_size):
            seen[i] = False
        for i in range(n):
            code = leader_codes[i]
            if not seen[code]:
                seen[code], runs[code] = True, values[i]
            elif runs[code] != values[i]:
                follows = False
                break
        if follows:
            out[position], out[position + 1] = SHARED, leader
            out[position + 2] = leader_size - 1
            last = pack_chunk(runs, leader_size, out, position + 3)
            if last - position < min(best, worth):
                best = last - position
                for i in range(best):
                    kept[i] = out[position + i]
    leads = 0
    distinct, codes = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    size = _codes_of(values, n, min(3 * n // 4, 255), distinct, codes)
    if size > 1:
        for j in range(size - 1, 0, -1):
            runs[j] = distinct[j] - distinct[j - 1]
        runs[0] = distinct[0]
        out[position], out[position + 1] = SORTED, size - 1
        middle = pack_chunk(runs, size, out, position + 4)
        out[position + 2] = (middle - position - 4) & 255
        out[position + 3] = (middle - position - 4) >> 8
        last = pack_chunk(codes, n, out, middle)
        if last - position < min(best, worth):
            if leader < 0:
                leads = size
                for i in range(n):
                    leader_codes[i] = codes[i]
            return last, leads
    for i in range(best):
        out[position + i] = kept[i]
    store_u64(out, position + best, np.uint64(0))
    return position + best, 0


@inner
def _put_runs(data, ends, many, values, n, low, high, out, size, room):
    """Fills in runs, the last one first, whose last places are at ``ends``."""
    to = out
    if size == 1:
        to = room  # whole words first, each run over what the one before wrote too much
    place, start = 0, n - 1
    for j in range(many - 1, -1, -1):
        stop = load_u8(data, ends + j - 1) if j else -1
        if stop >= start:
            return BAD_CHUNK
        count = min(start, high) - max(stop, low - 1)
        start = stop
        if count <= 0:
            continue
        value = load_u64(values, 8 * (many - 1 - j))
        if size == 1:
            word = (value & np.uint64(255)) * np.uint64(0x0101010101010101)
            for k in range(place, place + count, 8):
                store_u64(to, k, word)
        else:
            for k in range(place, place + count):
                put_value(to, k * size, size, value)
        place += count
    if size == 1:
        whole = place & ~7
        for k in range(0, whole, 8):
            store_u64(out, k, load_u64(room, k))
        for k in range(whole, place):
            put_value(out, k, 1, load_u64(room, k))
    return OK


@njit(nogil=True)
def put_column(data, places, column, n, low, high, out, target, size, room):
    """Values ``low`` to ``high`` of any chunk, the last one first.

    Args:
        data, out, room: addresses; ``room`` has room for ``ROOM`` numbers.
        places: [columns + 1] where each chunk of the block starts.
        column, n, low, high, target, size: see ``put_chunk``.

    Returns:
        OK or BAD_CHUNK.
    """
    at, length = places[column], places[column + 1] - places[column]
    if length < 4 or load_u8(data, at) < RUNS:
        return put_chunk(data, at, length, n, low, high, out, target, size)
    kind, many = load_u8(data, at), load_u8(data, at + 1)
    values = room + _VALUES
    if kind == RUNS:
        if many == 0 or length < 2 + many or load_u8(data, at + 1 + many) != n - 1:
            return BAD_CHUNK
        inner = at + 2 + many
        status = put_chunk(data, inner, length - 2 - many, many, 0, many - 1, values, 0, 8)
        if status != OK:
            return status
        return _put_runs(data, at + 2, many, values, n, low, high, out + target, size, room)
    codes_at, codes_length = 0, 0
    ascending = kind == SORTED
    if kind in (SORTED, LISTED):
        inner_length = np.int64(load_u64(data, at + 2) & MASK16)
        inner = at + 4
        many += 1
        codes_at = inner + inner_length
        codes_length = length - 4 - inner_length
    elif kind == SHARED:
        if many >= column:
            return BAD_CHUNK
        lead, lead_length = places[many], places[many + 1] - places[many]
        lead_kind = load_u8(data, lead)
        if lead_length < 4 or (lead_kind != SORTED and lead_kind != LISTED):
            return BAD_CHUNK
        skip = 4 + np.int64(load_u64(data, lead + 2) & MASK16)
        codes_at, codes_length = lead + skip, lead_length - skip
        many = load_u8(data, at + 2) + 1
        inner, inner_length = at + 3, length - 3
    else:
        return BAD_CHUNK
    if codes_length < 3 or put_chunk(data, inner, inner_length, many, 0, many - 1, values, 0, 8):
        return BAD_CHUNK
    if ascending:
        running = np.uint64(0)
        for j in range(8 * (many - 1), -8, -8):
            running += load_u64(values, j)
            store_u64(values, j, running)
    codes = room + _CODES
    if load_u64(room, _HELD) != np.uint64(codes_at):  # columns that share them come together
        if put_chunk(data, codes_at, codes_length, n, low, high, codes, 0, 1) != OK:
            return BAD_CHUNK
        store_u64(room, _HELD, np.uint64(codes_at))
    # the first value is the last in memory; a code too large reads other scratch
    first, wrong = values + 8 * (many - 1), np.int64(0)
    out += target
    if size == 8:
        for i in range(high - low + 1):
            code = load_u8(codes, i)
            wrong |= many - 1 - code
            store_u64(out, 8 * i, load_u64(first, -8 * code))
    elif size == 4:
        for i in range(high - low + 1):
            code = load_u8(codes, i)
            wrong |= many - 1 - code
            store_u32(out, 4 * i, load_u64(first, -8 * code))
    else:
        for i in range(high - low + 1):
            code = load_u8(codes, i)
            wrong |= many - 1 - code
            put_value(out, i * size, size, load_u64(first, -8 * code))
    return BAD_CHUNK if wrong < 0 else OK


@inner
def begin_block(room):
    """Clears the codes of the previous block, before the first ``put_column`` of the next."""
    store_u64(room, _HELD, np.uint64(0))
