"""A role must not outlive its supervisor, however that ends."""

from __future__ import annotations

import os
import time
from threading import Thread

SUPERVISOR_PID = "LASER_SUPERVISOR_PID"
"""Environment variable: the process that a role ends with; unset where nobody supervises."""
_EXIT_ORPHANED = 1


def end_with_supervisor(seconds: float = 1.0) -> None:
    """Watch the supervisor from a thread, and end this process soon after it is gone.

    The system tells a child nothing when its parent was killed, but gives it another parent.
    """
    supervisor = os.environ.get(SUPERVISOR_PID)
    if supervisor is None:
        return

    def watch() -> None:
        while os.getppid() == int(supervisor):
            time.sleep(seconds)
        os._exit(_EXIT_ORPHANED)

    Thread(target=watch, name="end-with-supervisor", daemon=True).start()
