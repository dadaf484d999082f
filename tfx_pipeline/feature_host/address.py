"""Addresses of feature hosts."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"([^\s:/\[\]]+):(\d{1,5})", re.ASCII)


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port".

    The native reader of streams knows IPv4 alone, and ends the process at an address that it
    cannot read: so nothing else passes here.

    Raises:
        ValueError: Says what is wrong.

    Example:
        >>> parse_address("features-0:7440")
        ('features-0', 7440)
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise ValueError(
            f"{text!r} is not an address: give host:port, with a name or an IPv4 address and a "
            "port up to 65535"
        )
    return found[1], int(found[2])
