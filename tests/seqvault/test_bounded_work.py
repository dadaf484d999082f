"""What callers ask for is bounded before it is done: told by counts of work, never by time."""

import os
import threading
import tracemalloc

import numpy as np
import pytest

from seqvault import SeqVault, errors
from seqvault.codec.chains import newest_in_chain
from seqvault.disk import item_file
from seqvault.disk.files import Files
from seqvault.disk.item_file import to_table
from seqvault.memory import item_table
from seqvault.memory.item_table import Items
from seqvault.memory.key_table import KeyTable
from seqvault.memory.memtable import Memtable
from seqvault.read.packed_answer import unpack_batch
from seqvault.read.read_request import ReadRequest
from seqvault.testing.random_workload import NOW, SCHEMA
from seqvault.warm_up import warm_up

MANY = 1_000_000
END = np.iinfo(np.int64).max


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Kernels that compile amid a call would take longer than tests wait for it."""
    warm_up()


def filled(times: np.ndarray) -> Memtable:
    """A memtable with one user's events of these times."""
    memtable = Memtable(SCHEMA)
    n = len(times)
    columns = {
        "timestamp": times,
        "item_id": np.arange(n),
        "action": np.zeros(n, np.int8),
    }
    memtable.append(np.zeros(n, np.int64), columns, np.zeros(8, np.int64), 1)
    return memtable


def newest(memtable: Memtable, before: int, most: int) -> tuple[list[int], int]:
    """The rows found, and how many rows and summaries were looked at for them."""
    rows = np.empty(most, np.int64)
    found, looked = newest_in_chain(
        memtable.heads[0], memtable.links, memtable.columns["timestamp"], memtable.depths,
        memtable.runs, memtable.summaries, before, most, rows,
    )  # fmt: skip
    return rows[:found].tolist(), looked


def expected(times: np.ndarray, before: int, most: int) -> list[int]:
    order = np.lexsort((np.arange(len(times)), times))
    return order[times[order] < before][-most:].tolist()


@pytest.mark.parametrize("most", [1, 100])
def test_of_a_million_events_in_memory_few_are_looked_at(most):
    times = NOW + np.arange(MANY)
    memtable = filled(times)
    for before, bound in ((END, most + 2 * 256), (NOW + 500_000, MANY // 500 + most + 3 * 256)):
        rows, looked = newest(memtable, before, most)
        assert rows == expected(times, before, most)
        assert looked <= bound
    late = times.copy()
    late[::1000] -= 5_000  # some come late
    memtable = filled(late)
    rows, looked = newest(memtable, END, most)
    assert rows == expected(late, END, most)
    assert looked < 20_000


@pytest.mark.parametrize("seed", range(6))
def test_newest_of_a_chain_in_any_order_with_ties(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.choice([1, 255, 256, 257, 513, 5000]))
    times = NOW + rng.integers(0, rng.choice([3, 300, 10**6]), count)
    if seed % 2:
        times = np.sort(times) - rng.integers(0, 50, count) * rng.integers(0, 2, count)
    memtable = filled(times)
    for most in (1, 7, 256, 5000):
        for before in (END, int(np.median(times)), NOW - 100):
            assert newest(memtable, before, most)[0] == expected(times, before, most)
    part = memtable.part(np.arange(0, count, 2))  # what a merge leaves in memory
    part.extend(memtable, count)
    assert newest(part, END, 9)[0] == expected(times[::2], END, 9)


def test_reads_of_many_events_in_memory_are_as_before(tmp_path):
    """By the fast reader, the general one, packed, and with records on disk besides."""
    rng = np.random.default_rng(3)
    times = NOW + np.arange(5000) - rng.integers(0, 2000, 5000) * (rng.random(5000) < 0.1)
    events = {
        "user_id": np.ones(5000, np.int64),
        "timestamp": times,
        "item_id": np.arange(5000),
        "action": np.zeros(5000, np.int8),
    }

    class Watching(Files):
        def preadv(self, fd, out, offset):
            return super().preadv(fd, out, offset)

    for merged in (0, 1000):
        path = tmp_path / f"vault-{merged}"
        with SeqVault.open(path, schema=SCHEMA) as vault:
            vault.append({name: values[:merged] for name, values in events.items()})
            vault.merge()
            vault.append({name: values[merged:] for name, values in events.items()})
            with SeqVault.open(path, read_only=True, files=Watching()) as general:
                for before in (None, NOW + 2500, NOW + 100):
                    for last_n in (1, 100, 6000):
                        want = expected(times, END if before is None else before, last_n)[::-1]
                        for store in (vault, general):
                            batch = store.read([1], before=before, last_n=last_n)
                            assert batch["item_id"][0, : batch.lengths[0]].tolist() == want
                            packed = store.read_packed([1], before=before, last_n=last_n)
                            batch = unpack_batch(packed)
                            assert batch["item_id"][0, : batch.lengths[0]].tolist() == want


def test_filtered_reads_pass_over_no_more_events_in_memory_than_they_must(tmp_path):
    rng, n = np.random.default_rng(5), 40_000
    times = NOW + np.arange(n) - rng.integers(0, 2000, n) * (rng.random(n) < 0.1)
    actions = (rng.random(n) < 0.5).astype(np.int8)
    actions[100] = 2  # one that is far back
    columns = {
        "user_id": np.ones(n, np.int64),
        "timestamp": times,
        "item_id": np.arange(n),
        "action": actions,
    }
    order = np.lexsort((np.arange(n), times))[::-1]
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(columns)
        for wanted, version, before, last_n, most in (
            ([1], None, None, 50, 256),
            ([1], None, NOW + 20_000, 300, 1200),
            ([1], n - 100, None, 50, 1024),
            (None, n - 100, None, 50, 256),
            ([2], None, None, 5, n),
            ([], None, None, 5, n),
            ([0, 1], 70, None, 9000, n),
        ):
            seen = None if version is None else np.array([version])
            asked = {"before": before, "last_n": last_n, "actions": wanted, "version": seen}
            batch = vault.read([1], **asked)
            keep = np.isin(actions, [0, 1, 2] if wanted is None else wanted)
            keep &= np.arange(n) < (n if version is None else version)
            keep &= times < (END if before is None else before)
            want = order[keep[order]][:last_n].tolist()
            assert batch["item_id"][0, : batch.lengths[0]].tolist() == want
            request = ReadRequest.of(vault.schema, [1], **asked)
            assert len(vault._reader.find(request.users, request).mem_rows) <= most


@pytest.mark.parametrize(
    "ids",
    [
        np.arange(1 << 14) << 49,
        np.arange(1 << 14) << 32,
        np.arange(1 << 14) * 0x9E3779B97F4A7C1,
        np.arange(1 << 14),
        -np.arange(1 << 14) - 1,
    ],
)
def test_ids_that_differ_in_few_bits_do_not_pile_up(ids):
    table = KeyTable()
    assert (table.add(ids) == np.arange(len(ids))).all()
    assert (table.find(ids) == np.arange(len(ids))).all()
    taken = table._table[:-2] >= 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], taken, [0]])))
    runs = edges[1::2] - edges[::2]
    assert runs.max() < 200  # of neighbouring places; a search looks at no more


def test_the_hash_is_seeded_anew_in_every_process():
    table = KeyTable()
    table.add(np.arange(100))
    other = KeyTable()
    other._table[-2:] = 12345
    other.add(np.arange(100))
    assert (other.find(np.arange(100)) == np.arange(100)).all()
    assert (other._table[:-2] != table._table[:-2]).any()
    assert (table._table[-2:] != 0).any()


@pytest.mark.parametrize("offset", [-1, -7])
def test_a_source_without_an_offset_is_refused(tmp_path, offset):
    events = {"user_id": [1], "timestamp": [NOW], "item_id": [1], "action": [0]}
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        with pytest.raises(errors.InvalidRequestError, match="offset"):
            vault.append(events, source="log", offset=offset)
        with pytest.raises(errors.InvalidRequestError, match="offset"):
            vault.append(events, source="log")
        assert vault.append(events, source="log", offset=0) == 1
        assert vault.stats()["events"] == 1


def test_readers_of_items_wait_for_no_copy(monkeypatch):
    """Whatever a write copies, it copies without the lock that readers take."""
    items = Items()
    ids = np.arange(20_000)
    items.apply(to_table({"item_id": ids, "vector": np.ones((len(ids), 8), np.float32)}), 1)
    lock = items._lock

    copies: list[bool] = []
    moved = item_table._moved

    def watched(*arguments):
        copies.append(lock.locked())
        return moved(*arguments)

    monkeypatch.setattr(item_table, "_moved", watched)
    for version in range(2, 30):
        items.apply(
            to_table({"item_id": ids[:5000], "vector": np.full((5000, 8), version, np.float32)}),
            version,
        )
        assert (items.read(ids[:5000], None)["vector"] == version).all()
        assert (items.read(ids[5000:], None)["vector"] == 1).all()
    assert copies and not any(copies)
    assert len(items) == len(ids)
    assert len(items._now.columns["vector"]) <= 2 * len(ids)  # rows replaced are given up
    assert items.to_table()["item_id"].to_pylist() == ids.tolist()


def test_item_files_are_written_and_read_without_copies(tmp_path):
    """Python copies bytes with its lock held, so that readers would wait for hundreds of MB."""
    values = np.random.default_rng(0).random(500_000)
    table = to_table({"item_id": np.arange(len(values)), "value": values})
    (tmp_path / "items").mkdir()
    files, path = Files(), str(tmp_path)

    def peak(work):
        tracemalloc.start()  # NumPy's and Python's memory, not Arrow's
        try:
            done = work()
            return done, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    _, written = peak(lambda: item_file.save(files, path, 1, table))
    size = os.path.getsize(item_file.path_of(path, 1))
    loaded, read = peak(lambda: item_file.load(files, path, 1))
    assert loaded.equals(table) and size > 3_000_000
    assert written < 0.1 * size
    assert read < 1.1 * size  # the file's own bytes


def test_items_change_all_at_once_for_readers(tmp_path):
    items = Items()
    ids = np.arange(3000)
    items.apply(to_table({"item_id": ids, "a": ids * 0, "b": ids * 0}), 1)
    ended, faults = threading.Event(), []

    def watch():
        while not ended.is_set():
            batch = items.read(ids, None)
            values = {*batch["a"].tolist(), *batch["b"].tolist()}
            if len(values) != 1:
                faults.append(values)

    thread = threading.Thread(target=watch)
    thread.start()
    for version in range(2, 80):
        items.apply(
            to_table({"item_id": ids, "a": ids * 0 + version, "b": ids * 0 + version}), version
        )
        more = np.arange(3000 + 50 * version, 3050 + 50 * version)
        items.apply(to_table({"item_id": more, "a": more, "b": more}), version)
    ended.set()
    thread.join()
    assert not faults


def test_items_are_written_while_a_merge_goes_on(tmp_path):
    class SlowFiles(Files):
        reached, go_on = threading.Event(), threading.Event()

        def create(self, path):
            if "/segments/" in path:
                self.reached.set()
                assert self.go_on.wait(30)
            return super().create(path)

    files = SlowFiles()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files) as vault:
        vault.append({"user_id": [1], "timestamp": [NOW], "item_id": [1], "action": [0]})
        thread = threading.Thread(target=vault.merge)
        thread.start()
        assert files.reached.wait(30)
        for value in range(10):
            vault.put_items({"item_id": [1], "value": [value]})
        assert thread.is_alive()
        files.go_on.set()
        thread.join()
        assert vault.events_in_log == 0
    with SeqVault.open(tmp_path / "vault") as vault:
        vault.verify()
        assert vault.read_items([1])["value"].tolist() == [9]
        assert vault.stats()["events"] == 1


@pytest.mark.parametrize("packed", [False, True])
def test_the_bytes_of_an_answer_are_bounded_by_counts(tmp_path, packed):
    rng = np.random.default_rng(5)
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        for _ in range(3):
            count = 4000
            vault.append(
                {
                    "user_id": rng.integers(0, 20, count),
                    "timestamp": NOW + rng.integers(0, 10**6, count),
                    "item_id": rng.integers(0, 10**12, count),
                    "action": rng.integers(0, 9, count).astype(np.int8),
                }
            )
            vault.merge(hold_small=False)
        vault.append(
            {
                "user_id": [1] * 300,
                "timestamp": [NOW] * 300,
                "item_id": [1] * 300,
                "action": [0] * 300,
            }
        )
        users = np.arange(25)
        for last_n in (1, 50, 1000):
            most = vault.answer_bytes(users, None, last_n, packed=packed)
            if packed:
                size = len(vault.read_packed(users, None, last_n))
                assert size <= most + 4096  # its description
            else:
                columns = vault.read_ragged(users, None, last_n)[2]
                size = sum(values.nbytes for values in columns.values())
                assert size <= most <= size + 16 * len(users)
