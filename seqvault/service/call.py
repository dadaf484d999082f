"""One call in progress: caller, deadline, outcome and its log line."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

REQUEST_ID = "x-request-id"


@dataclass
class Call:
    """A call in progress, with what its log line contains.

    Args:
        method: name of the method, for instance ``Read``.
        request_id: the caller's, or one made here.
        peer: address of the caller.
        users: how many histories it asks for.
        events: how many were stored or answered; None: not told, or only the caller can count them.
        outcome: gRPC status.
        wanted: whether the caller still waits for the answer.
        hold: makes room for bytes of the answer, or raises ``LimitError``; what is held is
            given back when the call has ended.
    """

    method: str
    request_id: str
    peer: str
    users: int = 0
    events: int | None = None
    outcome: str = "OK"
    error: str = ""
    wanted: Callable[[], bool] = lambda: True
    hold: Callable[[int], None] = lambda size: None
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, method: str, context: grpc.ServicerContext) -> "Call":
        """The call that the context is of."""
        metadata = dict(context.invocation_metadata())
        request_id = str(metadata.get(REQUEST_ID, ""))[:64] or uuid.uuid4().hex
        return cls(method, request_id, context.peer(), wanted=context.is_active)

    @property
    def seconds(self) -> float:
        """Time since the server began to work on it."""
        return time.perf_counter() - self.started
