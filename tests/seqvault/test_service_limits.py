"""A server's work is bounded for every caller, and one replica's trouble is not the caller's."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import seqvault
from seqvault import SeqVault, errors
from seqvault.disk.files import Files
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service import metrics as metrics_module
from seqvault.service.metrics import serve_metrics
from seqvault.service.replicas import Replicas
from seqvault.service.server import Server, Tls
from seqvault.testing.random_workload import NOW, SCHEMA
from seqvault.warm_up import warm_up


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Kernels that compile amid a call would take longer than tests wait for it."""
    warm_up()


def events(user: int, count: int, first: int = 0) -> dict[str, np.ndarray]:
    places = np.arange(first, first + count)
    return {
        "user_id": np.full(count, user),
        "timestamp": NOW + places,
        "item_id": places * 7919,
        "action": np.zeros(count, np.int8),
    }


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@pytest.mark.parametrize("read_port", [None, 0])
@pytest.mark.parametrize("merged", [True, False])
def test_an_answer_too_large_is_refused_before_it_is_built(
    tmp_path, monkeypatch, merged, read_port
):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    ids = np.random.default_rng(0).integers(0, 1 << 60, 20_000)  # that no packing makes smaller
    vault.append({**events(1, 20_000), "item_id": ids})
    vault.append(events(2, 10))
    if merged:
        vault.merge()
    with Server(vault, merge_seconds=0, bytes_in_flight=200_000, read_port=read_port) as server:
        built: list[str] = []
        for name in ("read_ragged", "read_packed", "read_framed"):
            real = getattr(vault, name)
            monkeypatch.setattr(
                vault,
                name,
                lambda *a, real=real, name=name, **n: built.append(name) or real(*a, **n),
            )
        with seqvault.connect(f"localhost:{server.port}") as client:
            for users in ([1], [1] * 100, np.ones(900, np.int64)):
                for last_n in (200, 20_000):
                    if len(users) * last_n > 2000:
                        with pytest.raises(errors.LimitError, match="fewer"):
                            client.read(users, before=None, last_n=last_n)
            assert not built
            # by what the users have, not by what is asked for
            assert client.read([2] * 10, before=None, last_n=100).lengths.tolist() == [10] * 10
            assert len(built) == 1
        wait_for(lambda: server.bytes_in_flight.held == 0)


def test_item_writes_that_wait_hold_up_neither_reads_nor_appends(tmp_path, monkeypatch):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    go_on = threading.Event()
    put = vault.put_items
    monkeypatch.setattr(vault, "put_items", lambda table: go_on.wait(60) and put(table))
    with (
        Server(vault, merge_seconds=0, workers=1) as server,
        seqvault.connect(f"localhost:{server.port}", timeout=60) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        table = {"item_id": [1], "value": [1]}
        waiting = [pool.submit(client.put_items, table) for _ in range(8)]
        merging = [pool.submit(client.merge) for _ in range(3)]
        wait_for(lambda: server._pools.items.held == 4)
        for number in range(20):
            assert client.append(events(1, 1, number)) == 1
            assert client.read([1], before=None, last_n=99).lengths[0] == number + 1
        assert not any(future.done() for future in waiting)
        go_on.set()
        for future in (*waiting, *merging):
            future.result(60)


def test_the_worker_of_a_caller_that_went_away_is_given_back(tmp_path, monkeypatch):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    go_on, begun = threading.Event(), []
    monkeypatch.setattr(vault, "put_items", lambda table: begun.append(1) or go_on.wait(60))
    monkeypatch.setattr(vault, "verify", lambda progress: begun.append(1) or go_on.wait(60) or {})
    server = Server(vault, merge_seconds=0)
    pools = {server._guard._pool_of[name] for name in ("PutItems", "Verify")}
    try:
        with (
            seqvault.connect(f"localhost:{server.port}", timeout=5) as client,
            ThreadPoolExecutor(20) as pool,
        ):
            client._timeout = 0.3
            calls = [pool.submit(client.put_items, {"item_id": [1]}) for _ in range(10)]
            for call in calls:
                with pytest.raises(errors.ServerUnavailableError):
                    call.result(30)
        wait_for(lambda: all(pool.held == 0 for pool in pools))
        assert len(begun) <= 4  # those that had not begun never do
    finally:
        go_on.set()
        server.stop(0)


def test_too_many_calls_of_a_kind_are_refused_with_what_to_do(tmp_path, monkeypatch):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    go_on = threading.Event()
    append = vault.append
    monkeypatch.setattr(vault, "append", lambda *a, **n: go_on.wait(60) and append(*a, **n))
    with (
        Server(vault, merge_seconds=0, workers=2, waiting=3) as server,
        seqvault.connect(f"localhost:{server.port}", timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(client.append, events(1, 1, n)) for n in range(3)]
        wait_for(lambda: server._guard._pool_of["Append"].held == 3)
        with pytest.raises(errors.LimitError, match="3 appends are under way") as caught:
            client.append(events(1, 1))
        assert caught.value.retryable
        client.read([1], before=None, last_n=1)
        go_on.set()
        assert [future.result(60) for future in waiting] == [1, 1, 1]


def test_snapshots_are_made_only_below_the_directory_for_them(tmp_path):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    root = tmp_path / "snapshots"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with (
        Server(vault, merge_seconds=0, snapshots=str(root)) as server,
        seqvault.connect(f"localhost:{server.port}") as client,
    ):
        for path in (tmp_path / "x", root, f"{root}/../x", "../x", root / "out" / "x", "/"):
            with pytest.raises(errors.InvalidRequestError, match="below"):
                client.snapshot(path)
        client.snapshot("first")
        client.snapshot(root / "second")
        assert sorted(os.listdir(root)) == ["first", "out", "second"]
    vault = SeqVault.open(tmp_path / "vault")
    with (
        Server(vault, merge_seconds=0) as server,
        seqvault.connect(f"localhost:{server.port}") as client,
        pytest.raises(errors.InvalidRequestError, match="--snapshots"),
    ):
        client.snapshot(root / "third")


def test_the_metrics_port_answers_few_at_a_time(monkeypatch):
    monkeypatch.setattr(metrics_module, "METRICS_CONNECTIONS", 3)
    web = serve_metrics("127.0.0.1", 0, lambda: "x 1\n")
    port = web.server_address[1]
    try:
        before = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
        wait_for(lambda: threading.active_count() >= before + 3)
        time.sleep(0.2)
        assert threading.active_count() <= before + 3
        for one in silent:
            one.close()

        def answered() -> bool:
            with socket.create_connection(("127.0.0.1", port), 5) as one:
                one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                try:
                    return one.makefile("rb").read().endswith(b"x 1\n")
                except ConnectionError:
                    return False

        wait_for(answered)
    finally:
        web.shutdown()
        web.server_close()


def test_the_metrics_port_outlives_threads_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(metrics_module, "METRICS_CONNECTIONS", 2)
    web = serve_metrics("127.0.0.1", 0, lambda: "x 1\n")
    real, refused = threading.Thread.start, []

    def start(thread):
        if thread.name.endswith("(process_request_thread)") and len(refused) < 5:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    try:

        def answered() -> bool:
            with socket.create_connection(web.server_address[:2], 5) as one:
                one.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                try:
                    return one.makefile("rb").read().endswith(b"x 1\n")
                except ConnectionError:
                    return False

        wait_for(answered)
        assert len(refused) == 5
    finally:
        web.shutdown()
        web.server_close()


def damage(path: Path) -> None:
    """Turns a bit over in the records of every segment."""
    for segment in (path / "segments").iterdir():
        content = bytearray(segment.read_bytes())
        content[200] ^= 1
        segment.write_bytes(content)


def test_a_damaged_replica_is_counted_told_and_its_reads_go_elsewhere(tmp_path):
    servers = {}
    for name in ("a", "b"):
        with SeqVault.open(tmp_path / name, schema=SCHEMA) as vault:
            vault.append(events(1, 300))
            vault.merge()
        if name == "a":
            damage(tmp_path / name)
        servers[name] = Server(SeqVault.open(tmp_path / name), merge_seconds=0)
    try:
        a, b = (f"localhost:{server.port}" for server in servers.values())
        with seqvault.connect(f"{a}|{b}") as client:
            for _ in range(3):
                assert client.read([1], before=None, last_n=500).lengths[0] == 300
        channel = grpc.insecure_channel(a)
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        channel.close()
        assert "seqvault_damaged_reads_total 1" in servers["a"].metrics_text()
        with seqvault.connect(a) as client, pytest.raises(errors.DamagedFileError):
            client.read([1], before=None, last_n=500)
    finally:
        for server in servers.values():
            server.stop(0)


class Replica:
    """A stand-in for a client, which answers, fails, or hangs."""

    def __init__(self, behaviour) -> None:
        self.behaviour, self.calls = behaviour, 0
        self.released = threading.Event()

    def ask(self) -> str:
        self.calls += 1
        if isinstance(self.behaviour, Exception):
            raise self.behaviour
        if self.behaviour == "hang":
            self.released.wait(30)
            raise errors.ServerUnavailableError("took too long")
        return self.behaviour

    def close(self) -> None:
        self.released.set()


def replicas_of(pool: ThreadPoolExecutor, *replicas: Replica, hedge: float = 0.02) -> Replicas:
    return Replicas([lambda r=replica: r for replica in replicas], pool, hedge)


@pytest.mark.parametrize(
    "failure",
    [
        errors.DamagedFileError("x"), errors.ServerUnavailableError("x"), errors.LimitError("x"),
        errors.SeqVaultError("x"), errors.StoreFailedError("x"), errors.AccessDeniedError("x"),
    ],
)  # fmt: skip
def test_any_failure_that_another_replica_can_answer_fails_over(failure):
    with ThreadPoolExecutor() as pool:
        bad, good = Replica(failure), Replica("answer")
        shard = replicas_of(pool, bad, good)
        for _ in range(5):
            assert shard.read(lambda replica: replica.ask()) == "answer"
        assert bad.calls == 1  # afterwards reads go where they are answered
        both = replicas_of(pool, Replica(failure), Replica(errors.ServerUnavailableError("gone")))
        with pytest.raises(type(failure)):
            both.read(lambda replica: replica.ask())


def test_a_wrong_request_is_not_sent_elsewhere():
    with ThreadPoolExecutor() as pool:
        first, second = Replica(errors.UnknownFieldError("x")), Replica("answer")
        with pytest.raises(errors.UnknownFieldError):
            replicas_of(pool, first, second).read(lambda replica: replica.ask())
        assert not second.calls


def test_reads_of_a_replica_that_hangs_are_answered_by_another():
    with ThreadPoolExecutor(40) as pool, ThreadPoolExecutor(8) as callers:
        hung, good = Replica("hang"), Replica("answer")
        shard = replicas_of(pool, hung, good)
        answers = [callers.submit(shard.read, lambda replica: replica.ask()) for _ in range(200)]
        assert {answer.result(30) for answer in answers} == {"answer"}
        assert hung.calls <= 8  # as many as were under way at once
        hung.close()


def another_thread(pid: int) -> int:
    """A thread of a process, not its first, that takes SIGTERM."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        if int(task.name) != pid and not int(status["SigBlk"], 16) >> (signal.SIGTERM - 1) & 1:
            return int(task.name)
    raise AssertionError("it has none")


def test_no_read_fails_while_one_of_two_replicas_is_stopped(tmp_path):
    for name in ("a", "b"):
        with SeqVault.open(tmp_path / name, schema=SCHEMA) as vault:
            vault.append(events(1, 30))
    command = [sys.executable, "-m", "seqvault.cli", "serve", str(tmp_path / "a"), "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        Server(SeqVault.open(tmp_path / "b"), merge_seconds=0) as server,
    ):
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split(":")[-1].strip()
            target = f"localhost:{port}|localhost:{server.port}"
            with seqvault.connect(target, timeout=5, hedge_seconds=0.2) as client:
                assert client.read([1], before=None, last_n=50).lengths[0] == 30
                process.send_signal(signal.SIGSTOP)
                for _ in range(50):
                    assert client.read([1], before=None, last_n=50).lengths[0] == 30
                process.send_signal(signal.SIGCONT)
                assert client.read([1], before=None, last_n=50).lengths[0] == 30
                # as the kernel may do with a process that was stopped
                thread = another_thread(process.pid)
                assert ctypes.CDLL(None).tgkill(process.pid, thread, signal.SIGTERM) == 0
                assert process.wait(60) == 0
        finally:
            process.kill()


def certificate(folder: Path, name: str, names: str, issuer=None) -> tuple[bytes, bytes]:
    key, request, cert, extension = (
        str(folder / f"{name}.{end}") for end in ["key", "req", "pem", "ext"]
    )
    Path(extension).write_text(
        f"subjectAltName={names}\n" + ("" if issuer else "basicConstraints=CA:TRUE\n")
    )
    sign = ["-CA", f"{folder}/{issuer}.pem", "-CAkey", f"{folder}/{issuer}.key", "-CAcreateserial"]
    for step in (
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request,
         "-subj", f"/CN={name}"],
        ["x509", "-req", "-in", request, "-out", cert, "-days", "2", "-extfile", extension,
         *(sign if issuer else ["-signkey", key])],
    ):  # fmt: skip
        subprocess.run(["openssl", *step], check=True, capture_output=True)
    return Path(key).read_bytes(), Path(cert).read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_errors_of_tls_say_which_part_is_wrong(tmp_path):
    _, authority = certificate(tmp_path, "authority", "DNS:authority")
    ours = certificate(tmp_path, "ours", "DNS:localhost", "authority")
    elsewhere = certificate(tmp_path, "elsewhere", "DNS:other.example", "authority")
    theirs = certificate(tmp_path, "theirs", "DNS:client", "authority")
    stranger = certificate(tmp_path, "stranger", "DNS:localhost")
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)

    def told(tls: Tls | None, **access) -> str:
        server = Server(vault, tls=tls, merge_seconds=0)
        try:
            with pytest.raises(errors.TlsError) as caught:
                seqvault.connect(f"localhost:{server.port}", timeout=3, **access)
            assert not caught.value.retryable
            return str(caught.value)
        finally:
            server._server.stop(0).wait()

    plain, mutual = Tls(*ours), Tls(*ours, authority)
    pair = {"key": theirs[0], "certificate": theirs[1]}
    assert "give the authority's certificate" in told(plain)
    assert "the server does not: leave ca out" in told(None, ca=authority)
    assert "for other names than localhost" in told(Tls(*elsewhere), ca=authority)
    assert "not of the authority" in told(plain, ca=stranger[1])
    assert "asks for the client's certificate" in told(mutual, ca=authority)
    wrong = {"key": stranger[0], "certificate": stranger[1]}
    assert "does not take the client's certificate" in told(mutual, ca=authority, **wrong)
    swapped = {"key": stranger[0], "certificate": theirs[1]}
    assert "key is not the one of the certificate" in told(mutual, ca=authority, **swapped)
    assert "ca holds no PEM" in told(plain, ca=b"xxxx")
    server = Server(vault, tls=mutual, merge_seconds=0)
    with seqvault.connect(f"localhost:{server.port}", ca=authority, **pair) as client:
        assert client.append(events(1, 3)) == 3
    server.stop(0)
    vault = SeqVault.open(tmp_path / "vault")
    for tls, what in (
        (Tls(stranger[0], ours[1]), "not the one of the certificate"),
        (Tls(b"x", ours[1]), "key is not PEM"),
        (Tls(ours[0], b"x"), "certificate is not PEM"),
        (Tls(*ours, b"x"), "authority is not a PEM"),
    ):
        with pytest.raises(errors.InvalidRequestError, match=what):
            Server(vault, tls=tls)
    vault.close()


class SmallDisk(Files):
    """A disk with as much room as ``free`` says."""

    free = 1 << 40

    def free_bytes(self, path: str) -> int:
        return self.free


def test_a_full_disk_keeps_room_for_a_merge_and_goes_on_by_itself(tmp_path):
    files = SmallDisk()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files) as vault:
        vault.append(events(1, 2000))
        files.free = 100_000  # less than three times what is in the log
        with pytest.raises(errors.DiskFullError, match="kept for the merge") as caught:
            vault.append(events(1, 10, 2000))
        assert caught.value.retryable
        assert vault.merge()["events"] == 2000  # which the room kept is enough for
        assert vault.append(events(1, 60, 2000)) == 60
        files.free = 0
        merge = BackgroundMerge(vault, 0.01, first_pause=0.01)
        wait_for(lambda: merge.failures >= 2)
        with pytest.raises(errors.DiskFullError):
            vault.append(events(1, 40, 2060))
        files.free = 1 << 40
        assert vault.append(events(1, 40, 2060)) == 40
        wait_for(lambda: vault.events_in_log == 0)
        merge.stop()
        assert vault.read([1], before=None, last_n=4096).lengths[0] == 2100


def test_with_little_room_a_merge_leaves_dead_segments_for_later(tmp_path):
    files = SmallDisk()
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA, files=files) as vault:
        rng = np.random.default_rng(0)

        def some(user: int, count: int) -> dict[str, np.ndarray]:
            return {**events(user, count), "item_id": rng.integers(0, 1 << 60, count)}

        vault.append(
            {n: np.concatenate([some(u, 4000)[n] for u in range(8)]) for n in events(0, 1)}
        )
        vault.merge()
        for user in range(5):  # their records in the first segment die
            vault.append(some(user, 4000))
            vault.merge()
        vault.append(some(9, 100))
        segments = vault.stats()["segments"]
        files.free = 40_000
        assert vault.merge()["events"] == 100
        assert vault.stats()["segments"] == segments + 1
        files.free = 1 << 40
        vault.verify()
