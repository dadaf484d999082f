"""The store against its disk: crashes, torn and lost writes, errors, flipped bits, odd files."""

import errno
import random

import numpy as np
import pytest

from seqvault import SeqVault, errors, wal
from seqvault.testing.crash_run import NOW, PATH, SCHEMA, Oracle, _events, run
from seqvault.testing.memory_files import MemoryFiles


def test_random_crashes_lose_nothing_acknowledged():
    assert run(points=240, seed=1) == 240


@pytest.mark.parametrize("broken", ["fdatasync", "sync_directory"])
def test_the_crash_run_notices_a_store_that_does_not_sync(monkeypatch, broken):
    monkeypatch.setattr(MemoryFiles, broken, lambda self, where: None)
    with pytest.raises((AssertionError, errors.SeqVaultError, OSError)):
        run(points=240, seed=1)


def filled(disk: MemoryFiles) -> Oracle:
    """A store with two segments, items and a log with events."""
    oracle, rng = Oracle(), random.Random(5)
    with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
        for count in (700, 300, 40):
            events = _events(rng, count)
            vault.append(events)
            oracle.add(events)
            if count > 40:
                vault.merge()
        vault.put_items({"item_id": [1, 2], "value": [10, 20]})
        oracle.items = {1: 10, 2: 20}
        vault.append(_late := _events(rng, 5))
        oracle.add(_late)
    return oracle


def test_every_flipped_bit_is_noticed_or_harmless(monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 13)
    whole = MemoryFiles()
    oracle = filled(whole)
    rng = random.Random(0)
    noticed = harmless = 0
    for path in sorted(whole.names):
        size = len(whole.content(path))
        used = size if not path.endswith(".wal") else min(size, 4000)
        bits = {rng.randrange(8 * used) for _ in range(150)}
        bits |= set(range(0, 8 * min(used, 48), 5)) | set(range(8 * (size - 48), 8 * size, 7))
        for bit in bits:
            disk = whole.after_crash(random.Random(1))
            disk.flip_bit(path, bit)
            try:
                with SeqVault.open(PATH, files=disk) as vault:
                    wrong = oracle.difference(vault)
                assert not wrong, (path, bit, wrong)
                harmless += 1
            except (errors.DamagedFileError, errors.NewerFormatError):
                noticed += 1
    assert noticed > 300
    assert harmless > 0


def test_a_flipped_bit_in_an_acknowledged_frame_before_others_refuses_to_open():
    disk = MemoryFiles()
    with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
        for i in range(4):
            vault.append(_events(random.Random(i), 3))
    path = next(name for name in disk.names if name.endswith(".wal"))
    disk.flip_bit(path, 8 * (wal.FIRST + 60))
    with pytest.raises(errors.DamagedFileError, match="acknowledged"):
        SeqVault.open(PATH, files=disk)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_every_point_leaves_a_store_that_reads_and_reopens(code, monkeypatch):
    monkeypatch.setattr(wal, "FILE_SIZE", 1 << 13)
    point, reached = 0, True
    while reached:
        point += 1
        disk, rng = MemoryFiles(), random.Random(3)
        oracle = filled(disk)
        vault = SeqVault.open(PATH, files=disk)
        left, reached = point, False

        def fault(operation):
            nonlocal left, reached
            if operation not in ("preadv", "unlink"):
                left -= 1
                if left == 0 or (code == errno.ENOSPC and left < 0):
                    reached = True
                    raise OSError(code, "injected")

        disk.fault = fault
        more = _events(rng, 60)
        after = oracle.copy()
        after.add(more)
        items = {"item_id": [1, 2], "value": [11, 21]}
        changed = after.copy()
        changed.items = {1: 11, 2: 21}
        states = [oracle, after, after, changed]
        done = 0
        for call in (
            lambda vault=vault, more=more: vault.append(more),
            vault.merge,
            lambda vault=vault, items=items: vault.put_items(items),
        ):
            try:
                call()
                done += 1
            except (errors.DiskFullError, errors.StoreFailedError, OSError):
                break
        # reads go on and show what was acknowledged, or that and the call that failed
        now = states[done : done + 2]
        assert "" in [state.difference(vault) for state in now]
        vault.close()
        disk.fault = lambda operation: None
        with SeqVault.open(PATH, files=disk.after_crash(rng)) as again:
            assert "" in [state.difference(again) for state in now]
            again.append(more)
            again.merge()
            again.verify()
    assert point > 15


def test_missing_files_refuse_to_open_and_strange_ones_are_removed():
    whole = MemoryFiles()
    oracle = filled(whole)
    for name in sorted(whole.names):
        disk = whole.after_crash(random.Random(0))
        del disk.names[name]
        if name.endswith(".wal"):
            continue  # the last log file may be missing after a crash: see the crash run
        with pytest.raises((errors.SeqVaultError, FileNotFoundError)):
            SeqVault.open(PATH, files=disk)
    disk = whole.after_crash(random.Random(0))
    some = next(name for name in disk.names if name.endswith(".seg"))
    for stray in ("/vault/segments/0000009999.seg", "/vault/segments/0000009998.seg.tmp"):
        disk.names[stray] = disk.names[some]
    with SeqVault.open(PATH, files=disk) as vault:
        assert not oracle.difference(vault)
        assert not [name for name in disk.names if "999" in name]


def test_a_newer_format_is_refused():
    disk = MemoryFiles()
    filled(disk)
    manifest = disk.names[f"{PATH}/MANIFEST"]
    manifest.current[:] = bytes(manifest.current).replace(b"seqvault 1 ", b"seqvault 2 ", 1)
    with pytest.raises(errors.NewerFormatError, match="newer"):
        SeqVault.open(PATH, files=disk)


def test_replays_in_any_order_and_number_end_the_same():
    rng = random.Random(2)
    appends = [(_events(rng, 20), f"log-{i % 3}", i) for i in range(30)]
    answers = []
    for seed in range(3):
        disk, shuffle = MemoryFiles(), random.Random(seed)
        queues = [[a for a in appends if a[1] == f"log-{k}"] for k in range(3)]
        with SeqVault.open(PATH, schema=SCHEMA, files=disk) as vault:
            while any(queues):
                queue = shuffle.choice([queue for queue in queues if queue])
                for events, source, offset in [queue.pop(0)] * shuffle.randint(1, 3):
                    vault.append(events, source=source, offset=offset)
                if shuffle.random() < 0.2:
                    vault.merge()
            batch = vault.read(range(6), before=None, last_n=500)
            assert int(batch.lengths.sum()) == 600
            # order among equal times is that of arrival, so compare as sets
            answers.append(
                [
                    sorted(zip(batch["timestamp"][u], batch["item_id"][u], strict=True))
                    for u in range(6)
                ]
            )
    assert answers[0] == answers[1] == answers[2]
    assert NOW > 0 and np.all(batch.lengths > 0)
