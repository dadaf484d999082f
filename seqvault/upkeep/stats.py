"""Sizes and counts of a store."""

from typing import Any

from seqvault.memory.store_state import State


def stats(state: State) -> dict[str, Any]:
    """See ``SeqVault.stats``."""
    with state.lock:
        index, memtable = state.index, state.memtable
        on_disk = sum(segment.size for segment in state.segments.values())
        return {
            "path": state.path,
            "users": len(index.users),
            "events": state.stored_events + memtable.size,
            "events_in_log": memtable.size,
            "segments": len(state.segments),
            "segment_bytes": on_disk,
            "live_bytes": state.live_bytes,
            "bytes_per_event": on_disk / state.stored_events if state.stored_events else 0.0,
            "index_bytes": index.bytes,
            "memtable_bytes": memtable.bytes,
            "items": len(state.items),
            "items_version": state.items.version,
            "sources": dict(state.sources),
            "fields": list(state.schema.names),
        }
