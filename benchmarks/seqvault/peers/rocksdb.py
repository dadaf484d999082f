"""RocksDB through rocksdict: one packed blob per user, and one key per event."""

import struct
import threading

import numpy as np
import rocksdict

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.timing import bytes_below
from benchmarks.seqvault.workload import Columns, Histories, pieces

CACHE_BYTES = 1 << 30  # more than all data: warm reads never leave it
COMPRESSION = {
    "lz4": rocksdict.DBCompressionType.lz4,
    "zstd": rocksdict.DBCompressionType.zstd,
}


def open_store(path: str, compression: str, cached: bool = True) -> rocksdict.Rdict:
    """A store of raw bytes with a block cache that holds everything, or none."""
    options = rocksdict.Options(raw_mode=True)
    options.set_compression_type(COMPRESSION[compression]())
    table = rocksdict.BlockBasedOptions()
    if cached:
        table.set_block_cache(rocksdict.Cache(CACHE_BYTES))
    else:
        table.disable_cache()
    options.set_block_based_table_factory(table)
    return rocksdict.Rdict(path, options)


def key_of(user: int) -> bytes:
    """Keys that sort as the users do."""
    return struct.pack(">Q", user)


class RocksPeer(Peer):
    """What both forms have in common."""

    form: str

    def __init__(self, path: str, histories: Histories, compression: str = "lz4") -> None:
        super().__init__(path, histories)
        self.name = f"rocksdb {self.form} {compression}"
        self._compression = compression
        self.store = open_store(path, compression)
        self._synced = rocksdict.WriteOptions()
        self._synced.sync = True
        self._lock, self._number = threading.Lock(), 0

    def settle(self) -> None:
        """Compacts all, so that reads and sizes are at their best."""
        self.store.flush()
        self.store.compact_range(None, None)

    def bytes_stored(self) -> int:
        return bytes_below(self.path)

    def reopen(self, cached: bool) -> None:
        self.close()
        self.store = open_store(self.path, self._compression, cached)

    def close(self) -> None:
        self.store.close()


class BlobPeer(RocksPeer):
    """One packed blob per user; an append reads the blobs and writes them anew."""

    form = "blob"

    def fill(self, histories: Histories) -> None:
        for place, user in enumerate(histories.users.tolist()):
            self.store[key_of(user)] = self.blobs.pack(histories.of_user(place))
        self.settle()

    def append(self, events: Columns) -> None:
        parts = Histories.of("", events)
        keys = [key_of(user) for user in parts.users.tolist()]
        batch = rocksdict.WriteBatch(raw_mode=True)
        with self._lock:  # two writers of one user would lose events
            for place, (key, old) in enumerate(zip(keys, self.store.get(keys), strict=True)):
                batch.put(key, self.blobs.merged(old, parts.of_user(place)))
            self.store.write(batch, self._synced)

    def read(self, users: np.ndarray) -> Columns:
        out = self.blobs.empty(len(users))
        keys = [key_of(user) for user in users.tolist()]
        found = self.store.get(keys) if len(keys) > 1 else [self.store.get(keys[0])]
        for row, blob in enumerate(found):
            if blob is not None:
                self.blobs.fill(out, row, blob)
        return out


class EventKeyPeer(RocksPeer):
    """One key per event: the user, the time, and a number that makes it unique."""

    form = "event keys"

    def _batch(self, events: Columns) -> rocksdict.WriteBatch:
        n = len(events["user_id"])
        with self._lock:
            first = self._number
            self._number += n
        keys = np.empty(n, np.dtype([("user", ">u8"), ("time", ">u8"), ("number", ">u4")]))
        keys["user"], keys["time"] = events["user_id"], events["timestamp"]
        keys["number"] = np.arange(first, first + n)
        batch = rocksdict.WriteBatch(raw_mode=True)
        rows = pieces(self.blobs.rows(events))
        for key, row in zip(pieces(keys.view(np.uint8).reshape(n, -1)), rows, strict=True):
            batch.put(key, row)
        return batch

    def fill(self, histories: Histories) -> None:
        for first in range(0, len(histories), 1 << 16):
            part = {n: v[first : first + (1 << 16)] for n, v in histories.events.items()}
            self.store.write(self._batch(part))
        self.settle()

    def append(self, events: Columns) -> None:
        self.store.write(self._batch(events), self._synced)

    def read(self, users: np.ndarray) -> Columns:
        raise NotImplementedError("an iteration over events through Python would time Python")
