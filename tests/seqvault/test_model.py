"""The store against a ten-line model: a dict of sorted lists."""

import shutil
import tempfile
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from seqvault import Schema, SeqVault

USERS = [0, 1, -5, 2**62, -(2**63)]
NAMES = ("timestamp", "item_id", "scenario", "action", "score", "device")
DEFAULTS = {"score": 0.0, "device": 9}


def schema_of(stage: int) -> Schema:
    """The schema as it grows: an integer becomes wider, fields come behind."""
    fields = [
        pa.field("item_id", pa.int64() if stage else pa.int32()),
        pa.field("scenario", pa.int8()),
        pa.field("action", pa.int16() if stage > 1 else pa.int8()),
        pa.field("score", pa.float32()),
        pa.field("device", pa.uint16(), metadata={"seqvault.default": "9"}),
    ]
    return Schema.from_arrow(pa.schema(fields[: 3 + stage]))


STAGES = [schema_of(stage) for stage in range(3)]


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


def make_events(seed: int, count: int, span: int, stage: int) -> dict[str, np.ndarray]:
    """Events with all fields; those that the stage's schema lacks have their default."""
    rng = np.random.default_rng(seed)
    items = rng.integers(0, 1000, count)
    wide = rng.random(count) < 0.1
    bits = 63 if stage else 31
    items[wide] = rng.integers(-(2**bits), 2**bits - 1, wide.sum())
    events = {
        "user_id": rng.choice(USERS, count).astype(np.int64),
        "timestamp": rng.integers(0, span, count),
        "item_id": items,
        "scenario": rng.integers(-1, 3, count).astype(np.int8),
        "action": rng.integers(0, 4, count).astype(np.int16 if stage > 1 else np.int8),
        "score": rng.normal(size=count).astype(np.float32),
        "device": rng.integers(0, 2**16, count).astype(np.uint16),
    }
    for name, default in DEFAULTS.items():
        if name not in STAGES[stage].names:
            events[name] = np.full(count, default, events[name].dtype)
    return events


def assert_same(batch, row: int, expected: list[tuple[Any, ...]], last_n: int) -> None:
    n = int(batch.lengths[row])
    names = [name for name in NAMES if name in batch.columns]
    got = list(zip(*(batch[name][row, :n] for name in names), strict=True))
    assert got == [event[: len(names)] for event in expected]
    for name in names:
        assert batch[name].shape == (len(batch), last_n)
        assert not batch[name][row, n:].any()


class Machine(RuleBasedStateMachine):
    """Any mix of writes, ageing, new schemas, merges and reopening; reads of every kind."""

    @initialize(stage=st.sampled_from([0, 2]))
    def start(self, stage: int) -> None:
        self.root = tempfile.mkdtemp()
        self.path = f"{self.root}/vault"
        self.now = self.copies = self.offset = 0
        self.stage = stage
        self.vault = SeqVault.open(
            self.path, schema=STAGES[stage], retention_ms=1000, clock=self.clock
        )
        self.model = Model()
        self.versions: list[tuple[np.ndarray, dict[int, int]]] = []

    def clock(self) -> float:
        return self.now / 1000

    def events(self, seed: int, count: int, span: int) -> tuple[dict, dict]:
        """Events for the model, and those of its columns that the store has."""
        events = make_events(seed, count, span, self.stage)
        known = ("user_id", "timestamp", *STAGES[self.stage].names)
        given = {name: values for name, values in events.items() if name in known}
        if not self.stage:
            given["item_id"] = given["item_id"].astype(np.int32)
        return events, given

    @rule(days=st.integers(0, 300))
    def age(self, days: int) -> None:
        self.now = min(max(self.now, 900) + days, 1600)
        self.model.oldest = max(0, self.now - 1000)

    @rule(
        seed=st.integers(0, 2**32), count=st.sampled_from([1, 3, 40, 700]), span=st.integers(1, 900)
    )
    def append(self, seed: int, count: int, span: int) -> None:
        events, given = self.events(seed, count, span)
        assert self.vault.append(given) == count
        self.model.append(events)

    @rule(seed=st.integers(0, 2**32), back=st.integers(0, 3))
    def append_from_a_source(self, seed: int, back: int) -> None:
        """New events, then a replay of their offset or an earlier one, which changes nothing."""
        events, given = self.events(seed, 20, 900)
        assert self.vault.append(given, source="log-0", offset=self.offset) == 20
        self.model.append(events)
        again = max(0, self.offset - back)
        assert self.vault.append(given, source="log-0", offset=again) == 0
        self.offset += 1

    @rule(seed=st.integers(0, 2**32))
    def load(self, seed: int) -> None:
        events, given = self.events(seed, 300, 500)
        assert self.vault.bulk_load(pa.table(given)) == 300
        self.model.append(events)

    @rule(hold=st.booleans())
    def merge(self, hold: bool) -> None:
        self.vault.merge(hold_small=hold)

    @rule()
    def reopen(self) -> None:
        self.vault.close()
        self.vault = SeqVault.open(self.path, clock=self.clock)

    @precondition(lambda self: self.stage < 2)
    @rule()
    def grow(self) -> None:
        self.stage += 1
        self.vault.close()
        self.vault = SeqVault.open(self.path, schema=STAGES[self.stage], clock=self.clock)

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

    @rule(fields=st.lists(st.sampled_from(["timestamp", "item_id", "action"]), min_size=1))
    def read_some_fields(self, fields: list[str]) -> None:
        batch = self.vault.read(USERS, before=700, last_n=50, fields=fields)
        assert set(batch.columns) == set(fields)
        for row, user in enumerate(USERS):
            expected = self.model.read(user, 700, 50)
            for name in fields:
                column = [event[NAMES.index(name)] for event in expected]
                assert batch[name][row, : len(column)].tolist() == column

    @rule()
    def repeat(self) -> None:
        for version, seen in self.versions[-3:]:
            batch = self.vault.read(USERS, before=900, last_n=300, version=version)
            for row, user in enumerate(USERS):
                assert_same(batch, row, self.model.read(user, 900, 300, seen=seen[user]), 300)

    def assert_all(self, vault: SeqVault) -> None:
        batch = vault.read(USERS, before=None, last_n=4000)
        for row, user in enumerate(USERS):
            assert_same(batch, row, self.model.read(user, 10**9, 4000), 4000)

    @rule()
    def snapshot(self) -> None:
        self.copies += 1
        self.vault.snapshot(f"{self.root}/copy-{self.copies}")
        with SeqVault.open(f"{self.root}/copy-{self.copies}", clock=self.clock) as copy:
            self.assert_all(copy)
            copy.verify()

    @rule()
    def read_beside_the_writer(self) -> None:
        with SeqVault.open(self.path, read_only=True, clock=self.clock) as reader:
            self.assert_all(reader)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "vault"):
            every = [event for events in self.model.events.values() for event in events]
            kept = sum(event[0] >= self.model.oldest for event in every)
            assert kept <= self.vault.stats()["events"] <= len(every)

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.verify()
            self.assert_all(self.vault)
            self.vault.close()
            shutil.rmtree(self.root)


class LengthMachine(RuleBasedStateMachine):
    """A store that keeps only so many events a user: the newest are always there."""

    KEPT = 30

    @initialize()
    def start(self) -> None:
        self.path = tempfile.mkdtemp()
        self.vault = SeqVault.open(self.path, schema=STAGES[2], max_events=self.KEPT)
        self.model = Model()

    @rule(seed=st.integers(0, 2**32), count=st.sampled_from([1, 20, 200]), span=st.integers(1, 900))
    def append(self, seed: int, count: int, span: int) -> None:
        events = make_events(seed, count, span, 2)
        self.vault.append(events)
        self.model.append(events)

    @rule()
    def merge(self) -> None:
        self.vault.merge()

    @rule()
    def reopen(self) -> None:
        self.vault.close()
        self.vault = SeqVault.open(self.path)

    @rule(last_n=st.sampled_from([1, 7, KEPT]))
    def read(self, last_n: int) -> None:
        batch = self.vault.read(USERS, before=None, last_n=last_n)
        for row, user in enumerate(USERS):
            assert_same(batch, row, self.model.read(user, 10**9, last_n), last_n)

    @invariant()
    def nothing_is_made_up(self) -> None:
        if hasattr(self, "vault"):
            batch = self.vault.read(USERS, before=None, last_n=4000)
            for row, user in enumerate(USERS):
                n = int(batch.lengths[row])
                columns = (batch[name][row, :n] for name in NAMES)
                left = self.model.read(user, 10**9, 10**9)
                for event in zip(*columns, strict=True):
                    left.remove(event)

    def teardown(self) -> None:
        if hasattr(self, "vault"):
            self.vault.verify()
            self.vault.close()
            shutil.rmtree(self.path)


def configured(case: Any, examples: int) -> Any:
    """The machine as a test of so many runs."""
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    return case


TestModel = configured(Machine.TestCase, 20)
TestLength = configured(LengthMachine.TestCase, 10)
