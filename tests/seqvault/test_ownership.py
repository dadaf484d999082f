"""Who may change a store's files, and until when: closing, forking, second openers, refreshing."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

import seqvault
from seqvault import SeqVault, errors
from seqvault import store as store_module
from seqvault.disk.files import Files
from seqvault.memory.index import Index
from seqvault.service.server import Server
from seqvault.testing.random_workload import SCHEMA, plain_events
from seqvault.warm_up import warm_up


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Kernels that compile amid a call would take longer than tests wait for it."""
    warm_up()


def items_of(vault: SeqVault, user: int) -> list[int]:
    batch = vault.read([user], before=None, last_n=4096)
    return batch["item_id"][0, : batch.lengths[0]][::-1].tolist()


class HeldFiles(Files):
    """A file layer whose writes and renames below a folder wait, once told to, to be let go."""

    def __init__(self, folder: str, operation: str) -> None:
        self.folder, self.operation = folder, operation
        self.hold, self.reached, self.go_on = False, threading.Event(), threading.Event()
        self._paths: dict[int, str] = {}

    def _wait(self, operation: str, path: str) -> None:
        if self.hold and operation == self.operation and f"/{self.folder}/" in path:
            self.hold = False
            self.reached.set()
            assert self.go_on.wait(30)

    def create(self, path: str) -> int:
        fd = super().create(path)
        self._paths[fd] = path
        return fd

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        self._wait("pwrite", self._paths.get(fd, ""))
        return super().pwrite(fd, data, offset)

    def rename(self, old: str, new: str) -> None:
        self._wait("rename", new)
        super().rename(old, new)


def in_thread(call) -> tuple[threading.Thread, list]:
    results: list = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


LATE_CALLS = {
    "merge": ("segments", lambda vault: vault.merge()),
    "bulk_load": ("segments", lambda vault: vault.bulk_load(plain_events(3, 0, 500))),
    "snapshot": ("segments", lambda vault: vault.snapshot(f"{vault.path}-copy")),
    "put_items": ("items", lambda vault: vault.put_items({"item_id": [1], "value": [1]})),
}


@pytest.mark.parametrize("kind", LATE_CALLS)
def test_what_outlives_close_harms_nothing_of_the_next_opener(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.05)
    folder, call = LATE_CALLS[kind]
    files = HeldFiles(folder, "pwrite")
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files)
    vault.append(plain_events(1, 0, 300))
    files.hold = True
    thread, result = in_thread(lambda: call(vault))
    assert files.reached.wait(30)
    vault.close()  # gives up waiting for the call, which is amid a write
    with SeqVault.open(tmp_path / "vault") as after:
        after.append(plain_events(1, 300, 200))
        after.merge()
        after.put_items({"item_id": [1], "value": [7]})
        files.go_on.set()
        thread.join()
        assert isinstance(result[0], errors.StoreClosedError)
        after.append(plain_events(1, 500, 1))
        assert items_of(after, 1) == list(range(501))
    with SeqVault.open(tmp_path / "vault") as again:
        again.verify()
        assert items_of(again, 1) == list(range(501)) and items_of(again, 3) == []
        assert again.read_items([1])["value"].tolist() == [7]
    names = [name for _, _, found in os.walk(tmp_path / "vault") for name in found]
    assert not [name for name in names if name.endswith(".tmp")]


def test_a_server_that_stops_amid_a_merge_by_rpc_harms_nothing_of_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.05)
    files = HeldFiles("segments", "pwrite")
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files)
    vault.append(plain_events(1, 0, 300))
    server = Server(vault, merge_seconds=0)
    client = seqvault.connect(f"localhost:{server.port}")
    files.hold = True
    merging, result = in_thread(client.merge)
    assert files.reached.wait(30)
    server.stop(grace=0)
    with SeqVault.open(tmp_path / "vault") as after:
        after.append(plain_events(1, 300, 200))
        after.merge()
        files.go_on.set()
        merging.join()
        assert isinstance(result[0], errors.SeqVaultError)
        after.append(plain_events(1, 500, 1))
        assert items_of(after, 1) == list(range(501))
    client.close()
    with SeqVault.open(tmp_path / "vault") as again:
        again.verify()
        assert items_of(again, 1) == list(range(501))


def test_close_waits_for_what_is_being_published(tmp_path, monkeypatch):
    """A segment that is getting its name belongs to the store before anybody else opens it."""
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.05)
    files = HeldFiles("segments", "rename")
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files)
    vault.append(plain_events(1, 0, 300))
    files.hold = True
    merging, _ = in_thread(vault.merge)
    assert files.reached.wait(30)
    closing, _ = in_thread(vault.close)
    closing.join(0.3)
    assert closing.is_alive()
    with pytest.raises(errors.StoreLockedError):
        SeqVault.open(tmp_path / "vault")
    files.go_on.set()
    closing.join()
    merging.join()
    with SeqVault.open(tmp_path / "vault") as again:
        again.verify()
        assert items_of(again, 1) == list(range(300))


def test_close_ends_a_bulk_load_whose_source_gives_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 0.05)
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    vault.append(plain_events(1, 0, 10))
    begun, go_on = threading.Event(), threading.Event()

    def source():
        yield plain_events(2, 0, 10)
        begun.set()
        assert go_on.wait(30)
        yield plain_events(2, 10, 10)

    loading, loaded = in_thread(lambda: vault.bulk_load(source()))
    assert begun.wait(30)
    appending, appended = in_thread(lambda: vault.append(plain_events(1, 10, 1)))
    vault.close()
    with SeqVault.open(tmp_path / "vault") as after:
        after.append(plain_events(1, 10, 5))
        go_on.set()
        loading.join()
        appending.join()
        assert isinstance(loaded[0], errors.StoreClosedError)
        assert isinstance(appended[0], errors.StoreClosedError)
        assert items_of(after, 1) == list(range(15)) and items_of(after, 2) == []


def test_a_merge_of_many_parts_is_given_up_by_close(tmp_path):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    vault.append(plain_events(1, 0, 3000))
    told = threading.Event()
    merging, merged = in_thread(
        lambda: vault.merge(bytes_per_second=1.0, progress=lambda *_: told.set())
    )
    began = time.monotonic()
    vault.close()
    merging.join()
    assert isinstance(merged[0], errors.StoreClosedError | dict)
    assert time.monotonic() - began < store_module.CLOSE_SECONDS  # it would take days
    with SeqVault.open(tmp_path / "vault") as again:
        assert items_of(again, 1) == list(range(3000))


def test_a_writer_whose_lock_file_was_replaced_writes_no_more(tmp_path):
    first = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    first.append(plain_events(1, 0, 300))
    os.unlink(tmp_path / "vault" / "LOCK")
    second = SeqVault.open(tmp_path / "vault")
    second.append(plain_events(1, 300, 100))
    second.merge()
    for call in (
        lambda: first.append(plain_events(1, 1000, 1)),
        lambda: first.merge(),
        lambda: first.put_items({"item_id": [1], "value": [1]}),
    ):
        with pytest.raises(errors.StoreFailedError):
            call()
    first.close()
    second.append(plain_events(1, 400, 1))
    second.close()
    with SeqVault.open(tmp_path / "vault") as again:
        again.verify()
        assert items_of(again, 1) == list(range(401))


def test_a_publish_that_memory_cannot_follow_fails_the_store(tmp_path, monkeypatch):
    """What the manifest names must not be removed, nor merged again."""
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    vault.append(plain_events(1, 0, 300))

    def fail(*_):
        raise MemoryError("injected")

    monkeypatch.setattr(Index, "add_records", fail)
    for call in (vault.merge, vault.merge, lambda: vault.bulk_load(plain_events(2, 0, 300))):
        with pytest.raises(errors.StoreFailedError):
            call()
    assert items_of(vault, 1) == list(range(300))
    vault.close()
    monkeypatch.undo()
    with SeqVault.open(tmp_path / "vault") as again:
        again.verify()
        assert items_of(again, 1) == list(range(300))
        again.merge()
        assert items_of(again, 1) == list(range(300))


FORKED = """
import os, sys
import numpy as np
from seqvault import SeqVault, errors
from seqvault.testing.random_workload import SCHEMA
path = sys.argv[1]
event = {"user_id": [1], "timestamp": [1_700_000_000_000], "item_id": [0], "action": [0]}
vault = SeqVault.open(path, schema=SCHEMA)
vault.append(event)
beside = SeqVault.open(path, read_only=True)
go_on, told = os.pipe()
child = os.fork()
if child == 0:
    os.close(told)
    status = 1
    try:
        calls = [
            lambda: vault.append(event),
            lambda: vault.merge(),
            lambda: vault.bulk_load(event),
            lambda: vault.put_items({"item_id": [1], "value": [1]}),
            lambda: vault.snapshot(path + "-copy"),
            lambda: vault.read([1], before=None, last_n=1),
            lambda: vault.read_ragged([1], before=None, last_n=1),
            lambda: vault.read_packed([1], before=None, last_n=1),
            lambda: vault.read_items([1]),
            lambda: vault.user_ids(),
            lambda: vault.stats(),
            lambda: vault.verify(),
        ]
        for number, call in enumerate(calls):
            try:
                call()
            except errors.ForkedStoreError as error:
                assert "forked" in str(error)
            else:
                raise AssertionError(f"call {number} went through")
        assert beside.read([1], before=None, last_n=1).lengths[0] == 1
        os.read(go_on, 1)  # until the parent has closed
        assert beside.refresh()
        assert beside.read([1], before=None, last_n=9).lengths[0] == 2
        vault.close()
        status = 0
    finally:
        os._exit(status)
vault.append(event)
vault.close()
vault = SeqVault.open(path)  # the child holds no lock
os.write(told, b".")
_, status = os.waitpid(child, 0)
assert status == 0, status
assert vault.read([1], before=None, last_n=9).lengths[0] == 2
vault.close()
"""


def test_a_lock_is_free_once_given_up_whatever_children_there_are(tmp_path):
    files = Files()
    lock = files.lock(str(tmp_path / "LOCK"))
    copy = os.dup(lock)  # as a child has it that was forked and did not run yet
    files.unlock(lock)
    files.unlock(files.lock(str(tmp_path / "LOCK")))
    os.close(copy)


def test_a_forked_child_is_refused_and_holds_no_lock(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path / "vault")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    with SeqVault.open(tmp_path / "vault") as vault:
        vault.verify()
        assert vault.stats()["events"] == 2


def test_a_refresh_is_seen_whole_or_not_at_all(tmp_path):
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(plain_events(1, 0, 200))
        beside = SeqVault.open(tmp_path / "vault", read_only=True)
        ended, seen, faults = threading.Event(), [200], []

        def watch() -> None:
            while not ended.is_set():
                least = seen[0]
                got = items_of(beside, 1)
                if got != list(range(len(got))) or len(got) < least:
                    faults.append((least, len(got)))

        threads = [threading.Thread(target=watch) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(40):
            vault.append(plain_events(1, 200 + number, 1))
            if number % 10 == 5:
                vault.merge()
            assert beside.refresh()
            seen[0] = 201 + number
        ended.set()
        for thread in threads:
            thread.join()
        beside.close()
        assert not faults, faults[:5]


def test_a_refresh_that_fails_keeps_what_was_seen(tmp_path):
    class FailingFiles(Files):
        fails = False

        def open_read(self, path: str) -> int:
            if self.fails and path.endswith(".wal"):
                raise OSError(5, "injected")
            return super().open_read(path)

    files = FailingFiles()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        vault.append(plain_events(1, 0, 200))
        vault.merge()
        vault.append(plain_events(1, 200, 1))
        with SeqVault.open(tmp_path / "vault", read_only=True, files=files) as beside:
            vault.append(plain_events(1, 201, 1))
            files.fails = True
            with pytest.raises(OSError):
                beside.refresh()
            assert items_of(beside, 1) == list(range(201))
            files.fails = False
            assert beside.refresh()
            assert items_of(beside, 1) == list(range(202))


def test_directories_above_a_new_store_and_a_snapshot_are_synced(tmp_path):
    synced: list[str] = []

    class Recording(Files):
        def sync_directory(self, path: str) -> None:
            synced.append(path)
            super().sync_directory(path)

    above = tmp_path / "a" / "b"
    with SeqVault.open(above / "vault", schema=SCHEMA, files=Recording()) as vault:
        for folder in (tmp_path, tmp_path / "a", above, above / "vault"):
            assert str(folder) in synced, folder
        synced.clear()
        vault.append(plain_events(1, 0, 1))
        vault.snapshot(tmp_path / "c" / "copy")
        for folder in (tmp_path, tmp_path / "c", tmp_path / "c" / "copy"):
            assert str(folder) in synced, folder


def test_lives_end_at_random_moments():
    run = subprocess.run(
        [sys.executable, "-m", "seqvault.testing.lifetime_run", "--seconds", "5"],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_lifetime_run_notices_a_store_without_fences():
    code = (
        "from seqvault.memory.store_state import State\n"
        "from seqvault.testing.lifetime_run import lifetime_run\n"
        "State.check_owned = lambda self: None\n"
        "State.check_not_closing = lambda self: None\n"
        "lifetime_run(seconds=150, seed=1)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert run.returncode != 0 and "failed: seed 1" in run.stdout, run.stdout + run.stderr


def test_a_context_manager_in_a_child_closes_nothing_of_the_parent(tmp_path):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)

    def leave() -> None:
        with vault:
            pass

    process = multiprocessing.get_context("fork").Process(target=leave)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert vault.append(plain_events(1, 0, 1)) == 1
    vault.close()
