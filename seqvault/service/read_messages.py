"""What frames of the read protocol carry: requests, answers and errors as bytes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from seqvault import errors
from seqvault.codec.frame_kernel import ANSWER_HEAD
from seqvault.read.packed_answer import unpack_batch
from seqvault.sequence_batch import SequenceBatch
from seqvault.service.wire import error_named

DENSE, DENSE_ZSTD, PACKED = 0, 1, 2  # encodings, as in seqvault.proto
ONE_BOUND, WITH_VERSION, WITH_SCENARIOS, WITH_ACTIONS, WITH_FIELDS = 1, 2, 4, 8, 16
_KNOWN = ONE_BOUND | WITH_VERSION | WITH_SCENARIOS | WITH_ACTIONS | WITH_FIELDS
_READ = struct.Struct("<IIIHHIIII")
_ANSWER = struct.Struct("<HHIQII")
_WELCOME = struct.Struct("<16sII")
_LENGTHS = struct.Struct("<HH")
INT64 = np.dtype("<i8")


@dataclass
class ReadMessage:
    """A read as it was sent; its arrays are still bytes.

    Args:
        seconds: that the caller waits; 0: as long as it takes.
        users, before, version: int64 values; ``before`` has one if ``one_bound``.
        names: of the fields, each behind its length; None: all.
        scenarios, actions: int64 values that are kept; None: all.
    """

    seconds: float
    last_n: int
    encoding: int
    users: bytes
    before: bytes
    one_bound: bool
    version: bytes | None = None
    scenarios: bytes | None = None
    actions: bytes | None = None
    names: bytes | None = None

    @property
    def rows(self) -> int:
        """Users asked for."""
        return len(self.users) // 8

    @property
    def plain(self) -> bool:
        """Whether others that ask for as many events and the same fields can be read with it."""
        return (
            self.encoding == DENSE
            and self.version is None
            and self.scenarios is None
            and self.actions is None
        )

    @classmethod
    def parse(cls, body: memoryview) -> "ReadMessage":
        """The message of a frame's body.

        Raises:
            ProtocolError: it is none.
        """
        if len(body) < _READ.size:
            raise errors.ProtocolError(f"a read has at least {_READ.size} bytes, not {len(body)}.")
        wait, rows, last_n, encoding, flags, scenarios, actions, names, spare = _READ.unpack_from(
            body
        )
        if flags & ~_KNOWN or spare:
            raise errors.ProtocolError(f"a read has flags {flags:#x}, which are not known here.")
        sizes = (
            8 * rows,
            8 if flags & ONE_BOUND else 8 * rows,
            8 * rows if flags & WITH_VERSION else 0,
            8 * scenarios,
            8 * actions,
            names,
        )
        if _READ.size + sum(sizes) != len(body):
            raise errors.ProtocolError(
                f"a read that says it has {_READ.size + sum(sizes)} bytes has {len(body)}."
            )
        parts, at = [], _READ.size
        for size in sizes:
            parts.append(bytes(body[at : at + size]))
            at += size
        return cls(
            wait / 1000,
            last_n,
            encoding,
            parts[0],
            parts[1],
            bool(flags & ONE_BOUND),
            parts[2] if flags & WITH_VERSION else None,
            parts[3] if flags & WITH_SCENARIOS else None,
            parts[4] if flags & WITH_ACTIONS else None,
            parts[5] if flags & WITH_FIELDS else None,
        )

    def parts(self) -> list[bytes]:
        """The body of a frame."""
        flags = ONE_BOUND if self.one_bound else 0
        tail = b""
        counts = []
        for flag, part, size in (
            (WITH_VERSION, self.version, 0),
            (WITH_SCENARIOS, self.scenarios, 8),
            (WITH_ACTIONS, self.actions, 8),
            (WITH_FIELDS, self.names, 1),
        ):
            if size:
                counts.append(len(part or b"") // size)
            if part is not None:
                flags |= flag
                tail += part
        head = _READ.pack(
            min(round(self.seconds * 1000), 0xFFFFFFFF), self.rows, self.last_n, self.encoding,
            flags, *counts, 0,
        )  # fmt: skip
        return [head, self.users, self.before, tail]

    def arguments(self) -> dict[str, Any]:
        """Those of ``SeqVault.read``.

        Raises:
            ProtocolError: the names of the fields are none.
        """
        before = np.frombuffer(self.before, INT64)
        return {
            "user_ids": np.frombuffer(bytearray(self.users), INT64),
            "before": before[0] if self.one_bound else before,
            "last_n": self.last_n,
            "scenarios": _numbers(self.scenarios),
            "actions": _numbers(self.actions),
            "fields": None if self.names is None else names_of(self.names),
            "version": None if self.version is None else np.frombuffer(self.version, INT64),
        }


def _numbers(values: bytes | None) -> list[int] | None:
    return None if values is None else np.frombuffer(values, INT64).tolist()


def names_of(data: bytes) -> list[str]:
    """Names, each behind its length as uint16.

    Raises:
        ProtocolError: they do not end where the data does, or are no UTF-8.
    """
    names, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        name = data[at + 2 : at + 2 + size]
        if at + 2 + size > len(data):
            raise errors.ProtocolError("the names of the fields end in the middle of one.")
        try:
            names.append(name.decode())
        except UnicodeDecodeError:
            raise errors.ProtocolError(f"the name of a field is no UTF-8: {name!r}.") from None
        at += 2 + size
    return names


def names_to_bytes(names: Sequence[str]) -> bytes:
    """What ``names_of`` takes."""
    words = [name.encode() for name in names]
    return b"".join(len(word).to_bytes(2, "little") + word for word in words)


def welcome(instance: bytes, most: int, at_a_time: int) -> bytes:
    """What a server says of itself: which it is, the largest body that it takes, and how many
    requests of a connection it works on at a time."""
    return _WELCOME.pack(instance, most, at_a_time)


def welcomed(body: np.ndarray) -> tuple[bytes, int, int]:
    """What ``welcome`` was given."""
    instance, most, at_a_time = _WELCOME.unpack_from(body.data)
    return instance, most, at_a_time


def error_parts(error: Exception) -> list[bytes]:
    """The body of a frame that tells an error; one of no type of ours is told without words."""
    known = isinstance(error, errors.SeqVaultError)
    name = type(error).__name__ if known else errors.SeqVaultError.__name__
    text = str(error) if known else "the server failed; see its log."
    return [len(name).to_bytes(2, "little"), name.encode(), text.encode()]


def error_of(body: bytes) -> errors.SeqVaultError:
    """The error that ``error_parts`` was given."""
    size = int.from_bytes(body[:2], "little")
    name, text = (part.decode(errors="replace") for part in (body[2 : 2 + size], body[2 + size :]))
    return error_named(name)(text)


def other_answer(encoding: int, data: bytes) -> list[bytes]:
    """The body of an answer in another encoding than ``DENSE``."""
    return [_ANSWER.pack(encoding, 0, 0, 0, 0, 0), data]


def batch_of(body: np.ndarray, users: np.ndarray, last_n: int) -> SequenceBatch:
    """The [B, L] arrays of an answer.

    Args:
        body: uint8 of the frame, writeable; the answer may be views of it.
        users: int64 [B], as asked for.
        last_n: as asked for.

    Raises:
        ProtocolError: it is no answer to that question.
        DamagedFileError: a packed answer is not whole.
    """
    try:
        return _batch_of(body, users, last_n)
    except (struct.error, TypeError, ValueError, zstandard.ZstdError) as error:
        raise errors.ProtocolError(f"an answer is not what it says ({error}).") from error


def _batch_of(body: np.ndarray, users: np.ndarray, last_n: int) -> SequenceBatch:
    if len(body) < ANSWER_HEAD:
        raise errors.ProtocolError(f"an answer has at least {ANSWER_HEAD} bytes, not {len(body)}.")
    encoding, _, rows, events, described, _ = _ANSWER.unpack_from(body.data)
    if encoding == PACKED:
        return unpack_batch(bytes(body.data[ANSWER_HEAD:]))
    if encoding == DENSE_ZSTD:
        whole = zstandard.ZstdDecompressor().decompress(body.data[ANSWER_HEAD:])
        return _batch_of(np.frombuffer(bytearray(whole), np.uint8), users, last_n)
    at = ANSWER_HEAD + _padded(described)
    lengths: np.ndarray = np.ndarray(rows, "<i4", body, at)
    at += _padded(4 * rows)
    version: np.ndarray = np.ndarray(rows, INT64, body, at)
    at += 8 * rows
    if rows != len(users) or int(lengths.sum()) != events:
        raise errors.ProtocolError(f"an answer of {rows} users came to a read of {len(users)}.")
    columns: dict[str, np.ndarray] = {}
    full = events == rows * last_n
    mask = None if full or rows == 1 else np.arange(last_n)[None, :] < lengths[:, None]
    for name, dtype in _described(bytes(body[ANSWER_HEAD : ANSWER_HEAD + described])):
        values: np.ndarray = np.ndarray(events, dtype, body, at)
        at += _padded(values.nbytes)
        if full:
            columns[name] = values.reshape(rows, last_n)
            continue
        columns[name] = np.zeros((rows, last_n), dtype)
        if mask is None:
            columns[name][0, :events] = values
        else:
            columns[name][mask] = values
    return SequenceBatch(users, lengths, columns, version)


def _padded(size: int) -> int:
    return (size + 7) & ~7


_SEEN: dict[bytes, list[tuple[str, np.dtype[Any]]]] = {}  # descriptions taken apart before
_MOST_SEEN = 256


def _described(data: bytes) -> list[tuple[str, np.dtype[Any]]]:
    """Names and types of the fields of an answer."""
    known = _SEEN.get(data)
    if known is not None:
        return known
    fields, at = [], 0
    while at < len(data):
        name, kind = _LENGTHS.unpack_from(data, at)
        at += 4
        word, dtype = data[at : at + name].decode(), data[at + name : at + name + kind].decode()
        fields.append((word, np.dtype(dtype).newbyteorder("<")))
        at += name + kind
    if len(_SEEN) >= _MOST_SEEN:
        _SEEN.clear()
    _SEEN[data] = fields
    return fields
