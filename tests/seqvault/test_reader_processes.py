"""Reader processes of a server: what they see, and what happens when one of them ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import seqvault
from seqvault import SeqVault, errors
from seqvault.codec import frames
from seqvault.service import read_messages
from seqvault.service.read_messages import ReadMessage
from seqvault.service.reader_processes import ReaderProcesses
from seqvault.service.server import Server, Tls
from seqvault.service.tls import client_context
from seqvault.service.tokens import Tokens
from seqvault.testing.random_workload import NOW, SCHEMA, plain_events


def until(true, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def over_the_read_protocol(client, user: int, last_n: int = 3) -> list[int]:
    """What a read answers that must not go over gRPC."""
    call, client._call = client._call, None
    try:
        batch = client.read([user], before=None, last_n=last_n)
    finally:
        client._call = call
    return batch["item_id"][0, : batch.lengths[0]].tolist()


def is_there(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def served(path: Path, *more: str):
    """``seqvault serve`` with two readers: the process and the server's address."""
    command = [sys.executable, "-m", "seqvault.cli", "serve", str(path), "--readers", "2", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            yield process, f"127.0.0.1:{line.rsplit(':', 1)[1].strip()}"
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(one) for one in listed.stdout.split()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def certificate(folder: Path) -> tuple[bytes, bytes]:
    """PEM of a key and of a certificate for localhost, which is its own authority."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        f"subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return key.read_bytes(), cert.read_bytes()


def read(number: int) -> bytearray:
    """The frame of a read."""
    message = ReadMessage(
        seconds=0, last_n=5, encoding=0, users=np.array([1], np.int64).tobytes(),
        before=np.array([NOW + 10**6], np.int64).tobytes(), one_bound=True,
    )  # fmt: skip
    return frames.frame(frames.READ, number, *message.parts())


def ask(sock: socket.socket) -> None:
    """Sends a hello and a read by hand, at once: a server may hang up after the first."""
    sock.sendall(frames.frame(frames.HELLO, 0, b"") + read(7))


def exchange(sock: socket.socket, sent: bytearray, count: int) -> list[tuple[int, int, bytes]]:
    """Sends bytes and takes frames: kind, number and body of each."""
    sock.sendall(sent)
    found, file = [], sock.makefile("rb")
    for _ in range(count):
        _, _, kind, size, number = frames.header_of(bytearray(file.read(frames.HEADER)))
        found.append((kind, number, file.read(size)))
    return found


def answers(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Kind and body of all frames until the connection ends."""
    data, found = b"", []
    try:
        while more := sock.recv(1 << 16):
            data += more
    except ConnectionResetError:
        pass
    while len(data) >= frames.HEADER:
        _, _, kind, size, _ = frames.header_of(data[: frames.HEADER])
        end = frames.HEADER + size
        found.append((kind, data[frames.HEADER : end]))
        data = data[end:]
    return found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_readers_see_each_append_over_tls_with_tokens_and_one_that_is_killed_is_replaced(
    tmp_path,
) -> None:
    key, ca = certificate(tmp_path)
    vault = SeqVault.open(tmp_path / "vault", SCHEMA, share=True)
    vault.append(plain_events(1, 0, 5))
    grants = {"good": ["read", "write"], "poor": ["write"], "short": ["read"]}
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps(grants))
    server = Server(
        vault,
        tokens=Tokens(file),
        tls=Tls(key, ca),
        merge_seconds=0,
        readers=2,
    )
    with server:
        address = f"localhost:{server.port}"
        clients = [seqvault.connect(address, "good", ca=ca, timeout=60) for _ in range(6)]
        pids = server.reader_pids
        assert len(pids) == 2
        for count in range(5, 45):
            clients[0].append(plain_events(1, count, 1))
            client = clients[count % len(clients)]
            assert over_the_read_protocol(client, 1) == [count, count - 1, count - 2]
            if count % 10 == 0:
                server.vault.merge()
        assert len(clients[0].user_ids()) == 1  # what goes over gRPC goes on
        with seqvault.connect(address, "good", ca=ca) as poor:
            poor._reads._token = b"poor"
            with pytest.raises(errors.AccessDeniedError):
                over_the_read_protocol(poor, 1)
        with (
            socket.create_connection(("127.0.0.1", server.read_port), 20) as bare,
            client_context(ca, None, None).wrap_socket(bare, server_hostname="localhost") as sock,
        ):
            hello, first, second = frames.frame(frames.HELLO, 0, b"short"), read(1), read(2)
            came = exchange(sock, hello + first, 2)
            assert [frame[:2] for frame in came] == [(frames.WELCOME, 0), (frames.ANSWER, 1)]
            grants["short"] = {"scopes": ["read"], "expires": "2001-01-01T00:00:00Z"}
            new = tmp_path / "new.json"
            new.write_text(json.dumps(grants))
            new.replace(file)
            ((kind, number, body),) = exchange(sock, second, 1)
            assert (kind, number) == (frames.ERROR, 2)
            assert "expired" in str(read_messages.error_of(body))
            again = frames.frame(frames.HELLO, 3, b"good") + read(4)
            came = exchange(sock, again, 2)
            assert [frame[:2] for frame in came] == [(frames.WELCOME, 3), (frames.ANSWER, 4)]
        with socket.create_connection(("127.0.0.1", server.read_port), 20) as plain:
            ask(plain)
            assert not [kind for kind, _ in answers(plain) if kind == frames.ANSWER]
        os.kill(pids[0], signal.SIGKILL)
        until(lambda: not is_there(pids[0]))
        for client in clients:  # those that were connected to it, too
            assert client.read([1], before=None, last_n=1)["item_id"].tolist() == [[44]]
        until(lambda: len(set(server.reader_pids) - {pids[0]}) == 2)
        until(lambda: 'calls_total{method="Read",status="OK"}' in server.metrics_text())
        assert "seqvault_reader_ends_total 1" in server.metrics_text()
        last = server.reader_pids
        for client in clients:
            client.close()
    assert not any(is_there(pid) for pid in [*pids, *last])


def test_reads_need_nothing_of_the_writers_process(tmp_path) -> None:
    with SeqVault.open(tmp_path / "vault", SCHEMA) as vault:
        vault.append(plain_events(1, 0, 2000))
        vault.merge()
    with (
        served(tmp_path / "vault", "--port", "0") as (process, address),
        seqvault.connect(address, timeout=30) as client,
    ):
        client.append(plain_events(1, 2000, 7))
        assert over_the_read_protocol(client, 1) == [2006, 2005, 2004]
        process.send_signal(signal.SIGSTOP)  # as if it held its interpreter's lock for good
        for last_n in (3, 1000, 9000):  # the last is answered by a worker
            got = over_the_read_protocol(client, 1, last_n)
            assert got == list(range(2006, max(-1, 2006 - last_n), -1))
        process.send_signal(signal.SIGCONT)
        client.append(plain_events(1, 2007, 1))
        assert over_the_read_protocol(client, 1, 1) == [2007]


def test_readers_end_with_a_server_that_is_killed_and_leave_its_ports_to_the_next(
    tmp_path,
) -> None:
    with SeqVault.open(tmp_path / "vault", SCHEMA) as vault:
        vault.append(plain_events(1, 0, 5))
    ports = ("--port", str(free_port()), "--read-port", str(free_port()))
    with served(tmp_path / "vault", *ports) as (process, address):
        readers = children(process.pid)
        assert len(readers) == 2
        with socket.create_connection(("127.0.0.1", int(ports[3])), 20) as sock:
            for one in readers:
                os.kill(one, signal.SIGSTOP)  # it would answer when it goes on
            process.kill()
            process.wait()
            ask(sock)
            for one in readers:
                os.kill(one, signal.SIGCONT)
            for kind, body in answers(sock):
                if kind == frames.ERROR:
                    assert isinstance(read_messages.error_of(body), errors.WriterGoneError)
                assert kind != frames.ANSWER
        until(lambda: not any(is_there(pid) for pid in readers))
        with served(tmp_path / "vault", *ports) as (again, same):
            assert same == address
            with seqvault.connect(same, timeout=30) as client:
                client.append(plain_events(1, 5, 1))
                assert over_the_read_protocol(client, 1, 1) == [5]
            again.terminate()
            assert again.wait(60) == 0


def test_readers_need_a_shared_store_and_a_read_port(tmp_path) -> None:
    vault = SeqVault.open(tmp_path / "vault", SCHEMA)
    with pytest.raises(errors.InvalidRequestError, match="share=True"):
        Server(vault, readers=1)
    vault.close()
    with (
        SeqVault.open(tmp_path / "vault", share=True) as vault,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        for port in (None, taken.getsockname()[1]):
            with pytest.raises(errors.InvalidRequestError, match="read port"):
                Server(vault, readers=1, read_port=port)


def test_a_reader_killed_amid_a_line_is_followed_to_its_end() -> None:
    readers = object.__new__(ReaderProcesses)
    readers._settings, readers._stopping = "{}\n", threading.Event()
    line = """print('{"calls": [[', end="")"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", line], text=True, **pipes)
    readers._follow(process, 0)
    assert process.returncode == 0
