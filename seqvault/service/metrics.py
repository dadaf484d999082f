"""Counters of the service in Prometheus' text format."""

import threading
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from seqvault.errors import InvalidRequestError
from seqvault.prometheus_text import family, header
from seqvault.service.call import Call

BOUNDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 1.0, 4.0)
METRICS_CONNECTIONS = 8  # at a time
METRICS_SECONDS = 5.0  # that one may take to ask
GAUGES = {
    "users": "Users with events.",
    "events": "Events that are stored.",
    "events_in_log": "Events that are in no segment yet.",
    "segments": "Segment files.",
    "segment_bytes": "Size of the segment files.",
    "live_bytes": "Bytes of segments that are in use; later merges free the rest.",
    "index_bytes": "Memory of the index.",
    "memtable_bytes": "Memory of the events that are in no segment yet.",
    "items": "Items with side information.",
}


class Metrics:
    """Counters of calls, their outcomes and latencies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._appended = self._damaged = self._reader_ends = 0
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def observe(self, call: Call, seconds: float) -> None:
        """Counts a call that has ended."""
        self.count(call.method, call.outcome, seconds)
        if call.method == "Append":
            with self._lock:
                self._appended += call.events or 0

    def count(self, method: str, outcome: str, seconds: float, calls: int = 1) -> None:
        """Counts calls that have ended alike, each after so long."""
        place = bisect_left(BOUNDS, seconds)
        with self._lock:
            self._calls[method, outcome] += calls
            self._buckets[method][place] += calls
            self._seconds[method] += calls * seconds

    def count_damage(self) -> None:
        """Counts a read that found a damaged file."""
        with self._lock:
            self._damaged += 1

    def count_reader_end(self) -> None:
        """Counts a reader process that ended by itself."""
        with self._lock:
            self._reader_ends += 1

    def take(self) -> dict[str, Any]:
        """What was counted since the last time, as plain numbers for ``add``; {}: nothing."""
        with self._lock:
            if not self._calls and not self._damaged:
                return {}
            taken = {
                "calls": [[*key, count] for key, count in self._calls.items()],
                "buckets": dict(self._buckets),
                "seconds": dict(self._seconds),
                "damaged": self._damaged,
            }
            self._calls.clear()
            self._buckets.clear()
            self._seconds.clear()
            self._damaged = 0
            return taken

    def add(self, taken: dict[str, Any]) -> bool:
        """Adds what another process has counted but damage; whether there was any."""
        with self._lock:
            for method, outcome, count in taken["calls"]:
                self._calls[method, outcome] += count
            for method, counts in taken["buckets"].items():
                buckets = self._buckets[method]
                for place, count in enumerate(counts):
                    buckets[place] += count
            for method, seconds in taken["seconds"].items():
                self._seconds[method] += seconds
        return bool(taken["damaged"])

    def text(
        self, stats: dict[str, Any], merge_failures: int, merge_failing_seconds: float = 0.0
    ) -> str:
        """All metrics; ``stats`` are the store's own."""
        with self._lock:
            calls = [
                ({"method": method, "status": status}, count)
                for (method, status), count in sorted(self._calls.items())
            ]
            totals = (
                ("appended_events", "Events that calls have appended.", self._appended),
                ("damaged_reads", "Reads that found a damaged file.", self._damaged),
                ("reader_ends", "Reader processes that ended by themselves.", self._reader_ends),
                ("merge_failures", "Merges that failed.", merge_failures),
            )
            latencies = [
                line
                for method, buckets in sorted(self._buckets.items())
                for line in _histogram(method, buckets, self._seconds[method])
            ]
        lines = [*family("seqvault_calls_total", "counter", "Calls by method and status.", calls)]
        for name, meaning, total in totals:
            lines += family(f"seqvault_{name}_total", "counter", meaning, [({}, total)])
        lines += header("seqvault_call_seconds", "histogram", "Time of calls, without waiting.")
        lines += latencies
        lines += family(
            "seqvault_merge_failing_seconds",
            "gauge",
            "How long merges have failed.",
            [({}, round(merge_failing_seconds, 1))],
        )
        for name, meaning in GAUGES.items():
            lines += family(f"seqvault_{name}", "gauge", meaning, [({}, stats[name])])
        offsets = [({"source": source}, at) for source, at in sorted(stats["sources"].items())]
        lines += family(
            "seqvault_source_offset", "gauge", "Highest stored offset of each source.", offsets
        )
        return "\n".join(lines) + "\n"


def _histogram(method: str, buckets: list[int], seconds: float) -> Iterator[str]:
    total = 0
    for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
        total += count
        yield f'seqvault_call_seconds_bucket{{method="{method}",le="{bound}"}} {total}'
    yield f'seqvault_call_seconds_sum{{method="{method}"}} {seconds:.6f}'
    yield f'seqvault_call_seconds_count{{method="{method}"}} {total}'


class _BoundedServer(ThreadingHTTPServer):
    """An HTTP server with few connections at a time; any beyond them is closed at once."""

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(METRICS_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


def serve_metrics(host: str, port: int, text: Callable[[], str]) -> ThreadingHTTPServer:
    """Answers ``GET /metrics`` in a thread of its own; ``shutdown`` ends it.

    Raises:
        InvalidRequestError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = METRICS_SECONDS

        def do_GET(self) -> None:
            body = text().encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            if self.path == "/metrics":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    try:
        server = _BoundedServer((host, port), Handler)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot listen on {host}:{port} for metrics: {error.strerror or error}. Give another "
            "metrics port."
        ) from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
