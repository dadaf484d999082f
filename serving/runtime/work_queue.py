"""A bounded queue for a thread pool that drops work past its deadline."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serving.runtime.call import Call
from serving.runtime.errors import (
    AbandonedError,
    DeadlinePassedError,
    OverloadedError,
    let_go,
)

Result = TypeVar("Result")
# Weight of the newest duration in the running mean.
_NEWEST = 0.1


@dataclass(eq=False)
class _Entry:
    work: Callable[[], Any]
    call: Call
    release: Callable[[], object]
    future: asyncio.Future[Any] = field(repr=False)
    begun: bool = False


class WorkQueue:
    """Runs work in threads, for the coroutines of one event loop.

    Under overload a FIFO queue answers every request too late. So the queue is limited to what can
    be finished before the deadlines (by the mean duration of work), the oldest requests are refused
    first, and while more wait than there are threads the newest are started first: those can still
    be answered in time. Work is never started after its deadline or for a caller that has
    disconnected.

    Not safe to use from other threads than the loop's.

    Args:
        threads: Work done at once.
        max_waiting: Work that may wait.
        name: Of the threads, and of the queue in messages.
    """

    def __init__(self, threads: int, max_waiting: int, name: str) -> None:
        self._threads = threads
        self._max_waiting = max_waiting
        self._name = name
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._waiting: deque[_Entry] = deque()
        self._running = 0
        self._seconds = 0.0
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Threads at work, among them those whose caller is gone."""
        return self._running

    @property
    def expected_seconds(self) -> float:
        """Running mean of how long work takes."""
        return self._seconds

    async def run(
        self,
        work: Callable[[], Result],
        call: Call,
        release: Callable[[], object] = lambda: None,
    ) -> Result:
        """Do the work in a thread and return its result.

        Args:
            work: What to do.
            call: Whose deadline and caller count.
            release: Called once when the work has ended, maybe long after its caller was
                answered, or when it will never begin: gives back what the work holds.

        Raises:
            OverloadedError: It waits behind more than can be done in time.
            DeadlinePassedError: The deadline passed, before or while it was worked on.
            Exception: Whatever the work raised.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(work, call, release, loop.create_future())
        timer = None
        try:
            call.check("it was begun")
            if self._running < self._threads:
                self._begin(entry)
            else:
                self._enqueue(entry)
            if call.deadline != float("inf"):  # the loop's clock is time.monotonic
                timer = loop.call_at(call.deadline, self._expire, entry)
            return await entry.future
        except asyncio.CancelledError:
            call.abandon()
            self._forget(entry)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if not entry.begun:
                release()
            del entry  # see ``_work``

    def close(self, wait: bool = True) -> None:
        """Shut down the threads after their current work, optionally waiting for them."""
        self._executor.shutdown(wait=wait)

    def _enqueue(self, entry: _Entry) -> None:
        seconds = max(self._seconds, 1e-6)
        bound = min(self._max_waiting, int(self._threads * entry.call.left / seconds))
        if bound < 1:
            raise self._overloaded()
        self._waiting.append(entry)
        while len(self._waiting) > bound:
            self._fail(self._waiting.popleft(), self._overloaded())

    def _overloaded(self) -> OverloadedError:
        wait = self._seconds * (len(self._waiting) + self._threads) / self._threads
        self.refused += 1
        return OverloadedError(
            f"{self._name} is overloaded: {self._running} requests are worked on and "
            f"{len(self._waiting)} wait",
            retry_after_seconds=max(wait, 0.1),
        )

    def _begin(self, entry: _Entry) -> None:
        self._running += 1
        entry.begun = True
        loop = entry.future.get_loop()
        self._executor.submit(self._work, [entry], loop)

    def _work(self, box: list[_Entry], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread."""
        # An error knows the frames it passed, this one and its callers' among them. None of them
        # may know the entry, whose future has the error: in a cycle it would outlive its answer,
        # and with it the request's body.
        entry = box.pop()
        started = time.monotonic()
        result, error = _attempt(entry.work, entry.call)
        if error is not None:
            let_go(error)
        seconds = time.monotonic() - started
        try:
            loop.call_soon_threadsafe(self._end, entry, result, error, seconds)
        except RuntimeError:  # the loop has ended, and with it whoever would want the result
            entry.release()
        finally:
            del entry, result, error

    def _end(self, entry: _Entry, result: Any, error: BaseException | None, seconds: float) -> None:
        self._running -= 1
        entry.release()
        if not isinstance(error, (AbandonedError, DeadlinePassedError)):
            mean = self._seconds
            self._seconds = seconds if not mean else mean + _NEWEST * (seconds - mean)
        if error is not None:
            self._fail(entry, error)
        elif not entry.future.done():
            entry.future.set_result(result)
        self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and self._running < self._threads:
            newest_first = len(self._waiting) > self._threads
            entry = self._waiting.pop() if newest_first else self._waiting.popleft()
            if entry.future.done():
                continue
            # With nothing under way it is begun in any case: or one slow spell, which only work
            # that is done can correct, would refuse everything for good.
            if self._running and entry.call.left < self._seconds:
                self._fail(entry, self._overloaded())
                continue
            self._begin(entry)

    def _expire(self, entry: _Entry) -> None:
        self._fail(entry, DeadlinePassedError("the deadline passed before the answer"))
        self._forget(entry)
        entry.call.abandon()

    def _forget(self, entry: _Entry) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)

    @staticmethod
    def _fail(entry: _Entry, error: BaseException) -> None:
        if not entry.future.done():
            entry.future.set_exception(error)


def _attempt(work: Callable[[], Any], call: Call) -> tuple[Any, BaseException | None]:
    """The result, or the error."""
    try:
        call.check("it was begun")
        return work(), None
    except BaseException as error:  # raised again where it is awaited
        return None, error
