"""A long call on the server, answered with how far it is and then with what came of it."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from seqvault.progress import Progress, untold
from seqvault.service import seqvault_pb2 as pb

TELL_SECONDS = 0.1  # between two messages

Work = Callable[[Progress], dict[str, Any]]


def replies(work: Work, tell_progress: bool) -> Iterator[pb.WorkReply]:
    """Does the work; what it returns is in the last message, what it raises is raised.

    A caller who goes away does not end it.
    """
    if not tell_progress:
        yield _answer(work(untold))
        return
    messages: queue.SimpleQueue[pb.WorkReply | BaseException] = queue.SimpleQueue()
    threading.Thread(target=_run, args=(work, messages), name="seqvault-work", daemon=True).start()
    while True:
        message = messages.get()
        if isinstance(message, BaseException):
            raise message
        yield message
        if message.json:
            return


def _run(work: Work, messages: queue.SimpleQueue[pb.WorkReply | BaseException]) -> None:
    told = float("-inf")

    def tell(unit: str, done: int, total: int) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            messages.put(pb.WorkReply(unit=unit, done=done, total=total))

    try:
        messages.put(_answer(work(tell)))
    except BaseException as error:  # raised again by the thread that answers
        messages.put(error)


def _answer(value: dict[str, Any]) -> pb.WorkReply:
    return pb.WorkReply(json=json.dumps(value))
