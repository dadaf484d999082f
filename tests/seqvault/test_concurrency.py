"""Appends, reads, merges and TTL at once: each reader sees a prefix of each user's events."""

import multiprocessing
import threading
import time

import numpy as np
import pytest

from seqvault import SeqVault
from seqvault.disk import wal
from seqvault.disk.files import Files
from seqvault.errors import StoreFailedError
from seqvault.memory.memtable import Memtable
from seqvault.testing.random_workload import NOW, SCHEMA

USERS = 4
APPENDS = 120
PER_APPEND = 3


def part_of(user: int, number: int) -> dict[str, np.ndarray]:
    """The user's events ``3 number`` to ``3 number + 2``; the item says which one it is."""
    places = np.arange(PER_APPEND * number, PER_APPEND * (number + 1))
    return {
        "user_id": np.full(PER_APPEND, user, np.int64),
        "timestamp": NOW + places,
        "item_id": places * USERS + user,
        "action": (places % 7).astype(np.int8),
    }


def fault_in(vault: SeqVault, seen: np.ndarray, oldest: int = 0) -> str:
    """What is wrong with a read: each user must have a whole number of appends, the first
    ones without a gap, and none fewer than it had; events before ``oldest`` may be gone."""
    batch = vault.read(np.arange(USERS), before=None, last_n=PER_APPEND * APPENDS)
    for user in range(USERS):
        n = int(batch.lengths[user])
        times = batch["timestamp"][user, :n] - NOW
        if not n:
            continue
        end = int(times[0]) + 1
        if end % PER_APPEND or end < seen[user]:
            return f"user {user}: {end} events, {seen[user]} before"
        first = int(times[-1])
        if times.tolist() != list(range(end - 1, first - 1, -1)) or first > max(0, oldest - NOW):
            return f"user {user}: a gap in {times.tolist()}"
        if batch["item_id"][user, :n].tolist() != (times * USERS + user).tolist():
            return f"user {user}: items of other events"
        seen[user] = end
    return ""


def in_threads(*works) -> list[str]:
    """Runs all until the first of them, and those like it, are done."""
    faults: list[str] = []

    def guarded(work):
        try:
            work(faults)
        except BaseException as error:
            faults.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return faults


def writer_of(vault: SeqVault, user: int, left: list[int]):
    def write(_: list[str]) -> None:
        try:
            for number in range(APPENDS):
                vault.append(part_of(user, number), source=f"user-{user}", offset=number)
        finally:
            left.remove(user)

    return write


def test_threads_append_read_merge_and_snapshot_at_once(tmp_path):
    left = list(range(USERS))
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:

        def watch(faults: list[str]) -> None:
            seen = np.zeros(USERS, np.int64)
            while left and not faults:
                if wrong := fault_in(vault, seen):
                    faults.append(wrong)

        def repeat(faults: list[str]) -> None:
            """A version token gives the very same answer, whatever happens meanwhile."""
            while left and not faults:
                first = vault.read(range(USERS), before=None, last_n=50)
                time.sleep(0.002)
                again = vault.read(range(USERS), before=None, last_n=50, version=first.version)
                if any((first[name] != again[name]).any() for name in first.columns):
                    faults.append("a version read differently later")

        def tidy(_: list[str]) -> None:
            number = 0
            while left:
                vault.merge()
                vault.put_items({"item_id": [number % 5], "value": [number]})
                number += 1
                if number % 20 == 0:
                    vault.snapshot(tmp_path / f"copy-{number}")
                    with SeqVault.open(tmp_path / f"copy-{number}", read_only=True) as copy:
                        copy.verify()
                        wrong = fault_in(copy, np.zeros(USERS, np.int64))
                        assert not wrong, wrong

        writers = [writer_of(vault, user, left) for user in range(USERS)]
        assert not in_threads(*writers, watch, watch, repeat, tidy)
        seen = np.full(USERS, APPENDS * PER_APPEND)
        assert not fault_in(vault, seen)
        vault.verify()


def test_ttl_moves_while_threads_append_read_and_merge(tmp_path):
    left = list(range(USERS))
    clock = [NOW / 1000]
    with SeqVault.open(
        tmp_path / "vault", schema=SCHEMA, retention_ms=10**6, clock=lambda: clock[0]
    ) as vault:

        def watch(faults: list[str]) -> None:
            seen = np.zeros(USERS, np.int64)
            while left and not faults:
                before = int(clock[0] * 1000) - 10**6
                if wrong := fault_in(vault, seen, oldest=before + 20):
                    faults.append(wrong)

        def tidy(_: list[str]) -> None:
            while left:
                vault.merge()
                clock[0] = min(clock[0] + 0.002, NOW / 1000 + 1000.2)

        clock[0] = NOW / 1000 + 1000
        writers = [writer_of(vault, user, left) for user in range(USERS)]
        assert not in_threads(*writers, watch, tidy)
        vault.merge()
        oldest = max(0, int(clock[0] * 1000) - 10**6 - NOW)
        batch = vault.read(range(USERS), before=None, last_n=1000)
        assert batch.lengths.tolist() == [PER_APPEND * APPENDS - oldest] * USERS


def _watch_from_outside(path: str, stop, faults) -> None:
    """Another process that reads the files while they are written."""
    seen = np.zeros(USERS, np.int64)
    looks = 0
    with SeqVault.open(path, read_only=True) as vault:
        while not stop.is_set():
            vault.refresh()
            if wrong := fault_in(vault, seen):
                faults.put(wrong)
                return
            looks += 1
    faults.put("" if looks > 2 else f"only {looks} looks")


def test_another_process_reads_prefixes_while_this_one_writes(tmp_path):
    left = list(range(USERS))
    context = multiprocessing.get_context("fork")
    stop, faults = context.Event(), context.Queue()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        reader = context.Process(
            target=_watch_from_outside, args=(str(tmp_path / "vault"), stop, faults)
        )
        reader.start()

        def tidy(_: list[str]) -> None:
            while left:
                time.sleep(0.01)
                vault.merge()

        writers = [writer_of(vault, user, left) for user in range(USERS)]
        found = in_threads(*writers, tidy)
        time.sleep(0.2)
        stop.set()
        assert not found
        assert faults.get(timeout=60) == ""
        reader.join(timeout=60)
        assert reader.exitcode == 0


class SlowDisk(Files):
    """The sync of one thread's append waits until ``go``; and something happens at a rename."""

    def __init__(self) -> None:
        self.waiting, self.go = threading.Event(), threading.Event()
        self.slow: threading.Thread | None = None
        self.at_rename = lambda path: None
        self.fails = False

    def fdatasync(self, fd: int) -> None:
        if threading.current_thread() is self.slow:
            self.waiting.set()
            assert self.go.wait(timeout=60)
            if self.fails:
                raise OSError(5, "no disk any more")
        super().fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        self.at_rename(new)
        super().rename(old, new)

    def begin(self, vault: SeqVault, user: int, number: int, raised: list[BaseException]) -> None:
        """An append that is under way when this returns."""

        def append() -> None:
            try:
                vault.append(part_of(user, number))
            except BaseException as error:
                raised.append(error)

        self.slow = threading.Thread(target=append)
        self.slow.start()
        assert self.waiting.wait(timeout=60)

    def end(self) -> None:
        self.go.set()
        assert self.slow is not None
        self.slow.join(timeout=60)
        assert not self.slow.is_alive()


def test_an_append_is_unseen_until_it_is_on_the_disk(tmp_path):
    disk, raised = SlowDisk(), []
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=disk) as vault:
        vault.append(part_of(0, 0))
        disk.begin(vault, 0, 1, raised)
        assert vault.read([0], before=None, last_n=9).lengths.tolist() == [PER_APPEND]
        assert vault.stats()["events"] == PER_APPEND
        disk.end()
        assert not raised
        assert not fault_in(vault, np.array([2 * PER_APPEND, 0, 0, 0]))


def test_an_append_that_waits_for_the_disk_outlives_the_merge_that_ends_meanwhile(tmp_path):
    """A merge puts another memtable in the place of the one that the append was laid down in."""
    disk, raised = SlowDisk(), []
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=disk) as vault:
        vault.append(part_of(0, 0))
        vault.append(part_of(1, 0))

        def at_rename(path: str) -> None:
            # the segment gets its name: the log was cut before, so what comes now is not merged
            if "/segments/" in path and disk.slow is None:
                disk.begin(vault, 0, 1, raised)

        disk.at_rename = at_rename
        vault.merge()
        assert disk.slow is not None
        assert vault.read([0, 1], before=None, last_n=9).lengths.tolist() == [PER_APPEND] * 2
        disk.end()
        assert not raised
        expected = np.array([2 * PER_APPEND, PER_APPEND, 0, 0])
        assert not fault_in(vault, expected)
    with SeqVault.open(tmp_path / "vault") as vault:
        assert not fault_in(vault, expected)


def test_an_append_whose_sync_fails_is_never_seen(tmp_path):
    disk, raised = SlowDisk(), []
    disk.fails = True
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=disk) as vault:
        vault.append(part_of(0, 0))
        disk.begin(vault, 0, 1, raised)
        disk.end()
        assert isinstance(raised[0], StoreFailedError)
        assert vault.read([0], before=None, last_n=9).lengths.tolist() == [PER_APPEND]


def test_an_interrupt_amid_an_append_moves_no_later_events(tmp_path, monkeypatch):
    write = wal.WalWriter.write

    def interrupted(self, frame):
        write(self, frame)
        monkeypatch.undo()
        raise KeyboardInterrupt

    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(part_of(0, 0))
        monkeypatch.setattr(wal.WalWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vault.append(part_of(1, 0))
        vault.append(part_of(0, 1))
        assert not fault_in(vault, np.array([2 * PER_APPEND, 0, 0, 0]))
        # not acknowledged, so not seen, though it is on the disk by now
        assert vault.read([1], before=None, last_n=9).lengths.tolist() == [0]


def test_events_on_the_disk_that_cannot_be_shown_fail_the_store(tmp_path, monkeypatch):
    def no_memory(self, count, counters):
        monkeypatch.undo()
        raise MemoryError

    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(part_of(0, 0))
        monkeypatch.setattr(Memtable, "show", no_memory)
        for _ in range(2):
            with pytest.raises(StoreFailedError, match="reopened"):
                vault.append(part_of(0, 1))
        assert not fault_in(vault, np.array([PER_APPEND, 0, 0, 0]))
    with SeqVault.open(tmp_path / "vault") as vault:
        assert not fault_in(vault, np.array([2 * PER_APPEND, 0, 0, 0]))
