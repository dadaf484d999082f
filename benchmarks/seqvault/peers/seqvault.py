"""SeqVault itself."""

import numpy as np
import pyarrow as pa

from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.workload import LAST_N, Columns, Histories
from seqvault import Schema, SeqVault

Hints = dict[str, dict[str, str]]  # field metadata by field name


class SeqVaultPeer(Peer):
    """A store in its usual setting, or with hints in field metadata."""

    def __init__(
        self, path: str, histories: Histories, name: str = "seqvault", hints: Hints | None = None
    ) -> None:
        super().__init__(path, histories)
        self.name = name
        fields = [
            field.with_metadata((hints or {}).get(field.name, {}))
            for field in pa.table(histories.events).schema
        ]
        self.vault = SeqVault.open(path, Schema.from_arrow(pa.schema(fields)))

    def fill(self, histories: Histories) -> None:
        self.vault.bulk_load(histories.events)

    def append(self, events: Columns) -> None:
        self.vault.append(events)

    def read(self, users: np.ndarray) -> Columns:
        return self.vault.read(users, before=None, last_n=LAST_N).columns

    def bytes_stored(self) -> int:
        return int(self.vault.stats()["segment_bytes"])

    def reopen(self, cached: bool) -> None:
        self.close()
        self.vault = SeqVault.open(self.path)

    def close(self) -> None:
        self.vault.close()
