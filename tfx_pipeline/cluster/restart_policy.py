"""Who is restarted when a role of a cluster ends, and when a run is given up."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from tfx_pipeline.cluster.exit_codes import EXIT_BAD_CLUSTER, EXIT_OTHER_VERSION, EXIT_PORT_IN_USE

EXIT_SERVER_LOST = 75
"""As in ``tfx_pipeline.training.cluster``, which is not imported here: it loads TensorFlow."""
_WINDOW_SECONDS = 600.0
_LONGEST_PAUSE_SECONDS = 30.0
_FATAL = (EXIT_BAD_CLUSTER, EXIT_PORT_IN_USE, EXIT_OTHER_VERSION)


class Action(Enum):
    """What follows from the end of a role."""

    DONE = "the chief has finished"
    FAIL = "what ended it will end it again"
    RESTART_ROLE = "it alone is restarted; its work is given out again"
    RESTART_ALL_BUT_WORKERS = "tables are lost: servers and chief go on from the last checkpoint"


def action_after(job: str, code: int) -> Action:
    """What to do when a role has ended.

    Args:
        job: ``chief``, ``ps`` or ``worker``.
        code: Its exit code; negative is the signal that ended it.

    Example:
        >>> action_after("worker", -9).name, action_after("ps", -9).name
        ('RESTART_ROLE', 'RESTART_ALL_BUT_WORKERS')
    """
    if code in _FATAL:
        return Action.FAIL
    if job == "worker":
        return Action.RESTART_ROLE
    if job == "ps" or code == EXIT_SERVER_LOST or code < 0:
        return Action.RESTART_ALL_BUT_WORKERS
    # A chief that ends by itself has said why: bad input would be as bad the next time.
    return Action.FAIL if code else Action.DONE


@dataclass
class RestartBudget:
    """Counts the ends of each role: a few in ten minutes are faults, more are a cause.

    Args:
        limit: Restarts of one role within ten minutes.
    """

    limit: int
    _ends: dict[str, deque[float]] = field(default_factory=dict)

    def pause(self, role: str, now: float) -> float | None:
        """Seconds to wait before the role is restarted, None if it died too often.

        The first restart is at once; then 1, 2, 4, ... seconds, at most 30.
        """
        ends = self._ends.setdefault(role, deque())
        while ends and now - ends[0] > _WINDOW_SECONDS:
            ends.popleft()
        ends.append(now)
        if len(ends) > self.limit:
            return None
        if len(ends) == 1:
            return 0.0
        return float(min(2.0 ** (len(ends) - 2), _LONGEST_PAUSE_SECONDS))

    def restarts(self, role: str) -> int:
        """How often the role ended in the last ten minutes that were looked at."""
        return len(self._ends.get(role, ()))
