"""Counters of the service in Prometheus' text format."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BOUNDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 1.0, 4.0)
GAUGES = ("users", "events", "events_in_log", "segments", "segment_bytes", "live_bytes",
          "index_bytes", "memtable_bytes", "items")  # fmt: skip


class Metrics:
    """Number and duration of calls by method and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = defaultdict(lambda: [0] * (len(BOUNDS) + 1))
        self._seconds: dict[str, float] = defaultdict(float)

    def observe(self, method: str, status: str, seconds: float) -> None:
        """Counts a call."""
        place = sum(seconds > bound for bound in BOUNDS)
        with self._lock:
            self._calls[method, status] += 1
            self._buckets[method][place] += 1
            self._seconds[method] += seconds

    def text(self, stats: dict[str, Any]) -> str:
        """All metrics; ``stats`` are the store's own."""
        lines = ["# TYPE seqvault_calls_total counter"]
        with self._lock:
            for (method, status), count in sorted(self._calls.items()):
                lines.append(f'seqvault_calls_total{{method="{method}",status="{status}"}} {count}')
            lines.append("# TYPE seqvault_call_seconds histogram")
            for method, buckets in sorted(self._buckets.items()):
                total = 0
                for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
                    total += count
                    lines.append(
                        f'seqvault_call_seconds_bucket{{method="{method}",le="{bound}"}} {total}'
                    )
                lines.append(
                    f'seqvault_call_seconds_sum{{method="{method}"}} {self._seconds[method]:.6f}'
                )
                lines.append(f'seqvault_call_seconds_count{{method="{method}"}} {total}')
        for name in GAUGES:
            lines += [f"# TYPE seqvault_{name} gauge", f"seqvault_{name} {stats[name]}"]
        return "\n".join(lines) + "\n"


def serve_metrics(host: str, port: int, text: Callable[[], str]) -> ThreadingHTTPServer:
    """Answers ``GET /metrics`` in a thread of its own; ``shutdown`` ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text().encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            if self.path == "/metrics":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
