"""Segment files with single fields changed and every checksum made right again.

A checksum keeps damage from the decoder; here nothing does. By ``docs/seqvault/format.md``.
"""

import random
import struct

import numpy as np

from seqvault.codec.chunks import PADDING
from seqvault.codec.primitives import checksum
from seqvault.codec.records import pack_array, unpack_array

HEADER, TRAILER, ARRAYS = 32, 40, 6
KINDS = ("header", "trailer", "footer", "count", "directory", "chunk lengths", "chunk heads")


def mutate(content: bytes, kind: str, rng: random.Random) -> bytes:
    """A segment with a field of the kind changed, one of ``KINDS``; its checksums fit.

    Args:
        content: a sound segment file.
        kind: which fields.
        rng: chooses the field and its value.
    """
    data = bytearray(content)
    footer, _ = struct.unpack_from("<QQ", data, len(data) - TRAILER)
    if kind == "header":
        at = rng.choice((8, 12, 20, 24)) if rng.random() < 0.5 else 12
        struct.pack_into("<I", data, at, _number(rng, struct.unpack_from("<I", data, at)[0], 32))
        struct.pack_into("<I", data, 28, checksum(data[:28]))
    elif kind == "trailer":
        at = len(data) - TRAILER + rng.choice((0, 8, 16))
        struct.pack_into("<Q", data, at, _number(rng, struct.unpack_from("<Q", data, at)[0], 64))
        _mend_trailer(data)
    elif kind == "footer":
        return _other_footer(data, footer, rng)
    else:
        _other_record(data, rng.choice(_records(data, footer)), kind, rng)
    return bytes(data)


def _number(rng: random.Random, old: int, bits: int) -> int:
    """A number near the old one, near a power of two, or any."""
    near = rng.choice((-257, -256, -255, -8, -1, 1, 8, 255, 256, 257))
    power = rng.choice((0, 7, 8, 15, 16, 30, 31, 32, 33, 62, 63, 64))
    choices = (old + near, (1 << power) + rng.choice((-1, 0, 1)), rng.getrandbits(bits), 2 * old)
    return rng.choice(choices) & ((1 << bits) - 1)


def _mend_trailer(data: bytearray) -> None:
    at = len(data) - TRAILER
    footer, length = struct.unpack_from("<QQ", data, at)
    if footer + length <= at:
        struct.pack_into("<I", data, at + 24, checksum(data[footer : footer + length]))
    struct.pack_into("<I", data, at + 28, checksum(data[at : at + 28]))


def footer_arrays(data: bytes) -> list[np.ndarray]:
    """int64 arrays of a sound segment's footer, as they are stored."""
    at = len(data) - TRAILER
    footer, length = struct.unpack_from("<QQ", data, at)
    padded = np.frombuffer(data[footer : footer + length] + bytes(PADDING), np.uint8).copy()
    (count,) = struct.unpack_from("<Q", data, footer)
    arrays, position = [], 8
    for _ in range(ARRAYS):
        (size,) = struct.unpack_from("<Q", data, footer + position)
        values = np.empty(count, np.uint64)
        unpack_array(padded[position + 8 :], size, values)
        arrays.append(values.view(np.int64))
        position += 8 + size
    return arrays


def with_footer(data: bytes, arrays: list[np.ndarray], count: int | None = None) -> bytes:
    """The segment with another footer, and a trailer that fits."""
    footer, _, events = struct.unpack_from("<QQQ", data, len(data) - TRAILER)
    body = struct.pack("<Q", len(arrays[0]) if count is None else count)
    for values in arrays:
        packed = np.empty(PADDING + len(values) * 9 + (len(values) // 256 + 1) * 16, np.uint8)
        size = int(pack_array(np.ascontiguousarray(values), packed))
        body += struct.pack("<Q", size) + packed[:size].tobytes()
    trailer = struct.pack("<QQQI", footer, len(body), events, checksum(body))
    trailer += struct.pack("<I", checksum(trailer)) + b"SEQVSEG\0"
    return bytes(data[:footer]) + body + trailer


def _other_footer(data: bytearray, footer: int, rng: random.Random) -> bytes:
    arrays = [values.copy() for values in footer_arrays(bytes(data))]
    if rng.random() < 0.2:
        (count,) = struct.unpack_from("<Q", data, footer)
        return with_footer(bytes(data), arrays, _number(rng, count, 64))
    for _ in range(rng.choice((1, 1, 2, 3))):
        values = arrays[rng.randrange(ARRAYS)]
        place = rng.randrange(len(values))
        fresh = _number(rng, int(values[place]) & ((1 << 64) - 1), 64)
        values[place] = np.array([fresh], np.uint64).view(np.int64)[0]
        if rng.random() < 0.3 and len(values) > 1:  # what one loses another one gets
            other = (place + 1) % len(values)
            lengths, less = arrays[1], 8 * rng.randrange(1, 40)
            lengths[place] -= less
            lengths[other] += less
    return with_footer(bytes(data), arrays)


def _records(data: bytearray, footer: int) -> list[int]:
    lengths = footer_arrays(bytes(data))[1]
    starts = HEADER + np.cumsum(lengths) - lengths
    return [int(start) for start, length in zip(starts, lengths, strict=True) if length]


def _other_record(data: bytearray, start: int, kind: str, rng: random.Random) -> None:
    (count,) = struct.unpack_from("<I", data, start + 8)
    blocks = -(-count // 256)
    if kind == "count":
        count = _number(rng, count, 32)
        struct.pack_into("<I", data, start + 8, count)
        _mend_directory(data, start)
        return
    if kind == "directory":
        at = start + 12 + 12 * rng.randrange(blocks) + rng.choice((0, 8, 8))
        if (at - start) % 12 == 0:
            fresh = _number(rng, struct.unpack_from("<Q", data, at)[0], 64)
            struct.pack_into("<Q", data, at, fresh)
        else:
            fresh = _number(rng, struct.unpack_from("<I", data, at)[0], 32)
            struct.pack_into("<I", data, at, fresh)
        _mend_directory(data, start)
        return
    block = rng.randrange(blocks)
    first = start + 16 + 12 * blocks
    if block:
        first = start + struct.unpack_from("<I", data, start + 8 + 12 * block)[0]
    end = start + struct.unpack_from("<I", data, start + 20 + 12 * block)[0]
    columns = struct.unpack_from("<I", data, 12)[0]
    lengths = [struct.unpack_from("<H", data, first + 4 + 2 * c)[0] for c in range(columns)]
    column = rng.randrange(columns)
    if kind == "chunk lengths":
        fresh = _number(rng, lengths[column], 16)
        struct.pack_into("<H", data, first + 4 + 2 * column, fresh)
        other = (column + 1) % columns
        if rng.random() < 0.7 and 0 <= lengths[other] + lengths[column] - fresh < 1 << 16:
            rest = lengths[other] + lengths[column] - fresh
            struct.pack_into("<H", data, first + 4 + 2 * other, rest)
    else:
        chunk = first + 4 + 2 * columns + sum(lengths[:column])
        for _ in range(rng.choice((1, 1, 2))):
            at = chunk + rng.randrange(min(12, lengths[column]))
            data[at] = rng.choice((0, 1, 57, 64, 127, 128, 129, 130, 131, 255, rng.getrandbits(8)))
    struct.pack_into("<I", data, first, checksum(data[first + 4 : end]))


def _mend_directory(data: bytearray, start: int) -> None:
    (count,) = struct.unpack_from("<I", data, start + 8)
    end = start + 12 + 12 * -(-count // 256)
    if end + 4 <= len(data):
        struct.pack_into("<I", data, end, checksum(data[start:end]))
