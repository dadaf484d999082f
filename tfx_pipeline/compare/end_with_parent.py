"""Ends a worker process whose parent is gone."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

EXIT_CODE = 1


def end_with_parent() -> None:
    """Watch the parent from a thread, and end this process when it ends, however it does.

    A pool's workers would otherwise go on with their task after a SIGTERM or SIGKILL of the parent:
    training for hours, in the way of whoever resumes it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        try:
            wait([sentinel])
        finally:  # a worker that cannot watch its parent must not outlive it
            os._exit(EXIT_CODE)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
