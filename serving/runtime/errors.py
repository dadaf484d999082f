"""Why a request is not worked on."""

from __future__ import annotations


class RuntimeRefusal(Exception):
    """Base of the refusals below; the message is for the caller."""


class OverloadedError(RuntimeRefusal):
    """There is more work than can be done in time.

    Args:
        message: What is full.
        retry_after_seconds: When it is worth another try.
    """

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlinePassedError(RuntimeRefusal):
    """The request's time is over."""


class AbandonedError(RuntimeRefusal):
    """Nobody waits for the answer any more."""


class TooLargeError(RuntimeRefusal):
    """One request needs more memory than a request may take."""


class BodyError(RuntimeRefusal):
    """A body that cannot be read; the caller's fault.

    Args:
        status: HTTP status.
        message: What was wrong.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
