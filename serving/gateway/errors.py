"""Errors that the gateway returns to clients."""

from __future__ import annotations


class GatewayError(Exception):
    """An error response of the gateway: HTTP status and message.

    Args:
        status: HTTP status: 400 the request is wrong, 413 it is too large, 502 model and feature
            spec do not fit, 503 store or model server is not there, 504 no time is left.
        message: What was wrong, and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
