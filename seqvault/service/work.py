"""A long call on the server: streams progress, then the result."""

import json
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

from seqvault.errors import ServerUnavailableError
from seqvault.progress import Progress
from seqvault.service import seqvault_pb2 as pb
from seqvault.service.work_pool import LOOK_SECONDS, WorkPool

TELL_SECONDS = 0.1  # between two messages

Work = Callable[[Progress], dict[str, Any]]
Messages = queue.SimpleQueue[pb.WorkReply | BaseException]


def replies(
    work: Work, tell_progress: bool, pool: WorkPool, wanted: Callable[[], bool]
) -> Iterator[pb.WorkReply]:
    """Runs the work in a worker; yields progress, then the result, or raises its exception.

    If the caller disconnects, work that has begun continues, but the waiting thread is released.

    Args:
        work: called with the ``Progress`` to report to.
        tell_progress: whether the caller asked for progress.
        pool: whose worker does it.
        wanted: whether the caller is still there.

    Raises:
        LimitError: too many calls are in progress.
        ServerUnavailableError: the caller went away.
    """
    pool.check_room()
    messages: Messages = queue.SimpleQueue()
    future = pool.submit(_run, work, tell_progress, messages)
    while True:
        try:
            message = messages.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if wanted():
                continue
            future.cancel()
            raise ServerUnavailableError("the caller went away before the answer.") from None
        if isinstance(message, BaseException):
            raise message
        yield message
        if message.json:
            return


def _run(work: Work, tell_progress: bool, messages: Messages) -> None:
    told = float("-inf")

    def tell(unit: str, done: int, total: int) -> None:
        nonlocal told
        if tell_progress and (done == total or time.monotonic() - told >= TELL_SECONDS):
            told = time.monotonic()
            messages.put(pb.WorkReply(unit=unit, done=done, total=total))

    try:
        messages.put(pb.WorkReply(json=json.dumps(work(tell))))
    except BaseException as error:  # raised again by the thread that answers
        messages.put(error)
