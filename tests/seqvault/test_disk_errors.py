"""Errors of the disk: full, failing, short or interrupted calls, at every point of every call."""

import errno
import random
import signal

import pytest

from seqvault import SeqVault, errors
from seqvault.disk import wal
from seqvault.disk.files import Files
from seqvault.testing.crash_run import PATH
from seqvault.testing.memory_files import MemoryFiles
from seqvault.testing.oracle import Oracle
from seqvault.testing.random_workload import SCHEMA, random_events

TYPED = (errors.DiskFullError, errors.StoreFailedError)


def filled(disk: MemoryFiles) -> Oracle:
    """A store with two segments, items and a log with events."""
    oracle, rng = Oracle(), random.Random(5)
    with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
        for count in (300, 100, 40):
            events = random_events(rng, count)
            vault.append(events)
            oracle.add(events)
            if count > 40:
                vault.merge()
        vault.put_items({"item_id": [1, 2], "value": [10, 20]})
        oracle.items = {1: 10, 2: 20}
    return oracle


class Fault:
    """Raises an error from the n-th operation on: once, or until it is taken away."""

    def __init__(self, code: int, point: int, lasting: bool, only: str = "") -> None:
        self.code, self.left, self.lasting, self.only = code, point, lasting, only
        self.at = ""

    def __call__(self, operation: str) -> None:
        if operation == "preadv" or (self.only and operation != self.only):
            return
        if operation == "unlink" and self.code == errno.ENOSPC:
            return  # to remove a file needs no room
        self.left -= 1
        if self.left == 0 or (self.lasting and self.left < 0):
            self.at = self.at or operation
            raise OSError(self.code, "injected")


def calls(oracle: Oracle) -> dict[str, tuple]:
    """Each kind of write: the call, and the oracle after it."""
    more = random_events(random.Random(3), 60)
    changed = oracle.copy()
    changed.items = {1: 11, 2: 21}
    items = {"item_id": [1, 2], "value": [11, 21]}
    return {
        "append": (lambda vault: vault.append(more), oracle.after(more)),
        "merge": (lambda vault: vault.merge(), oracle),
        "put_items": (lambda vault: vault.put_items(items), changed),
        "bulk_load": (lambda vault: vault.bulk_load(more), oracle.after(more)),
        "snapshot": (lambda vault: vault.snapshot("/copies/1"), oracle),
    }


@pytest.mark.parametrize("call", ["append", "merge", "put_items", "bulk_load", "snapshot"])
@pytest.mark.parametrize(
    ("code", "lasting"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EIO, False)]
)
def test_an_error_at_every_point_of_a_call(call, code, lasting, monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 12)
    point = 0
    while True:
        point += 1
        disk = MemoryFiles()
        oracle = filled(disk)
        vault = SeqVault.open(PATH, files=disk)
        more = random_events(random.Random(9), 100)  # the log's file is nearly full
        vault.append(more)
        oracle.add(more)
        act, after = calls(oracle)[call]
        disk.fault = fault = Fault(code, point, lasting)
        try:
            act(vault)
            failed = False
        except TYPED:
            failed = True
        except OSError as error:  # a write that failed is the system's own error
            assert code == errno.EIO and error.errno == errno.EIO
            failed = True
        states = [oracle, after] if failed else [after]
        assert "" in [state.difference(vault) for state in states], (fault.at, point)
        disk.fault = lambda operation: None
        if failed and code == errno.EIO and fault.at == "fdatasync" and call == "append":
            with pytest.raises(errors.StoreFailedError, match="reopened"):
                vault.append(more)
        vault.close()
        for survives in ("nothing", "all"):
            crashed = disk.after_crash(random.Random(point), survives)
            with SeqVault.open(PATH, files=crashed) as again:
                found = [state for state in states if not state.difference(again)]
                assert found, (fault.at, point, survives)
                again.append(more)
                again.merge()
                assert not found[0].after(more).difference(again)
                again.verify()
        if not fault.at:
            break
    assert point > 2


@pytest.mark.parametrize("call", ["append", "merge", "put_items", "bulk_load", "snapshot"])
def test_with_room_again_the_same_call_works_in_the_same_process(call, monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 12)
    point = 0
    while True:
        point += 1
        disk = MemoryFiles()
        oracle = filled(disk)
        with SeqVault.open(PATH, files=disk) as vault:
            more = random_events(random.Random(9), 100)
            vault.append(more)
            oracle.add(more)
            act, after = calls(oracle)[call]
            disk.fault = fault = Fault(errno.ENOSPC, point, lasting=True)
            try:
                act(vault)
            except errors.DiskFullError as error:
                assert error.retryable and "room" in str(error)
                assert not oracle.difference(vault), (fault.at, point)
                disk.fault = lambda operation: None
                if call == "snapshot":
                    vault.snapshot("/copies/2")
                else:
                    act(vault)
            except errors.StoreFailedError:  # a failed sync: nobody knows what is on the disk
                assert fault.at in ("fdatasync", "sync_directory")
                continue
            disk.fault = lambda operation: None
            assert not after.difference(vault), (fault.at, point)
            other = random_events(random.Random(11), 40)
            vault.append(other)  # nothing of the failed call comes in its place
            assert not after.after(other).difference(vault), (fault.at, point)
            vault.verify()
        if not fault.at:
            break
    assert point > 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_point_of_opening_harms_nothing(code):
    point = 0
    while True:
        point += 1
        disk = MemoryFiles()
        oracle = filled(disk)
        vault = SeqVault.open(PATH, files=disk)
        more = random_events(random.Random(9), 10)
        vault.append(more)
        oracle.add(more)
        crashed = disk.after_crash(random.Random(0), "nothing")  # a log that has no end
        crashed.fault = fault = Fault(code, point, lasting=True)
        try:
            SeqVault.open(PATH, files=crashed, max_events=5000).close()
        except errors.DiskFullError:
            assert code == errno.ENOSPC
        except OSError as error:
            assert error.errno == code == errno.EIO
        crashed.fault = lambda operation: None
        for survives in ("nothing", "all"):
            with SeqVault.open(
                PATH, files=crashed.after_crash(random.Random(0), survives)
            ) as again:
                assert not oracle.difference(again), (fault.at, point, survives)
                again.verify()
        if not fault.at:
            break
    assert point > 5


@pytest.mark.parametrize("operation", ["fdatasync", "sync_directory"])
@pytest.mark.parametrize("call", ["append", "merge", "put_items", "bulk_load"])
def test_after_any_failed_sync_no_write_is_accepted(call, operation):
    """A sync that failed may have dropped the pages: nothing may be built upon it."""
    point = 0
    while True:
        point += 1
        disk = MemoryFiles()
        oracle = filled(disk)
        with SeqVault.open(PATH, files=disk) as vault:
            more = random_events(random.Random(9), 10)
            vault.append(more)
            oracle.add(more)
            act, after = calls(oracle)[call]
            disk.fault = fault = Fault(errno.EIO, point, lasting=False, only=operation)
            try:
                act(vault)
                assert not fault.at
                break
            except (errors.SeqVaultError, OSError):
                assert fault.at
            for again, (retry, _) in calls(oracle).items():
                with pytest.raises(errors.StoreFailedError, match="reopened"):
                    retry(vault)
                assert "" in [oracle.difference(vault), after.difference(vault)], (point, again)
    assert point > 1 or (call, operation) == ("append", "sync_directory")


def test_a_failing_read_is_an_error_and_the_next_read_is_right():
    disk = MemoryFiles()
    oracle = filled(disk)
    with SeqVault.open(PATH, files=disk) as vault:
        for point in range(1, 4):
            left = point

            def fault(operation):
                nonlocal left
                left -= operation == "preadv"
                if left == 0:
                    left = -1
                    raise OSError(errno.EIO, "injected")

            disk.fault = fault
            try:
                wrong = oracle.difference(vault)
                assert not wrong
                assert left > 0
            except OSError as error:
                assert error.errno == errno.EIO or isinstance(error, errors.SeqVaultError)
            disk.fault = lambda operation: None
            assert not oracle.difference(vault)


def test_short_reads_and_writes_change_nothing():
    whole, pieces = MemoryFiles(), MemoryFiles(short=random.Random(0))
    oracle = filled(whole)
    assert filled(pieces).events == oracle.events
    assert sorted(whole.names) == sorted(pieces.names)
    for name in whole.names:
        if name.endswith((".seg", ".items", "MANIFEST")):
            assert whole.content(name).tobytes() == pieces.content(name).tobytes(), name
    with SeqVault.open(PATH, files=pieces) as vault:
        assert not oracle.difference(vault)
        vault.verify()


def test_signals_interrupt_nothing(tmp_path):
    """EINTR on real files: a timer signal all the time, as a profiler sends it."""
    fired = 0

    def count(*_):
        nonlocal fired
        fired += 1

    oracle, rng = Oracle(), random.Random(2)
    before = signal.signal(signal.SIGALRM, count)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
            for _ in range(15):
                events = random_events(rng, 200)
                vault.append(events)
                oracle.add(events)
                vault.merge()
                assert not oracle.difference(vault)
            vault.verify()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fired > 10


def test_a_snapshot_on_another_disk_is_a_copy(monkeypatch):
    disk = MemoryFiles()
    oracle = filled(disk)
    pieces = Files.pieces
    monkeypatch.setattr(MemoryFiles, "pieces", lambda self, fd: pieces(self, fd, size=100))
    with SeqVault.open(PATH, files=disk) as vault:
        disk.fault = fault = Fault(errno.EXDEV, 1, lasting=True, only="link")
        vault.snapshot("/copies/1")
    assert fault.at == "link"
    with SeqVault.open("/copies/1", files=disk) as copy:
        assert not oracle.difference(copy)
        copy.verify()
