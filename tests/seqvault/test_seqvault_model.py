"""The store against a ten-line model: a dict of sorted lists."""

import shutil
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from seqvault import Schema, SeqVault

SCHEMA = Schema.from_arrow(
    pa.schema(
        [
            ("item_id", pa.int64()),
            ("scenario", pa.int8()),
            ("action", pa.int8()),
            ("score", pa.float32()),
        ]
    )
)
USERS = [0, 1, -5, 2**62, -(2**63)]


class Model:
    """The ten lines."""

    def __init__(self) -> None:
        self.events: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self.oldest = 0

    def append(self, events: dict[str, np.ndarray]) -> None:
        for user, *event in zip(*events.values(), strict=True):
            self.events[int(user)].append(tuple(event))

    def read(self, user, before, last_n, scenarios=None, actions=None, seen=None):
        history = sorted(self.events[user][:seen], key=lambda event: event[0])
        history = [event for event in history if self.oldest <= event[0] < before]
        history = [e for e in history if scenarios is None or e[2] in scenarios]
        history = [e for e in history if actions is None or e[3] in actions]
        return history[::-1][:last_n]


def make_events(rng: np.random.Generator, count: int, span: int) -> dict[str, np.ndarray]:
    items = rng.integers(0, 1000, count)
    wide = rng.random(count) < 0.1
    items[wide] = rng.integers(-(2**63), 2**63 - 1, wide.sum())
    return {
        "user_id": rng.choice(USERS, count).astype(np.int64),
        "timestamp": rng.integers(0, span, count),
        "item_id": items,
        "scenario": rng.integers(-1, 3, count).astype(np.int8),
        "action": rng.integers(0, 4, count).astype(np.int8),
        "score": rng.normal(size=count).astype(np.float32),
    }


def assert_same(batch, row: int, expected: list[tuple[Any, ...]], last_n: int) -> None:
    n = int(batch.lengths[row])
    names = ("timestamp", "item_id", "scenario", "action", "score")
    got = list(zip(*(batch[name][row, :n] for name in names), strict=True))
    assert got == expected
    for name in names:
        assert batch[name].shape == (len(batch), last_n)
        assert not batch[name][row, n:].any()


class Machine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.path = tempfile.mkdtemp()
        self.now = 0
        self.vault = SeqVault.open(self.path, schema=SCHEMA, retention_ms=1000, clock=self.clock)
        self.model = Model()
        self.versions: list[tuple[np.ndarray, dict[int, int]]] = []

    def clock(self) -> float:
        return self.now / 1000

    @rule(days=st.integers(0, 300))
    def age(self, days: int) -> None:
        self.now = min(max(self.now, 900) + days, 1600)
        self.model.oldest = max(0, self.now - 1000)

    @rule(
        seed=st.integers(0, 2**32), count=st.sampled_from([1, 3, 40, 700]), span=st.integers(1, 900)
    )
    def append(self, seed: int, count: int, span: int) -> None:
        events = make_events(np.random.default_rng(seed), count, span)
        self.vault.append(events)
        self.model.append(events)

    @rule(seed=st.integers(0, 2**32))
    def load(self, seed: int) -> None:
        events = make_events(np.random.default_rng(seed), 300, 500)
        self.vault.bulk_load(events)
        self.model.append(events)

    @rule()
    def merge(self) -> None:
        self.vault.merge()

    @rule()
    def reopen(self) -> None:
        self.vault.close()
        self.vault = SeqVault.open(self.path, clock=self.clock)

    @rule()
    def remember(self) -> None:
        version = self.vault.read(USERS, before=900, last_n=1).version
        self.versions.append((version, {user: len(self.model.events[user]) for user in USERS}))

    @rule(
        before=st.lists(st.integers(0, 1000), min_size=5, max_size=5),
        last_n=st.sampled_from([1, 2, 60, 256, 2000]),
        scenarios=st.none() | st.lists(st.integers(-1, 3), max_size=2),
        actions=st.none() | st.lists(st.integers(0, 4), max_size=3),
    )
    def read(self, before, last_n, scenarios, actions) -> None:
        batch = self.vault.read(
            USERS, before=before, last_n=last_n, scenarios=scenarios, actions=actions
        )
        for row, user in enumerate(USERS):
            expected = self.model.read(user, before[row], last_n, scenarios, actions)
            assert_same(batch, row, expected, last_n)

    @rule()
    def repeat(self) -> None:
        for version, seen in self.versions[-3:]:
            batch = self.vault.read(USERS, before=900, last_n=300, version=version)
            for row, user in enumerate(USERS):
                assert_same(batch, row, self.model.read(user, 900, 300, seen=seen[user]), 300)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "vault"):
            every = [event for events in self.model.events.values() for event in events]
            kept = sum(event[0] >= self.model.oldest for event in every)
            assert kept <= self.vault.stats()["events"] <= len(every)

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.verify()
            with SeqVault.open(self.path, read_only=True, clock=self.clock) as reader:
                batch = reader.read(USERS, before=900, last_n=10)
                for row, user in enumerate(USERS):
                    assert_same(batch, row, self.model.read(user, 900, 10), 10)
            self.vault.close()
            shutil.rmtree(self.path)


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
