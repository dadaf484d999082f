"""Bulk loading: life-cycle history goes into segments past the log."""

from typing import Any

from seqvault.events import to_columns
from seqvault.merger import Merger
from seqvault.requests import batches_of
from seqvault.state import State

LOAD_EVENTS = 1 << 21  # events of a bulk load held in memory


def bulk_load(state: State, merger: Merger, source: Any) -> int:
    """See ``SeqVault.bulk_load``. The caller holds ``state.merging``."""
    total = 0
    for batch in batches_of(source):
        columns = to_columns(batch, state.schema)
        if len(columns["user_id"]):
            state.apply(columns, "", -1)
        total += len(columns["user_id"])
        if state.memtable.size >= LOAD_EVENTS:
            merger.merge()
    merger.merge()
    return total
