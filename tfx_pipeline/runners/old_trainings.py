"""Folders of trainings that were interrupted and that nobody went on with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

KEPT = 3
"""Unfinished trainings that stay; whoever goes back to the settings of one goes on with it."""
_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{8}")


def remove_old_trainings(
    folder: Path, say: Callable[[str], None] = print, kept: int = KEPT
) -> list[Path]:
    """Remove all but the newest unfinished trainings; call it under the work folder's lock.

    A finished training's checkpoints move to its model's artifact, so what lies here belongs to no
    model: each change of data, settings or code after an interruption leaves one behind.

    Args:
        folder: ``training`` of a work folder; need not exist.
        say: Receives a line for each one that is removed.
        kept: How many stay.

    Returns:
        What was removed. What has another kind of name stays: it is not ours.

    Example:
        >>> remove_old_trainings(Path("no-such-folder"))
        []
    """
    if not folder.is_dir():
        return []
    ours = [each for each in folder.iterdir() if each.is_dir() and _NAME.fullmatch(each.name)]
    old = sorted(ours, key=_last_written, reverse=True)[kept:]
    for each in old:
        shutil.rmtree(each, ignore_errors=True)
        say(f"removed the checkpoints of an old unfinished training: {each}")
    return old


def _last_written(training: Path) -> float:
    """When it saved its last checkpoint, or began."""
    written = (training, training / "checkpoints")
    return max(each.stat().st_mtime for each in written if each.exists())
