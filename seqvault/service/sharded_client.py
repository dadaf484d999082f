"""A client of several servers as one store: users sharded by hash, reads with failover."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from seqvault.errors import SchemaError, ServerUnavailableError
from seqvault.item_batch import ItemBatch
from seqvault.merge.bulk_loader import batches_of
from seqvault.progress import Progress, no_progress
from seqvault.read.read_request import USERS_A_PAGE, bounds_of, ids_of
from seqvault.schema import Schema
from seqvault.sequence_batch import SequenceBatch
from seqvault.service.client import SeqVaultClient
from seqvault.service.replicas import Replicas
from seqvault.service.shards import shard_of
from seqvault.service.summed_progress import SummedProgress
from seqvault.write.event_columns import to_columns

Answer = TypeVar("Answer")
HEDGE_SECONDS = 0.1
CALLS = 64  # under way at a time, at least


class ShardedClient:
    """The interface of ``SeqVault`` over shards of replicas; made by ``seqvault.connect``.

    A read of a shard goes to the replica that answered last, and to the next one if that fails or
    is slow, see ``Replicas``. A write goes to all replicas of its shard and raises unless all
    took it; with a source and an offset it can be repeated until they have. Items are on every
    server.

    Args:
        shards: what connects to each shard's replicas.
        hedge_seconds: that a replica has for a read before the next one is asked, too.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[Callable[[], SeqVaultClient]]],
        hedge_seconds: float = HEDGE_SECONDS,
    ) -> None:
        self._pool = ThreadPoolExecutor(16 * len(shards))  # one thread per shard of a call
        # calls to a replica that stopped without a word hold theirs until they time out
        self._calls = ThreadPoolExecutor(CALLS + 2 * sum(len(replicas) for replicas in shards))
        self._shards = [Replicas(makers, self._calls, hedge_seconds) for makers in shards]
        try:
            self.schema: Schema = self._any(0, lambda client: client.schema)
            for shard in range(1, len(shards)):
                other = self._any(shard, lambda client: client.schema)
                if other != self.schema:
                    raise SchemaError(
                        f"shard {shard} has the schema {other.to_json()}, shard 0 has "
                        f"{self.schema.to_json()}; servers of one store must agree."
                    )
        except BaseException:
            self.close()
            raise

    def _any(self, shard: int, call: Callable[[SeqVaultClient], Answer]) -> Answer:
        """The answer of whichever replica of a shard answers."""
        return self._shards[shard].read(call)

    def _anywhere(self, call: Callable[[SeqVaultClient], Answer]) -> Answer:
        """The answer of any server, for what all have."""
        for shard in range(len(self._shards) - 1):
            with suppress(ServerUnavailableError):
                return self._any(shard, call)
        return self._any(len(self._shards) - 1, call)

    def _one(
        self, call: Callable[[SeqVaultClient, int], Answer], shard: int, replica: int
    ) -> Answer:
        return call(self._shards[shard].client(replica), shard)

    def _all(self, call: Callable[[SeqVaultClient, int], Answer]) -> list[list[Answer]]:
        """Answers of all replicas of all shards; raises the first error after all ended."""
        waiting = [
            [self._calls.submit(self._one, call, s, r) for r in range(len(replicas))]
            for s, replicas in enumerate(self._shards)
        ]
        for futures in waiting:
            for future in futures:
                future.exception()
        return [[future.result() for future in futures] for futures in waiting]

    def append(self, events: Any, source: str = "", offset: int = -1) -> int:
        """See ``SeqVault.append``."""
        columns = to_columns(events, self.schema)
        shards = shard_of(columns["user_id"], len(self._shards))

        def send(client: SeqVaultClient, shard: int) -> int:
            mine = {name: values[shards == shard] for name, values in columns.items()}
            return client.append(mine, source, offset)

        return sum(max(counts) for counts in self._all(send))

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
        """See ``SeqVault.read``; ``timeout`` as of ``SeqVaultClient.read``, of all replicas."""
        left = _left_of(timeout)
        users = ids_of(user_ids, "user_ids")
        bounds = None if before is None else bounds_of(before, len(users))
        seen = None if version is None else ids_of(version, "version")
        shards = shard_of(users, len(self._shards))
        wanted = [s for s in range(len(self._shards)) if (shards == s).any()] or [0]

        def ask(shard: int) -> SequenceBatch:
            mine = shards == shard
            return self._any(
                shard,
                lambda client: client.read(
                    users[mine], None if bounds is None else bounds[mine], last_n, scenarios,
                    actions, fields, None if seen is None else seen[mine], left(),
                ),
            )  # fmt: skip

        parts = list(self._pool.map(ask, wanted))
        lengths, told = np.zeros(len(users), np.int32), np.zeros(len(users), np.int64)
        columns = {
            name: np.zeros((len(users), last_n), values.dtype)
            for name, values in parts[0].columns.items()
        }
        for shard, part in zip(wanted, parts, strict=True):
            mine = shards == shard
            lengths[mine], told[mine] = part.lengths, part.version
            for name, values in part.columns.items():
                columns[name][mine] = values
        return SequenceBatch(users, lengths, columns, told)

    def put_items(self, table: Any) -> int:
        """See ``SeqVault.put_items``; versions are each server's own, the least is told."""
        answers = self._all(lambda client, shard: client.put_items(table))
        return min(min(versions) for versions in answers)

    def read_items(
        self, ids: Any, fields: Sequence[str] | None = None, timeout: float | None = None
    ) -> ItemBatch:
        """See ``SeqVault.read_items``; ``timeout`` as of ``read``."""
        left = _left_of(timeout)
        return self._anywhere(lambda client: client.read_items(ids, fields, left()))

    def user_ids(self, after: int | None = None, limit: int = USERS_A_PAGE) -> np.ndarray:
        """See ``SeqVault.user_ids``; of all shards together."""
        pages = [
            self._any(shard, lambda client: client.user_ids(after, limit))
            for shard in range(len(self._shards))
        ]
        return np.unique(np.concatenate(pages))[:limit]

    @property
    def item_schema(self) -> pa.Schema | None:
        """See ``SeqVault.item_schema``."""
        return self._anywhere(lambda client: client.item_schema)

    def bulk_load(self, source: Any) -> int:
        """Loads history in large appends; see ``SeqVault.bulk_load``."""
        return sum(self.append(batch) for batch in batches_of(source))

    def _sum(self, call: Callable[[SeqVaultClient], dict[str, Any]]) -> dict[str, Any]:
        """Sums over shards of the numbers that each shard's first replica tells."""
        answers = [replicas[0] for replicas in self._all(lambda client, shard: call(client))]
        return {
            name: sum(answer[name] for answer in answers)
            for name, value in answers[0].items()
            if isinstance(value, int)
        }

    def merge(self, progress: Progress = no_progress) -> dict[str, int]:
        """See ``SeqVault.merge``; on every server, and ``progress`` is told of all together."""
        summed = SummedProgress(progress)
        return self._sum(lambda client: client.merge(summed.part()))

    def verify(self, progress: Progress = no_progress) -> dict[str, int]:
        """See ``SeqVault.verify``; on every server."""
        summed = SummedProgress(progress)
        return self._sum(lambda client: client.verify(summed.part()))

    def stats(self) -> dict[str, Any]:
        """See ``SeqVault.stats``; counts, summed over shards."""
        return self._sum(lambda client: client.stats())

    def fingerprint(self) -> str:
        """See ``SeqVault.fingerprint``; of all shards, as one replica of each tells it."""
        shards = range(len(self._shards))
        each = [self._any(shard, lambda client: client.fingerprint()) for shard in shards]
        return hashlib.blake2b(" ".join(each).encode(), digest_size=16).hexdigest()

    def snapshot(self, path: str | os.PathLike[str], progress: Progress = no_progress) -> None:
        """See ``SeqVault.snapshot``; the path is made on every server."""
        summed = SummedProgress(progress)
        self._all(lambda client, shard: client.snapshot(path, summed.part()))

    def refresh(self) -> bool:
        """Does nothing: servers always answer with what is there now."""
        return False

    def close(self) -> None:
        """Closes all connections."""
        for replicas in self._shards:
            replicas.close()
        for pool in (self._pool, self._calls):
            pool.shutdown()

    def __enter__(self) -> "ShardedClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _left_of(timeout: float | None) -> Callable[[], float | None]:
    """What is left of so many seconds from now on."""
    ends = None if timeout is None else time.monotonic() + timeout
    return lambda: None if ends is None else ends - time.monotonic()
