"""A memory limit for requests in progress, reserved before allocation."""

from __future__ import annotations

import threading
from types import TracebackType

from serving.runtime.errors import OverloadedError, TooLargeError


class MemoryBudget:
    """Limits the bytes of one request and of all requests in progress.

    Args:
        per_request: Bytes that one request may hold.
        in_flight: Bytes that all of them may hold at one time.

    Example:
        >>> budget = MemoryBudget(per_request=100, in_flight=150)
        >>> with budget.open() as first, budget.open() as second:
        ...     first.take(80, "the body")
        ...     second.take(70, "the body")
        ...     try:
        ...         second.take(1, "the tensor 'x'")
        ...     except OverloadedError as error:
        ...         print(error)
        the tensor 'x' needs 1 bytes more while requests under way hold 150; the limit is 150
        >>> budget.held
        0
    """

    def __init__(self, per_request: int, in_flight: int) -> None:
        self.per_request = per_request
        self.in_flight = max(in_flight, per_request)
        self.held = 0
        self._highest = 0
        self._lock = threading.Lock()

    def open(self) -> Allowance:
        """The account of one request; closing it gives everything back."""
        return Allowance(self)

    def take_highest(self) -> int:
        """The most bytes that were held at one time since this was last asked.

        Example:
            >>> budget = MemoryBudget(100, 100)
            >>> with budget.open() as one:
            ...     one.take(70, "the body")
            >>> budget.take_highest(), budget.take_highest()
            (70, 0)
        """
        with self._lock:
            highest, self._highest = self._highest, self.held
        return highest

    def _take(self, size: int, what: str) -> None:
        with self._lock:
            if self.held + size > self.in_flight:
                raise OverloadedError(
                    f"{what} needs {size} bytes more while requests under way hold {self.held}; "
                    f"the limit is {self.in_flight}"
                )
            self.held += size
            self._highest = max(self._highest, self.held)

    def _give_back(self, size: int) -> None:
        with self._lock:
            self.held -= size


class Allowance:
    """The bytes of one request. Used by one thread at a time; ``close`` by any."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._held = 0

    @property
    def limit(self) -> int:
        """Bytes that one request may hold."""
        return self._budget.per_request

    def take(self, size: int, what: str) -> None:
        """Account for ``size`` bytes that are about to be taken.

        Raises:
            TooLargeError: The request would hold more than one request may.
            OverloadedError: All requests together would.
        """
        if self._held + size > self._budget.per_request:
            raise TooLargeError(
                f"{what} takes {size} bytes, which makes {self._held + size} for this request; "
                f"the limit is {self._budget.per_request}"
            )
        self._budget._take(size, what)
        self._held += size

    def close(self) -> None:
        """Release all bytes; calling it again does nothing."""
        held, self._held = self._held, 0
        self._budget._give_back(held)

    def __enter__(self) -> Allowance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
