"""The HTTP side of a feature host: what it has, streams to open and close, metrics."""

from __future__ import annotations

import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tfx_pipeline.feature_host.feature_host import FeatureHost
from tfx_pipeline.feature_host.stream_order import StreamOrder

log = logging.getLogger(__name__)
_LARGEST_BODY = 1 << 16
_SECONDS = 30.0
_POLL_SECONDS = 0.05


class ControlServer:
    """Answers HTTP in threads of its own.

    ``GET /`` describes the host, ``POST /streams`` opens a stream for a ``StreamOrder`` in JSON,
    ``GET /streams/PORT`` says whether one is open, ``DELETE /streams/PORT`` closes it and
    ``GET /metrics`` is for Prometheus. Errors are answered as ``{"error": line}``.

    Args:
        feature_host: What it serves.
        host: Address to listen at.
        port: Its port; 0 takes a free one.

    Raises:
        OSError: The address cannot be listened at.
    """

    def __init__(self, feature_host: FeatureHost, host: str, port: int) -> None:
        class Handler(_Handler):
            served = feature_host

        self._server = _Server((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say in a line that a caller hung up; of anything else the traceback is shown."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            super().handle_error(request, client_address)
            return
        log.info("a caller at %s hung up: %s", client_address[0], error)


class _Handler(BaseHTTPRequestHandler):
    served: FeatureHost
    timeout = _SECONDS
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer(200, self.served.describe())
        elif self.path == "/metrics":
            self._send(200, self.served.metrics.text().encode(), "text/plain; version=0.0.4")
        elif (port := self._stream()) is not None and self.served.is_open(port):
            self._answer(200, {"port": port})
        else:
            self._answer(404, {"error": f"{self.path} is not here"})

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if self.path != "/streams" or not size.isdecimal() or int(size) > _LARGEST_BODY:
            self.close_connection = True  # its body is not read
            self._answer(400, {"error": "post an order in JSON to /streams"})
            return
        try:
            order = StreamOrder.from_json(json.loads(self.rfile.read(int(size))))
            self._answer(200, self.served.open(order))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
        except OSError as error:  # no port or no descriptor is left
            self._answer(503, {"error": str(error)})

    def do_DELETE(self) -> None:
        port = self._stream()
        if port is not None and self.served.close_stream(port):
            self._answer(200, {"port": port})
        else:
            self._answer(404, {"error": f"{self.path} is not here"})

    def _stream(self) -> int | None:
        number = self.path.removeprefix("/streams/")
        return int(number) if number.isdecimal() and number.isascii() else None

    def _answer(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
