"""Writes of item side information: one checksummed file per call, listed in the manifest."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from seqvault.disk import item_file
from seqvault.give_way import give_way
from seqvault.memory.item_table import Items
from seqvault.memory.store_state import State

ITEM_FILES = 8  # more are written as one again, so that opening stays quick


def put_items(state: State, checked: pa.Table) -> int:
    """See ``SeqVault.put_items``. The caller holds ``state.writing_items``."""
    state.check_writable()
    items, before = state.items, state.manifest.items
    items.check(checked)
    number = state.take_number()
    listed, stored = [*before, number], checked
    if len(before) >= ITEM_FILES:
        listed, stored = [number], _as_one(state, before, checked, number)
    fresh = items.prepared(checked, number)
    try:
        item_file.save(state.files, state.path, number, stored, state.owned)
        state.publish(lambda manifest: replace(manifest, items=listed), lambda: items.show(fresh))
    except BaseException:
        if state.failed is None:  # no manifest names it
            state.discard(item_file.path_of(state.path, number))
        raise
    state.discard(*(item_file.path_of(state.path, old) for old in before if old not in listed))
    while stored is not checked and stored.num_columns:
        stored = stored.remove_column(0)  # all at once would hold readers up
        give_way()
    return number


def _as_one(state: State, before: Sequence[int], checked: pa.Table, number: int) -> pa.Table:
    """What the files before it and a checked table say together."""
    whole = Items()
    for old in before:
        table = item_file.load(state.files, state.path, old, whole.schema, use_threads=False)
        whole.apply(table, old)
    whole.apply(checked, number)
    together = whole.to_table()
    whole.clear()
    return together
