"""A thread pool for one kind of call, with a limit on queued calls."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from seqvault.errors import LimitError, ServerUnavailableError

Answer = TypeVar("Answer")
LOOK_SECONDS = 0.1  # between two looks whether the caller is still there


class WorkPool(ThreadPoolExecutor):
    """A thread pool that counts its calls, running and queued.

    Args:
        workers: threads.
        name: of the calls, for instance ``reads``.
        most: calls under way and waiting; ``check_room`` raises for one more.
    """

    def __init__(self, workers: int, name: str, most: int) -> None:
        super().__init__(workers, f"seqvault-{name}")
        self.name, self.most, self.held = name, most, 0
        self._count = threading.Lock()

    @property
    def full(self) -> bool:
        """Whether another call would be too many."""
        return self.held >= self.most

    def check_room(self) -> None:
        """Raises a retryable ``LimitError`` if another call would be too many."""
        if self.full:
            raise LimitError(
                f"{self.held} {self.name} are under way or waiting, the server's limit is "
                f"{self.most}; try again later."
            )

    def submit(self, /, *arguments: Any, **named: Any) -> Future[Any]:
        """See ``ThreadPoolExecutor.submit``."""
        with self._count:
            self.held += 1
        try:
            future: Future[Any] = super().submit(*arguments, **named)
        except BaseException:
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Any = None) -> None:
        with self._count:
            self.held -= 1

    def answer(self, call: Callable[[], Answer], wanted: Callable[[], bool]) -> Answer:
        """Runs a call in a worker and returns its result, as long as the caller waits.

        When the caller has gone away, the waiting thread is released; a queued call is dropped, a
        running one continues.

        Raises:
            LimitError: too many calls are under way and waiting.
            ServerUnavailableError: the caller went away.
        """
        self.check_room()
        future = self.submit(call)
        while not wait([future], LOOK_SECONDS).done:
            if not wanted():
                future.cancel()
                raise ServerUnavailableError("the caller went away before the answer.")
        result: Answer = future.result()
        return result
