"""The server: a store behind gRPC."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import zstandard

from seqvault.errors import (
    AccessDeniedError,
    InvalidRequestError,
    SeqVaultError,
    UnknownFieldError,
)
from seqvault.service import seqvault_pb2 as pb
from seqvault.service import wire
from seqvault.service.metrics import Metrics
from seqvault.store import SeqVault
from seqvault.warm_up import warm_up

LOG = logging.getLogger("seqvault.server")
WRITES = {"Append", "PutItems", "Merge", "Snapshot"}
MERGE_AT = 1 << 18  # events in the log
NAME = "seqvault.v1.SeqVault"


@dataclass(frozen=True)
class Tls:
    """PEM bytes: the server's key and certificate, and whose clients it trusts (mutual TLS)."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None = None


class Server:
    """Serves a store until ``stop``.

    Args:
        vault: the store; it is closed by ``stop``.
        address: ``host:port``; port 0 takes a free one, see ``port``.
        tokens: scopes (``"read"``, ``"write"``) by bearer token; None: no tokens asked.
        tls: None: plain text.
        workers: calls answered at the same time.
        merge_seconds: how often the log is moved into segments; 0: never.
    """

    def __init__(
        self,
        vault: SeqVault,
        address: str = "127.0.0.1:0",
        tokens: Mapping[str, tuple[str, ...]] | None = None,
        tls: Tls | None = None,
        workers: int = 8,
        merge_seconds: float = 60.0,
    ) -> None:
        warm_up()  # or the first caller waits for the compiler
        self.vault, self.metrics = vault, Metrics()
        self._tokens, self._stopping = tokens, threading.Event()
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(ThreadPoolExecutor(workers), options=options)
        self._server.add_generic_rpc_handlers((self._handlers(), self._health()))
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials(
                    [(tls.key, tls.certificate)], tls.client_ca, tls.client_ca is not None
                )
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            raise InvalidRequestError(
                f"cannot listen on {address}: is the port in use? Give another."
            )
        self._server.start()
        self._merger = threading.Thread(
            target=self._merge_now_and_then, args=(merge_seconds,), daemon=True
        )
        if merge_seconds > 0 and not vault.read_only:
            self._merger.start()
        LOG.info(json.dumps({"event": "serving", "port": self.port, "path": vault.path}))

    def stop(self, grace: float = 10.0) -> None:
        """Takes no more calls, lets those under way end, and closes the store."""
        self._stopping.set()
        self._server.stop(grace).wait()
        if self._merger.is_alive():
            self._merger.join()
        self.vault.close()
        LOG.info(json.dumps({"event": "stopped", "path": self.vault.path}))

    def metrics_text(self) -> str:
        """Prometheus metrics of the service and the store."""
        return self.metrics.text(self.vault.stats())

    def _merge_now_and_then(self, seconds: float) -> None:
        last = time.monotonic()
        while not self._stopping.wait(min(seconds, 1.0)):
            waiting = self.vault.events_in_log
            due = time.monotonic() - last >= seconds
            if waiting >= MERGE_AT or (waiting and due):
                last = time.monotonic()
                try:
                    LOG.info(json.dumps({"event": "merged", **self.vault.merge()}))
                except SeqVaultError as error:
                    LOG.error(json.dumps({"event": "merge failed", "error": str(error)}))

    def _authorise(self, method: str, context: grpc.ServicerContext) -> None:
        if self._tokens is None:
            return
        given = dict(context.invocation_metadata()).get("authorization", "")
        scopes = self._tokens.get(str(given).removeprefix("Bearer "))
        if scopes is None:
            raise AccessDeniedError(
                "the token is missing, unknown or expired; give one that the server knows."
            )
        scope = "write" if method in WRITES else "read"
        if scope not in scopes:
            raise AccessDeniedError(f"the token is not good for {method}: it needs {scope!r}.")

    def _handlers(self) -> Any:
        calls: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "Describe": (pb.DescribeRequest, self._describe),
            "Append": (pb.AppendRequest, self._append),
            "Read": (pb.ReadRequest, self._read),
            "PutItems": (pb.PutItemsRequest, self._put_items),
            "ReadItems": (pb.ReadItemsRequest, self._read_items),
            "Merge": (pb.MergeRequest, lambda _: _as_json(self.vault.merge())),
            "Verify": (pb.VerifyRequest, lambda _: _as_json(self.vault.verify())),
            "Stats": (pb.StatsRequest, lambda _: _as_json(self.vault.stats())),
            "Snapshot": (pb.SnapshotRequest, self._snapshot),
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                method: grpc.unary_unary_rpc_method_handler(
                    self._guarded(method, function),
                    request_deserializer=request.FromString,
                    response_serializer=lambda reply: reply.SerializeToString(),
                )
                for method, (request, function) in calls.items()
            },
        )

    def _guarded(self, method: str, function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            start, status = time.perf_counter(), "OK"
            try:
                self._authorise(method, context)
                return function(request)
            except Exception as error:
                code = wire.code_of(error)
                status = code.name
                if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS):
                    LOG.exception(json.dumps({"event": "call failed", "method": method}))
                context.set_trailing_metadata(((wire.ERROR_KEY, type(error).__name__),))
                context.abort(code, str(error))
                raise
            finally:
                self.metrics.observe(method, status, time.perf_counter() - start)

        return call

    def _health(self) -> Any:
        """The standard health service; its reply has one field, so no generated code is needed."""

        def check(request: bytes, context: grpc.ServicerContext) -> bytes:
            return b"\x08\x02" if self._stopping.is_set() else b"\x08\x01"

        def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            yield check(request, context)
            while context.is_active() and not self._stopping.wait(0.5):
                pass
            yield check(request, context)

        return grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health",
            {
                "Check": grpc.unary_unary_rpc_method_handler(check),
                "Watch": grpc.unary_stream_rpc_method_handler(watch),
            },
        )

    def _describe(self, request: Any) -> Any:
        items = self.vault.item_schema
        return pb.DescribeReply(
            event_schema=self.vault.schema.to_arrow().serialize().to_pybytes(),
            item_schema=b"" if items is None else items.serialize().to_pybytes(),
        )

    def _append(self, request: Any) -> Any:
        table = wire.table_from_bytes(request.events)
        return pb.AppendReply(
            stored=self.vault.append(table, source=request.source, offset=request.offset)
        )

    def _read(self, request: Any) -> Any:
        before = wire.array_from_bytes(request.before, "i8", "before")
        lengths, version, columns = self.vault.read_ragged(
            wire.array_from_bytes(request.user_ids, "i8", "user_ids"),
            before=before[0] if len(before) == 1 else before,
            last_n=request.last_n,
            scenarios=list(request.scenarios.values) if request.HasField("scenarios") else None,
            actions=list(request.actions.values) if request.HasField("actions") else None,
            fields=list(request.fields.values) if request.HasField("fields") else None,
            version=wire.array_from_bytes(request.version, "i8", "version")
            if request.version
            else None,
        )
        pack = (
            zstandard.ZstdCompressor(level=1).compress
            if request.encoding == pb.DENSE_ZSTD
            else bytes
        )
        return pb.ReadReply(
            lengths=lengths.tobytes(),
            version=version.tobytes(),
            columns=[
                pb.Column(name=name, dtype=values.dtype.name, values=pack(values.tobytes()))
                for name, values in columns.items()
            ],
            encoding=request.encoding,
        )

    def _put_items(self, request: Any) -> Any:
        return pb.PutItemsReply(version=self.vault.put_items(wire.table_from_bytes(request.items)))

    def _read_items(self, request: Any) -> Any:
        fields = list(request.fields.values) if request.HasField("fields") else None
        ids = wire.array_from_bytes(request.item_ids, "i8", "item_ids")
        batch = self.vault.read_items(ids, fields)
        schema = self.vault.item_schema
        arrays, names = [], []
        for name, values in batch.columns.items():
            if schema is None:
                raise UnknownFieldError(f"unknown item field {name!r}; there are no items.")
            kind = schema.field(name).type
            names.append(name)
            if values.ndim == 2:
                flat = pa.array(values.reshape(-1), kind.value_type)
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, kind.list_size))
            else:
                arrays.append(pa.array(values, kind))
        return pb.ReadItemsReply(
            found=batch.found.astype(np.uint8).tobytes(),
            items=wire.table_to_bytes(pa.table(arrays, names=names)),
            version=batch.version,
        )

    def _snapshot(self, request: Any) -> Any:
        self.vault.snapshot(request.path)
        return _as_json({"snapshot": request.path})


def _as_json(value: dict[str, Any]) -> Any:
    return pb.JsonReply(json=json.dumps(value))
