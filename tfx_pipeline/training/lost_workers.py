"""A chief whose workers are all lost: without a bound it would wait for them for ever."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfx_pipeline.cluster.exit_codes import EXIT_WORKERS_LOST
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.training.check_cluster import answers
from tfx_pipeline.training.cluster import Cluster

LOST_SECONDS = 600.0
"""How long a chief waits for the first of its workers to come back."""
_BETWEEN_SECONDS = 10.0
_GRACE_SECONDS = 10.0
"""How long the main thread may take to hear of it."""
_LEAST_FROZEN_SECONDS = 60.0
"""No call into TensorFlow keeps the interpreter that long, but one that waits for the lost."""


class _WorkersLost(BaseException):
    """Raised wherever the main thread is; Keras and AutoGraph would wrap an ``Exception``."""


@contextmanager
def end_when_workers_are_lost(
    cluster: Cluster | None,
    say: Callable[[str], None] = print,
    seconds: float = LOST_SECONDS,
    between: float = _BETWEEN_SECONDS,
) -> Iterator[None]:
    """Raise in the main thread once no worker has given an answer for some time.

    TensorFlow's coordinator gives a lost worker's files to the others, and waits where there is
    none left. Call it in the main thread; in another one nothing is watched. A main thread that is
    inside TensorFlow, waiting for a worker that hangs, hears no signal: then the process ends here,
    with the same line and code. TensorFlow registers a function at all workers without letting go
    of the interpreter; if one hangs just then, nothing of Python runs any more, and the process
    ends with exit code 1 and its stacks after three times ``seconds``, at least a minute.

    Args:
        cluster: Whose workers; None watches nothing.
        say: Receives a line when the last worker is lost, and when one is back.
        seconds: How long all of them may be away.
        between: Seconds between two looks.

    Raises:
        ClusterError: One line, with ``EXIT_WORKERS_LOST``; what was trained since the last
            checkpoint is lost.
    """
    if cluster is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    workers = cluster.addresses["worker"]
    ended = threading.Event()
    shown = ", ".join(workers[:3]) + (", ..." if len(workers) > 3 else "")
    problem = (
        f"none of the {len(workers)} workers ({shown}) gave an answer for {seconds:.0f} s: start "
        "them again, then the same command, which goes on from the last checkpoint"
    )

    def give_up(*_: object) -> None:
        # The watcher's last signal may arrive when the block has ended well.
        if not ended.is_set():
            raise _WorkersLost

    def watch() -> None:
        lost_since: float | None = None
        frozen = max(3 * seconds, _LEAST_FROZEN_SECONDS)
        while not ended.wait(between):
            faulthandler.dump_traceback_later(frozen, exit=True, file=2)
            if any(map(answers, workers)):
                if lost_since is not None:
                    say("a worker is back: training goes on")
                lost_since = None
            elif lost_since is None:
                lost_since = time.monotonic()
                say(f"all workers are lost: waiting {seconds:.0f} s for one to come back")
            elif time.monotonic() - lost_since >= seconds:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                if not ended.wait(_GRACE_SECONDS):
                    print(problem, file=sys.stderr, flush=True)
                    os._exit(EXIT_WORKERS_LOST)
                return

    before = signal.signal(signal.SIGUSR1, give_up)
    watcher = threading.Thread(target=watch, name="lost-workers", daemon=True)
    watcher.start()
    try:
        yield
    except _WorkersLost:
        raise ClusterError(problem, EXIT_WORKERS_LOST) from None
    finally:
        ended.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGUSR1, before)
