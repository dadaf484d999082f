"""Fingerprints of code and data: they enter cache keys, so that no stale result is served."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path


def code_fingerprint(modules: Iterable[str]) -> str:
    """Hash of the source files of modules and packages (with what lies below them).

    Args:
        modules: Dotted names; none of them is executed beyond its parent packages.

    Example:
        >>> code_fingerprint(["laser_features"]) == code_fingerprint(["laser_features"])
        True
    """
    digest = hashlib.sha256()
    for module in sorted(modules):
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ValueError(f"no source file for module {module!r}")
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(f"{module}:{file.name}:{file.stat().st_size}".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def file_fingerprint(path: str | Path) -> str:
    """Hash of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def combine(*parts: str) -> str:
    """One short fingerprint of several.

    Example:
        >>> combine("a", "b") != combine("ab")
        True
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:32]
