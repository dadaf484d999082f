"""The read protocol: answers as the store gives them, whatever callers send, and to all others."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

import seqvault
from seqvault import Schema, SeqVault, errors
from seqvault.codec import frames
from seqvault.service import read_channel, read_connection, read_messages, read_server
from seqvault.service.read_channel import ReadChannel
from seqvault.service.read_messages import ReadMessage, names_to_bytes
from seqvault.service.server import Server
from seqvault.service.tokens import Tokens

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("action", pa.int8()), ("score", pa.float32())])
)
NOW, NO_BOUND = 1_700_000_000_000, np.iinfo(np.int64).max
MANY = 9000  # events of a read that a worker answers


def events(seed: int = 0, count: int = 3000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, 20, count),
        "timestamp": NOW + rng.integers(0, 1000, count),
        "item_id": rng.integers(-(2**62), 2**62, count),
        "action": rng.integers(0, 3, count).astype(np.int8),
        "score": rng.normal(size=count).astype(np.float32),
    }


def filled(path) -> SeqVault:
    vault = SeqVault.open(path, schema=SCHEMA)
    vault.append(events(0))
    vault.merge()
    vault.append(events(1, 500))
    return vault


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(filled(tmp_path_factory.mktemp("read") / "vault"), merge_seconds=0) as running:
        yield running


def read(users, last_n=5, before=NO_BOUND, **more) -> list[bytes]:
    """The body of a read."""
    return question(users, last_n, before, **more).parts()


def question(users, last_n=5, before=NO_BOUND, **more) -> ReadMessage:
    return ReadMessage(
        seconds=0, last_n=last_n, encoding=0, users=np.array(users, np.int64).tobytes(),
        before=np.array([before], np.int64).tobytes(), one_bound=True, **more,
    )  # fmt: skip


class Wire:
    """A connection by hand."""

    def __init__(self, port: int, token: str | None = "") -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        if token is not None:
            self.send(frames.HELLO, 0, token.encode())

    def send(self, kind: int, number: int, *parts: bytes) -> None:
        self.sock.sendall(frames.frame(kind, number, *parts))

    def take(self) -> tuple[int, int, np.ndarray]:
        """Kind, number and body of the next frame."""
        head = self._exactly(frames.HEADER)
        _, _, kind, size, number = frames.header_of(head)
        whole = head + self._exactly(size)
        assert frames.is_whole(whole)
        return kind, number, np.frombuffer(whole, np.uint8)[frames.HEADER :]

    def _exactly(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise ConnectionResetError
            data += more
        return data

    def told(self) -> errors.SeqVaultError:
        """The error that comes next."""
        kind, _, body = self.take()
        while kind == frames.WELCOME:
            kind, _, body = self.take()
        assert kind == frames.ERROR
        return read_messages.error_of(body.tobytes())

    def is_closed(self) -> bool:
        try:
            return not self.sock.recv(1)
        except ConnectionResetError:
            return True

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def works(server) -> None:
    """Others are answered as ever."""
    with seqvault.connect(f"localhost:{server.port}", timeout=20) as client:
        assert client.read([1, 2], None, 7).lengths.tolist() == [7, 7]


def same(one, other) -> None:
    assert list(one.columns) == list(other.columns)
    for name in one.columns:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_array_equal(one.version, other.version)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {"last_n": 5},
        {"last_n": 1000},
        {"last_n": 5, "fields": ["score", "timestamp"]},
        {"last_n": 5, "fields": []},
        {"last_n": 400, "before": NOW + 500},
        {"last_n": 400, "before": [NOW + 40 * user for user in range(25)]},
        {"last_n": 5, "actions": [1]},
        {"last_n": 5, "actions": []},
        {"last_n": 50, "version": np.arange(25)},
        {"last_n": 5, "user_ids": []},
        {"last_n": 1, "user_ids": [3, 3, -7, 3]},
    ],
)
def test_answers_are_those_of_the_store(server, asked, compress, monkeypatch):
    asked = {"user_ids": range(25), "before": None, **asked}
    with seqvault.connect(f"localhost:{server.port}", compress=compress) as client:
        monkeypatch.setattr(client, "_call", None)  # no call over gRPC
        same(server.vault.read(**asked), client.read(**asked))


def test_pipelined_reads_are_read_together_and_each_gets_its_own(server, monkeypatch):
    groups, real = [], server.vault.read_framed

    def counted(*arguments, **named):
        groups.append(len(named["numbers"]))
        return real(*arguments, **named)

    monkeypatch.setattr(server.vault, "read_framed", counted)
    with Wire(server.read_port) as wire:
        assert wire.take()[0] == frames.WELCOME
        asked = {number: [number % 20, 77][: 1 + number % 2] for number in range(1, 40)}
        message = b"".join(frames.frame(frames.READ, n, *read(u)) for n, u in asked.items())
        wire.sock.sendall(message)
        for _ in range(len(asked)):
            kind, number, body = wire.take()
            assert kind == frames.ANSWER
            users = np.array(asked.pop(number))
            same(read_messages.batch_of(body, users, 5), server.vault.read(users, None, 5))
        assert not asked
    assert sum(groups) == 39 and max(groups) > 1


@pytest.mark.parametrize("fields", [None, [], ["action"], ["action", "score", "timestamp"]])
@pytest.mark.parametrize("before", [None, NOW + 500, NOW])
def test_a_frame_written_alone_is_that_written_with_others(server, fields, before):
    """Alone, fields are unpacked into the frame itself, and moved where there are fewer of them."""
    vault, groups = server.vault, [[3], [77], [1, 2, 4], [5] * 5]
    users, ends = [user for group in groups for user in group], np.cumsum([1, 1, 3, 5])
    for last_n in (1, 7, 400):
        asked = {"before": before, "last_n": last_n, "fields": fields}
        together, at = vault.read_framed(users, **asked, ends=ends, numbers=range(4))
        for number, group in enumerate(groups):
            alone, _ = vault.read_framed(group, **asked, numbers=[number])
            alone[:] = 255  # and what is left of it in memory that is used again
            del alone
            alone, end = vault.read_framed(group, **asked, numbers=[number])
            start = at[number - 1] if number else 0
            assert alone[: end[0]].tobytes() == together[start : at[number]].tobytes()


def test_a_frame_holds_little_more_memory_than_its_own(server):
    _, ends = server.vault.read_framed([1] * 100, None, 400)
    frames_of_few, few = server.vault.read_framed([1] * 100, NOW + 20, 400)
    assert 0 < few[0] < ends[0] / 8
    assert (
        len(frames_of_few.base if frames_of_few.base is not None else frames_of_few) < ends[0] / 4
    )


def test_a_damaged_record_fails_its_own_read_alone(tmp_path):
    vault = filled(tmp_path / "vault")
    vault.merge()
    place = max((tmp_path / "vault" / "segments").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(place.read_bytes())
    data[len(data) // 3] ^= 1
    vault.close()
    place.write_bytes(data)
    with Server(SeqVault.open(tmp_path / "vault"), merge_seconds=0) as server:
        with Wire(server.read_port) as wire:
            wire.take()
            wire.sock.sendall(
                b"".join(frames.frame(frames.READ, n, *read([n], 300)) for n in range(16))
            )
            kinds = [wire.take()[0] for _ in range(16)]
        assert sorted(kinds) == [frames.ANSWER] * 15 + [frames.ERROR]
        assert "seqvault_damaged_reads_total 1" in server.metrics_text()


BAD = {
    "garbage": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "version": bytes(frames.frame(frames.HELLO, 0))[:8] + b"\2" + bytes(15),
    "length": frames._HEADER.pack(frames.MAGIC, 0, 1, frames.READ, 0, 1 << 31, 1),
    "checksum": bytes(frames.frame(frames.READ, 1, *read([1])))[:-1] + b"\xff",
    "kind": bytes(frames.frame(9, 1)),
    "no hello": bytes(frames.frame(frames.READ, 1, *read([1]))),
}


@pytest.mark.parametrize("what", BAD)
def test_what_breaks_the_protocol_is_told_and_closed(server, what):
    with Wire(server.read_port, None if what == "no hello" else "") as wire:
        wire.sock.sendall(BAD[what])
        wanted = errors.AccessDeniedError if what == "no hello" else errors.ProtocolError
        assert type(wire.told()) is wanted
        assert wire.is_closed()
    works(server)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([b""], errors.ProtocolError),
        ([bytes(31)], errors.ProtocolError),
        ([*read([1]), b"x"], errors.ProtocolError),  # longer than it says
        ([b"".join(read([1, 2]))[:-8]], errors.ProtocolError),
        (read([1], names=b"\xff\xffx"), errors.ProtocolError),
        (read([1], names=b"\1\0\xff"), errors.ProtocolError),
        (read([1], names=names_to_bytes(["nothing"])), errors.UnknownFieldError),
        (read([1], last_n=0), errors.InvalidRequestError),
        (read([1], last_n=1 << 31), errors.LimitError),
        (read([1], before=NOW // 1000), errors.TimeUnitError),
        (read([1], version=np.array([-5]).tobytes()), errors.InvalidRequestError),
        (read([1], scenarios=b""), errors.InvalidRequestError),  # no field has that role
        ([b"".join(read([1]))[:12] + b"\7\0" + b"".join(read([1]))[14:]],
         errors.InvalidRequestError),  # an encoding that there is not
    ],
)  # fmt: skip
def test_a_wrong_read_gets_its_error_and_others_of_the_connection_their_answers(
    server, parts, error
):
    with Wire(server.read_port) as wire:
        wire.take()
        for number, body in ((1, read([1])), (2, parts), (3, read([1]))):
            wire.send(frames.READ, number, *body)
        came = {number: (kind, body) for kind, number, body in (wire.take() for _ in range(3))}
        assert came[1][0] == came[3][0] == frames.ANSWER
        assert came[2][0] == frames.ERROR
        assert type(read_messages.error_of(came[2][1].tobytes())) is error


def test_slow_and_half_open_callers_hold_up_nobody_and_are_closed(server, monkeypatch):
    monkeypatch.setattr(read_server, "HELLO_SECONDS", 1.5)
    monkeypatch.setattr(read_server, "MOVE_SECONDS", 1.5)
    threads = threading.active_count()
    silent = [Wire(server.read_port, None) for _ in range(20)]
    halfway = [Wire(server.read_port) for _ in range(20)]
    for wire in halfway:
        wire.sock.sendall(bytes(frames.frame(frames.READ, 1, *read([1])))[:40])
    idle = Wire(server.read_port)
    works(server)
    assert threading.active_count() <= threads + 4  # gRPC's of the client that asked
    for wire in (*silent, *halfway):
        with wire:
            while not wire.is_closed():  # behind the welcome
                pass
    with idle:
        idle.take()
        idle.send(frames.READ, 1, *read([1]))
        assert idle.take()[0] == frames.ANSWER


def test_a_caller_who_takes_no_answers_is_given_few_and_closed(server, monkeypatch):
    monkeypatch.setattr(read_server, "MOVE_SECONDS", 1.5)
    flight = server.bytes_in_flight
    with Wire(server.read_port) as wire:
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.sock.settimeout(1)
        asked = bytes(frames.frame(frames.READ, 1, *read(range(8), 1000)))
        with pytest.raises(OSError):  # it is not listened to for ever
            for _ in range(100_000):
                wire.sock.sendall(asked)
        works(server)
        assert flight.held < 64 << 20
    end = time.monotonic() + 20
    while flight.held and time.monotonic() < end:
        time.sleep(0.05)
    assert flight.held == 0


def test_frames_too_large_for_now_are_refused_and_passed_over(tmp_path):
    vault = filled(tmp_path / "vault")
    with Server(vault, merge_seconds=0, bytes_in_flight=300_000) as server:
        with Wire(server.read_port) as first, Wire(server.read_port) as second:
            first.take(), second.take()
            half = bytes(frames.frame(frames.READ, 1, *read(range(25_000), 1)))
            first.sock.sendall(half[:100_000])  # room for all of it is taken
            while server.bytes_in_flight.held < 200_000:
                time.sleep(0.01)
            second.sock.sendall(half)
            assert type(second.told()) is errors.LimitError
            second.send(frames.READ, 2, *read([1]))
            assert second.take()[:2] == (frames.ANSWER, 2)
        while server.bytes_in_flight.held:
            time.sleep(0.01)
        works(server)


@pytest.mark.parametrize("kind", [frames.HELLO, frames.READ, 77])
def test_a_large_frame_that_is_no_read_gives_its_bytes_back(tmp_path, kind):
    with Server(filled(tmp_path / "vault"), tokens={"t": ["read"]}, merge_seconds=0) as server:
        with Wire(server.read_port, None) as wire:
            wire.send(kind, 1, bytes(1 << 20))
            assert isinstance(wire.told(), errors.AccessDeniedError | errors.ProtocolError)
            assert wire.is_closed()
        assert server.bytes_in_flight.held == 0


def test_a_connection_that_fails_in_an_unforeseen_way_is_closed(server, monkeypatch):
    with Wire(server.read_port) as failing, Wire(server.read_port) as other:
        failing.take(), other.take()
        usual = server._reads._check

        def check(token: str) -> None:
            if token == "odd":
                raise RuntimeError("nobody thought of this")
            usual(token)

        monkeypatch.setattr(server._reads, "_check", check)
        failing.sock.settimeout(5)
        failing.send(frames.HELLO, 1, b"odd")
        assert failing.is_closed()
        other.send(frames.READ, 2, *read([1]))
        assert other.take()[:2] == (frames.ANSWER, 2)


def test_more_connections_than_there_may_be_are_told(server, monkeypatch):
    monkeypatch.setattr(server._reads, "_most", len(server._reads._connections) + 2)
    kept = [Wire(server.read_port) for _ in range(2)]
    for wire in kept:
        assert wire.take()[0] == frames.WELCOME
    with Wire(server.read_port, None) as more:
        assert type(more.told()) is errors.LimitError
        assert more.is_closed()
    works(server)  # over gRPC
    for wire in kept:
        wire.sock.close()


def test_tokens_are_checked_with_each_read(tmp_path):
    clock = [0.0]
    tokens = Tokens(
        {
            "short": {"scopes": ["read"], "expires": "1970-01-01T00:01:00Z"},
            "long": ["read"],
            "writer": ["write"],
        },
        lambda: clock[0],
    )
    with Server(filled(tmp_path / "vault"), tokens=tokens, merge_seconds=0) as server:
        for wrong in ("", "guess", "writer"):
            with Wire(server.read_port, wrong) as wire:
                assert type(wire.told()) is errors.AccessDeniedError
                assert wire.is_closed()
        with Wire(server.read_port, "short") as wire:
            wire.take()
            wire.send(frames.READ, 1, *read([1]))
            assert wire.take()[:2] == (frames.ANSWER, 1)
            clock[0] = 61.0
            wire.send(frames.READ, 2, *read([1]))
            kind, number, body = wire.take()
            assert (kind, number) == (frames.ERROR, 2)
            assert "expired" in str(read_messages.error_of(body.tobytes()))
            wire.send(frames.HELLO, 3, b"long")
            wire.send(frames.READ, 4, *read([1]))
            assert [wire.take()[:2] for _ in range(2)] == [(2, 3), (frames.ANSWER, 4)]
        with (
            seqvault.connect(f"localhost:{server.port}", token="long") as client,
            pytest.raises(errors.AccessDeniedError, match="write"),
        ):
            client.append(events())


def test_a_client_reads_over_grpc_where_the_port_leads_elsewhere(server, tmp_path, monkeypatch):
    with Server(SeqVault.open(tmp_path / "other", schema=SCHEMA), merge_seconds=0) as other:
        asked = []
        for port in (other.read_port, other.port, 1):  # another's, no such protocol, nobody's
            monkeypatch.setattr(server._service, "read_port", port)
            with seqvault.connect(f"localhost:{server.port}") as client:
                call = client._call
                monkeypatch.setattr(
                    client, "_call", lambda *a, call=call, **n: asked.append(a[0]) or call(*a, **n)
                )
                assert client.read([1], None, 7).lengths.tolist() == [7]
        assert asked.count("Read") == 3


_ANSWER = bytes(frames.frame(frames.ANSWER, 1, bytes(24)))
BAD_ANSWERS = {
    "garbage": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "version": _ANSWER[:8] + b"\2" + _ANSWER[9:],
    "length": frames._HEADER.pack(frames.MAGIC, 0, 1, frames.ANSWER, 0, (1 << 30) + 1, 1),
    "checksum": _ANSWER[:-1] + b"\1",
    "another request": bytes(frames.frame(frames.ANSWER, 2, bytes(24))),
    "kind": bytes(frames.frame(frames.WELCOME, 1, bytes(24))),
    "its middle": _ANSWER[:30],
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_a_client_tells_answers_that_are_none(what):
    instance = bytes(16)

    def serve(listening: socket.socket) -> None:
        sock, _ = listening.accept()
        with sock:
            sock.recv(frames.HEADER, socket.MSG_WAITALL)
            welcome = read_messages.welcome(instance, 1 << 20, 16)
            sock.sendall(frames.frame(frames.WELCOME, 0, welcome))
            sock.recv(1 << 16)
            sock.sendall(BAD_ANSWERS[what])

    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor() as pool:
        serving = pool.submit(serve, listening)
        channel = ReadChannel("127.0.0.1", listening.getsockname()[1], instance, "", None)
        with pytest.raises(read_channel.BrokenChannelError):
            channel.read(question([1]), 10)
        serving.result(10)


def _answer(
    events: int = 1, rows: int = 1, described: bytes = b"\2\0\4\0abint8", size: int = 8
) -> bytes:
    head = read_messages._ANSWER.pack(0, 0, rows, events, len(described), 0)
    text = described + bytes(-len(described) % 8)
    return head + text + (events).to_bytes(8, "little") + bytes(8) + bytes(size)


def test_an_answer_whose_parts_do_not_add_up_is_told():
    users = np.array([1])
    good = read_messages.batch_of(np.frombuffer(bytearray(_answer()), np.uint8), users, 1)
    assert good["ab"].tolist() == [[0]]
    for bad in (
        b"",
        _answer()[:-9],
        _answer(rows=1 << 31),
        _answer(rows=2),
        _answer(events=1000),
        _answer(described=b"\2\0\4\0abint3"),
        _answer(described=b"\xff\0\4\0abint8"),
        _answer(described=b"\2\0\4"),
        read_messages._ANSWER.pack(1, 0, 1, 1, 0, 0) + b"no zstd",
    ):
        with pytest.raises(errors.ProtocolError):
            read_messages.batch_of(np.frombuffer(bytearray(bad), np.uint8), users, 1)


def test_a_client_finds_a_server_that_was_restarted(tmp_path):
    first = Server(filled(tmp_path / "vault"), merge_seconds=0)
    address, ports = f"localhost:{first.port}", (first.port, first.read_port)
    with seqvault.connect(address, timeout=20) as client:
        assert client.read([1], None, 7).lengths.tolist() == [7]
        first.stop(0)
        with pytest.raises(errors.ServerUnavailableError):
            client.read([1], None, 7)
        vault = SeqVault.open(tmp_path / "vault")
        with Server(vault, f"127.0.0.1:{ports[0]}", merge_seconds=0, read_port=ports[1]):
            client._reads_again = 0.0
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    assert client.read([1], None, 7).lengths.tolist() == [7]
                    break
                except errors.ServerUnavailableError:
                    time.sleep(0.1)
            client._reads_again = 0.0
            call, client._call = client._call, None
            assert client.read([1], None, 7).lengths.tolist() == [7]  # over the protocol again
            client._call = call


def test_reads_of_a_killed_server_fail_in_a_typed_way(tmp_path):
    filled(tmp_path / "vault").close()
    command = [sys.executable, "-m", "seqvault.cli", "serve", tmp_path / "vault", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        port = process.stdout.readline().decode().rpartition(":")[2].strip()
        with seqvault.connect(f"localhost:{port}", timeout=10) as client:
            assert client.read([1], None, 7).lengths.tolist() == [7]
            process.send_signal(signal.SIGKILL)
            process.wait()
            with pytest.raises(errors.ServerUnavailableError, match="cannot be reached"):
                client.read([1], None, 7)
    finally:
        process.kill()
        process.wait()


def test_a_forked_child_has_connections_of_its_own(server):
    with seqvault.connect(f"localhost:{server.port}") as client:
        channel: ReadChannel = client._reads
        channel.read(question([1]), 10)
        pid = os.fork()
        if not pid:
            try:
                fine = bool(len(channel.read(question([1]), 10)))
            finally:
                os._exit(0 if fine else 1)
        for _ in range(200):
            channel.read(question([1]), 10)
        assert os.waitpid(pid, 0)[1] == 0


def test_stopping_lets_reads_under_way_end(tmp_path):
    vault = filled(tmp_path / "vault")
    entered, opened, real = threading.Event(), threading.Event(), vault.read_framed

    def held(*arguments, **named):
        entered.set()
        assert opened.wait(30)
        return real(*arguments, **named)

    vault.read_framed = held
    server = Server(vault, merge_seconds=0)
    with (
        ThreadPoolExecutor() as pool,
        seqvault.connect(f"localhost:{server.port}", timeout=20) as client,
    ):
        waiting = pool.submit(client.read, [1], None, MANY)
        assert entered.wait(10)
        ended = pool.submit(server.stop, 10)
        time.sleep(0.2)
        opened.set()
        assert waiting.result(20).lengths[0] > 100
        ended.result(20)
    assert read_connection.MAX_BODY == 64 << 20  # as docs/seqvault/protocol.md says
