"""Writing side information of items: one checked file per call, named by the manifest."""

from dataclasses import replace
from typing import Any

from seqvault.disk import item_file as item_files
from seqvault.memory.item_table import Items
from seqvault.memory.store_state import State

ITEM_FILES = 8  # more are written as one again, so that opening stays quick


def put_items(state: State, checked: Any) -> int:
    """See ``SeqVault.put_items``. The caller holds ``state.merging``."""
    state.items.check(checked)
    manifest = state.manifest
    number = manifest.next_file
    listed = [*manifest.items, number]
    stored = checked
    if len(manifest.items) >= ITEM_FILES:
        whole = Items()
        for old in manifest.items:
            whole.apply(item_files.load(state.files, state.path, old, whole.schema), old)
        whole.apply(checked, number)
        listed, table_now = [number], whole.to_table()
        assert table_now is not None
        stored = table_now
    try:
        item_files.save(state.files, state.path, number, stored)
    except BaseException:
        state.discard(item_files.path_of(state.path, number) + ".tmp")
        raise
    state.publish(
        replace(manifest, items=listed, next_file=number + 1, edition=manifest.edition + 1)
    )
    with state.lock:
        state.items.apply(checked, number)
    for old in manifest.items:
        if old not in listed:
            state.discard(item_files.path_of(state.path, old))
    return number
