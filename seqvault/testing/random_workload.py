"""Random operations on a store, with what the store must answer after each."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.schema import Schema
from seqvault.store import SeqVault
from seqvault.testing.oracle import USERS, Oracle

SCHEMA = Schema.from_arrow(pa.schema([("item_id", pa.int64()), ("action", pa.int8())]))
NOW = 1_700_000_000_000

Step = tuple[Oracle, Callable[[SeqVault], Any]]


def plain_events(user: int, first: int, count: int) -> dict[str, np.ndarray]:
    """A user's events number ``first`` and on, a millisecond apart; the number is the item."""
    places = np.arange(first, first + count)
    return {
        "user_id": np.full(count, user),
        "timestamp": NOW + places,
        "item_id": places,
        "action": np.zeros(count, np.int8),
    }


def random_events(rng: random.Random, count: int) -> dict[str, np.ndarray]:
    """Events of few users; times repeat, and some batches are late.

    A third of the users each sees any items, few items with an action that goes with
    the item, and the same item for a while: what columns are coded by.
    """
    late = rng.random() < 0.3
    rows = []
    for _ in range(count):
        user, time = rng.randrange(USERS), NOW + rng.randrange(1000) - (5000 if late else 0)
        style = user % 3
        few = rng.randrange(40) if style == 1 else time // 100 % 50
        item = few * 7919 if style else rng.randrange(10**9)
        action = item % 10 - 5 if style else rng.randrange(-5, 5)
        rows.append((user, time, item, action))
    columns = np.array(rows, np.int64).reshape(count, 4).T
    names = ("user_id", "timestamp", "item_id", "action")
    events = dict(zip(names, np.ascontiguousarray(columns), strict=True))
    return {**events, "action": events["action"].astype(np.int8)}


def random_step(oracle: Oracle, rng: random.Random, copies: str) -> Step:
    """A random operation: what the oracle is after it, and the call that does it.

    It depends on the arguments alone, so that two processes can follow the same steps.

    Args:
        oracle: before the operation.
        rng: makes the choices.
        copies: a path under which snapshots may be made.
    """
    after, kind = oracle.copy(), rng.random()
    if kind < 0.6:
        events = random_events(rng, rng.choice((1, 3, 50, 600)))
        after.add(events)
        if rng.random() < 0.5:
            after.offset += 1
            return after, lambda vault: vault.append(events, source="log-0", offset=after.offset)
        return after, lambda vault: vault.append(events)
    if kind < 0.7 and oracle.offset >= 0:  # a replay of what was there before
        events, offset = random_events(rng, 3), rng.randint(0, oracle.offset)
        return after, lambda vault: vault.append(events, source="log-0", offset=offset)
    if kind < 0.83:
        hold = rng.random() < 0.6
        return after, lambda vault: vault.merge(hold_small=hold)
    if kind < 0.86:
        target = f"{copies}/{rng.getrandbits(60):x}"
        return after, lambda vault: vault.snapshot(target)
    if kind < 0.93:
        items = {key: rng.randrange(10**6) for key in rng.sample(range(50), 5)}
        after.items.update(items)
        table = {"item_id": list(items), "value": list(items.values())}
        return after, lambda vault: vault.put_items(table)
    events = random_events(rng, 700)
    after.add(events)
    return after, lambda vault: vault.bulk_load(events)
