"""Reasons to refuse a request."""

from __future__ import annotations


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
