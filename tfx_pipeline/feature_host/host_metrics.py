"""What a feature host has served, for Prometheus."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest

from components.seqvault_example_gen.join import IDS, OUTSIDE


class HostMetrics:
    """Counts batches, requests and bytes; ``text`` is what Prometheus reads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._totals = {
            name: Counter(f"laser_feature_host_{name}", what, registry=self._registry)
            for name, what in {
                "batches": "Batches sent.",
                "requests": "Requests in them.",
                "impressions": "Candidates in them.",
                "bytes": "Bytes sent, compressed.",
                "unknown_users": "Requests whose user the store has never seen.",
                "empty_histories": "Requests without any event before them.",
                "truncated_histories": "Requests with more events than the model takes.",
            }.items()
        }
        self._ids = Counter(
            "laser_feature_host_ids", "Ids of direct tables.", ["input"], registry=self._registry
        )
        self._outside = Counter(
            "laser_feature_host_ids_outside",
            "Ids outside their direct table, which count as missing.",
            ["input"],
            registry=self._registry,
        )
        self._streams = Gauge("laser_feature_host_streams", "Open.", registry=self._registry)

    def sent(self, counts: Counts[str], size: int) -> None:
        """A batch was sent."""
        self._totals["batches"].inc()
        self._totals["bytes"].inc(size)
        for name, count in counts.items():
            if name in self._totals:
                self._totals[name].inc(count)
            elif name.startswith(IDS):
                self._ids.labels(name.removeprefix(IDS)).inc(count)
            elif name.startswith(OUTSIDE):
                self._outside.labels(name.removeprefix(OUTSIDE)).inc(count)

    def streams(self, count: int) -> None:
        """So many streams are open."""
        self._streams.set(count)

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        return generate_latest(self).decode()

    def collect(self) -> Iterator[Metric]:
        """The families, without ``_created``."""
        for family in self._registry.collect():
            family.samples = [each for each in family.samples if not each.name.endswith("_created")]
            yield family
