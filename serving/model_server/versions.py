"""Which versions of a model lie on disk, and which of them should be served."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_INT64 = range(-(2**63), 2**63)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions to serve: the newest ``latest``, ``specific`` ones, or all.

    Attributes:
        latest: Number of newest versions; 0 means that ``specific`` or ``all`` holds instead.
        specific: Version numbers to serve, if they are there.
        all: Serve every version.

    Example:
        >>> VersionPolicy().choose([3, 12, 7])
        [12]
        >>> VersionPolicy(latest=0, specific=(3, 4)).choose([3, 12, 7])
        [3]
    """

    latest: int = 1
    specific: tuple[int, ...] = ()
    all: bool = False

    def choose(self, versions: Iterable[int]) -> list[int]:
        """The versions to serve among those on disk, newest first."""
        newest_first = sorted(versions, reverse=True)
        if self.all:
            return newest_first
        if self.specific:
            return [version for version in newest_first if version in self.specific]
        return newest_first[: self.latest]


@dataclass(frozen=True)
class ModelConfig:
    """One model to serve.

    Attributes:
        name: Name that requests ask for.
        base_path: Directory that holds one numbered directory per version.
        policy: Which versions to serve.
        labels: Version numbers by label, for requests that name a label.
    """

    name: str
    base_path: Path
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)


def list_versions(base_path: Path) -> dict[int, Path]:
    """Version directories by number; names that are not int64 are skipped.

    Raises:
        OSError: The base path is missing or cannot be read.
    """
    versions: dict[int, Path] = {}
    for name in sorted(entry.name for entry in base_path.iterdir() if entry.is_dir()):
        if not _INTEGER.fullmatch(name) or int(name) not in _INT64:
            continue
        number = int(name)
        if number in versions:
            log.warning(
                "Duplicate version directories detected: %s and %s; the latter is served",
                versions[number],
                base_path / name,
            )
        versions[number] = base_path / name
    return versions
