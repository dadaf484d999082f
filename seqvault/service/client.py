"""The client of one server: the interface of ``SeqVault``; reads over the read protocol."""

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from seqvault.disk.item_file import to_table
from seqvault.errors import (
    AccessDeniedError,
    InvalidRequestError,
    ProtocolError,
    ServerUnavailableError,
    TlsError,
)
from seqvault.item_batch import ItemBatch
from seqvault.memory.item_table import to_numpy
from seqvault.merge.bulk_loader import batches_of
from seqvault.progress import Progress, no_progress
from seqvault.read.read_request import USERS_A_PAGE, bounds_of, ids_of, page_of
from seqvault.schema import Schema
from seqvault.sequence_batch import SequenceBatch
from seqvault.service import read_messages, wire
from seqvault.service import seqvault_pb2 as pb
from seqvault.service.call import REQUEST_ID
from seqvault.service.read_channel import BrokenChannelError, OtherServerError, ReadChannel
from seqvault.service.read_messages import ReadMessage, names_to_bytes
from seqvault.service.read_replies import PACKED_EVENTS, PACKED_FROM, batch_of
from seqvault.service.tls import client_context
from seqvault.service.tls_fault import fault_of_client
from seqvault.times import NO_BOUND
from seqvault.write.event_columns import check_source, to_columns

LONG_SECONDS = 3600.0  # for what may go through the whole store
AGAIN_SECONDS = 10.0  # after which the read protocol is tried again where it did not work
_LEAST_SECONDS = 0.001  # of a call; 0 would mean as long as it takes
_NO_LIMIT = 0xFFFFFFFF  # of events of a user, as the read protocol has it


class SeqVaultClient:
    """A store on a server; made by ``seqvault.connect``. Safe for many threads.

    Methods are those of ``SeqVault`` and raise the same errors, and beyond them
    ``ServerUnavailableError`` and ``AccessDeniedError``.
    """

    def __init__(
        self,
        target: str,
        token: str | None = None,
        ca: bytes | None = None,
        key: bytes | None = None,
        certificate: bytes | None = None,
        timeout: float = 10.0,
        compress: bool = False,
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", wire.MAX_MESSAGE),
            ("grpc.max_send_message_length", wire.MAX_MESSAGE),
            # a server that was away is found again within a second
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # and one that is gone without a word is noticed
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 2_000),
        ]
        if ca is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(ca, key, certificate)
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self.path, self._timeout = target, timeout
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._compress, self._tls = compress, (ca, key, certificate)
        self._token = token or ""
        self._calls: dict[str, Any] = {}
        self._channel_lock = threading.Lock()
        self._reads: ReadChannel | None = None
        self._reads_at: tuple[int, bytes] = 0, b""  # port and instance of the channel
        self._reads_again = 0.0  # monotonic time until when reads go over gRPC
        try:
            self.schema, self.item_schema = self._describe()
        except BaseException as error:
            self.close()
            if isinstance(error, ServerUnavailableError | AccessDeniedError):
                wrong = fault_of_client(target, ca, key, certificate)
                if wrong:
                    raise TlsError(f"the SeqVault server at {target}: {wrong}.") from error
            raise

    def _call(self, method: str, request: Any, reply: Any, timeout: float | None = None) -> Any:
        if method not in self._calls:
            self._calls[method] = self._channel.unary_unary(
                f"/{wire.NAME}/{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=reply.FromString,
            )
        request_id = uuid.uuid4().hex
        try:
            return self._calls[method](
                request,
                timeout=timeout or self._timeout,
                metadata=(*self._metadata, (REQUEST_ID, request_id)),
            )
        except grpc.RpcError as error:
            raise wire.error_of(error, self.path, request_id, method) from None

    def _seconds(self, left: float | None) -> float:
        return self._timeout if left is None else max(min(left, self._timeout), _LEAST_SECONDS)

    def _describe(self) -> tuple[Schema, pa.Schema | None]:
        reply = self._call("Describe", pb.DescribeRequest(), pb.DescribeReply)
        items, self._offered = reply.item_schema, frozenset(reply.encodings)
        self._open_reads(reply.read_port, reply.instance)
        return (
            Schema.from_arrow(pa.ipc.read_schema(pa.py_buffer(reply.event_schema))),
            pa.ipc.read_schema(pa.py_buffer(items)) if items else None,
        )

    def _open_reads(self, port: int, instance: bytes) -> None:
        """Has reads go over the read protocol if the server, where it was told, speaks it."""
        place = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", self.path)
        with self._channel_lock:
            if (port, instance) == self._reads_at:
                return
            self._reads_at, old = (port, instance), self._reads
            self._reads = None
            if port and place is not None:
                ca, key, certificate = self._tls
                tls = None if ca is None else client_context(ca, key, certificate)
                self._reads = ReadChannel(place[1], port, instance, self._token, tls)
        if old is not None:
            old.close()

    def append(
        self, events: Any, source: str = "", offset: int = -1, after: int | None = None
    ) -> int:
        """See ``SeqVault.append``. Not repeated by itself when it fails.

        Args:
            events, source, offset: as there.
            after: expected highest offset of the source so far (-1: none); otherwise the append is
                refused, so that overlapping batches never store an event twice. None: not checked.

        Raises:
            SourceConflictError: the source is at another offset; nothing was stored.
        """
        check_source(source, offset)
        table = pa.table(to_columns(events, self.schema))
        request = pb.AppendRequest(
            events=wire.table_to_bytes(table), source=source, offset=offset, after=after
        )
        return int(self._call("Append", request, pb.AppendReply).stored)

    def read(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
        timeout: float | None = None,
    ) -> SequenceBatch:
        """See ``SeqVault.read``.

        Args:
            timeout: seconds that are left for this call; no more than the client's own count.
        """
        seconds = self._seconds(timeout)
        users = ids_of(user_ids, "user_ids")
        bound = np.asarray(NO_BOUND if before is None else before)
        bounds = bounds_of(bound, len(users)) if bound.ndim else bounds_of(bound, 1)
        if isinstance(last_n, bool) or not isinstance(last_n, int | np.integer) or last_n < 1:
            raise InvalidRequestError(f"last_n must be a whole number of at least 1; got {last_n}.")
        message = ReadMessage(
            seconds=seconds,
            last_n=min(int(last_n), _NO_LIMIT),
            encoding=int(pb.DENSE_ZSTD if self._compress else pb.DENSE),
            users=users.tobytes(),
            before=bounds.tobytes(),
            one_bound=not bound.ndim,
            version=None if version is None else ids_of(version, "version").tobytes(),
            scenarios=None if scenarios is None else ids_of(scenarios, "scenarios").tobytes(),
            actions=None if actions is None else ids_of(actions, "actions").tobytes(),
            names=None if fields is None else names_to_bytes([str(name) for name in fields]),
        )
        batch = self._read_by_channel(message, users, int(last_n))
        if batch is not None:
            return batch
        request = pb.ReadRequest(
            user_ids=message.users,
            before=message.before,
            last_n=min(int(last_n), NO_BOUND),
            scenarios=None if scenarios is None else pb.IntegerList(values=scenarios),
            actions=None if actions is None else pb.IntegerList(values=actions),
            fields=None if fields is None else pb.StringList(values=fields),
            version=message.version or b"",
            encoding=self._encoding_for(len(users), int(last_n)),
        )
        reply = self._call("Read", request, pb.ReadReply, timeout=seconds)
        return batch_of(reply, users, int(last_n))

    def _read_by_channel(
        self, message: ReadMessage, users: np.ndarray, last_n: int
    ) -> SequenceBatch | None:
        """A read over the read protocol; None: it must go over gRPC.

        A read that broke off may be asked again: it changes nothing.
        """
        for _ in range(2):
            channel = self._reads
            if channel is None or time.monotonic() < self._reads_again:
                return None
            try:
                body = channel.read(message, message.seconds)
                return read_messages.batch_of(body, users, last_n)
            except OtherServerError:  # the one we knew was restarted, or has moved
                self._reads_at = 0, b""
                self._describe()
            except (BrokenChannelError, ProtocolError):
                self._reads_again = time.monotonic() + AGAIN_SECONDS
        return None

    def _encoding_for(self, users: int, last_n: int) -> int:
        """The best encoding: the fewest bytes with compression, else the least CPU time."""
        if self._compress:
            return int(pb.DENSE_ZSTD)
        large = last_n >= PACKED_FROM and users * last_n >= PACKED_EVENTS
        return int(pb.PACKED if large and pb.PACKED in self._offered else pb.DENSE)

    def put_items(self, table: Any) -> int:
        """See ``SeqVault.put_items``."""
        request = pb.PutItemsRequest(items=wire.table_to_bytes(to_table(table)))
        version = int(self._call("PutItems", request, pb.PutItemsReply).version)
        self.item_schema = self._describe()[1]
        return version

    def read_items(
        self, ids: Any, fields: Sequence[str] | None = None, timeout: float | None = None
    ) -> ItemBatch:
        """See ``SeqVault.read_items``; ``timeout`` as of ``read``."""
        wanted = np.asarray(ids)
        flat = ids_of(wanted.reshape(-1), "item ids")
        request = pb.ReadItemsRequest(
            item_ids=flat.tobytes(),
            fields=None if fields is None else pb.StringList(values=fields),
        )
        reply = self._call("ReadItems", request, pb.ReadItemsReply, timeout=self._seconds(timeout))
        table = wire.table_from_bytes(reply.items)
        columns = {}
        for name in table.column_names:
            values = to_numpy(table.column(name))
            columns[name] = values.reshape(*wanted.shape, *values.shape[1:])
        found = np.frombuffer(reply.found, np.uint8).astype(bool).reshape(wanted.shape)
        return ItemBatch(flat.reshape(wanted.shape), found, columns, int(reply.version))

    def user_ids(self, after: int | None = None, limit: int = USERS_A_PAGE) -> np.ndarray:
        """See ``SeqVault.user_ids``."""
        page_of(after, limit)
        request = pb.UserIdsRequest(after=after, limit=limit)
        reply = self._call("UserIds", request, pb.UserIdsReply)
        return wire.array_from_bytes(reply.user_ids, "i8", "user_ids").astype(np.int64)

    def bulk_load(self, source: Any) -> int:
        """Loads history in large appends; see ``SeqVault.bulk_load``."""
        return sum(self.append(batch) for batch in batches_of(source))

    def _work(self, method: str, request: Any, progress: Progress) -> dict[str, Any]:
        """Makes a long call that streams its progress; returns its result."""
        request.tell_progress = progress is not no_progress
        call = self._channel.unary_stream(
            f"/{wire.NAME}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.WorkReply.FromString,
        )
        request_id = uuid.uuid4().hex
        metadata = (*self._metadata, (REQUEST_ID, request_id))
        replies = call(request, timeout=LONG_SECONDS, metadata=metadata)
        answer: dict[str, Any] = {}
        try:
            for reply in replies:
                if reply.json:
                    answer = json.loads(reply.json)
                else:
                    progress(reply.unit, reply.done, reply.total)
        except grpc.RpcError as error:
            raise wire.error_of(error, self.path, request_id, method) from None
        finally:
            replies.cancel()  # if `progress` raised; nothing else is left to cancel
        return answer

    def merge(self, progress: Progress = no_progress) -> dict[str, int]:
        """See ``SeqVault.merge``; an exception of ``progress`` stops waiting, not the merge."""
        return self._work("Merge", pb.MergeRequest(), progress)

    def verify(self, progress: Progress = no_progress) -> dict[str, int]:
        """See ``SeqVault.verify``."""
        return self._work("Verify", pb.VerifyRequest(), progress)

    def stats(self) -> dict[str, Any]:
        """See ``SeqVault.stats``."""
        reply = self._call("Stats", pb.StatsRequest(), pb.JsonReply, timeout=LONG_SECONDS)
        answer: dict[str, Any] = json.loads(reply.json)
        return answer

    def fingerprint(self) -> str:
        """See ``SeqVault.fingerprint``."""
        request = pb.FingerprintRequest()
        reply = self._call("Fingerprint", request, pb.JsonReply, timeout=LONG_SECONDS)
        return str(json.loads(reply.json)["fingerprint"])

    def snapshot(self, path: str | os.PathLike[str], progress: Progress = no_progress) -> None:
        """See ``SeqVault.snapshot``; the path is one on the server."""
        self._work("Snapshot", pb.SnapshotRequest(path=os.fspath(path)), progress)

    def refresh(self) -> bool:
        """Does nothing: a server always answers with what is there now."""
        return False

    def close(self) -> None:
        """Closes the connections."""
        if self._reads is not None:
            self._reads.close()
        self._channel.close()

    def __enter__(self) -> "SeqVaultClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
