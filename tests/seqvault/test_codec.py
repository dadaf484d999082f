"""Packing against a plain reading of the format, and unpacking of rubbish."""

import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seqvault.codec import chunks, records
from seqvault.codec import coded_chunks as coding
from seqvault.codec.primitives import checksum, crc32c_portable


def pad(data: bytes) -> np.ndarray:
    return np.frombuffer(data + bytes(chunks.PADDING), np.uint8).copy()


def unpack(data, length, n, dtype, low=0, high=None) -> np.ndarray:
    """Values ``low`` to ``high`` by the kernel, in their order; nothing else is written."""
    high = n - 1 if high is None else high
    out = np.full(high - low + 1 + 64, 77, dtype)
    size = out.itemsize
    status = chunks.put_chunk(
        data.ctypes.data, 0, length, n, low, high, out.ctypes.data, 32 * size, size
    )
    assert status == chunks.OK
    assert (out[:32] == 77).all() and (out[high - low + 33 :] == 77).all()
    return out[32 : high - low + 33][::-1]


def read_lanes(data: bytes, n: int, width: int) -> tuple[list[int], int]:
    """Values in eight lanes: lane j is words j, j + 8, j + 16... and holds values j + 8r."""
    rows = -(-n // 8)
    words_per_lane = -(-rows * width // 32)
    words = struct.unpack_from(f"<{8 * words_per_lane}I", data)
    lanes = [sum(words[j + 8 * k] << (32 * k) for k in range(words_per_lane)) for j in range(8)]
    values = [(lanes[i % 8] >> (i // 8 * width)) & ((1 << width) - 1) for i in range(n)]
    return values, 32 * words_per_lane


def read_chunk(data: bytes, n: int) -> list[int]:
    """Unpacks a chunk as docs/seqvault/format.md says, with Python integers."""
    width, base_bytes, size = data[0], data[1] & 15, 1 << (data[1] >> 4)
    exceptions = data[2]
    zigzag = int.from_bytes(data[3 : 3 + base_bytes], "little")
    base = (zigzag >> 1) ^ -(zigzag & 1)
    at = 3 + base_bytes
    if n >= 128 and width <= 57:
        values, packed = read_lanes(data[at:], n, min(width, 32))
        if width > 32:
            upper, more = read_lanes(data[at + packed :], n, width - 32)
            values = [low | (high << 32) for low, high in zip(values, upper, strict=True)]
            packed += more
    else:
        packed = (n * width + 7) // 8
        bits = int.from_bytes(data[at : at + packed], "little")
        values = [(bits >> (i * width)) & ((1 << width) - 1) for i in range(n)]
    at += packed
    for j in range(exceptions):
        place = data[at + j]
        start = at + exceptions + j * size
        values[place] |= int.from_bytes(data[start : start + size], "little") << width
    signed = [(value + base) % 2**64 for value in values]
    return [value - 2**64 if value >= 2**63 else value for value in signed]


def read_column(parts: list[bytes], c: int, n: int) -> list[int]:
    """Values of any column of a block, given the chunks of all."""
    data = parts[c]
    if data[0] < 128:
        return read_chunk(data, n)
    if data[0] == 128:
        runs = data[1]
        values, ends = read_chunk(data[2 + runs :], runs), data[2 : 2 + runs]
        assert ends[-1] == n - 1
        return [values[next(j for j in range(runs) if i <= ends[j])] for i in range(n)]
    if data[0] == 131:
        dictionary = read_chunk(data[3:], data[2] + 1)
        lead = parts[data[1]]
    else:
        dictionary, lead = read_chunk(data[4:], data[1] + 1), data
        if data[0] == 129:
            dictionary = np.cumsum(np.array(dictionary, np.int64)).tolist()
    codes = read_chunk(lead[4 + lead[2] + 256 * lead[3] :], n)
    return [dictionary[code] for code in codes]


def crc32c_by_the_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksum_is_crc32c():
    assert checksum(b"123456789") == 0xE3069283
    for n in (0, 1, 7, 8, 9, 1000):
        data = np.random.default_rng(n).bytes(n)
        assert checksum(data) == crc32c_by_the_bit(data)
        assert int(crc32c_portable(np.frombuffer(data, np.uint8), 0, n)) == checksum(data)


INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 300), st.integers(0, 2**40), st.just(7)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(INTEGERS, min_size=1, max_size=256) | st.lists(st.integers(0, 3), min_size=250,
       max_size=256))  # fmt: skip
def test_a_chunk_reads_back_by_the_kernel_and_by_the_book(values):
    array = np.array(values, np.int64)
    out = np.full(chunks.PADDING + chunks.chunk_bound(len(array)), 255, np.uint8)
    end = chunks.pack_chunk(array, len(array), out, 0)
    assert end <= chunks.chunk_bound(len(array))
    assert read_chunk(out[:end].tobytes(), len(array)) == values
    back = unpack(out, end, len(array), np.int64)
    assert back.tolist() == values
    for dtype in (np.int8, np.int16, np.int32):  # the low bits, as a cast has it
        assert unpack(out, end, len(array), dtype).tolist() == array.astype(dtype).tolist()
    low, high = len(array) // 3, 2 * len(array) // 3
    part = unpack(out, end, len(array), np.int64, low, high)
    assert part.tolist() == values[low : high + 1]


def test_rare_large_values_are_patched_and_cost_little():
    values = np.arange(256, dtype=np.int64) % 8
    values[[3, 200]] = 10**12
    out = np.zeros(chunks.PADDING + chunks.chunk_bound(256), np.uint8)
    assert chunks.pack_chunk(values, 256, out, 0) == 3 + 96 + 2 + 16
    constant = np.full(256, -5, np.int64)
    assert chunks.pack_chunk(constant, 256, out, 0) == 4


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 256), st.integers(0, 300))
def test_rubbish_is_refused_or_read_without_harm(data, n, length):
    guard = np.full(n + 16, 77, np.uint64)
    padded = pad(data)
    status = chunks.put_chunk(
        padded.ctypes.data, 0, min(length, len(data)), n, 0, n - 1, guard.ctypes.data, 64, 8
    )
    assert status in (chunks.OK, chunks.BAD_CHUNK)
    assert (guard[:8] == 77).all() and (guard[n + 8 :] == 77).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(INTEGERS, max_size=700))
def test_arrays_of_any_length_read_back(values):
    array = np.array(values, np.int64)
    out = np.empty(chunks.PADDING + len(array) * 9 + 64, np.uint8)
    size = records.pack_array(array, out)
    back = np.empty(len(array), np.uint64)
    assert records.unpack_array(out, size, back) == chunks.OK
    assert back.view(np.int64).tolist() == values
    if size:
        assert records.unpack_array(out, size - 1, back) == chunks.BAD_CHUNK


def test_a_record_by_the_book():
    times = np.arange(1000, 1000 + 300 * 3, 3, dtype=np.int64)
    items = (np.arange(300, dtype=np.int64) * 7919) % 1000 - 500
    arrival = np.arange(40, 340, dtype=np.int64)
    columns = np.stack([times, arrival, items])
    out = np.zeros(records.records_bound(1, 300, 3), np.uint8)
    offsets = np.empty(2, np.int64)
    records.pack_records(np.array([-9]), np.array([0, 300]), columns, out, offsets)
    record = out[: offsets[1]].tobytes()
    assert len(record) % 8 == 0
    user, count = struct.unpack_from("<qI", record)
    assert (user, count) == (-9, 300)
    (first, end), (second, last) = (struct.unpack_from("<qI", record, 12 + 12 * b) for b in (0, 1))
    assert (first, second) == (1000, 1000 + 256 * 3)
    assert struct.unpack_from("<I", record, 36)[0] == crc32c_by_the_bit(record[:36])
    got: list[list[int]] = [[], [], []]
    for start, stop, n, time in ((40, end, 256, first), (end, last, 44, second)):
        assert struct.unpack_from("<I", record, start)[0] == crc32c_by_the_bit(
            record[start + 4 : stop]
        )
        lengths = struct.unpack_from("<3H", record, start + 4)
        at = start + 10
        for c, length in enumerate(lengths):
            values = read_chunk(record[at : at + length], n)
            at += length
            if c == 0:
                values = (time + np.cumsum(values)).tolist()
            if c == 1:
                skip = len(got[1])
                values = [value + skip + i for i, value in enumerate(values)]
            got[c] += values
        assert at == stop
    assert got == columns.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(32, 256), st.integers(1, 200), st.integers(1, 60))
def test_coded_columns_by_the_book(seed, n, kinds, run):
    """Items of few kinds, two columns that follow them, one that nearly does, and runs."""
    rng = np.random.default_rng(seed)
    of = rng.integers(-(2**63), 2**63 - 1, (3, kinds))
    pick = rng.integers(0, kinds, n)
    nearly = of[1, pick].copy()
    nearly[-1] ^= 1
    runs = np.repeat(rng.integers(-5, 100, n), run)[:n]
    columns = np.stack([np.sort(rng.integers(0, 2**40, n)), np.arange(n), of[0, pick],
                        of[1, pick], runs, nearly, of[2, pick]])  # fmt: skip
    out = np.zeros(records.records_bound(1, n, len(columns)), np.uint8)
    offsets = np.empty(2, np.int64)
    records.pack_records(np.array([5]), np.array([0, n]), columns, out, offsets)
    record = out[: offsets[1]].tobytes()
    lengths = struct.unpack_from(f"<{len(columns)}H", record, 32)
    ends = 32 + 2 * len(columns) + np.cumsum(lengths)
    parts = [record[end - size : end] for end, size in zip(ends, lengths, strict=True)]
    for c in range(2, len(columns)):
        assert read_column(parts, c, n) == columns[c].tolist()
        for low, high in ((0, n - 1), (n // 3, n // 2)):
            got, status = put(parts, c, n, low, high, np.int64)
            assert status == chunks.OK
            assert got.tolist() == columns[c, low : high + 1].tolist()
            narrow, _ = put(parts, c, n, low, high, np.int8)
            assert narrow.tolist() == columns[c, low : high + 1].astype(np.int8).tolist()


def put(parts, c, n, low, high, dtype) -> tuple[np.ndarray, int]:
    """Values of a column by the kernel, in their order; nothing else is written."""
    data = pad(b"".join(parts))
    places = np.cumsum([0] + [len(part) for part in parts])
    room = np.zeros(coding.ROOM, np.uint64)
    out = np.full(high - low + 1 + 64, 77, dtype)
    status = coding.put_column(
        data.ctypes.data, places, c, n, low, high, out.ctypes.data, 32 * out.itemsize,
        out.itemsize, room.ctypes.data,
    )  # fmt: skip
    assert (out[:32] == 77).all() and (out[high - low + 33 :] == 77).all()
    return out[32 : high - low + 33][::-1], status


def test_each_kind_of_coded_chunk_is_chosen_where_it_is_smaller():
    rng = np.random.default_rng(0)
    pick = rng.integers(0, 60, 256)
    of = rng.integers(0, 2**40, (2, 60))
    columns = np.stack([np.arange(256), np.arange(256), of[0, pick], of[1, pick],
                        np.arange(256) // 16 * 1000])  # fmt: skip
    out = np.zeros(records.records_bound(1, 256, 5), np.uint8)
    offsets = np.empty(2, np.int64)
    records.pack_records(np.array([5]), np.array([0, 256]), columns, out, offsets)
    lengths = struct.unpack_from("<5H", out[: offsets[1]].tobytes(), 32)
    starts = 42 + np.cumsum(lengths) - lengths
    assert [out[start] for start in starts[2:]] == [coding.SORTED, coding.SHARED, coding.RUNS]
    plain = chunks.pack_chunk(columns[2].copy(), 256, np.zeros(4096, np.uint8), 0)
    assert lengths[2] < 0.6 * plain
    assert lengths[3] < 0.3 * plain


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([128, 129, 130, 131]), st.binary(max_size=200), st.binary(max_size=300),
       st.integers(1, 256))  # fmt: skip
def test_rubbish_in_coded_chunks_is_refused_or_read_without_harm(kind, first, second, n):
    parts = [b"", b"", bytes([129]) + first, bytes([kind]) + second]
    _, status = put(parts, 3, n, 0, n - 1, np.int64)
    assert status in (chunks.OK, chunks.BAD_CHUNK)
