"""The packed encoding of a read: stored chunks, unpacked only by the receiver.

    "SEQVPCK\\1" | u32 CRC of all behind it | u32 bytes of the description | description (JSON)
    | int64 arrays: users, before, version [B], records of each row [B], schemas, lengths [R]
    | records | 64 zeros

The records are as ``docs/seqvault/format.md`` describes them, cut down to the blocks and
columns that the answer needs. Events that are in no segment yet are a record of their own.
"""

import json
from typing import Any

import numpy as np

from seqvault.codec.bits import to_bits
from seqvault.codec.chunks import BLOCK, OK, PADDING
from seqvault.codec.cut_kernel import cut_records
from seqvault.codec.plan_kernel import plan_read
from seqvault.codec.primitives import checksum
from seqvault.codec.records import ARRIVAL, TIMESTAMP, pack_records, records_bound
from seqvault.codec.unpack_kernel import WIDENED, unpack_columns
from seqvault.errors import DamagedFileError
from seqvault.memory.field_layout import Layout
from seqvault.read.found import Found
from seqvault.read.planned_read import Reader
from seqvault.read.read_request import MAX_LAST_N, MAX_READ_EVENTS, ReadRequest
from seqvault.schema import DTYPE_NAMES, DTYPES
from seqvault.sequence_batch import SequenceBatch
from seqvault.times import NO_BOUND

MAGIC = b"SEQVPCK\x01"


def pack_batch(reader: Reader, request: ReadRequest) -> bytes:
    """The answer of ``Reader.read`` to the same request, packed.

    An ordinary read copies the stored chunks without unpacking them. If single events are left out
    (filters, a version), the others are packed again, and so are fields that were widened from
    float32 to float64.

    Args:
        reader: of an open store.
        request: the read.

    Returns:
        What ``unpack_batch`` takes, little-endian, in any process.

    Raises:
        DamagedFileError: see ``SeqVault.read``.
    """
    names, users = request.names, request.users
    found = reader.find(users, request)
    layout = found.store.layouts.of(names)
    if request.plain and (layout.columns_of < WIDENED).all():
        return _stored(reader, request, found)  # chunks go out as they are
    timed = request._replace(names=tuple(dict.fromkeys(("timestamp", *names))))
    lengths, answer, columns = reader.ragged_of(found, timed)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    backward = np.repeat(starts[:-1] + starts[1:] - 1, lengths) - np.arange(starts[-1])
    bits = {name: to_bits(values)[backward] for name, values in columns.items()}
    records, sizes = _records(users, starts, names, bits)
    filled = sizes > 0
    every = np.full(len(users), NO_BOUND, np.int64)
    return _message(
        layout, request.last_n, 0, [],
        (users, every, answer, filled.astype(np.int64)),
        np.zeros(int(filled.sum()), np.int64), sizes[filled], records,
    )  # fmt: skip


def _stored(reader: Reader, request: ReadRequest, found: Found) -> bytes:
    """The answer of a read that leaves out no single events."""
    names, users, layouts = request.names, request.users, found.store.layouts
    rows, bound = len(users), request.bounds()
    wanted = np.full(rows, request.last_n, np.int64)
    many = np.diff(found.starts)
    data, places, shifts, first_blocks = reader.fetch(found, bound, wanted)
    kept, counts, tables = _projection(layouts.of(names))
    chunks = int((-(-found.counts // BLOCK)).sum()) * kept.shape[1]
    # a column whose codes are in one that stays behind takes them along
    room = int((found.lengths - shifts).sum()) + 300 * chunks + PADDING
    out, ends = np.empty(room, np.uint8), np.empty(len(places), np.int64)
    status, record = cut_records(
        data, places, found.lengths, shifts, first_blocks, layouts.columns_in, found.schema_ids,
        np.repeat(users, many), np.repeat(bound, many), np.repeat(wanted, many),
        kept, counts, out, ends,
    )  # fmt: skip
    reader.check_status(status, record, found)
    stored = out[: ends[-1]] if len(ends) else out[:0]
    mem_counts = np.diff(found.mem_starts)
    bits = {
        name: to_bits(found.mem_columns[name][found.mem_rows]) for name in ("timestamp", *names)
    }
    memory, mem_sizes = _records(users, found.mem_starts, names, bits)
    # a row's record of events in memory is its last, under a schema number of its own
    lengths = np.diff(ends, prepend=0)
    schemas, owner = found.schema_ids, np.repeat(np.arange(rows), many)
    filled, tails = lengths > 0, np.flatnonzero(mem_counts)
    order = np.argsort(np.concatenate([owner[filled], tails]), kind="stable")
    return _message(
        layouts.of(names), request.last_n, found.oldest, tables,
        (users, bound, found.version,
         np.bincount(owner[filled], minlength=rows) + (mem_counts > 0)),
        np.concatenate([schemas[filled] + 1, np.zeros(len(tails), np.int64)])[order],
        np.concatenate([lengths[filled], mem_sizes[tails]])[order],
        _in_order(stored, lengths[filled], memory, mem_sizes[tails], order),
    )  # fmt: skip


def _in_order(
    stored: np.ndarray, lengths: np.ndarray, memory: np.ndarray, sizes: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The bytes of records of two kinds, in the order given."""
    if not len(sizes):
        return stored
    both = np.concatenate([stored, memory])
    ends = np.cumsum(np.concatenate([lengths, sizes]))
    starts = ends - np.concatenate([lengths, sizes])
    return np.concatenate([both[starts[i] : ends[i]] for i in order.tolist()])


def _records(
    users: np.ndarray, starts: np.ndarray, names: tuple[str, ...], bits: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Packs events, oldest first, into one record per user; also the records' sizes."""
    fields = [name for name in names if name != "timestamp"]
    columns = np.zeros((2 + len(fields), int(starts[-1])), np.int64)
    columns[TIMESTAMP] = bits["timestamp"]
    for c, name in enumerate(fields):
        columns[2 + c] = bits[name]
    out = np.empty(records_bound(len(users), *columns.shape[::-1]), np.uint8)
    offsets = np.empty(len(users) + 1, np.int64)
    pack_records(users, np.asarray(starts, np.int64), columns, out, offsets)
    return out[: offsets[-1]], np.diff(offsets)


def _projection(layout: Layout) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Columns to keep under each schema, their number, and where each field then is."""
    columns_of, names = layout.columns_of, layout.names
    schemas = columns_of.shape[1]
    kept = np.full((schemas, 2 + len(names)), -1, np.int64)
    counts = np.empty(schemas, np.int64)
    tables: list[list[int]] = []
    for s in range(schemas):
        there = sorted({TIMESTAMP, ARRIVAL, *columns_of[:, s].tolist()} - {-1})
        kept[s, : len(there)], counts[s] = there, len(there)
        tables.append([there.index(c) if c >= 0 else -1 for c in columns_of[:, s].tolist()])
    return kept, counts, tables


def _message(
    layout: Layout, last_n: int, oldest: int, tables: list[list[int]],
    rows: tuple[np.ndarray, ...], schemas: np.ndarray, lengths: np.ndarray, records: np.ndarray,
) -> bytes:  # fmt: skip
    names = layout.names
    fields = [name for name in names if name != "timestamp"]
    plain = [0 if name == "timestamp" else 2 + fields.index(name) for name in names]
    description = json.dumps(
        {
            "names": names,
            "dtypes": [DTYPE_NAMES[dtype] for dtype in layout.dtypes],
            "defaults": layout.defaults.tolist(),
            "last_n": last_n,
            "oldest": oldest,
            "columns": [plain, *tables],
            "columns_in": [2 + len(fields), *(2 + max([*table, 1]) - 1 for table in tables)],
            "rows": len(rows[0]),
            "records": len(lengths),
        },
        separators=(",", ":"),
    ).encode()
    parts: list[Any] = [
        MAGIC, bytes(4), len(description).to_bytes(4, "little"), description,
        *(np.ascontiguousarray(array, "<i8") for array in (*rows, schemas, lengths)),
        np.ascontiguousarray(records), bytes(PADDING),
    ]  # fmt: skip
    message = bytearray().join(parts)
    start = len(MAGIC) + 4
    message[start - 4 : start] = checksum(memoryview(message)[start:]).to_bytes(4, "little")
    return bytes(message)


def unpack_batch(message: bytes) -> SequenceBatch:
    """The arrays that ``read`` gives, from what ``pack_batch`` gave.

    Raises:
        DamagedFileError: the message is not whole.
    """
    data = np.frombuffer(message, np.uint8).copy()
    start = len(MAGIC) + 4
    if len(data) < start + 4 + PADDING or data[: len(MAGIC)].tobytes() != MAGIC:
        raise _damaged("it does not start with its magic")
    if checksum(data[start:]) != int.from_bytes(message[start - 4 : start], "little"):
        raise _damaged("its checksum does not fit")
    size = int.from_bytes(message[start : start + 4], "little")
    told = _description(message[start + 4 : start + 4 + size])
    rows, many, last_n = told["rows"], told["records"], told["last_n"]
    at = start + 4 + size
    if at + 8 * (4 * rows + 2 * many) + PADDING > len(data):
        raise _damaged("the sizes of its parts do not match its length")
    numbers = np.frombuffer(message, "<i8", 4 * rows + 2 * many, at).astype(np.int64)
    users, before, version, per_row = (numbers[i * rows : (i + 1) * rows] for i in range(4))
    schemas, lengths = numbers[4 * rows : 4 * rows + many], numbers[4 * rows + many :]
    first = at + numbers.nbytes
    if (
        ((per_row < 0) | (per_row > many)).any()
        or ((lengths < 16) | (lengths > len(data))).any()
        or ((schemas < 0) | (schemas >= len(told["columns_in"]))).any()
        or first + int(lengths.sum()) + PADDING != len(data)
        or int(per_row.sum()) != many
    ):
        raise _damaged("the sizes of its parts do not match its length")
    dtypes = [np.dtype(name) for name in told["dtypes"]]
    counts, columns = _unpack_records(
        data, first, users, before, np.concatenate([[0], np.cumsum(per_row)]), lengths,
        np.array(told["columns_in"], np.int64)[schemas], schemas, told["oldest"], last_n,
        np.array(told["columns"], np.int64).reshape(-1, len(dtypes)).T,
        np.array(told["defaults"], np.uint64), dtypes,
    )  # fmt: skip
    named = dict(zip(told["names"], columns, strict=True))
    return SequenceBatch(users, counts.astype(np.int32), named, version)


def _description(text: bytes) -> dict[str, Any]:
    """The JSON of a message, checked: kernels go by its numbers and check no bounds."""
    try:
        told = json.loads(text)
        rows, many, last_n = (int(told[name]) for name in ("rows", "records", "last_n"))
        names, columns, columns_in = told["names"], told["columns"], told["columns_in"]
        fields = len(names)
        sound = (
            rows >= 0
            and many >= 0
            and 1 <= last_n <= MAX_LAST_N
            and rows * last_n <= MAX_READ_EVENTS
            and 0 <= int(told["oldest"]) <= NO_BOUND
            and len(told["dtypes"]) == len(told["defaults"]) == len(set(names)) == fields
            and set(told["dtypes"]) <= set(DTYPES)
            and all(0 <= int(bits) < 1 << 64 for bits in told["defaults"])
            and len(columns) == len(columns_in)
            and all(2 <= int(most) < 1 << 15 for most in columns_in)
            and all(len(table) == fields for table in columns)
            and all(
                -1 <= int(column) < most
                for table, most in zip(columns, columns_in, strict=True)
                for column in table
            )
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged("its description is wrong") from error
    if not sound:
        raise _damaged("its description is wrong")
    return {**told, "rows": rows, "records": many, "last_n": last_n}


def _unpack_records(
    data: np.ndarray, first: int, users: np.ndarray, before: np.ndarray, starts: np.ndarray,
    lengths: np.ndarray, record_columns: np.ndarray, schemas: np.ndarray, oldest: int, last_n: int,
    columns_of: np.ndarray, defaults: np.ndarray, dtypes: list[np.dtype[Any]],
) -> tuple[np.ndarray, list[np.ndarray]]:  # fmt: skip
    """Lengths and [B, L] arrays from records in a buffer."""
    rows, many = len(users), len(lengths)
    places = first + np.cumsum(lengths) - lengths
    counts = np.zeros(rows, np.int64)
    # a block takes more than 8 bytes, whatever a damaged record says
    blocks = int(lengths.sum()) // 8
    claimed = [int.from_bytes(data[at + 8 : at + 12].tobytes(), "little") for at in places.tolist()]
    most = min(blocks, sum(-(-count // BLOCK) for count in claimed))
    block_arrays = tuple(np.empty((10, most), np.int64))
    dest = np.empty((most, BLOCK), np.int32)
    none, zeros = np.empty(0, np.int64), np.zeros(many, np.int64)
    used, status, record = plan_read(  # type: ignore[call-arg]
        data, places, lengths, zeros, zeros, record_columns, starts, users,
        np.zeros(rows + 1, np.int64), none, np.empty(0, np.bool_),
        before, np.full(rows, oldest, np.int64), np.full(rows, last_n, np.int64),
        np.full(rows, -1, np.int64),
        np.empty((0, many), np.int64), np.zeros(1, np.int64), none,
        *block_arrays, dest, np.empty(0, np.int32), counts,
    )  # fmt: skip
    if status != OK:
        raise _damaged(f"record {record} is wrong")
    sizes = np.array([dtype.itemsize for dtype in dtypes], np.int64)
    padded = (sizes * rows * last_n + 63) & ~63
    outputs = np.cumsum(padded) - padded
    out = np.zeros(int(padded.sum()) + PADDING, np.uint8)
    status, record = unpack_columns(  # type: ignore[call-arg]
        data, used, *block_arrays, dest, schemas, np.ascontiguousarray(columns_of),
        defaults, sizes, outputs, np.arange(rows, dtype=np.int64) * last_n, out,
    )  # fmt: skip
    if status != OK:
        raise _damaged(f"record {record} is wrong")
    width = rows * last_n
    return counts, [
        out[at : at + dtype.itemsize * width].view(dtype).reshape(rows, last_n)
        for at, dtype in zip(outputs.tolist(), dtypes, strict=True)
    ]


def _damaged(what: str) -> DamagedFileError:
    return DamagedFileError(f"the packed answer is damaged: {what}. Ask for it again.")
