"""Crashes at every point: a simulated disk loses what was not synced, processes are killed."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from seqvault import SeqVault, errors
from seqvault.disk import wal
from seqvault.testing.crash_run import COPIES, PATH, check_after_crash, crash_run
from seqvault.testing.memory_files import Crash, MemoryFiles
from seqvault.testing.oracle import Oracle
from seqvault.testing.random_workload import SCHEMA, random_events


@pytest.fixture(autouse=True)
def log_files(monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 16)


def test_random_crashes_lose_nothing_acknowledged():
    assert crash_run(points=240, seed=1) == 240


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which has no threads when it forks."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_killed_processes_lose_nothing_acknowledged():
    run = python("from seqvault.testing.crash_run import main; main(['--points=0', '--kills=24'])")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "24 processes killed" in run.stdout


@pytest.mark.parametrize("broken", ["fdatasync", "sync_directory"])
def test_the_crash_run_notices_a_store_that_does_not_sync(monkeypatch, broken):
    monkeypatch.setattr(MemoryFiles, broken, lambda self, where: None)
    with pytest.raises((AssertionError, errors.SeqVaultError, OSError)):
        crash_run(points=240, seed=1)


def test_the_kill_run_notices_a_store_that_acknowledges_too_soon():
    run = python(
        "import itertools\n"
        "from seqvault.disk import wal\n"
        "from seqvault.testing.kill_run import kill_run\n"
        "write, count = wal.WalWriter.write, itertools.count(1)\n"
        "wal.WalWriter.write = lambda self, *a: next(count) % 4 == 0 or write(self, *a)\n"
        "kill_run(kills=24, seed=1)\n"
    )
    assert run.returncode != 0
    assert "neither before nor after the last call" in run.stderr or "Damaged" in run.stderr


class Life:
    """A fixed life of a store, every kind of write in it, that a fault may end anywhere."""

    def __init__(self, disk: MemoryFiles) -> None:
        self.disk = disk
        self.possible = [Oracle()]

    def live(self) -> None:
        rng = random.Random(7)
        now = Oracle()
        vault = SeqVault.open(PATH, schema=SCHEMA, files=self.disk)
        for turn in range(3):
            for count in (3, 50, 60):  # the second file of the log begins in between
                events = random_events(rng, count)
                now = self._call(lambda e=events: vault.append(e), now, now.after(events))
            now = self._call(vault.merge, now, now)
            changed = now.copy()
            changed.items.update({turn: turn * 10, 99: turn})
            table = {"item_id": [turn, 99], "value": [turn * 10, turn]}
            now = self._call(lambda t=table: vault.put_items(t), now, changed)
            events = random_events(rng, 100)
            now = self._call(lambda e=events: vault.bulk_load(e), now, now.after(events))
            self._call(lambda t=turn: vault.snapshot(f"{COPIES}/{t}"), now, now)
        events = random_events(rng, 5)
        now = self._call(lambda: vault.append(events), now, now.after(events))
        self._call(vault.close, now, now)
        vault = SeqVault.open(PATH, files=self.disk, max_events=4000)
        self._call(vault.close, now, now)

    def _call(self, call, before: Oracle, after: Oracle) -> Oracle:
        self.possible = [before, after]
        call()
        self.possible = [after]
        return after


def test_a_crash_at_every_operation_is_survived(monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 11)
    counted = MemoryFiles()
    operations = []
    counted.fault = operations.append
    Life(counted).live()
    points = [n for n, operation in enumerate(operations) if operation != "preadv"]
    assert {operations[n] for n in points} >= {
        "create", "pwrite", "fdatasync", "rename", "unlink", "link", "sync_directory"
    }  # fmt: skip
    assert len(points) > 150
    for n in points:
        life, left = Life(MemoryFiles()), n

        def fault(operation):
            nonlocal left
            if left <= 0:
                raise Crash
            left -= 1

        life.disk.fault = fault
        with pytest.raises((Crash, errors.StoreFailedError)):
            life.live()
        assert left == 0
        for survives in ("nothing", "some", "all"):
            rng = random.Random(n)
            crashed = life.disk.after_crash(rng, survives)
            try:
                check_after_crash(crashed, life.possible, rng)
            except BaseException as error:
                raise AssertionError(f"{operations[n]} {n}, {survives} survives") from error


def test_a_rename_counts_only_once_its_directory_is_synced():
    disk = MemoryFiles()
    fd = disk.create("/d/new.tmp")
    disk.write_all(fd, b"new", 0)
    disk.fdatasync(fd)
    disk.sync_directory("/d")
    disk.rename("/d/new.tmp", "/d/name")
    lost, kept = (disk.after_crash(random.Random(0), how) for how in ("nothing", "all"))
    assert set(lost.names) == {"/d/new.tmp"} and set(kept.names) == {"/d/name"}
    disk.sync_directory("/d")
    assert set(disk.after_crash(random.Random(0), "nothing").names) == {"/d/name"}


def test_the_simulated_disk_drops_tears_and_reorders_what_was_not_synced():
    disk = MemoryFiles()
    fd = disk.create("/d/file")
    disk.allocate(fd, 3 * 4096)
    disk.fdatasync(fd)
    disk.sync_directory("/d")
    disk.write_all(fd, b"\1" * 4096, 0)
    disk.write_all(fd, b"\2" * 4096, 4096)
    disk.write_all(fd, b"\3" * 1000, 2 * 4096 + 100)
    states = {
        disk.after_crash(random.Random(seed)).content("/d/file").tobytes() for seed in range(300)
    }
    firsts = {(state[0], state[4096], state[8192 + 100]) for state in states}
    assert firsts == {(a, b, c) for a in (0, 1) for b in (0, 2) for c in (0, 3)}
    ends = {len(state[:4096].rstrip(b"\0")) for state in states}
    assert all(end % 512 == 0 for end in ends) and len(ends) > 6
    tails = {state[8292:9292] for state in states}
    assert any(0 < tail.count(3) < 1000 for tail in tails)  # sectors are the disk's


def test_frames_of_an_earlier_life_of_a_log_file_are_not_read_again():
    """In a file used again, an old frame lies just where a lost new one would be."""
    disk, oracle, rng = MemoryFiles(), Oracle(), random.Random(6)
    vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)

    def append():  # frames of one size
        events = random_events(rng, 10)
        vault.append(events)
        oracle.add(events)

    def present_file():
        return max(name for name in disk.names if name.endswith(".wal"))

    first = disk.names[present_file()]
    for _ in range(3):
        for _ in range(5):
            append()
        vault.merge()
        if disk.names[present_file()] is first:
            break
    assert disk.names[present_file()] is first, "the log's files are not used again"
    for _ in range(2):
        append()
    held = disk.content(present_file()).tobytes().count(wal.FRAME_MAGIC.to_bytes(4, "little"))
    assert held >= 5  # three old frames at least stand behind the two new ones

    def fault(operation):
        if operation == "fdatasync":
            raise Crash

    disk.fault = fault
    lost = random_events(rng, 10)
    with pytest.raises((Crash, errors.StoreFailedError)):
        vault.append(lost)
    disk.fault = lambda operation: None
    for seed in range(40):
        rng = random.Random(seed)
        crashed = disk.after_crash(rng, ("nothing", "all", "some")[min(seed, 2)])
        check_after_crash(crashed, [oracle, oracle.after(lost)], rng)


def torn(content: bytes, old: bytes, sector: int, arrived: set[int]) -> bytes:
    """``content`` of which only some sectors arrived over ``old``."""
    out = bytearray(old.ljust(len(content), b"\0"))
    for number in arrived:
        piece = slice(number * sector, (number + 1) * sector)
        out[piece] = content[piece]
    return bytes(out)


def some_sectors(rng: random.Random, many: int) -> list[set[int]]:
    """Every first part, every part with one sector missing, and others; never all."""
    prefixes = [set(range(k)) for k in range(many)]
    holes = [set(range(many)) - {k} for k in range(many)]
    mixed = [{k for k in range(many) if rng.random() < 0.5} for _ in range(8)]
    return [one for one in prefixes + holes + mixed if len(one) < many]


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_torn_append_is_left_out_and_those_before_it_stay(sector):
    disk, oracle, rng = MemoryFiles(), Oracle(), random.Random(3)
    vault = SeqVault.open(PATH, schema=SCHEMA, files=disk)
    for count in (30, 400):
        events = random_events(rng, count)
        vault.append(events)
        oracle.add(events)
    path = next(name for name in disk.names if name.endswith(".wal"))
    before = disk.content(path).tobytes()
    last = random_events(rng, 600)
    vault.append(last)
    after = disk.content(path).tobytes()
    changed = [
        k
        for k in range(-(-len(after) // sector))
        if before[k * sector : (k + 1) * sector] != after[k * sector : (k + 1) * sector]
    ]
    assert len(changed) > (2 if sector == 4096 else 20)
    for chosen in some_sectors(rng, len(changed)):
        arrived = {changed[k] for k in chosen}
        state = torn(after, before, sector, arrived)
        assert state != after
        crashed = disk.after_crash(rng, "all")
        crashed.replace(path, state)
        with SeqVault.open(PATH, files=crashed) as again:
            assert not oracle.difference(again), sorted(arrived)
            again.append(last)
            assert not oracle.after(last).difference(again)
            again.verify()


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("kind", ["MANIFEST", ".seg", ".items"])
def test_torn_files_are_refused_and_torn_temporary_ones_ignored(kind, sector):
    disk, rng = MemoryFiles(), random.Random(4)
    with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
        for k in range(250):  # a manifest, too, of several sectors
            vault.append(random_events(rng, 1), source=f"source-{k:030d}", offset=k)
        events = random_events(rng, 4000)
        vault.bulk_load(events)
        vault.put_items(
            {
                "item_id": np.arange(3000),
                "value": np.random.default_rng(0).integers(0, 1 << 60, 3000),
            }
        )
        expected = vault.read(range(6), before=None, last_n=4096)["item_id"]
    named = [name for name in disk.names if name.endswith(kind)]
    path = max(named, key=lambda name: len(disk.content(name)))
    content = disk.content(path).tobytes()
    many = -(-len(content) // sector)
    assert many > 1
    for arrived in some_sectors(rng, many):
        for old in (b"", rng.randbytes(len(content))):
            state = torn(content, old, sector, arrived)
            if state == content:
                continue
            final = disk.after_crash(rng, "all")
            final.replace(path, state)
            with (
                pytest.raises(errors.DamagedFileError),
                SeqVault.open(PATH, files=final) as vault,
            ):
                vault.verify()
            temporary = disk.after_crash(rng, "all")
            temporary.replace(path + ".tmp", state)
            with SeqVault.open(PATH, files=temporary) as vault:
                got = vault.read(range(6), before=None, last_n=4096)["item_id"]
                np.testing.assert_array_equal(got, expected)
