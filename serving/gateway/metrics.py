"""Metrics of the gateway, in Prometheus format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters, gauges and histograms of one gateway; safe to use from many threads.

    Example:
        >>> metrics = Metrics()
        >>> metrics.count_request("/v1/rank", 200)
        >>> [line for line in metrics.text().decode().splitlines() if "/v1/rank" in line]
        ['laser_gateway_requests_total{path="/v1/rank",status="200"} 1.0']
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Answered requests.", ["path", "status"])
        self._refused = self._counter(
            "refused_requests", "Requests that were not worked on, by reason.", ["reason"]
        )
        self._events = self._counter("events_appended", "Events that were appended.")
        self._unknown = self._counter(
            "unknown_candidates",
            "Candidates that the store does not know or that lie beyond the item table.",
        )
        self._outside = self._counter(
            "outside_ids",
            "Ids outside their direct table, which count as missing, by route and model input.",
            ["where", "input"],
        )
        self._degraded = self._counter(
            "degraded_answers", "Answers without what could not be read, by what.", ["without"]
        )
        self._latency = Histogram(
            "laser_gateway_rank_latency_seconds",
            "Time of answered rank requests from the first byte, by stage.",
            ["stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def count_request(self, path: str, status: int) -> None:
        """Count one answered request."""
        self._requests.labels(path, str(status)).inc()

    def count_refused(self, reason: str) -> None:
        """Count one request that was not worked on."""
        self._refused.labels(reason).inc()

    def count_events(self, number: int) -> None:
        """Count appended events."""
        self._events.inc(number)

    def count_unknown(self, number: int) -> None:
        """Count candidates that are not known."""
        self._unknown.inc(number)

    def count_outside(self, where: str, numbers: Mapping[str, int]) -> None:
        """Count ids outside their table, by model input, in ``"rank"`` or ``"events"``."""
        for name, number in numbers.items():
            self._outside.labels(where, name).inc(number)

    def count_degraded(self, without: str) -> None:
        """Count one answer without, for instance, ``"history"``."""
        self._degraded.labels(without).inc()

    def observe(self, latency: Mapping[str, float]) -> None:
        """Record one rank request's latencies, ``{"store_ms": ...}``."""
        for name, milliseconds in latency.items():
            self._latency.labels(name.removesuffix("_ms")).observe(milliseconds / 1e3)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a gauge whose value is read at each scrape."""
        Gauge(f"laser_gateway_{name}", text, registry=self._registry).set_function(value)

    def total(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Register a counter that is kept elsewhere."""
        self._registry.register(_Total(f"laser_gateway_{name}", text, value))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(_WithoutCreated(self._registry))

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"laser_gateway_{name}", text, labels or [], registry=self._registry)


class _Total(Collector):
    """A counter that is asked for whenever metrics are read."""

    def __init__(self, name: str, text: str, value: Callable[[], float]) -> None:
        self._name, self._text, self._value = name, text, value

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The one family."""
        yield CounterMetricFamily(self._name, self._text, self._value())


class _WithoutCreated(Collector):
    """A registry less the times at which its series were made."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """The families, without ``_created``."""
        for family in self._registry.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            yield family
