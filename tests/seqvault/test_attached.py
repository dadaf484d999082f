"""Processes that read a store in the memory of the one that has it open for writing."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from seqvault import SeqVault, errors
from seqvault.memory import edition_board as board
from seqvault.memory import shared_arrays
from seqvault.memory.attached_state import AttachedState
from seqvault.testing.random_workload import NOW, SCHEMA
from seqvault.warm_up import warm_up

USERS = 40
SECONDS = float(os.environ.get("SEQVAULT_ATTACHED_SECONDS", "6"))
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Forked processes need not compile, then."""
    warm_up()


def events(user: int, first: int, count: int) -> dict[str, np.ndarray]:
    """What a user's events from number ``first`` on are; every seventh is late by two."""
    places = np.arange(first, first + count)
    late = np.where(places % 7 == 6, 25, 0)
    return {
        "user_id": np.full(count, user),
        "timestamp": NOW + 10 * places - late,
        "item_id": user * 1_000_000 + places,
        "action": (places % 5).astype(np.int8),
    }


def expected(user: int, version: int, last_n: int) -> list[int]:
    """Items of a read that sees the first ``version`` events of a user."""
    whole = events(user, 0, version)
    order = np.lexsort((np.arange(version), whole["timestamp"]))[::-1]
    return whole["item_id"][order][:last_n].tolist()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[SeqVault, SeqVault]]:
    path = tmp_path / "vault"
    with SeqVault.open(path, SCHEMA, share=True) as writer, SeqVault.attach(path) as reader:
        yield writer, reader


def check(reader: SeqVault, users: list[int], acknowledged: list[int]) -> None:
    """Compares every kind of read with what the users' events are."""
    for last_n in (3, 500):
        batch = reader.read(users, before=None, last_n=last_n)
        for row, user in enumerate(users):
            seen = int(batch.version[row])
            assert seen >= acknowledged[user], f"user {user}: {seen} of {acknowledged[user]}"
            got = batch["item_id"][row, : batch.lengths[row]].tolist()
            assert got == expected(user, seen, last_n), (user, seen, last_n)
    seen = reader.read(users, before=None, last_n=1).version
    lengths, _, columns = reader.read_ragged(users, before=None, last_n=500, version=seen)
    wanted = [
        item for u, v in zip(users, seen.tolist(), strict=True) for item in expected(u, v, 500)
    ]
    assert columns["item_id"].tolist() == wanted
    few = reader.read(users, before=None, last_n=500, actions=[2])
    for row, user in enumerate(users):
        items = [i for i in expected(user, int(few.version[row]), 9**9) if i % 1_000_000 % 5 == 2]
        assert few["item_id"][row, : few.lengths[row]].tolist() == items[:500]
    assert int(lengths.sum()) == len(wanted)


def test_a_reader_sees_each_append_once_it_is_acknowledged(shared) -> None:
    writer, reader = shared
    counts = [0] * USERS
    rng = random.Random(5)
    for step in range(120):
        user, many = rng.randrange(USERS), rng.choice([1, 3, 300])
        writer.append(events(user, counts[user], many))
        counts[user] += many
        check(reader, [user, rng.randrange(USERS)], counts)
        if step % 17 == 0:
            writer.merge(hold_small=bool(step % 2))
            check(reader, list(range(USERS)), counts)
    assert reader.user_ids().tolist() == writer.user_ids().tolist()
    assert reader.events_in_log == writer.events_in_log


def test_a_reader_sees_bulk_loads_and_items(shared) -> None:
    writer, reader = shared
    writer.bulk_load(pa.table(events(3, 0, 2000)))
    check(reader, [3], [2000] * USERS)
    for version in range(12):  # more than are kept as files of their own
        writer.put_items({"item_id": [1, 2 + version], "author": [version, version]})
        assert reader.read_items([1])["author"].tolist() == [version]


# ---- random runs across processes


def _write(path: Path, acknowledged, asked, seed: int) -> None:
    """A writer that appends, merges and loads until it is killed."""
    rng = random.Random(seed)
    vault = SeqVault.open(path, SCHEMA, share=True)
    stored = vault.read(list(range(USERS)), before=None, last_n=1).version.tolist()
    for user, count in enumerate(stored):
        assert count >= acknowledged[user], f"user {user}: {count} of {acknowledged[user]} are left"
        acknowledged[user] = asked[user] = count
    guard = threading.Lock()  # a user's events arrive in their order

    def append(mine: random.Random) -> None:
        while True:
            user, many = mine.randrange(USERS), mine.choice([1, 1, 2, 50])
            with guard:
                first = asked[user]
                asked[user] = first + many
                vault.append(events(user, first, many))
                acknowledged[user] = first + many

    for number in range(2):
        mine = random.Random(seed * 10 + number)
        threading.Thread(target=append, args=(mine,), daemon=True).start()
    while True:
        time.sleep(rng.random() * 0.05)
        if rng.random() < 0.8:
            vault.merge(hold_small=rng.random() < 0.5)
            continue
        with guard:
            user, many = rng.randrange(USERS), 600
            first = asked[user]
            asked[user] = first + many
            vault.bulk_load(pa.table(events(user, first, many)))
            acknowledged[user] = first + many


def _read(path: Path, acknowledged, over, outcome, seed: int) -> None:
    """A reader that attaches, compares what it reads, and attaches again."""
    rng, reads = random.Random(seed), 0
    reader: SeqVault | None = None
    try:
        while not over.is_set():
            try:
                reader = reader or SeqVault.attach(path)
                users = rng.sample(range(USERS), rng.choice([1, 4, USERS]))
                check(reader, users, list(acknowledged))
                reads += 1
            except (errors.NotSharedError, errors.WriterGoneError, errors.StoreNotFoundError):
                reader = None
                time.sleep(0.01)
            except errors.LimitError:
                pass
    except BaseException as error:
        outcome.put(f"reader {seed}: {error!r}")
        raise
    outcome.put(reads)


def test_readers_agree_with_a_writer_that_is_killed_again_and_again(tmp_path) -> None:
    path = tmp_path / "vault"
    acknowledged, asked = FORK.Array("q", USERS, lock=False), FORK.Array("q", USERS, lock=False)
    over, outcome = FORK.Event(), FORK.Queue()
    readers = [
        FORK.Process(target=_read, args=(path, acknowledged, over, outcome, seed))
        for seed in (1, 2)
    ]
    rng, ends, kills = random.Random(9), time.monotonic() + SECONDS, 0
    for reader in readers:
        reader.start()
    writer = None
    try:
        while time.monotonic() < ends:
            writer = FORK.Process(target=_write, args=(path, acknowledged, asked, kills))
            writer.start()
            writer.join(0.5 + rng.random())
            assert writer.is_alive(), "the writer failed; see its traceback"
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            kills += 1
        over.set()
        told = [outcome.get(timeout=60) for _ in readers]
    finally:
        over.set()
        for process in [*readers, writer]:
            process.join(10)
            if process.is_alive():
                process.kill()
    assert all(isinstance(one, int) and one > 5 for one in told), told
    assert kills >= 2
    assert sum(acknowledged) > 100


# ---- memory


def test_memory_of_replaced_arrays_is_given_back_and_late_readers_read_again(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(shared_arrays, "KEPT_SECONDS", 0.0)
    path = tmp_path / "vault"
    with SeqVault.open(path, SCHEMA, share=True) as writer, SeqVault.attach(path) as reader:
        counts, sizes = [0] * USERS, []
        plan = reader._reader.find
        late = [False]

        def find_late(*arguments):
            found = plan(*arguments)
            if late[0]:  # the reader was stopped while all that it found was replaced
                late[0] = False
                for _ in range(3):
                    writer.append(events(1, counts[1], 2000))
                    counts[1] += 2000
                    writer.merge()
                assert not reader._state._is_kept()
            return found

        monkeypatch.setattr(reader._reader, "find", find_late)
        for _ in range(12):
            writer.append(events(1, counts[1], 2000))
            counts[1] += 2000
            late[0] = True
            few = reader.read([1], before=None, last_n=100, actions=[2])
            version = int(few.version[0])
            wanted = [i for i in expected(1, version, 9**9) if i % 1_000_000 % 5 == 2][:100]
            assert version == counts[1]
            assert few["item_id"][0, : few.lengths[0]].tolist() == wanted
            sizes.append(writer._state.shared.arrays.bytes)
        assert sizes[-1] <= 2 * sizes[2]  # 48 memtables were replaced


_MEASURE = """
import json, sys
import numpy as np
from seqvault import SeqVault

def private():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("Private_Dirty"))

small, large = sys.argv[1:]
users = np.arange(0, 300_000, 7)
def use(store):
    for part in np.array_split(users, 100):
        store.read(part, before=None, last_n=1)
    return private()
kept = [SeqVault.attach(small), SeqVault.open(small, read_only=True)]
sizes = [use(one) for one in kept][1:]
for way in (SeqVault.attach, lambda path: SeqVault.open(path, read_only=True)):
    kept.append(way(large))
    sizes.append(use(kept[-1]))
print(json.dumps(np.diff(sizes).tolist()))
"""


def test_an_attached_process_has_no_copy_of_the_index(tmp_path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    users = np.arange(300_000)
    table = pa.table({
        "user_id": users, "timestamp": NOW + users, "item_id": users,
        "action": np.zeros(len(users), np.int8),
    })  # fmt: skip
    with (
        SeqVault.open(small, SCHEMA, share=True) as one,
        SeqVault.open(large, SCHEMA, share=True) as other,
    ):
        one.append(events(1, 0, 10))
        other.bulk_load(table)
        other.append(table.slice(0, 50_000))
        counted = other.stats()["index_bytes"] + other.stats()["memtable_bytes"]
        told = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(small), str(large)],
            check=True,
            capture_output=True,
        )
    attached, copied = json.loads(told.stdout)
    assert copied > counted / 2, (copied, counted)  # or what is measured is not the index
    assert attached < counted / 10, (attached, counted)


# ---- what goes wrong


def test_a_store_that_nobody_shares_cannot_be_attached(tmp_path) -> None:
    path = tmp_path / "vault"
    with pytest.raises(errors.StoreNotFoundError):
        SeqVault.attach(path)
    with SeqVault.open(path, SCHEMA) as vault:
        vault.append(events(1, 0, 1))
        with pytest.raises(errors.NotSharedError, match="share=True"):
            SeqVault.attach(path)
    with SeqVault.open(path, share=True):
        pass
    with pytest.raises(errors.NotSharedError):
        SeqVault.attach(path)
    with pytest.raises(errors.InvalidRequestError):
        SeqVault.open(path, read_only=True, share=True)


def test_an_attached_store_is_for_reads_alone(shared) -> None:
    writer, reader = shared
    writer.append(events(1, 0, 5))
    for call in (
        lambda: reader.append(events(1, 5, 1)),
        reader.merge,
        lambda: reader.put_items({"item_id": [1], "author": [1]}),
        lambda: reader.bulk_load(events(1, 5, 1)),
    ):
        with pytest.raises(errors.ReadOnlyError):
            call()
    for call in (reader.stats, reader.verify, reader.fingerprint):
        with pytest.raises(errors.InvalidRequestError, match="attached"):
            call()
    assert reader.refresh() is False
    check(reader, [1], [5] * USERS)


def test_reads_say_that_the_writer_closed_the_store(shared) -> None:
    writer, reader = shared
    writer.append(events(1, 0, 5))
    writer.close()
    with pytest.raises(errors.WriterGoneError) as told:
        reader.read([1], before=None, last_n=5)
    assert told.value.retryable
    with SeqVault.open(writer.path, share=True) as again:
        again.append(events(1, 5, 1))
        with pytest.raises(errors.WriterGoneError):  # never what it knew before
            reader.read([1], before=None, last_n=5)
        with SeqVault.attach(writer.path) as fresh:
            check(fresh, [1], [6] * USERS)


def _die(path: Path, ready, amid: bool) -> None:
    vault = SeqVault.open(path, share=True)
    ready.set()
    time.sleep(0.3)
    if amid:
        vault._state.shared.begin()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("amid", [False, True])
def test_reads_say_that_the_writer_was_killed_also_amid_a_change(tmp_path, amid) -> None:
    path = tmp_path / "vault"
    with SeqVault.open(path, SCHEMA) as vault:
        vault.append(events(1, 0, 5))
    ready = FORK.Event()
    process = FORK.Process(target=_die, args=(path, ready, amid))
    process.start()
    assert ready.wait(60)
    reader = SeqVault.attach(path)
    with pytest.raises(errors.WriterGoneError):
        while process.is_alive() or process.join() is None:
            check(reader, [1], [5] * USERS)
    with pytest.raises(errors.NotSharedError):
        SeqVault.attach(path)
    with SeqVault.open(path, share=True) as vault, SeqVault.attach(path) as fresh:
        vault.append(events(1, 5, 1))
        check(fresh, [1], [6] * USERS)


def test_memory_of_another_version_or_store_is_refused(tmp_path) -> None:
    path, copy = tmp_path / "vault", tmp_path / "copy"
    with SeqVault.open(path, SCHEMA, share=True) as writer:
        writer.append(events(1, 0, 5))
        shutil.copytree(path, copy)
        with pytest.raises(errors.NotSharedError, match="copy"):
            SeqVault.attach(copy)
        words = writer._state.shared._words
        for place, match in (
            (board.FORMAT_AT, "version"),
            (board.MAGIC_AT, "not a store"),
            (board.INSTANCE, "anew"),
        ):
            before = int(words[place])
            words[place] = before + 1
            with pytest.raises(errors.NotSharedError, match=match):
                SeqVault.attach(path)
            words[place] = before
        told = json.loads((path / "SHARED").read_text())
        for wrong in (
            {**told, "process": 1 << 22},
            {**told, "descriptor": 0},
            {**told, "instance": "00"},
            {"process": told["process"]},
            [],
        ):
            (path / "SHARED").write_text(json.dumps(wrong))
            with pytest.raises(errors.NotSharedError):
                SeqVault.attach(path)
        (path / "SHARED").write_text("{")
        with pytest.raises(errors.NotSharedError):
            SeqVault.attach(path)
        (path / "SHARED").write_text(json.dumps(told))
        SeqVault.attach(path).close()


def test_a_second_writer_is_refused_and_readers_do_not_notice(shared) -> None:
    writer, reader = shared
    writer.append(events(1, 0, 5))
    with pytest.raises(errors.StoreLockedError):
        SeqVault.open(writer.path, share=True)
    check(reader, [1], [5] * USERS)
    writer.append(events(1, 5, 1))
    check(reader, [1], [6] * USERS)


def test_a_child_of_an_attached_process_reads_on(shared) -> None:
    writer, reader = shared
    writer.append(events(1, 0, 5))
    outcome = FORK.Queue()

    def child() -> None:
        try:
            check(reader, [1], [6] * USERS)
            outcome.put("good")
        except BaseException as error:
            outcome.put(repr(error))

    writer.append(events(1, 5, 1))
    process = FORK.Process(target=child)
    process.start()
    told = outcome.get(timeout=30)
    process.join(10)
    assert told == "good"


def test_a_look_up_that_finds_garbage_amid_a_change_is_made_again(shared, monkeypatch) -> None:
    writer, reader = shared
    writer.append(events(1, 0, 5))
    state = reader._state
    assert isinstance(state, AttachedState)
    begun = threading.Event()

    def change() -> None:
        memory = writer._state.shared
        with writer._state.lock:
            memory.begin()
            before = writer._state.index._latest.copy()
            writer._state.index._latest[:] = np.random.default_rng(1).integers(
                0, 1 << 30, len(before)
            )
            begun.set()
            time.sleep(0.2)
            writer._state.index._latest[:] = before
            memory.end(writer._state.version)

    thread = threading.Thread(target=change)
    edition = state._edition
    # as a reader that took the edition just before the change began
    first = [edition(time.monotonic() + 5)]
    monkeypatch.setattr(state, "_edition", lambda until: first.pop() if first else edition(until))
    thread.start()
    assert begun.wait(10)
    with suppress(errors.LimitError):
        check(reader, [1], [5] * USERS)
    thread.join()
    check(reader, [1], [5] * USERS)
