"""One stream of batches at a port of its own."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from laser_features import FeatureSpec
from tfx_pipeline.feature_host.ordered_batches import OrderedBatches
from tfx_pipeline.feature_host.wire_layout import wire_schema

log = logging.getLogger(__name__)
_COMPRESSION_LEVEL = 1
"""ZSTD's; level 3 takes a third more time for a twentieth fewer bytes."""


class BatchStream:
    """Serves the same batches to everybody who connects to its port, from the first to the last.

    The native reader of TensorFlow I/O sends nothing when it connects, so a port stands for one
    order; a trainer that lost its worker connects again.

    Args:
        batches: What it serves.
        first: The first batch's number.
        spec: The feature spec.
        host: Address to listen at.
        sent: Takes what each batch counted and its bytes on the wire.

    Raises:
        OSError: The address cannot be listened at.
    """

    def __init__(
        self,
        batches: OrderedBatches,
        first: int,
        spec: FeatureSpec,
        host: str,
        sent: Callable[[Counter[str], int], None],
    ) -> None:
        self._batches, self._first, self._sent = batches, first, sent
        self._schema = wire_schema(spec)
        self._listener = socket.create_server((host, 0), backlog=16)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._last_used = time.monotonic()
        self._closed = False
        threading.Thread(target=self._accept, name="stream", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @property
    def idle_seconds(self) -> float:
        """How long nobody has been connected."""
        with self._lock:
            return 0.0 if self._connections else time.monotonic() - self._last_used

    def close(self) -> None:
        """Stop listening, and end what is being sent."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        # A thread in ``accept`` notices a shutdown, not a close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            threading.Thread(
                target=self._serve, args=(connection,), name="send", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("wb") as file:
                self._send(_CountingSink(file))
        except OSError as error:
            log.info("a stream ended early: %s", error)
        except Exception:
            # The reader finds the connection closed before the end, and asks again.
            log.exception("a batch could not be made")
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._last_used = time.monotonic()

    def _send(self, sink: _CountingSink) -> None:
        options = pa.ipc.IpcWriteOptions(
            compression=pa.Codec("zstd", compression_level=_COMPRESSION_LEVEL), use_threads=False
        )
        writer = pa.ipc.new_stream(sink, self._schema, options=options)
        with ThreadPoolExecutor(1, "join") as ahead:
            following = ahead.submit(self._batches.make, self._first)
            for number in range(self._first, len(self._batches)):
                batch, counts = following.result()
                if number + 1 < len(self._batches):  # joined while this one is sent
                    following = ahead.submit(self._batches.make, number + 1)
                before = sink.written
                writer.write_batch(batch)
                sink.flush()
                self._sent(counts, sink.written - before)
        # Here alone: the mark of a stream's end is written when everything before it was.
        writer.close()


class _CountingSink:
    """A file that counts what is written to it."""

    def __init__(self, file: object) -> None:
        self._file = file
        self.written = 0
        self.closed = False

    def write(self, content: bytes) -> int:
        self.written += len(content)
        self._file.write(content)  # type: ignore[attr-defined]
        return len(content)

    def flush(self) -> None:
        self._file.flush()  # type: ignore[attr-defined]
