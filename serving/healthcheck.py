"""Exit code 0 if a URL answers 200: for images that have no curl.

python -m serving.healthcheck http://127.0.0.1:8080/readyz
"""

from __future__ import annotations

import sys
import urllib.request
from http.client import HTTPException


def healthy(url: str, seconds: float = 2.0) -> bool:
    """Whether the URL answers 200 in time.

    Example:
        >>> healthy("http://127.0.0.1:1/readyz")
        False
    """
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):  # no server of HTTP, too
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(sys.argv[1]) else 1)
