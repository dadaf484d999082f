"""Numba kernels of chunks: up to 256 values of one column, packed.

A chunk has a frame of reference, bit-packed differences to it, and exceptions patched in
(PFOR). The byte layout is written down in ``docs/seqvault/format.md``.

Arrays that hold packed bytes must be readable for ``PADDING`` bytes behind their last
used byte, because loads are up to 32 bytes wide. Of ``data`` and ``out``, functions that
unpack take addresses.
"""

# mypy: ignore-errors

import numpy as np
from numba import njit

from seqvault.codec.primitives import (
    bit_length,
    inner,
    load_u8,
    load_u64,
    put_lanes_u8,
    put_lanes_u16,
    put_lanes_u32,
    put_lanes_u64,
    store_u8,
    store_u16,
    store_u32,
    store_u64,
)

BLOCK = 256
LANES_FROM = 128  # chunks of at least so many values are laid out in lanes
PADDING = 64

OK, BAD_HEADER, BAD_BLOCK, BAD_CHUNK = 0, 1, 2, 3

MASK32 = np.uint64(0xFFFFFFFF)
MASK16 = np.uint64(0xFFFF)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@inner
def _plane_bytes(n, width):
    """Bytes of ``n`` values of ``width`` <= 32 bits in eight lanes of whole words."""
    return 32 * ((((n + 7) >> 3) * width + 31) >> 5)


@inner
def packed_bytes(n, width):
    """Bytes of the packed values of a chunk."""
    if n < LANES_FROM or width > 57:
        return (n * width + 7) >> 3
    if width <= 32:
        return _plane_bytes(n, width)
    return _plane_bytes(n, 32) + _plane_bytes(n, width - 32)


@inner
def _put_lane(out, stream, i, value, width):
    """Adds value ``i`` of a chunk to lane ``i % 8``; the bits there are still 0."""
    bit = (i >> 3) * width
    at = stream + 32 * (bit >> 5) + 4 * (i & 7)
    shifted = value << np.uint64(bit & 31)
    low = (load_u64(out, at) & MASK32) | (shifted & MASK32)
    store_u32(out, at, low)
    if (bit & 31) + width > 32:
        high = (load_u64(out, at + 32) & MASK32) | (shifted >> np.uint64(32))
        store_u32(out, at + 32, high)


@njit(nogil=True)
def pack_chunk(values, n, out, position):
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
    best = packed_bytes(n, width)
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
        size = packed_bytes(n, candidate) + above * (1 + (1 << log))
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
    places = stream + packed_bytes(n, width)
    patches = places + exceptions
    for i in range(n):
        value = np.uint64(values[i]) - np.uint64(base)
        if width == 64:
            store_u64(out, stream + 8 * i, value)
            continue
        low = value & mask
        if n >= LANES_FROM:
            _put_lane(out, stream, i, low & MASK32, min(width, 32))
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
        places = stream + packed_bytes(n, width)
        for j in range(exceptions):
            i = out[places + j]
            value = (np.uint64(values[i]) - np.uint64(base)) >> uwidth
            for b in range(1 << size_log):
                out[patches] = np.uint8((value >> np.uint64(8 * b)) & np.uint64(0xFF))
                patches += 1
    return end


@inner
def chunk_is_sound(data, position, length, n):
    """Whether the parts of a chunk add up and its exceptions lie within it."""
    if length < 3:
        return False
    width = load_u8(data, position)
    base_bytes = load_u8(data, position + 1) & 15
    size = np.int64(1) << (load_u8(data, position + 1) >> 4)
    exceptions = load_u8(data, position + 2)
    packed = packed_bytes(n, width)
    if (
        (width > 57 and width != 64)
        or base_bytes > 8
        or size > 8
        or 3 + base_bytes + packed + exceptions * (1 + size) != length
    ):
        return False
    places = position + 3 + base_bytes + packed
    for j in range(exceptions):  # noqa: SIM110 (plain loops compile quicker)
        if load_u8(data, places + j) >= n:
            return False
    return True


@inner
def _base_of(data, at):
    """The frame of reference of a chunk."""
    base_bytes = load_u8(data, at + 1) & 15
    if base_bytes == 0:
        return np.uint64(0)
    zigzag = load_u64(data, at + 3) & (_ALL >> np.uint64(64 - 8 * base_bytes))
    return (zigzag >> np.uint64(1)) ^ (np.uint64(0) - (zigzag & np.uint64(1)))


@inner
def put_value(out, at, size, value):
    """Writes the low ``size`` bytes (1, 2, 4 or 8) of a value."""
    if size == 8:
        store_u64(out, at, value)
    elif size == 4:
        store_u32(out, at, value)
    elif size == 2:
        store_u16(out, at, value)
    else:
        store_u8(out, at, value)


@inner
def put_same(out, at, size, value, count):
    """Writes one value ``count`` times."""
    for i in range(count):
        put_value(out, at + i * size, size, value)


@inner
def _one_of_plane(data, stream, width, i):
    """Value ``i`` of a plane of lanes."""
    bit = (i >> 3) * width
    at = stream + 32 * (bit >> 5) + 4 * (i & 7)
    word = (load_u64(data, at) & MASK32) | ((load_u64(data, at + 32) & MASK32) << np.uint64(32))
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    return (word >> np.uint64(bit & 31)) & mask


@inner
def _put_ends(data, stream, upper, width, base, first, last, high, out, target, size):
    """Values ``first`` to ``last`` - 1 of lanes, one by one: rows that are wanted in part."""
    for i in range(first, last):
        value = _one_of_plane(data, stream, min(width, 32), i)
        if width > 32:
            value |= _one_of_plane(data, upper, width - 32, i) << np.uint64(32)
        put_value(out, target + (high - i) * size, size, value + base)


@inner
def _put_lanes(data, stream, n, width, base, low, high, out, target, size):
    """Values ``low`` to ``high`` of a chunk in lanes, the last one first."""
    upper = stream + _plane_bytes(n, 32)
    first_row, last_row = (low + 7) >> 3, (high + 1) >> 3
    if first_row >= last_row:
        _put_ends(data, stream, upper, width, base, low, high + 1, high, out, target, size)
        return
    _put_ends(data, stream, upper, width, base, low, 8 * first_row, high, out, target, size)
    _put_ends(data, stream, upper, width, base, 8 * last_row, high + 1, high, out, target, size)
    width32 = min(width, 32)
    mask = (np.uint64(1) << np.uint64(width32)) - np.uint64(1)
    at = target + (high - 8 * first_row - 7) * size
    if size == 8:
        above = max(width - 32, 0)
        upper_mask = (np.uint64(1) << np.uint64(above)) - np.uint64(1)
        if above == 0:
            upper = stream
        for row in range(first_row, last_row):
            bit, upper_bit = row * width32, row * above
            put_lanes_u64(
                data, stream + 32 * (bit >> 5), np.uint64(bit & 31), mask,
                upper + 32 * (upper_bit >> 5), np.uint64(upper_bit & 31), upper_mask, base, out, at,
            )  # fmt: skip
            at -= 64
    elif size == 4:
        for row in range(first_row, last_row):
            bit = row * width32
            word = stream + 32 * (bit >> 5)
            put_lanes_u32(data, word, np.uint64(bit & 31), mask, base, out, at)
            at -= 32
    elif size == 2:
        for row in range(first_row, last_row):
            bit = row * width32
            word = stream + 32 * (bit >> 5)
            put_lanes_u16(data, word, np.uint64(bit & 31), mask, base, out, at)
            at -= 16
    else:
        for row in range(first_row, last_row):
            bit = row * width32
            word = stream + 32 * (bit >> 5)
            put_lanes_u8(data, word, np.uint64(bit & 31), mask, base, out, at)
            at -= 8


@inner
def _put_stream(data, stream, width, base, low, high, out, target, size):
    """Values ``low`` to ``high`` of a chunk in one stream of bits, the last one first."""
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    at = target
    for i in range(high, low - 1, -1):
        bit = i * width
        word = load_u64(data, stream + (bit >> 3)) >> np.uint64(bit & 7)
        put_value(out, at, size, (word & mask) + base)
        at += size


@njit(nogil=True)
def put_chunk(data, at, length, n, low, high, out, target, size):
    """Values ``low`` to ``high`` of a chunk of plain values, the last one first.

    Args:
        data, at, length: where the chunk is, behind an address; readable 64 bytes beyond.
        n: values in the chunk.
        out, target, size: where the newest value goes, behind an address, and bytes per
            value; readable 8 bytes behind the last.

    Returns:
        OK or BAD_CHUNK.
    """
    if not chunk_is_sound(data, at, length, n):
        return BAD_CHUNK
    width = load_u8(data, at)
    base = _base_of(data, at)
    stream = at + 3 + (load_u8(data, at + 1) & 15)
    if width == 0:
        put_same(out, target, size, base, high - low + 1)
    elif width == 64:
        for i in range(low, high + 1):
            value = load_u64(data, stream + 8 * i) + base
            put_value(out, target + (high - i) * size, size, value)
    elif n >= LANES_FROM:
        _put_lanes(data, stream, n, width, base, low, high, out, target, size)
    else:
        _put_stream(data, stream, width, base, low, high, out, target, size)
    exceptions = load_u8(data, at + 2)
    if exceptions:
        bytes_each = np.int64(1) << (load_u8(data, at + 1) >> 4)
        keep = _ALL >> np.uint64(64 - 8 * bytes_each)
        places = stream + packed_bytes(n, width)
        patches = places + exceptions
        for j in range(exceptions):
            i = load_u8(data, places + j)
            if low <= i <= high:
                patch = (load_u64(data, patches + j * bytes_each) & keep) << np.uint64(width)
                place = target + (high - i) * size
                put_value(out, place, size, load_u64(out, place) + patch)
    return OK


@inner
def unpack_times(data, at, length, n, first, times):
    """Times of a block's events to the address ``times`` (room for 264); returns a status."""
    status = put_chunk(data, at, length, n, 0, n - 1, times, 0, 8)
    if status == OK:
        running = np.uint64(first)  # the last difference comes first
        for i in range(8 * (n - 1), -8, -8):
            running += load_u64(times, i)
            store_u64(times, i, running)
    return status


@njit(nogil=True)
def chunk_bound(n):
    """Most bytes that a chunk of ``n`` values can take."""
    return 11 + 8 * n
