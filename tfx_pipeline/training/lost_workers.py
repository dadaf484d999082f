"""A chief whose workers are all lost: without a bound it would wait for them for ever."""

from __future__ import annotations

import signal
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


class _WorkersLost(BaseException):
    """Raised wherever the main thread is; Keras and AutoGraph would wrap an ``Exception``."""


@contextmanager
def end_when_workers_are_lost(
    cluster: Cluster | None,
    say: Callable[[str], None] = print,
    seconds: float = LOST_SECONDS,
    between: float = _BETWEEN_SECONDS,
) -> Iterator[None]:
    """Raise in the main thread once no worker has taken a connection for some time.

    TensorFlow's coordinator gives a lost worker's files to the others, and waits where there is
    none left. Call it in the main thread; in another one nothing is watched.

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

    def give_up(*_: object) -> None:
        # The watcher's last signal may arrive when the block has ended well.
        if not ended.is_set():
            raise _WorkersLost

    def watch() -> None:
        lost_since: float | None = None
        while not ended.wait(between):
            if any(map(answers, workers)):
                if lost_since is not None:
                    say("a worker is back: training goes on")
                lost_since = None
            elif lost_since is None:
                lost_since = time.monotonic()
                say(f"all workers are lost: waiting {seconds:.0f} s for one to come back")
            elif time.monotonic() - lost_since >= seconds:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                return

    before = signal.signal(signal.SIGUSR1, give_up)
    watcher = threading.Thread(target=watch, name="lost-workers", daemon=True)
    watcher.start()
    try:
        yield
    except _WorkersLost:
        shown = ", ".join(workers[:3]) + (", ..." if len(workers) > 3 else "")
        raise ClusterError(
            f"none of the {len(workers)} workers ({shown}) took a connection for {seconds:.0f} s: "
            "start them again, then the same command, which goes on from the last checkpoint",
            EXIT_WORKERS_LOST,
        ) from None
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)
