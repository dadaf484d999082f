"""Reasons to refuse a request."""

from __future__ import annotations

import traceback


class RuntimeRefusal(Exception):
    """Base of the refusals below; the message is for the caller."""


class OverloadedError(RuntimeRefusal):
    """The server is overloaded: a queue or a memory limit is full.

    Args:
        message: What is full.
        retry_after_seconds: When it is worth another try.
    """

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassedError(RuntimeRefusal):
    """The deadline of the request has passed."""


class AbandonedError(RuntimeRefusal):
    """The caller has gone away."""


class TooLargeError(RuntimeRefusal):
    """A request exceeds the memory limit per request."""


class BodyError(RuntimeRefusal):
    """A body that cannot be read; the caller's fault.

    Args:
        status: HTTP status.
        message: What was wrong.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def let_go(error: BaseException) -> None:
    """Free the local variables that an error's traceback, and those of its causes, keep alive.

    A refused body, or what was inflated and parsed of it, would live as long as its refusal.

    Example:
        >>> import weakref
        >>> class Body: pass
        >>> def parse():
        ...     body = Body()
        ...     kept.append(weakref.ref(body))
        ...     raise ValueError("no JSON")
        >>> kept, errors = [], []
        >>> try:
        ...     parse()
        ... except ValueError as error:
        ...     errors.append(error)
        >>> let_go(errors[0])
        >>> kept[0]() is None
        True
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]
