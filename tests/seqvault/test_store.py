"""What a store promises, one promise a test."""

import errno
import multiprocessing
import os
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqvault import Schema, SeqVault, errors
from seqvault.disk import manifest
from seqvault.disk.files import Files
from seqvault.read.packed_answer import unpack_batch

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("scenario", pa.int8()), ("action", pa.int8())])
)
NOW = 1_700_000_000_000


def events(users, times, items=None, scenario=0, action=0):
    n = len(users)
    return {
        "user_id": np.array(users, np.int64),
        "timestamp": np.array(times, np.int64),
        "item_id": np.array(range(n) if items is None else items, np.int64),
        "scenario": np.full(n, scenario, np.int8),
        "action": np.full(n, action, np.int8),
    }


@pytest.fixture
def vault(tmp_path):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        yield store


def test_an_event_at_the_bound_is_not_read_and_ties_keep_arrival_order(vault):
    vault.append(events([1, 1, 1, 1], [NOW, NOW, NOW + 1, NOW - 1], [10, 11, 12, 13]))
    batch = vault.read([1, 99], before=NOW + 1, last_n=4)
    assert batch["item_id"].tolist() == [[11, 10, 13, 0], [0, 0, 0, 0]]
    assert batch.lengths.dtype == np.int32 and batch.lengths.tolist() == [3, 0]
    assert vault.read([1], before=[NOW], last_n=1)["item_id"].tolist() == [[13]]


@pytest.mark.parametrize("kind", ["table", "batch", "pandas", "dict", "chunked"])
def test_every_kind_of_input_gives_the_same(tmp_path, kind):
    plain = events([2, 1, 2], [NOW + 3, NOW, NOW + 1], [7, 8, 9])
    table = pa.table(plain)
    given = {
        "table": table,
        "batch": table.to_batches()[0],
        "pandas": pd.DataFrame(plain),
        "dict": {name: values.tolist() for name, values in plain.items()},
        "chunked": pa.concat_tables([table.slice(0, 1), table.slice(1)]),
    }[kind]
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as store:
        assert store.append(given) == 3
        assert store.read([2], before=NOW + 9, last_n=2)["item_id"].tolist() == [[7, 9]]


def test_appends_outlive_a_process_that_never_closed(tmp_path):
    def run():
        store = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
        for i in range(5):
            store.append(events([i], [NOW + i]))
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == 9
    with SeqVault.open(tmp_path / "vault") as store:
        assert store.read(range(6), before=None, last_n=2).lengths.tolist() == [1] * 5 + [0]


def test_a_reader_beside_the_writer_sees_appends_and_merges_on_refresh(tmp_path, vault):
    vault.append(events([1], [NOW]))
    with SeqVault.open(tmp_path / "vault", read_only=True) as reader:
        assert reader.read([1], before=None, last_n=9).lengths[0] == 1
        vault.append(events([1, 2], [NOW + 1, NOW + 2]))
        assert reader.read([1], before=None, last_n=9).lengths[0] == 1
        assert reader.refresh() and not reader.refresh()
        assert reader.read([1, 2], before=None, last_n=9).lengths.tolist() == [2, 1]
        vault.merge()
        assert reader.read([1, 2], before=None, last_n=9).lengths.tolist() == [2, 1]
        vault.append(events([2], [NOW + 9]))
        assert reader.refresh()
        assert reader.read([1, 2], before=None, last_n=9).lengths.tolist() == [2, 2]
        with pytest.raises(errors.ReadOnlyError):
            reader.append(events([1], [NOW]))


def test_a_store_is_opened_for_writing_once(tmp_path, vault):
    with pytest.raises(errors.StoreLockedError, match="already open"):
        SeqVault.open(tmp_path / "vault")
    vault.close()
    SeqVault.open(tmp_path / "vault").close()
    with pytest.raises(errors.StoreClosedError):
        vault.read([1], before=None, last_n=1)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"user_id": [1.5]}, errors.WrongTypeError),
        ({"user_id": ["a"]}, errors.WrongTypeError),
        ({"item_id": [None]}, errors.WrongTypeError),
        ({"scenario": [200]}, errors.ValueRangeError),
        ({"timestamp": [1_700_000_000]}, errors.TimeUnitError),
        ({"timestamp": [1_700_000_000_000_000]}, errors.TimeUnitError),
        ({"timestamp": [-1]}, errors.TimeUnitError),
        ({"surprise": [1]}, errors.UnknownFieldError),
        ({"action": [1, 2]}, errors.InvalidRequestError),
    ],
)
def test_bad_events_are_refused_whole(vault, change, error):
    given = {name: values.tolist() for name, values in events([1], [NOW]).items()}
    with pytest.raises(error):
        vault.append({**given, **change})
    assert vault.stats()["events"] == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"before": 1_700_000_000}, errors.TimeUnitError),
        ({"before": 1.7e12}, errors.WrongTypeError),
        ({"before": [NOW, NOW]}, errors.InvalidRequestError),
        ({"last_n": 0}, errors.InvalidRequestError),
        ({"last_n": 2.5}, errors.InvalidRequestError),
        ({"last_n": 1 << 40}, errors.LimitError),
        ({"fields": ["nothing"]}, errors.UnknownFieldError),
        ({"user_ids": ["a"]}, errors.WrongTypeError),
        ({"user_ids": [[1]]}, errors.InvalidRequestError),
        ({"version": [1, 2]}, errors.InvalidRequestError),
    ],
)
def test_bad_reads_are_refused(vault, arguments, error):
    with pytest.raises(error):
        vault.read(**{"user_ids": [1], "before": NOW, "last_n": 5, **arguments})


def test_other_schemas_and_empty_places_are_refused(tmp_path, vault):
    with pytest.raises(errors.SchemaError):
        SeqVault.open(
            tmp_path / "vault", Schema.from_arrow(pa.schema([("x", pa.int8())])), read_only=True
        )
    with pytest.raises(errors.StoreNotFoundError):
        SeqVault.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(errors.SchemaError):
        Schema.from_arrow(pa.schema([("x", pa.string())]))
    with pytest.raises(errors.SchemaError):
        Schema.from_arrow(pa.schema([("user_id", pa.int32())]))


def test_a_schema_grows_and_old_events_are_read_under_the_new_one(tmp_path):
    path = tmp_path / "vault"
    old = Schema.from_arrow(pa.schema([("item_id", pa.int32()), ("score", pa.float32())]))
    new = Schema.from_arrow(
        pa.schema(
            [
                ("item_id", pa.int64()),
                ("score", pa.float32()),
                pa.field("action", pa.int8(), metadata={"seqvault.default": "7"}),
            ]
        )
    )
    plain = {"user_id": [1, 1], "timestamp": [NOW, NOW + 1], "item_id": [-5, 6], "score": [0.5, 2]}
    with SeqVault.open(path, schema=old) as store:
        store.append(plain)
        store.merge()
        store.append({**plain, "timestamp": [NOW + 2, NOW + 3]})  # stays in the log
    for _ in range(2):
        with SeqVault.open(path, schema=new) as store:
            batch = store.read([1], before=None, last_n=4)
            assert batch["item_id"].dtype == np.int64
            assert batch["item_id"].tolist() == [[6, -5, 6, -5]]
            assert batch["action"].tolist() == [[7, 7, 7, 7]]
            assert batch["score"].tolist() == [[2.0, 0.5, 2.0, 0.5]]
            assert store.read([1], before=None, last_n=4, actions=[7]).lengths[0] == 4
            assert store.read([1], before=None, last_n=4, actions=[0]).lengths[0] == 0
            store.merge()
            store.verify()
    with SeqVault.open(path) as store:
        store.append({**plain, "item_id": [2**40, 1], "action": [1, 2]})
        assert store.read([1], before=None, last_n=9, actions=[1])["item_id"][0, 0] == 2**40
    with pytest.raises(errors.SchemaError, match="wider"):
        SeqVault.open(path, schema=old)
    with pytest.raises(errors.SchemaError, match="behind"):
        SeqVault.open(path, schema=Schema(new.fields[::-1]))


@pytest.mark.parametrize("now", [1001, 1003, 1005])
def test_retention_counts_in_whole_milliseconds(tmp_path, now):
    """1.003 s times 1000 is 1002.99 in floating point; an event of 2 ms is too old all the same."""
    with SeqVault.open(
        tmp_path / "vault", schema=SCHEMA, retention_ms=1000, clock=lambda: now / 1000
    ) as store:
        oldest = now - 1000
        store.append(events([1, 1], [oldest - 1, oldest]))
        assert store.read([1], before=None, last_n=5)["timestamp"].tolist()[0][:2] == [oldest, 0]


def test_merges_drop_what_is_too_old_or_too_much(tmp_path):
    now = [NOW]
    with SeqVault.open(
        tmp_path / "vault", schema=SCHEMA, retention_ms=1000, clock=lambda: now[0] / 1000
    ) as store:
        store.append(events([1, 1, 2], [NOW - 1001, NOW - 1000, NOW - 500]))
        assert store.read([1, 2], before=None, last_n=5).lengths.tolist() == [1, 1]
        store.merge()
        assert store.stats()["events"] == 2
        now[0] += 600
        store.merge()
        assert store.stats()["events"] == 0
        assert store.read([1, 2], before=None, last_n=5).lengths.tolist() == [0, 0]
        store.append(events([2], [NOW + 600]))
        store.merge()
        assert store.read([1, 2], before=None, last_n=5).lengths.tolist() == [0, 1]
    with SeqVault.open(tmp_path / "vault", retention_ms=0, max_events=3) as store:
        store.append(events([2] * 10, range(NOW, NOW + 10)))
        store.merge()
        batch = store.read([2], before=None, last_n=9)
        assert batch["timestamp"][0, :4].tolist() == [NOW + 600, NOW + 9, NOW + 8, 0]
        store.verify()


def test_late_events_that_grow_too_old_do_not_take_the_rest_with_them(tmp_path):
    now = [NOW]
    path = tmp_path / "vault"
    with SeqVault.open(
        path, schema=SCHEMA, retention_ms=1000, clock=lambda: now[0] / 1000
    ) as store:
        store.append(events([1] * 100, range(NOW, NOW + 100)))
        store.merge()
        for late in range(4):
            store.append(events([1], [NOW - 900 + late]))
            if late < 3:
                store.merge()
        now[0] += 500
        store.merge()
        assert store.read([1], before=None, last_n=200).lengths.tolist() == [100]
    with SeqVault.open(path, clock=lambda: now[0] / 1000) as store:
        batch = store.read([1], before=None, last_n=200)
        assert batch.lengths.tolist() == [100]
        assert batch.version.tolist() == [104]


def test_a_replayed_source_changes_nothing(tmp_path, vault):
    assert vault.append(events([1], [NOW]), source="log-0", offset=5) == 1
    assert vault.append(events([1], [NOW]), source="log-0", offset=5) == 0
    vault.merge()
    vault.close()
    with SeqVault.open(tmp_path / "vault") as again:
        assert again.append(events([1], [NOW]), source="log-0", offset=4) == 0
        assert again.append(events([1], [NOW]), source="log-1", offset=4) == 1
        assert again.read([1], before=None, last_n=9).lengths[0] == 2


def test_an_append_of_no_events_moves_the_mark_of_its_source(tmp_path, vault):
    assert vault.append(events([], []), source="log-0", offset=7) == 0
    assert vault.stats()["sources"] == {"log-0": 7}
    for merged in (False, True):
        if merged:
            vault.append(events([1], [NOW]))
            vault.merge()
        with SeqVault.open(tmp_path / "vault", read_only=True) as reader:  # no close in between
            assert reader.stats()["sources"] == {"log-0": 7}
    assert vault.append(events([2], [NOW]), source="log-0", offset=7) == 0
    assert vault.append(events([], []), source="log-0", offset=5) == 0
    assert vault.append(events([], [])) == 0
    vault.close()
    with SeqVault.open(tmp_path / "vault") as again:
        assert again.stats()["sources"] == {"log-0": 7}
        assert again.read([1, 2], before=None, last_n=9).lengths.tolist() == [1, 0]


def test_users_are_listed_page_by_page_wherever_their_events_are(tmp_path, vault):
    assert vault.user_ids().tolist() == []
    vault.append(events([5, -3, 2**62], [NOW] * 3))
    vault.merge()
    vault.append(events([9, 5, 0], [NOW] * 3))
    expected = [-3, 0, 5, 9, 2**62]
    assert vault.user_ids().dtype == np.int64
    for limit in (1, 2, 5, 6, 1 << 20):
        pages, after = [], None
        while True:
            page = vault.user_ids(after, limit).tolist()
            pages += page
            if len(page) < limit:
                break
            after = page[-1]
        assert pages == expected
    assert vault.user_ids(after=-1).tolist() == [0, 5, 9, 2**62]
    with SeqVault.open(tmp_path / "vault", read_only=True) as reader:
        assert reader.user_ids().tolist() == expected
    for arguments in ({"limit": 0}, {"limit": (1 << 20) + 1}, {"after": 2**63}):
        with pytest.raises(errors.InvalidRequestError):
            vault.user_ids(**arguments)
    for arguments in ({"limit": 2.5}, {"after": "7"}, {"limit": None}):
        with pytest.raises(errors.WrongTypeError):
            vault.user_ids(**arguments)
    vault.close()
    with pytest.raises(errors.StoreClosedError):
        vault.user_ids()


@pytest.mark.parametrize("where", ["segment", "several", "log", "merged"])
def test_float32_becomes_float64_and_old_events_are_read_exactly(tmp_path, where):
    def schema(kind):
        return Schema.from_arrow(
            pa.schema([("item_id", pa.int64()), ("score", kind), ("action", pa.int8())])
        )

    users, path = [1, 2, 3], tmp_path / "wide"
    special = [np.inf, -np.inf, -0.0, np.float32(1e-45), np.finfo(np.float32).max]

    def make(dtype, seed):
        rng = np.random.default_rng(seed)
        user = np.repeat(users, (700, 130, 20))
        score = rng.normal(size=len(user)).astype(np.float32)
        score[: len(special)] = special
        score[100:400] = score[100:400].round()  # few values: coded chunks
        return {
            "user_id": user,
            "timestamp": NOW + rng.permutation(len(user)),
            "item_id": rng.integers(0, 9, len(user)),
            "score": score.astype(dtype) if dtype == np.float32 else score / np.float64(3),
            "action": rng.integers(0, 3, len(user)).astype(np.int8),
        }

    with SeqVault.open(path, schema=schema(pa.float32())) as vault:
        vault.append(make(np.float32, 0))
        if where != "log":
            vault.merge()
        old = vault.read(users, None, 2000)
        seen = old.version
    with SeqVault.open(path, schema=schema(pa.float64())) as vault:
        if where in ("several", "merged"):
            vault.append(make(np.float64, 1))
            vault.merge()
            vault.append(make(np.float64, 2))
        if where == "merged":
            vault.merge()
        again = vault.read(users, None, 2000, version=seen)
        np.testing.assert_array_equal(again["score"], old["score"].astype(np.float64))
        assert again["score"].dtype == np.float64
        # every way to read says the same
        plain = vault.read(users, None, 2000)
        packed = unpack_batch(vault.read_packed(users, None, 2000))
        lengths, _, flat = vault.read_ragged(users, None, 2000)
        np.testing.assert_array_equal(packed["score"], plain["score"])
        for row, part in enumerate(np.split(flat["score"], np.cumsum(lengths)[:-1])):
            np.testing.assert_array_equal(plain["score"][row, : lengths[row]], part)
        few = vault.read(users, NOW + 500, 30, actions=[1], fields=["score", "action"])
        every = plain["action"] == 1
        every &= (plain["timestamp"] < NOW + 500) & (plain["timestamp"] > 0)
        for row in range(len(users)):
            expected = plain["score"][row][every[row]][:30]
            np.testing.assert_array_equal(few["score"][row, : few.lengths[row]], expected)
        if where in ("segment", "log"):
            np.testing.assert_array_equal(plain["score"], old["score"].astype(np.float64))
        vault.verify()
    with pytest.raises(errors.SchemaError, match="only to wider ones"):
        SeqVault.open(path, schema=schema(pa.float32()))


def test_versions_that_cannot_widen_floats_refuse_a_snapshot_that_needs_it(tmp_path, monkeypatch):
    def schema(kind):
        return Schema.from_arrow(pa.schema([("score", kind)]))

    path, before, after = tmp_path / "vault", tmp_path / "before", tmp_path / "after"
    with SeqVault.open(path, schema=schema(pa.float32())) as vault:
        vault.append({"user_id": [1], "timestamp": [NOW], "score": np.float32([0.1])})
        vault.snapshot(before)
    with SeqVault.open(path, schema=schema(pa.float64())) as vault:
        vault.snapshot(after)
    monkeypatch.setattr(manifest, "FORMAT", 2)
    with SeqVault.open(before, read_only=True) as vault:
        assert vault.read([1], None, 1)["score"] == np.float32(0.1)
    with pytest.raises(errors.NewerFormatError, match="format 3"):
        SeqVault.open(after, read_only=True)
    monkeypatch.undo()
    with SeqVault.open(after, read_only=True) as vault:
        assert vault.read([1], None, 1)["score"] == np.float64(np.float32(0.1))


def test_items_are_joined_in_the_shape_of_the_ids(tmp_path, vault):
    table = pa.table(
        {
            "item_id": pa.array([5, 6], pa.int64()),
            "author_id": pa.array([50, 60], pa.int32()),
            "title": ["five", "six"],
            "content": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4], "float"), 2),
        }
    )
    assert vault.read_items([5]).found.tolist() == [False]
    first = vault.put_items(table)
    second = vault.put_items(table.slice(1).set_column(2, "title", [["SIX"]]))
    assert second > first
    for store in (vault, None):
        if store is None:
            vault.close()
            store = SeqVault.open(tmp_path / "vault", read_only=True)
        batch = store.read_items([[6, 7], [5, 6]], fields=["author_id", "title", "content"])
        assert batch["author_id"].tolist() == [[60, 0], [50, 60]]
        assert batch["author_id"].dtype == np.int32
        assert batch["title"].tolist() == [["SIX", ""], ["five", "SIX"]]
        assert batch["content"].shape == (2, 2, 2)
        assert batch["content"][1, 0].tolist() == [1.0, 2.0]
        assert batch.found.tolist() == [[True, False], [True, True]]
        assert batch.version == second
        assert store.read_items(np.empty((0, 3), np.int64))["title"].shape == (0, 3)
        with pytest.raises(errors.UnknownFieldError):
            store.read_items([5], fields=["nothing"])
    with pytest.raises(errors.ReadOnlyError):
        store.put_items(table)


def test_many_item_files_become_one_again(tmp_path, vault):
    for i in range(20):
        vault.put_items({"item_id": [i, 99], "value": [i * 10, i]})
    assert len(os.listdir(tmp_path / "vault" / "items")) <= 9
    vault.close()
    with SeqVault.open(tmp_path / "vault") as again:
        assert again.read_items([0, 19, 99])["value"].tolist() == [0, 190, 19]


def test_items_of_another_shape_are_refused(vault):
    vault.put_items({"item_id": [1], "value": [1]})
    with pytest.raises(errors.SchemaError):
        vault.put_items({"item_id": [1], "other": [1]})
    with pytest.raises(errors.InvalidRequestError):
        vault.put_items({"item_id": [1, 1], "value": [1, 2]})
    with pytest.raises(errors.UnknownFieldError):
        vault.put_items({"value": [1]})


def test_a_snapshot_is_a_store_of_its_own(tmp_path, vault):
    vault.append(events([1, 2], [NOW, NOW]))
    vault.put_items({"item_id": [0], "value": [4]})
    vault.snapshot(tmp_path / "copy")
    vault.append(events([1], [NOW + 1]))
    with SeqVault.open(tmp_path / "copy") as copy:
        assert copy.verify()["events"] == 2
        assert copy.read_items([0])["value"].tolist() == [4]
        copy.append(events([3], [NOW]))
        assert copy.read([1, 3], before=None, last_n=5).lengths.tolist() == [1, 1]
    assert vault.read([1, 3], before=None, last_n=5).lengths.tolist() == [2, 0]
    with pytest.raises(errors.InvalidRequestError):
        vault.snapshot(tmp_path / "copy")


def test_a_copy_without_its_empty_directories_is_read(tmp_path, vault):
    vault.append(events([1], [NOW]))
    vault.snapshot(tmp_path / "copy")
    for folder in ("wal", "items"):
        (tmp_path / "copy" / folder).rmdir()
    with SeqVault.open(tmp_path / "copy", read_only=True) as copy:
        assert copy.read([1], before=None, last_n=1).lengths.tolist() == [1]
        assert copy.verify()["events"] == 1


def test_long_histories_are_read_in_part_and_answer_the_same(vault):
    rng = np.random.default_rng(0)
    n = 30_000
    plain = events(np.ones(n), NOW + np.sort(rng.integers(0, 10**9, n)), rng.integers(0, 2**60, n))
    vault.bulk_load(plain)
    for before in (NOW, NOW + 1, NOW + 10**7, NOW + 5 * 10**8, NOW + 2 * 10**9):
        for last_n in (1, 300, 5000):
            batch = vault.read([1], before=before, last_n=last_n, fields=["item_id"])
            end = int(np.searchsorted(plain["timestamp"], before))
            expected = plain["item_id"][max(0, end - last_n) : end][::-1]
            assert batch["item_id"][0, : batch.lengths[0]].tolist() == expected.tolist()


def test_parquet_loads_whatever_its_order(tmp_path, vault):
    rng = np.random.default_rng(0)
    plain = events(rng.integers(0, 50, 5000), NOW + rng.integers(0, 10**6, 5000))
    pq.write_table(pa.table(plain), tmp_path / "a.parquet", row_group_size=700)
    assert vault.bulk_load(str(tmp_path / "a.parquet")) == 5000
    assert vault.stats()["events_in_log"] == 0
    one = vault.read([7], before=None, last_n=1000, fields=["item_id"])
    mine = np.flatnonzero(plain["user_id"] == 7)
    expected = mine[np.argsort(plain["timestamp"][mine], kind="stable")][::-1]
    assert one["item_id"][0, : one.lengths[0]].tolist() == expected.tolist()


def test_threads_append_read_and_merge_at_once(vault):
    stop = threading.Event()
    faults = []

    def write(user):
        for i in range(60):
            vault.append(events([user] * 3, [NOW + 3 * i + k for k in range(3)]))

    def watch():
        seen = np.zeros(4, np.int64)
        while not stop.is_set():
            batch = vault.read(range(4), before=None, last_n=500)
            for row in range(4):
                n = int(batch.lengths[row])
                times = batch["timestamp"][row, :n]
                if (
                    n < seen[row]
                    or n % 3
                    or times.tolist() != list(range(NOW + n - 1, NOW - 1, -1))
                ):
                    faults.append((row, n, times.tolist()))
                seen[row] = n

    def tidy():
        while not stop.is_set():
            vault.merge()

    writers = [threading.Thread(target=write, args=(user,)) for user in range(4)]
    others = [threading.Thread(target=watch), threading.Thread(target=watch),
              threading.Thread(target=tidy)]  # fmt: skip
    for thread in writers + others:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert not faults
    assert vault.read(range(4), before=None, last_n=500).lengths.tolist() == [180] * 4


class FullDisk(Files):
    full = False

    def pwrite(self, fd, data, offset):
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().pwrite(fd, data, offset)


def test_on_a_full_disk_reads_go_on_and_writes_come_back(tmp_path):
    disk = FullDisk()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=disk) as store:
        store.append(events([1], [NOW]))
        disk.full = True
        for call in (lambda: store.append(events([1], [NOW + 1])), store.merge,
                     lambda: store.put_items({"item_id": [1], "v": [1]})):  # fmt: skip
            with pytest.raises(errors.DiskFullError, match="no room"):
                call()
        assert store.read([1], before=None, last_n=5).lengths[0] == 1
        disk.full = False
        store.append(events([1], [NOW + 2]))
        store.merge()
        assert store.read([1], before=None, last_n=5).lengths[0] == 2
    with SeqVault.open(tmp_path / "vault") as again:
        assert again.read([1], before=None, last_n=5).lengths[0] == 2


class FailingSync(Files):
    broken = False

    def fdatasync(self, fd):
        if self.broken:
            raise OSError(errno.EIO, "input/output error")
        super().fdatasync(fd)


def test_after_a_failed_sync_nothing_more_is_acknowledged(tmp_path):
    disk = FailingSync()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=disk) as store:
        store.append(events([1], [NOW]))
        disk.broken = True
        with pytest.raises(errors.StoreFailedError):
            store.append(events([1], [NOW + 1]))
        disk.broken = False
        with pytest.raises(errors.StoreFailedError, match="reopened"):
            store.append(events([1], [NOW + 2]))
        assert store.read([1], before=None, last_n=5).lengths[0] == 1
    with SeqVault.open(tmp_path / "vault") as again:
        assert again.append(events([2], [NOW])) == 1
        assert again.read([1], before=None, last_n=5)["timestamp"][0, -1] in (0, NOW)
