"""Tells URIs from paths; nothing slow is imported for it."""

from __future__ import annotations

import os
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(where: str | os.PathLike[str]) -> str | None:
    """The scheme of a URI, None for a path.

    Example:
        >>> scheme_of("s3://bucket/folder"), scheme_of("/data/s3:/bucket")
        ('s3', None)
    """
    found = _SCHEME.match(os.fspath(where))
    return found[1].lower() if found else None
