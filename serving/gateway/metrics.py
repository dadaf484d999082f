"""Counters and latency histograms in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """What the gateway counts; safe to use from many threads.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_request("/v1/rank", 200)
        >>> metrics.text().splitlines()[1]
        'laser_gateway_requests_total{path="/v1/rank",status="200"} 1'
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._events = 0
        self._buckets: dict[str, list[int]] = {}
        self._sums: Counter[str] = Counter()

    def count_request(self, path: str, status: int) -> None:
        """Count one answered request."""
        with self._lock:
            self._requests[path, status] += 1

    def count_events(self, number: int) -> None:
        """Count appended events."""
        with self._lock:
            self._events += number

    def observe(self, latency: Mapping[str, float]) -> None:
        """Record one rank request's latencies, ``{"store_ms": ...}``."""
        with self._lock:
            for name, milliseconds in latency.items():
                stage = name.removesuffix("_ms")
                buckets = self._buckets.setdefault(stage, [0] * (len(_BOUNDS_MS) + 1))
                buckets[bisect_left(_BOUNDS_MS, milliseconds)] += 1
                self._sums[stage] += milliseconds  # type: ignore[assignment]

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        with self._lock:
            lines = ["# TYPE laser_gateway_requests_total counter"]
            for (path, status), number in sorted(self._requests.items()):
                labels = f'{{path="{path}",status="{status}"}}'
                lines.append(f"laser_gateway_requests_total{labels} {number}")
            lines.append("# TYPE laser_gateway_events_appended_total counter")
            lines.append(f"laser_gateway_events_appended_total {self._events}")
            name = "laser_gateway_rank_latency_ms"
            lines.append(f"# TYPE {name} histogram")
            for stage, buckets in sorted(self._buckets.items()):
                total = 0
                for bound, number in zip((*_BOUNDS_MS, "+Inf"), buckets, strict=True):
                    total += number
                    lines.append(f'{name}_bucket{{stage="{stage}",le="{bound}"}} {total}')
                lines.append(f'{name}_sum{{stage="{stage}"}} {self._sums[stage]:.6g}')
                lines.append(f'{name}_count{{stage="{stage}"}} {total}')
        return "\n".join(lines) + "\n"
