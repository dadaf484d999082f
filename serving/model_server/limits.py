"""Limits of requests to the model server."""

from __future__ import annotations

import os
from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Bounds on requests; each is a flag of ``laser-serving model-server``.

    Attributes:
        request_bytes: Memory that one request may take: its message, inflated, parsed, as tensors,
            and its answer.
        in_flight_bytes: Memory that all requests under way may take.
        threads: Calls worked on at once, over both APIs.
        waiting: Calls that may wait for a thread.
        body_seconds: Time for a request to arrive, once it has begun.
        run_seconds: Longest time that a call without a deadline may run.
    """

    request_bytes: int = 64 * MIB
    in_flight_bytes: int = 80 * MIB
    threads: int = 4 * (os.cpu_count() or 1)
    waiting: int = 256
    body_seconds: float = 10.0
    run_seconds: float = 60.0
