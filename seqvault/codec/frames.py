"""Frames of the read protocol, see ``docs/seqvault/protocol.md``."""

import struct
from typing import Any

import numpy as np

from seqvault.codec.primitives import checksum

MAGIC = b"SQVR"
PROTOCOL = 1  # its version
HEADER = 24  # bytes before a frame's body
CHECKED_FROM = 8  # the checksum is of all bytes from here on
HELLO, WELCOME, READ, ANSWER, ERROR = 1, 2, 3, 4, 5  # kinds
_HEADER = struct.Struct("<4sIBBHIQ")
_MAGIC_NUMBER = int.from_bytes(MAGIC, "little")
# of an answer, as ``write_answers`` takes it
ANSWER_START = np.array([_MAGIC_NUMBER, PROTOCOL | ANSWER << 8], np.int64)


def frame(kind: int, number: int, *parts: bytes) -> bytearray:
    """A whole frame.

    Args:
        kind: what it is, for instance ``READ``.
        number: of the request that it is, or answers.
        parts: of the body.

    Example:
        >>> bytes(frame(HELLO, 0, b"secret"))[:4]
        b'SQVR'
    """
    size = sum(map(len, parts))
    made = bytearray().join((_HEADER.pack(MAGIC, 0, PROTOCOL, kind, 0, size, number), *parts))
    struct.pack_into("<I", made, 4, checksum(memoryview(made)[CHECKED_FROM:]))
    return made


def header_of(data: bytearray | memoryview) -> tuple[bytes, int, int, int, int]:
    """Magic, version, kind, bytes of the body and number of the frame at the start of ``data``."""
    magic, _, version, kind, _, size, number = _HEADER.unpack_from(data)
    return magic, version, kind, size, number


def is_whole(data: Any) -> bool:
    """Whether the bytes of a frame have the checksum that it promises."""
    said = int.from_bytes(bytes(data[4:8]), "little")
    return checksum(data[CHECKED_FROM:]) == said
