"""Decompression of request bodies within a memory budget."""

from __future__ import annotations

import zlib

from serving.runtime.memory_budget import Allowance

_STEP = 2**18


def inflate(body: bytes, allowance: Allowance) -> bytes:
    """A gzip body's content, which may be of several members.

    Args:
        body: As it was sent.
        allowance: Every piece is asked for before it is inflated.

    Raises:
        TooLargeError: It holds more than the request may take.
        OverloadedError: Requests under way hold too much.
        ValueError: It is not gzip, or is truncated.

    Example:
        >>> import gzip
        >>> from serving.runtime.memory_budget import MemoryBudget
        >>> with MemoryBudget(2**20, 2**20).open() as allowance:
        ...     inflate(gzip.compress(b"abc"), allowance)
        b'abc'
    """
    # One block that grows, because many small ones would stay with the allocator. It and the bytes
    # that are returned exist side by side, so each piece is counted twice.
    content = bytearray()
    rest = body
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            allowance.take(2 * _STEP, "the inflated body")
            try:
                piece = member.decompress(rest, _STEP)
            except zlib.error as error:
                raise ValueError(f"the body is not gzip: {error}") from error
            rest = member.unconsumed_tail
            if not piece and not rest and not member.eof:
                raise ValueError("the body is not gzip: it ends too early")
            content += piece
        rest = member.unused_data.lstrip(b"\0")
    return bytes(content)
