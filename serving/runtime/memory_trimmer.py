"""Returns memory to the system after large requests."""

from __future__ import annotations

from serving.runtime.malloc import return_freed
from serving.runtime.memory_budget import MemoryBudget
from serving.runtime.steady_thread import SteadyThread

# Ordinary requests together stay below this.
_LARGE = 8 * 2**20
_SECONDS = 0.5


class MemoryTrimmer:
    """Looks twice a second whether large requests were under way, and returns what they freed.

    Otherwise each thread keeps what its largest request took, and a few such requests raise the
    memory of a process for good.

    Args:
        budget: Of the requests.

    Example:
        >>> from serving.runtime.memory_budget import MemoryBudget
        >>> trimmer = MemoryTrimmer(MemoryBudget(2**20, 2**20))
        >>> trimmer.start()
        >>> trimmer.stop()
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._thread = SteadyThread("memory", self._look, _SECONDS)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._thread.stop()

    def _look(self) -> None:
        if self._budget.take_highest() >= _LARGE:
            return_freed()
