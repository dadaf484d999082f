"""LMDB: one blob per user, as it is or compressed, read from the map without a copy."""

import lmdb
import numpy as np
import zstandard

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.peers.rocksdb import key_of
from benchmarks.seqvault.timing import bytes_below
from benchmarks.seqvault.workload import Columns, Histories

MAP_BYTES = 8 << 30


class LmdbPeer(Peer):
    """One blob per user; ``zstd``: compressed at the usual level, and not appended to."""

    def __init__(self, path: str, histories: Histories, zstd: bool = False) -> None:
        super().__init__(path, histories)
        self.name = "lmdb zstd" if zstd else "lmdb raw"
        self._zstd = zstd
        self._stretch = zstandard.ZstdDecompressor().decompress
        self.store = lmdb.open(path, map_size=MAP_BYTES)

    def fill(self, histories: Histories) -> None:
        squeeze = zstandard.ZstdCompressor(3).compress
        with self.store.begin(write=True) as transaction:
            for place, user in enumerate(histories.users.tolist()):
                blob = self.blobs.pack(histories.of_user(place))
                transaction.put(key_of(user), squeeze(blob) if self._zstd else blob)
        self.store.sync(True)

    def append(self, events: Columns) -> None:
        parts = Histories.of("", events)
        with self.store.begin(write=True, buffers=True) as transaction:
            for place, user in enumerate(parts.users.tolist()):
                old = transaction.get(key_of(user))
                transaction.put(key_of(user), self.blobs.merged(old, parts.of_user(place)))

    def read(self, users: np.ndarray) -> Columns:
        out = self.blobs.empty(len(users))
        with self.store.begin(buffers=True) as transaction:
            for row, user in enumerate(users.tolist()):
                blob = transaction.get(key_of(user))
                if blob is not None:
                    self.blobs.fill(out, row, self._stretch(blob) if self._zstd else blob)
        return out

    def bytes_stored(self) -> int:
        return bytes_below(self.path)

    def reopen(self, cached: bool) -> None:
        self.close()  # pages in a map cannot be dropped
        self.store = lmdb.open(self.path, map_size=MAP_BYTES)

    def close(self) -> None:
        self.store.close()
