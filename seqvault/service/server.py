"""The server: a store behind gRPC, and behind the read protocol."""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from seqvault.errors import InvalidRequestError
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service import wire
from seqvault.service.bytes_in_flight import BytesInFlight
from seqvault.service.call_log import CallLog
from seqvault.service.guard import Guard
from seqvault.service.metrics import Metrics
from seqvault.service.read_server import ReadServer
from seqvault.service.reader_processes import ReaderProcesses
from seqvault.service.store_service import Pools, StoreService
from seqvault.service.tls import server_context
from seqvault.service.tls_fault import fault_of_server
from seqvault.service.tokens import Tokens
from seqvault.service.work_pool import WorkPool
from seqvault.store import SeqVault
from seqvault.warm_up import warm_up

LOG = logging.getLogger("seqvault.server")
WAITING_CALLS = 256  # of a kind, under way or waiting; more get a retryable error
ITEM_WORKERS, LONG_WORKERS = 4, 4
HEALTH_CALLS = 64  # at a time, of the standard services
BYTES_IN_FLIGHT = 1 << 30  # of requests being worked on and replies not yet sent


@dataclass(frozen=True)
class Tls:
    """TLS settings, as PEM bytes; ``client_ca`` turns on mutual TLS."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None = None

    def parts(self) -> list[str | None]:
        """Key, certificate and ``client_ca`` as text."""
        known = (self.key, self.certificate, self.client_ca)
        return [None if part is None else part.decode() for part in known]


class Server:
    """Serves a store until ``stop``.

    Args:
        vault: the store; it is closed by ``stop``.
        address: ``host:port``; port 0 takes a free one, see ``port``.
        tokens: who may do what; None: no tokens asked.
        tls: None: plain text.
        workers: reads, and besides appends, answered at the same time.
        merge_seconds: how often the log is moved into segments; 0: never.
        waiting: calls of a kind (reads, appends, item writes, long ones) under way and waiting;
            more are refused with a retryable ``LimitError``.
        bytes_in_flight: of requests being worked on and replies not yet sent; calls that come
            beyond it are refused with a retryable ``LimitError``, and so are reads before they
            are answered, from the number of events that they find.
        snapshots: directory below which callers may make snapshots; None: they may make none.
        read_port: of the read protocol (``docs/seqvault/protocol.md``), at the address' host;
            0 takes a free one, which clients are told; None: reads go over gRPC alone.
        readers: processes that answer the read protocol beside this one, of a store opened with
            ``share=True``; 0: this process answers it.

    Raises:
        InvalidRequestError: the port is in use, or the certificates are not good.
    """

    def __init__(
        self,
        vault: SeqVault,
        address: str = "127.0.0.1:0",
        tokens: Tokens | Mapping[str, Any] | None = None,
        tls: Tls | None = None,
        workers: int = 8,
        merge_seconds: float = 60.0,
        waiting: int = WAITING_CALLS,
        bytes_in_flight: int = BYTES_IN_FLIGHT,
        snapshots: str | None = None,
        read_port: int | None = 0,
        readers: int = 0,
    ) -> None:
        host = address.rpartition(":")[0].strip("[]")
        speaks = read_port is not None and bool(host) and "/" not in address
        if readers and not (speaks and vault.shared):
            raise InvalidRequestError(
                "reader processes need a store that was opened with share=True, and a read port "
                "at a host's address."
            )
        warm_up()  # or the first caller waits for the compiler
        self.vault, self.metrics = vault, Metrics()
        self.bytes_in_flight = BytesInFlight(bytes_in_flight)
        self._merges_well, self._damaged = True, False
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # clients probe
        ]
        self._pools = Pools(
            items=WorkPool(ITEM_WORKERS, "item writes", waiting),
            long_calls=WorkPool(LONG_WORKERS, "long calls", waiting),
        )
        reads, appends = WorkPool(workers, "reads", waiting), WorkPool(workers, "appends", waiting)
        items = WorkPool(ITEM_WORKERS, "item writes", waiting)
        long_calls = WorkPool(LONG_WORKERS, "long calls", waiting)
        asked = Tokens(tokens) if isinstance(tokens, Mapping) else tokens
        log = CallLog()
        self._service = StoreService(vault, self._pools, snapshots)
        self._guard = Guard(
            self._service,
            {
                **dict.fromkeys(
                    ("Describe", "Read", "ReadItems", "UserIds", "Stats", "Fingerprint"), reads
                ),
                "Append": appends,
                "PutItems": items,
                **dict.fromkeys(("Merge", "Verify", "Snapshot"), long_calls),
            },
            self.bytes_in_flight,
            asked,
            self.metrics,
            self._found_damage,
            log,
        )
        self._server = grpc.server(
            ThreadPoolExecutor(8, "seqvault-health"),  # for what is not a call of the store
            options=options,
            maximum_concurrent_rpcs=4 * waiting + HEALTH_CALLS,
        )
        self._server.add_generic_rpc_handlers((self._guard,))
        self._health = health.HealthServicer(experimental_non_blocking=True)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (wire.NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self.port = self._listen(address, tls)
        self._reads: ReadServer | ReaderProcesses | None = None
        if speaks:
            assert read_port is not None
            try:
                if readers:
                    settings = {
                        "path": vault.path,
                        "host": host,
                        "instance": self._service.instance.hex(),
                        "workers": workers,
                        "waiting": waiting,
                        "bytes_in_flight": bytes_in_flight,
                        "tokens": None if asked is None else asked.source,
                        "tls": None if tls is None else tls.parts(),
                        "log_level": LOG.getEffectiveLevel(),
                    }
                    self._reads = ReaderProcesses(
                        readers, settings, read_port, self.metrics, self._found_damage
                    )
                else:
                    self._reads = ReadServer(
                        vault,
                        host,
                        read_port,
                        self._service.instance,
                        reads,
                        self.bytes_in_flight,
                        self.metrics,
                        log,
                        self._found_damage,
                        asked,
                        server_context(tls.key, tls.certificate, tls.client_ca) if tls else None,
                    )
            except BaseException:
                self._server.stop(0)
                raise
            self._service.read_port = self._reads.port
        self._server.start()
        self._set_health()
        seconds = 0.0 if vault.read_only else merge_seconds
        self._merge = BackgroundMerge(vault, seconds, tell_health=self._tell_merging)
        ports = {"port": self.port, "read_port": self.read_port}
        LOG.info(json.dumps({"event": "serving", **ports, "path": vault.path}))

    @property
    def reader_pids(self) -> list[int]:
        """Process ids of the readers."""
        return self._reads.pids if isinstance(self._reads, ReaderProcesses) else []

    @property
    def read_port(self) -> int:
        """Port of the read protocol; 0: it is not spoken."""
        return 0 if self._reads is None else self._reads.port

    def _listen(self, address: str, tls: Tls | None) -> int:
        wrong = tls and fault_of_server(tls.key, tls.certificate, tls.client_ca)
        if wrong:
            raise InvalidRequestError(f"cannot serve with TLS: {wrong}.")
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.key, tls.certificate)], tls.client_ca, tls.client_ca is not None
                )
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            raise InvalidRequestError(
                f"cannot listen on {address}: is the port in use? Give another."
            )
        return int(port)

    def _tell_merging(self, well: bool) -> None:
        self._merges_well = well
        self._set_health()

    def _found_damage(self) -> None:
        """Reports unhealthy until a restart, so that callers use a replica."""
        self.metrics.count_damage()
        self._damaged = True
        self._set_health()

    def _set_health(self) -> None:
        """Sets the health status; calls are answered in any case."""
        status = health_pb2.HealthCheckResponse
        good = self._merges_well and not self._damaged
        for name in ("", wire.NAME):
            self._health.set(name, status.SERVING if good else status.NOT_SERVING)

    def stop(self, grace: float = 10.0) -> None:
        """Refuses new calls, drains those in progress and closes the store.

        Merges and snapshots still running after ``grace`` seconds are aborted, which leaves the
        store as it was before them.
        """
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(grace)
        if self._reads is not None:
            self._reads.stop(grace)
        stopped.wait()
        self.vault.close()
        self._merge.stop()
        self._guard.close()
        for pool in (self._pools.items, self._pools.long_calls):
            pool.shutdown(wait=False)
        LOG.info(json.dumps({"event": "stopped", "path": self.vault.path}))

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def metrics_text(self) -> str:
        """Prometheus metrics of the service and the store."""
        return self.metrics.text(
            self.vault.stats(), self._merge.failures, self._merge.failing_seconds
        )
