"""What each method of the service does with the store."""

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import SourceConflictError, UnknownFieldError
from seqvault.progress import Progress
from seqvault.service import seqvault_pb2 as pb
from seqvault.service import wire, work
from seqvault.service.call import Call
from seqvault.service.read_replies import OFFERED, read_reply
from seqvault.store import SeqVault

Handler = Callable[[Any, Call], Any]
StreamHandler = Callable[[Any, Call], Iterator[Any]]
WRITES = {"Append", "PutItems", "Merge", "Snapshot"}


class StoreService:
    """Methods of ``seqvault.v1.SeqVault`` over a store; safe for many threads."""

    def __init__(self, vault: SeqVault) -> None:
        self._vault = vault
        self._sources: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def methods(self) -> dict[str, tuple[Any, Handler]]:
        """Request type and function of each method with one reply."""
        return {
            "Describe": (pb.DescribeRequest, self._describe),
            "Append": (pb.AppendRequest, self._append),
            "Read": (pb.ReadRequest, self._read),
            "PutItems": (pb.PutItemsRequest, self._put_items),
            "ReadItems": (pb.ReadItemsRequest, self._read_items),
            "UserIds": (pb.UserIdsRequest, self._user_ids),
            "Stats": (pb.StatsRequest, self._stats),
        }

    def long_methods(self) -> dict[str, tuple[Any, StreamHandler]]:
        """Request type and function of each method that tells how far it is."""
        return {
            "Merge": (pb.MergeRequest, self._merge),
            "Verify": (pb.VerifyRequest, self._verify),
            "Snapshot": (pb.SnapshotRequest, self._snapshot),
        }

    def _describe(self, request: Any, call: Call) -> Any:
        items = self._vault.item_schema
        return pb.DescribeReply(
            event_schema=self._vault.schema.to_arrow().serialize().to_pybytes(),
            item_schema=b"" if items is None else items.serialize().to_pybytes(),
            encodings=OFFERED,
        )

    def _append(self, request: Any, call: Call) -> Any:
        table = wire.table_from_bytes(request.events)
        if not request.HasField("after"):
            stored = self._vault.append(table, source=request.source, offset=request.offset)
            return _appended(stored, call)
        with self._sources[request.source]:  # nobody else may move the source meanwhile
            present = self._vault.stats()["sources"].get(request.source, -1)
            if present != request.after:
                raise SourceConflictError(
                    f"source {request.source!r} is at offset {present}, the caller believed "
                    f'{request.after}; ask stats()["sources"] and go on behind it.'
                )
            stored = self._vault.append(table, source=request.source, offset=request.offset)
        return _appended(stored, call)

    def _read(self, request: Any, call: Call) -> Any:
        call.users = len(request.user_ids) // 8
        before = wire.array_from_bytes(request.before, "i8", "before")
        arguments = {
            "user_ids": wire.array_from_bytes(request.user_ids, "i8", "user_ids"),
            "before": before[0] if len(before) == 1 else before,
            "last_n": request.last_n,
            "scenarios": list(request.scenarios.values) if request.HasField("scenarios") else None,
            "actions": list(request.actions.values) if request.HasField("actions") else None,
            "fields": list(request.fields.values) if request.HasField("fields") else None,
            "version": wire.array_from_bytes(request.version, "i8", "version")
            if request.version
            else None,
        }
        reply = read_reply(self._vault, arguments, request.encoding)
        if request.encoding != pb.PACKED:  # of a packed one only the caller sees the lengths
            call.events = int(np.frombuffer(reply.lengths, "<i4").sum())
        return reply

    def _put_items(self, request: Any, call: Call) -> Any:
        table = wire.table_from_bytes(request.items)
        return pb.PutItemsReply(version=self._vault.put_items(table))

    def _read_items(self, request: Any, call: Call) -> Any:
        fields = list(request.fields.values) if request.HasField("fields") else None
        ids = wire.array_from_bytes(request.item_ids, "i8", "item_ids")
        batch = self._vault.read_items(ids, fields)
        schema = self._vault.item_schema
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

    def _user_ids(self, request: Any, call: Call) -> Any:
        after = request.after if request.HasField("after") else None
        users = self._vault.user_ids(after, request.limit)
        call.users = len(users)
        return pb.UserIdsReply(user_ids=users.astype("<i8").tobytes())

    def _stats(self, request: Any, call: Call) -> Any:
        return pb.JsonReply(json=json.dumps(self._vault.stats()))

    def _merge(self, request: Any, call: Call) -> Iterator[Any]:
        return work.replies(lambda p: self._vault.merge(progress=p), request.tell_progress)

    def _verify(self, request: Any, call: Call) -> Iterator[Any]:
        return work.replies(self._vault.verify, request.tell_progress)

    def _snapshot(self, request: Any, call: Call) -> Iterator[Any]:
        def copy(progress: Progress) -> dict[str, Any]:
            self._vault.snapshot(request.path, progress)
            return {"snapshot": request.path}

        return work.replies(copy, request.tell_progress)


def _appended(stored: int, call: Call) -> Any:
    call.events = stored
    return pb.AppendReply(stored=stored)
