"""Fingerprints of code and data: they enter cache keys, so that no stale result is served."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from tfx_pipeline.reached_modules import ROOMS, reached_files

# A newer version of these may compute something else.
_LIBRARIES = (
    "apache-beam", "keras", "numpy", "pyarrow", "tensorflow", "tensorflow-data-validation",
    "tensorflow-model-analysis", "tensorflow-transform", "tfx",
)  # fmt: skip


def code_fingerprint(modules: Iterable[str], rooms: Iterable[str] = ROOMS) -> str:
    """Hash of all source files that modules reach by their imports, and of libraries' versions.

    Args:
        modules: Dotted names of what runs; none of them is executed.
        rooms: Top-level packages whose files count.

    Example:
        >>> code_fingerprint(["laser_features"]) == code_fingerprint(["laser_features"])
        True
    """
    digest = hashlib.sha256(_library_versions().encode())
    for module, file in sorted(reached_files(modules, rooms).items()):
        content = file.read_bytes()
        digest.update(f"{module}:{len(content)}:".encode())
        digest.update(content)
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


@cache
def _library_versions() -> str:
    versions = {each.metadata["Name"].lower(): each.version for each in metadata.distributions()}
    known = [f"{name}=={versions.get(name)}" for name in _LIBRARIES]
    return " ".join([f"python=={platform.python_version()}", *known])
