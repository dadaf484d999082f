"""Distinguishes server addresses from store directories."""

import os
import re
from pathlib import Path

_ADDRESS = re.compile(r"[^/\s|,]+:\d{1,5}")


def is_address(where: str | os.PathLike[str]) -> bool:
    """Whether ``where`` is a server address; an existing directory of that name takes precedence.

    Example:
        >>> [is_address(each) for each in ("localhost:7420", "a:1|b:1,c:1", "vault", "/data/v:1")]
        [True, True, False, False]
    """
    parts = re.split("[,|]", os.fspath(where))
    return all(_ADDRESS.fullmatch(part.strip()) for part in parts) and not Path(where).exists()
