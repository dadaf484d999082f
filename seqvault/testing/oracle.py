"""A reference model of a store in plain Python."""

from collections import defaultdict
from typing import Any

import numpy as np

from seqvault.store import SeqVault

USERS = 6

Row = tuple[int, int, int]  # time, item, action


class Oracle:
    """Every user's events in order of arrival, the items, and a source's last offset."""

    def __init__(self) -> None:
        self.events: dict[int, list[Row]] = defaultdict(list)
        self.items: dict[int, int] = {}
        self.offset = -1

    def copy(self) -> "Oracle":
        """A copy to change."""
        other = Oracle()
        other.events = defaultdict(list, {user: list(rows) for user, rows in self.events.items()})
        other.items, other.offset = dict(self.items), self.offset
        return other

    def add(self, events: dict[str, np.ndarray]) -> None:
        """Takes in an append."""
        for user, *row in zip(*(column.tolist() for column in events.values()), strict=True):
            self.events[user].append((row[0], row[1], row[2]))

    def after(self, events: dict[str, np.ndarray]) -> "Oracle":
        """What it is after an append."""
        other = self.copy()
        other.add(events)
        return other

    def difference(self, vault: SeqVault) -> str:
        """What the store answers wrongly, or "" if nothing."""
        batch = vault.read(np.arange(USERS), before=None, last_n=4096)
        for user in range(USERS):
            n = int(batch.lengths[user])
            columns = (
                batch[name][user, :n].tolist() for name in ("timestamp", "item_id", "action")
            )
            got = list(zip(*columns, strict=True))[::-1]
            expected = sorted(self.events[user], key=lambda row: row[0])
            if got != expected:
                return f"user {user}: {len(got)} events read, {len(expected)} expected"
        return self._items_differ(vault)

    def _items_differ(self, vault: SeqVault) -> str:
        if not self.items:
            return ""
        ids = sorted(self.items)
        read: Any = vault.read_items(np.array(ids))
        if "value" not in read or read["value"].tolist() != [self.items[key] for key in ids]:
            return "items differ"
        return ""
