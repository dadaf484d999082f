"""Canonical status codes, as TensorFlow Serving's two APIs report them."""

from __future__ import annotations

from serving.runtime.errors import (
    AbandonedError,
    DeadlinePassedError,
    OverloadedError,
    RuntimeRefusal,
    TooLargeError,
)

CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
NAMES = {number: name for name, number in CODES.items()}
_HTTP = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
GRPC_MESSAGE_LIMIT = 1024
_REFUSALS: tuple[tuple[type[RuntimeRefusal], str], ...] = (
    (TooLargeError, "RESOURCE_EXHAUSTED"),
    (OverloadedError, "UNAVAILABLE"),
    (AbandonedError, "CANCELLED"),
)


class ServingError(Exception):
    """An answer other than OK.

    Args:
        code: Name of the canonical code, for instance ``"NOT_FOUND"``.
        message: What the client reads.

    Example:
        >>> error = ServingError("NOT_FOUND", "Servable not found for request: Latest(m)")
        >>> str(error), error.http_status
        ('NOT_FOUND: Servable not found for request: Latest(m)', 404)
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        """The REST API's HTTP status; codes without one of their own are 500."""
        return _HTTP.get(self.code, 500)

    @property
    def grpc_message(self) -> str:
        """The message as gRPC carries it: cut to 1024 characters and marked."""
        if len(self.message) <= GRPC_MESSAGE_LIMIT:
            return self.message
        return self.message[:GRPC_MESSAGE_LIMIT] + "...TRUNCATED"


def refusal(error: RuntimeRefusal) -> ServingError:
    """How the APIs report that a request is not worked on."""
    if isinstance(error, DeadlinePassedError):
        # The words of TensorFlow's runtime, which clients may look for.
        return ServingError("DEADLINE_EXCEEDED", f"Timed out waiting for notification: {error}")
    for kind, code in _REFUSALS:
        if isinstance(error, kind):
            return ServingError(code, str(error))
    return ServingError("INVALID_ARGUMENT", str(error))


def invalid(message: str) -> ServingError:
    """The error of a request that the client must correct."""
    return ServingError("INVALID_ARGUMENT", message)
