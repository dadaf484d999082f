"""Finds the source files that a module imports, for the cache key of its results.

Imports are found in the source text, without executing it; imports inside functions count.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOMS = ("components", "laser_features", "laser_keras", "seqvault", "serving", "tfx_pipeline")


def reached_files(modules: Iterable[str], rooms: Iterable[str] = ROOMS) -> dict[str, Path]:
    """Source files of modules and of all that they import, directly or not, within the rooms.

    Args:
        modules: Dotted names to begin with; none is executed.
        rooms: Top-level packages to follow imports into.

    Returns:
        Files by dotted name. The packages that a module lies in are there too: importing it runs
        their ``__init__``.

    Raises:
        ValueError: A module to begin with has no source file.
    """
    allowed = frozenset(rooms)
    found: dict[str, Path] = {}
    ahead = list(modules)
    for module in ahead:
        if _file_of(module) is None:
            raise ValueError(f"no source file for module {module!r}")
    while ahead:
        module = ahead.pop()
        file = _file_of(module)
        if file is None or module in found:
            continue
        found[module] = file
        package, _, _ = module.rpartition(".")
        if package:
            ahead.append(package)
        ahead += [name for name in _imports(file, module) if name.split(".")[0] in allowed]
    return found


def _imports(file: Path, module: str) -> Iterator[str]:
    """Dotted names that a file may import; names of other things are ignored."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - max(node.level - 1, 0)]
            base = ".".join([*above, node.module or ""]).rstrip(".") if node.level else node.module
            yield str(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    folder = _folder_of(top)
    if folder is None:
        return None
    path = folder.joinpath(*rest)
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


@cache
def _folder_of(top: str) -> Path | None:
    spec = importlib.util.find_spec(top)
    return Path(spec.origin).parent if spec and spec.origin else None
