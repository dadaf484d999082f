"""Estimates the memory of a parsed JSON document from its bytes."""

from __future__ import annotations

# Bytes of CPython 3.10 to 3.13: a list's slot and a float; an empty list with its first slots;
# an empty dict with its first table; a short string. Rounded up to what the allocator gives.
_VALUE = 32
_LIST = 96
_OBJECT = 256
_STRING = 64
# Of orjson's own tree; it reserves more, but only this much is ever touched.
_NODE = 16
# Bytes of a character in a string that has one beyond the basic plane, an emoji for instance.
_WIDEST = 4


def json_cost(body: bytes) -> int:
    """An upper estimate of what the parsed document takes, without parsing it.

    Example:
        >>> json_cost(b"[1.5, 2.5]") < 300
        True
        >>> json_cost(b"[" + b"[]," * 1000 + b"[]]") > 100_000
        True
    """
    return (
        text_cost(body)
        + _count_values(body) * _VALUE
        + body.count(b"[") * _LIST
        + body.count(b"{") * _OBJECT
        + body.count(b'"') // 2 * _STRING
    )


def tree_cost(body: bytes) -> int:
    """An upper estimate of what orjson takes beside the document while it parses.

    Example:
        >>> tree_cost(b"[1, 2, 3]")
        64
    """
    return (_count_values(body) + body.count(b"[") + body.count(b"{")) * _NODE


def text_cost(body: bytes) -> int:
    """An upper estimate of what the decoded text takes, or all strings in it.

    Example:
        >>> text_cost(b'["e"]'), text_cost("['\u00e9']".encode())
        (5, 24)
    """
    plain = body.isascii() and b"\\u" not in body
    return len(body) if plain else _WIDEST * len(body)


def _count_values(body: bytes) -> int:
    """At least the number of keys, numbers, strings and other values."""
    return body.count(b",") + body.count(b":") + 1
