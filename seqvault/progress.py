"""The ``Progress`` callback of long calls."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Takes a unit or stage ("bytes", "events"), how much is done and how much there is in all.

Called after each part of the work, in the caller's thread. A call may go through
several units, one after the other; what it raises ends the call as an error would.
"""


def no_progress(unit: str, done: int, total: int) -> None:
    """The default ``Progress``: ignores every report."""
