"""Files of the side information of items, and the checks of their tables."""

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.codec.primitives import checksum
from seqvault.disk.files import Files
from seqvault.errors import (
    DamagedFileError,
    InvalidRequestError,
    UnknownFieldError,
    WrongTypeError,
)
from seqvault.give_way import give_way

MAGIC = b"SEQVITM\x01"
KEY = "item_id"
_HEAD_BYTES = 24  # magic, length of the body, its checksum
_FREED_AT_ONCE = 4 << 20  # bytes; to free hundreds of MB at once takes 10 ms


def path_of(directory: str, number: int) -> str:
    """Path of an item file."""
    return f"{directory}/items/{number:010d}.items"


def to_table(items: Any) -> pa.Table:
    """Makes a checked Arrow table of item rows.

    Raises:
        WrongTypeError: not a table, or a column of a type that cannot be stored.
        UnknownFieldError: no ``item_id`` column.
        InvalidRequestError: missing values, or an item given twice.
    """
    if isinstance(items, pa.RecordBatch):
        table = pa.Table.from_batches([items])
    elif isinstance(items, pa.Table):
        table = items
    elif isinstance(items, dict):
        table = pa.table(
            {
                name: pa.FixedSizeListArray.from_arrays(
                    pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
                )
                if isinstance(values, np.ndarray) and values.ndim == 2
                else values
                for name, values in items.items()
            }
        )
    elif hasattr(items, "columns"):
        table = pa.Table.from_pandas(items, preserve_index=False)
    else:
        raise WrongTypeError(
            f"items have type {type(items).__name__}; expected an Arrow table, a record batch, "
            "a pandas data frame or a dict of arrays."
        )
    if KEY not in table.column_names:
        raise UnknownFieldError(f"items have no column {KEY!r}; they have {table.column_names}.")
    if table.schema.field(KEY).type != pa.int64():
        raise WrongTypeError(
            f"column {KEY!r} has type {table.schema.field(KEY).type}; expected int64."
        )
    for field in table.schema:
        kind = field.type
        vector = pa.types.is_fixed_size_list(kind) and (
            pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
        )
        if not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_string(kind)
            or pa.types.is_large_string(kind)
            or vector
        ):
            raise WrongTypeError(
                f"item column {field.name!r} has type {kind}; expected an integer, a float, a "
                "string or a fixed-size list of numbers."
            )
        if table.column(field.name).null_count:
            raise InvalidRequestError(
                f"item column {field.name!r} has missing values; fill them before the call."
            )
    if len(table.column(KEY).unique()) != len(table):
        raise InvalidRequestError(f"an item is given twice in one call; {KEY!r} must be unique.")
    return table.replace_schema_metadata(None)


def describe(schema: pa.Schema) -> str:
    """Names and types of columns, for messages."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def save(
    files: Files,
    directory: str,
    number: int,
    table: pa.Table,
    fence: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Writes an item file, durable when this returns; ``fence`` as of ``Files.publish``.

    It takes one core, so that readers keep theirs, and copies nothing, which Python would do with
    its lock held.
    """
    batches = 1 + sum(table.column(name).num_chunks for name in table.column_names)
    # zstd adds at most a 256th to what it cannot compress; only what is written takes memory
    most = table.nbytes + table.nbytes // 64 + (batches << 16) + (1 << 20)
    memory = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    body = memoryview(memory)[: sink.tell()]
    files.publish(path_of(directory, number), [_head(body), body], fence)
    for first in range(0, most, _FREED_AT_ONCE):
        memory.madvise(mmap.MADV_DONTNEED, first, min(_FREED_AT_ONCE, most - first))
        give_way()


def load(
    files: Files,
    directory: str,
    number: int,
    expected: pa.Schema | None = None,
    use_threads: bool = True,
) -> pa.Table:
    """Reads and checks an item file.

    Args:
        expected: columns of the files before it; None: it is the first.
        use_threads: whether it may take all cores; False while there are readers.

    Raises:
        DamagedFileError: it is not what was written, or has other columns than those
            before it.
    """
    path = path_of(directory, number)
    fd = files.open_read(path)
    try:
        data = files.read_all(fd, files.size(fd), 0)
    finally:
        files.close(fd)
    body = memoryview(data[_HEAD_BYTES:])  # type: ignore[arg-type]
    if data[:_HEAD_BYTES].tobytes() != _head(body):
        raise DamagedFileError(f"{path} is damaged: its checksum does not fit; restore it.")
    try:
        options = pa.ipc.IpcReadOptions(use_threads=use_threads)
        with pa.ipc.open_stream(pa.py_buffer(body), options=options) as reader:
            table = reader.read_all()
        table.validate(full=True)
        table = to_table(table)
    except (pa.ArrowException, OSError, InvalidRequestError) as error:
        raise DamagedFileError(
            f"{path} is damaged from byte {_HEAD_BYTES} on, though its checksum fits: {error}. "
            "Restore it."
        ) from error
    if expected is not None and not table.schema.equals(expected):
        raise DamagedFileError(
            f"{path} has the columns {describe(table.schema)}; the item files before it have "
            f"{describe(expected)}. Restore the store from a snapshot or a replica."
        )
    return table


def _head(body: memoryview) -> bytes:
    """What stands before the body of a file."""
    return MAGIC + len(body).to_bytes(8, "little") + checksum(body).to_bytes(8, "little")
