"""What merges write, hold back and leave on the disk; bulk loads that are whole or not there."""

import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from seqvault import Schema, SeqVault, errors
from seqvault.disk import segment as segment_module
from seqvault.disk.files import Files
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.merge import bulk_loader as loader
from seqvault.merge import merge_policy
from seqvault.testing.crash_run import PATH, crash_run
from seqvault.testing.memory_files import MemoryFiles

NOW = 1_700_000_000_000
SCHEMA = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))


def events(users, first=0):
    users = np.asarray(users, np.int64)
    places = np.arange(len(users), dtype=np.int64) + first
    return {"user_id": users, "timestamp": NOW + places, "item_id": places}


def items_of(vault, user):
    batch = vault.read([user], before=None, last_n=4096)
    return batch["item_id"][0, : batch.lengths[0]].tolist()[::-1]


def opened(files, **options):
    return SeqVault.open(PATH, schema=SCHEMA, files=files, **options)


def test_small_tails_wait_until_they_are_worth_a_record(monkeypatch):
    monkeypatch.setattr(merge_policy, "HOLD_BELOW", 10)
    with opened(MemoryFiles()) as vault:
        vault.append(events([1] * 100 + [2] * 100))
        assert vault.merge(hold_small=True) == {"users": 2, "events": 200, **bytes_of(vault)}
        for k in range(3):
            vault.append(events([1] * 3 + [2] * 12, 200 + 15 * k))
            written = vault.merge(hold_small=True)
            assert (written["users"], written["events"]) == (1, 12 if k < 2 else 36)
            assert vault.events_in_log == 3 * (k + 1)
        vault.append(events([1], 300))
        assert vault.merge(hold_small=True)["events"] == 10
        assert vault.events_in_log == 0
        assert len(items_of(vault, 1)) == 110


def bytes_of(vault):
    return {"bytes": vault.stats()["segment_bytes"]}


def test_what_waits_survives_reopening_once_and_with_its_numbers():
    disk = MemoryFiles()
    vault = opened(disk)
    vault.append(events([1] * 100 + [2] * 3), source="log", offset=4)
    vault.merge(hold_small=True)
    vault.append(events([1] * 60 + [2] * 2, 103), source="log", offset=5)
    vault.merge(hold_small=True)  # user 1 is stored, user 2 waits in both files
    assert vault.events_in_log == 5
    expected = [items_of(vault, user) for user in (1, 2)]
    versions = vault.read([1, 2], before=None, last_n=1).version.tolist()
    for read_only in (True, False):
        if not read_only:
            vault.close()
        with opened(disk, read_only=read_only) as again:
            assert [items_of(again, user) for user in (1, 2)] == expected
            assert again.read([1, 2], before=None, last_n=1).version.tolist() == versions
            assert again.stats()["sources"] == {"log": 5}
            assert again.stats()["events_in_log"] == 5
            again.verify()


def test_what_waits_is_bounded_in_number_and_in_age(monkeypatch):
    monkeypatch.setattr(merge_policy, "HELD_FILES", 4)
    with opened(MemoryFiles()) as vault:
        for k in range(12):
            vault.append(events([k], k))
            vault.merge(hold_small=True)
            assert vault.events_in_log <= 5
        monkeypatch.setattr(merge_policy, "HELD_EVENTS", 2)
        vault.append(events([99], 99))
        vault.merge(hold_small=True)
        assert vault.events_in_log <= 2
        assert [items_of(vault, k) for k in range(12)] == [[k] for k in range(12)]


def test_the_log_keeps_only_files_that_are_needed_and_two_spare_ones():
    disk = MemoryFiles()
    with opened(disk) as vault:
        for k in range(6):
            vault.append(events([1] * 50, 50 * k))
            vault.merge()
        names = [name for name in disk.names if "/wal/" in name]
        assert sum(name.endswith(".wal") for name in names) == 1
        assert sum(name.endswith(".spare") for name in names) <= 2


@pytest.mark.parametrize("hold_events", [0, 30])
def test_random_crashes_with_tails_that_wait_lose_nothing(monkeypatch, hold_events):
    monkeypatch.setattr(merge_policy, "HELD_FILES", 3)
    monkeypatch.setattr(merge_policy, "HELD_EVENTS", hold_events)
    assert crash_run(points=60, seed=11) == 60


def test_kinds_of_records():
    kinds = merge_policy.kinds_of(
        extents=np.array([0, 1, 1, 3, 3]),
        stored=np.array([0, 100, 100, 120, 145]),
        base=np.array([0, 100, 100, 100, 100]),
        tail=np.array([5, 49, 50, 5, 5]),
    )
    assert kinds.tolist() == [1, 0, 1, 2, 1]


def test_a_bulk_load_in_many_parts_is_whole_or_not_there(monkeypatch):
    monkeypatch.setattr(loader, "LOAD_EVENTS", 10)
    disk = MemoryFiles()
    with opened(disk) as vault:
        vault.append(events([1, 2]))
        parts = [events([1, 2] * 6, 2 + 12 * k) for k in range(5)]
        broken = [*parts, {**events([1]), "item_id": np.array([0.5])}]
        with pytest.raises(errors.WrongTypeError):
            vault.bulk_load(broken)
        assert items_of(vault, 1) == [0]
        assert vault.stats()["segments"] == len([n for n in disk.names if n.endswith(".seg")])
        assert vault.bulk_load(parts) == 60
        assert items_of(vault, 1) == [0, *range(2, 62, 2)]
        assert vault.read([1], before=None, last_n=1).version.tolist() == [31]
    with opened(disk) as again:
        assert items_of(again, 2) == list(range(1, 62, 2))


def test_a_merge_without_room_does_not_start():
    class Full(MemoryFiles):
        free = 1 << 30

        def free_bytes(self, path):
            return self.free

    disk = Full()
    with opened(disk) as vault:
        vault.append(events([1] * 50))
        disk.free = 100
        with pytest.raises(errors.DiskFullError, match="needs about"):
            vault.merge()
        assert items_of(vault, 1) == list(range(50))
        assert not [name for name in disk.names if ".seg" in name]


def test_a_merge_is_no_faster_than_its_rate():
    slept = []

    class Closing(threading.Event):
        def wait(self, timeout=None):
            slept.append(timeout)
            return False

    with opened(MemoryFiles()) as vault:
        vault._state.closing = Closing()
        vault.append(events([1] * 50))
        size = vault.merge(bytes_per_second=10.0)["bytes"]
    assert sum(slept) > 0.5 * (size - 200) / 10


def test_readers_keep_the_files_that_merges_removed(tmp_path):
    path = tmp_path / "vault"
    with SeqVault.open(path, schema=SCHEMA) as vault:
        vault.append(events([1] * 300))
        vault.merge()
        with SeqVault.open(path, read_only=True) as other:
            seen = items_of(other, 1)
            found = vault._reader.find(np.array([1]))
            for k in range(6):
                vault.append(events([1] * 400, 300 + 400 * k))
                vault.merge()
            assert not (path / "segments" / "0000000001.seg").exists()
            assert items_of(other, 1) == seen  # its segment and its log file are gone
            before = np.array([NOW * 2])
            plan = vault._reader.plan(found, before, np.array([4096]), np.array([-1]), [])
            assert plan.counts.tolist() == [300]
            assert other.refresh()
            assert items_of(other, 1) == list(range(2700))


def test_frames_of_an_earlier_life_of_a_log_file_are_not_replayed(tmp_path):
    path = tmp_path / "vault"
    with SeqVault.open(path, schema=SCHEMA) as vault:
        for k in range(4):  # frames of one size, at the same places of each file
            vault.append(events([1] * 50, 100 * k))
            vault.append(events([1] * 50, 100 * k + 50))
            vault.merge()
        assert list((path / "wal").glob("*.spare"))
    with SeqVault.open(path) as vault:  # begins a spare file anew
        vault.append(events([1] * 50, 400))
        crashed = [entry.read_bytes() for entry in sorted((path / "wal").glob("*.wal"))]
    assert sum(content.count(b"VFRM") for content in crashed) >= 2  # one of them is of now
    (path / "wal").rename(tmp_path / "closed")
    (path / "wal").mkdir()
    for entry, content in zip(sorted((tmp_path / "closed").glob("*.wal")), crashed, strict=True):
        (path / "wal" / entry.name).write_bytes(content)
    with SeqVault.open(path) as vault:
        assert items_of(vault, 1) == list(range(450))
        vault.verify()


def test_memory_does_not_grow_with_the_number_of_files_ever_written(tmp_path):
    path = tmp_path / "old"
    with SeqVault.open(path, schema=SCHEMA) as vault:
        vault.append(events([1] * 5 + [2] * 4))
    old = Manifest.load(Files(), str(path))
    replace(old, next_file=(1 << 31) - 9).save(Files(), str(path))
    with SeqVault.open(path) as vault:
        tracemalloc.start()
        try:
            vault.merge()
            vault.append(events([1] * 2, 9))
            vault.merge()
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()
    with SeqVault.open(path, read_only=True) as vault:
        assert vault.verify()["events"] == 11
        assert items_of(vault, 1) == [0, 1, 2, 3, 4, 9, 10]


def test_expired_bytes_are_those_of_records_that_ended_before(tmp_path, monkeypatch):
    users = np.repeat(np.arange(90), np.arange(90) + 1)
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append({"user_id": users, "timestamp": 10**12 + users, "item_id": users})
        vault.merge()
    segment = Segment(Files(), str(tmp_path / "vault"), 1)
    footer = segment.footer()
    for oldest in (0, 10**12, 10**12 + 40, 10**12 + 90):
        expected = footer.lengths[footer.last_times < oldest].sum()
        assert segment.expired_bytes(oldest) == expected
    monkeypatch.setattr(segment_module, "SAMPLE", 30)  # every third record tells about as much
    sampled = Segment(Files(), str(tmp_path / "vault"), 1).expired_bytes(10**12 + 40)
    exact = footer.lengths[footer.last_times < 10**12 + 40].sum()
    assert abs(sampled - exact) < 0.1 * segment.record_bytes
