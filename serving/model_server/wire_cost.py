"""Estimates the memory of a parsed PredictRequest from its bytes.

A parsed message can be forty times as large as its bytes: an empty string or message is two bytes
on the wire. Only large messages are looked at field by field.
"""

from __future__ import annotations

from collections.abc import Callable

_SMALL = 2**17
_WORST = 40
_STRING = 48
_VARINT = 8
_SCALAR = 16
# Fields of PredictRequest, of its map's entries, and of TensorProto.
_INPUTS = 2
_VALUE = 2
_CONTENT, _FLOATS, _DOUBLES, _STRINGS = 4, 5, 6, 8
_INTEGERS = (7, 10, 11, 13, 16, 17)
_COMPLEX = (9, 12)


def predict_request_cost(message: bytes, limit: int) -> int:
    """An upper estimate of what the parsed message takes, in bytes.

    Args:
        message: The bytes.
        limit: Counting ends soon after this, which bounds the time it takes.

    Raises:
        ValueError: The bytes are not a message.

    Example:
        >>> predict_request_cost(b"", limit=100)
        0
    """
    if len(message) <= _SMALL:
        return _WORST * len(message)
    return _walk(memoryview(message), _request_field, limit)


def _request_field(number: int, content: memoryview, limit: int) -> int:
    return _walk(content, _entry_field, limit) if number == _INPUTS else _WORST * len(content)


def _entry_field(number: int, content: memoryview, limit: int) -> int:
    return _walk(content, _tensor_field, limit) if number == _VALUE else _WORST * len(content)


def _tensor_field(number: int, content: memoryview, limit: int) -> int:
    if number in (_CONTENT, _FLOATS, _DOUBLES) or number in _COMPLEX:
        return len(content)
    if number in _INTEGERS:
        return _VARINT * len(content)
    if number == _STRINGS:
        return _STRING + len(content)
    return _WORST * len(content)


def _walk(
    data: memoryview, cost_of_field: Callable[[int, memoryview, int], int], limit: int
) -> int:
    cost, at, end = 0, 0, len(data)
    while at < end and cost <= limit:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field is longer than its message")
            cost += cost_of_field(tag >> 3, data[at : at + size], limit - cost)
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
            cost += _SCALAR
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            cost += _SCALAR
        else:
            raise ValueError(f"wire type {kind} is not used here")
    return cost


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number does not end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
