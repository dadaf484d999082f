"""A hash of everything that reads of a store can return."""

import hashlib
import json

import numpy as np
import pyarrow as pa

from seqvault.disk.segment import HEADER, Segment
from seqvault.memory.item_table import Items
from seqvault.memory.store_state import State

BLOCK = 8 << 20


def fingerprint(state: State) -> str:
    """See ``SeqVault.fingerprint``."""
    with state.lock:  # arrays that were there under the lock never change
        manifest, memtable = state.manifest, state.memtable
        segments = [state.segments[number] for number in manifest.segments]
        size, columns, slots = memtable.size, dict(memtable.columns), memtable.slots
        users, items = state.index.users.keys, state.items
    digest = hashlib.blake2b(digest_size=16)
    rules = [manifest.schemas, manifest.retention_ms, manifest.max_events]
    digest.update(json.dumps(rules, sort_keys=True).encode())
    for segment in segments:
        digest.update(_of_segment(segment))
    digest.update(np.ascontiguousarray(users[slots[:size]]).data)
    for name, column in columns.items():
        digest.update(name.encode())
        digest.update(column[:size].data)
    digest.update(_of_items(items))
    return digest.hexdigest()


def _of_segment(segment: Segment) -> bytes:
    """Hash of a segment's records and footer, without the header, which holds the file number.

    A segment never changes, so its hash is worked out once.
    """
    if segment.content_hash is None:
        digest = hashlib.blake2b(f"{segment.schema_id} {segment.columns}".encode(), digest_size=16)
        for start in range(HEADER.itemsize, segment.size, BLOCK):
            length = min(BLOCK, segment.size - start)
            digest.update(segment.files.read_all(segment.fd, length, start).data)
        segment.content_hash = digest.digest()
    return segment.content_hash


def _of_items(items: Items) -> bytes:
    """Hash of the item table, worked out once for each of its versions."""
    while items.content_hash[0] != items.version:
        version, table, digest = items.version, items.to_table(), hashlib.blake2b(digest_size=16)
        if table is not None:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks(), max_chunksize=1 << 20)
            digest.update(sink.getvalue())
        if version == items.version:  # or a write came in between, and the table may be either
            items.content_hash = version, digest.digest()
    return items.content_hash[1]
