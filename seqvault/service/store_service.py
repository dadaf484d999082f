"""The methods of the service, as calls of the store."""

import json
import os
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.errors import (
    InvalidRequestError,
    LimitError,
    SourceConflictError,
    UnknownFieldError,
)
from seqvault.progress import Progress
from seqvault.read.read_request import USERS_A_PAGE
from seqvault.service import seqvault_pb2 as pb
from seqvault.service import wire, work
from seqvault.service.call import Call
from seqvault.service.read_replies import OFFERED, read_reply
from seqvault.service.work_pool import WorkPool
from seqvault.store import SeqVault

COPIES = 3  # of an answer at a time: arrays, bytes of columns, the message
Handler = Callable[[Any, Call], Any]
StreamHandler = Callable[[Any, Call], Iterator[Any]]
WRITES = {"Append", "PutItems", "Merge", "Snapshot"}


@dataclass(frozen=True)
class Pools:
    """Thread pools for calls that may wait: item writes and long calls."""

    items: WorkPool
    long_calls: WorkPool


class StoreService:
    """Methods of ``seqvault.v1.SeqVault`` over a store; safe for many threads.

    Args:
        vault: the store.
        pools: workers that do what may have to wait for others.
        snapshots: directory below which snapshots may be made; None: none may.

    Attributes:
        instance: 16 bytes, which server this is.
        read_port: where it speaks the read protocol, too; 0: nowhere.
    """

    def __init__(self, vault: SeqVault, pools: Pools, snapshots: str | None = None) -> None:
        self._vault, self._pools = vault, pools
        self.instance, self.read_port = uuid.uuid4().bytes, 0
        self._snapshots = None if snapshots is None else os.path.realpath(snapshots)
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
            "Fingerprint": (pb.FingerprintRequest, self._fingerprint),
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
            read_port=self.read_port,
            instance=self.instance,
        )

    def _append(self, request: Any, call: Call) -> Any:
        table = wire.table_from_bytes(request.events)
        if not request.HasField("after"):
            stored = self._vault.append(table, source=request.source, offset=request.offset)
            return _appended(stored, call)
        with self._sources[request.source]:  # no other call may advance the source meanwhile
            present = self._vault.stats()["sources"].get(request.source, -1)
            if present != request.after:
                raise SourceConflictError(
                    f"source {request.source!r} is at offset {present}, the caller expected "
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
        packed = request.encoding == pb.PACKED
        most = self._vault.answer_bytes(**arguments, packed=packed)
        if most > wire.MAX_MESSAGE:
            raise LimitError(
                f"the answer can take {most} bytes, a message {wire.MAX_MESSAGE}; ask for fewer "
                "users, events or fields at a time."
            )
        call.hold(COPIES * most)
        reply = read_reply(self._vault, arguments, request.encoding)
        if not packed:  # of a packed one only the caller sees the lengths
            call.events = int(np.frombuffer(reply.lengths, "<i4").sum())
        return reply

    def _put_items(self, request: Any, call: Call) -> Any:
        table = wire.table_from_bytes(request.items)
        version = self._pools.items.answer(lambda: self._vault.put_items(table), call.wanted)
        return pb.PutItemsReply(version=version)

    def _read_items(self, request: Any, call: Call) -> Any:
        fields = list(request.fields.values) if request.HasField("fields") else None
        ids = wire.array_from_bytes(request.item_ids, "i8", "item_ids")
        call.hold(COPIES * self._vault.item_bytes(len(ids), fields))
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
        call.hold(COPIES * 8 * min(max(request.limit, 0), USERS_A_PAGE))
        users = self._vault.user_ids(after, request.limit)
        call.users = len(users)
        return pb.UserIdsReply(user_ids=users.astype("<i8").tobytes())

    def _stats(self, request: Any, call: Call) -> Any:
        return pb.JsonReply(json=json.dumps(self._vault.stats()))

    def _fingerprint(self, request: Any, call: Call) -> Any:
        return pb.JsonReply(json=json.dumps({"fingerprint": self._vault.fingerprint()}))

    def _merge(self, request: Any, call: Call) -> Iterator[Any]:
        return self._work(lambda p: self._vault.merge(progress=p), request, call)

    def _verify(self, request: Any, call: Call) -> Iterator[Any]:
        return self._work(self._vault.verify, request, call)

    def _snapshot(self, request: Any, call: Call) -> Iterator[Any]:
        target = self._target_of(request.path)

        def copy(progress: Progress) -> dict[str, Any]:
            self._vault.snapshot(target, progress)
            return {"snapshot": target}

        return self._work(copy, request, call)

    def _work(self, what: work.Work, request: Any, call: Call) -> Iterator[Any]:
        return work.replies(what, request.tell_progress, self._pools.long_calls, call.wanted)

    def _target_of(self, path: str) -> str:
        """Checks and resolves the path of a snapshot that a caller asked for."""
        if self._snapshots is None:
            raise InvalidRequestError(
                "this server does not allow snapshots; start it with --snapshots DIRECTORY, "
                "or run `seqvault snapshot` where the store is."
            )
        target = os.path.realpath(os.path.join(self._snapshots, path))
        if not target.startswith(self._snapshots + os.sep):
            raise InvalidRequestError(
                f"a snapshot at {path} would not be below {self._snapshots}, where this server "
                "makes them; name one below it."
            )
        return target


def _appended(stored: int, call: Call) -> Any:
    call.events = stored
    return pb.AppendReply(stored=stored)
