"""The service: the client answers as the store does, and fails in typed ways."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import seqvault
from seqvault import Schema, SeqVault, cli, errors
from seqvault.service import seqvault_pb2
from seqvault.service.client import SeqVaultClient
from seqvault.service.read_channel import ReadChannel
from seqvault.service.server import Server, Tls
from seqvault.service.shards import jump, shard_of, virtual_shard_of
from seqvault.service.store_service import StoreService
from seqvault.service.tokens import Tokens
from seqvault.service.wire import NAME

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("scenario", pa.int8()), ("score", pa.float32())])
)
NOW = 1_700_000_000_000


def some_events(seed=0, count=400):
    rng = np.random.default_rng(seed)
    return {
        "user_id": rng.integers(0, 9, count),
        "timestamp": NOW + rng.integers(0, 1000, count),
        "item_id": rng.integers(-(2**62), 2**62, count),
        "scenario": rng.integers(0, 3, count).astype(np.int8),
        "score": rng.normal(size=count).astype(np.float32),
    }


@pytest.fixture
def server(tmp_path):
    running = Server(SeqVault.open(tmp_path / "vault", schema=SCHEMA), merge_seconds=0)
    yield running
    running.stop(0)


def test_a_read_may_have_less_time_than_its_client(server, monkeypatch):
    """Over the read protocol, over gRPC, and of several servers: what is left of it."""
    told = []
    read, call = ReadChannel.read, SeqVaultClient._call

    def watched_read(self, message, timeout):
        told.append(("channel", timeout, message.seconds))
        return read(self, message, timeout)

    def watched_call(self, method, request, reply, timeout=None):
        told.append((method, timeout))
        return call(self, method, request, reply, timeout)

    address = f"localhost:{server.port}"
    server_items = {"item_id": [1], "value": [1]}
    with (
        seqvault.connect(address, timeout=5) as one,
        seqvault.connect(f"{address},{address}", timeout=5) as several,
    ):
        one.put_items(server_items)
        monkeypatch.setattr(ReadChannel, "read", watched_read)
        monkeypatch.setattr(SeqVaultClient, "_call", watched_call)
        for timeout, seconds in ((None, 5), (2.0, 2.0), (60.0, 5), (math.inf, 5), (-1.0, 0.001)):
            with suppress(errors.ServerUnavailableError):  # a millisecond may not be enough
                one.read([1], None, 3, timeout=timeout)
            assert told.pop(0) == ("channel", seconds, seconds)
            told.clear()
            with suppress(errors.ServerUnavailableError):
                one.read_items([1], timeout=timeout)
            assert told.pop(0) == ("ReadItems", seconds)
        one._reads_again = math.inf  # the read protocol does not work
        one.read([1], None, 3, timeout=2.0)
        assert told.pop() == ("Read", 2.0)
        several.read([1], None, 3, timeout=2.0)
        several.read_items([1], timeout=2.0)
    assert [name for name, *_ in told] == ["channel", "ReadItems"]
    assert all(1 < seconds < 2.0 for _, seconds, *_ in told)


@pytest.mark.parametrize("compress", [False, True])
def test_a_client_answers_as_the_store_does(server, compress):
    with seqvault.connect(f"localhost:{server.port}", compress=compress) as client:
        assert client.schema == SCHEMA
        assert client.append(some_events(), source="log", offset=1) == 400
        assert client.append(some_events(), source="log", offset=1) == 0
        client.put_items(
            pa.table(
                {
                    "item_id": [1, 2],
                    "title": ["one", "two"],
                    "vector": pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2, 3, 4]), 2),
                }
            )
        )
        for arguments in (
            {"before": NOW + 500, "last_n": 30},
            {"before": [NOW + 100 * u for u in range(10)], "last_n": 3, "scenarios": [1]},
            {"before": None, "last_n": 99, "fields": ["score"]},
            {"before": None, "last_n": 9, "scenarios": [], "version": np.full(10, 5)},
            {"before": NOW + 500, "last_n": 300},
            {"before": NOW + 500, "last_n": 900},  # of so many events the stored chunks travel
            {"before": None, "last_n": 820, "actions": None, "scenarios": [0, 2]},
            {"before": None, "last_n": 999, "fields": ["score"], "version": np.full(10, 20)},
        ):
            here, there = (store.read(range(10), **arguments) for store in (server.vault, client))
            assert list(here.columns) == list(there.columns)
            for name in here.columns:
                assert here[name].dtype == there[name].dtype
                np.testing.assert_array_equal(here[name], there[name])
            np.testing.assert_array_equal(here.lengths, there.lengths)
            np.testing.assert_array_equal(here.version, there.version)
        here, there = (s.read_items([[2, 3], [1, 1]]) for s in (server.vault, client))
        assert here.found.tolist() == there.found.tolist() == [[True, False], [True, True]]
        for name in ("title", "vector"):
            assert here[name].tolist() == there[name].tolist()
        assert client.merge()["events"] == 400
        assert client.verify()["events"] == 400 == client.stats()["events"]


@pytest.mark.parametrize(
    ("users", "last_n", "encoding"),
    [
        (1, 1000, seqvault_pb2.DENSE),  # one user's newest events: the least time
        (64, 255, seqvault_pb2.DENSE),  # chunks of 256 events would travel whole
        (8, 1024, seqvault_pb2.PACKED),
        (1, 8192, seqvault_pb2.PACKED),
    ],
)
def test_large_answers_over_grpc_travel_packed(server, users, last_n, encoding, monkeypatch):
    asked = []
    server._service.read_port = 0  # as a server that speaks gRPC alone
    with seqvault.connect(f"localhost:{server.port}") as client:
        call = client._call
        monkeypatch.setattr(client, "_call", lambda *a, **b: asked.append(a[1]) or call(*a, **b))
        client.read(range(users), before=None, last_n=last_n)
    assert [request.encoding for request in asked] == [encoding]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda c: c.read([1], before=NOW // 1000, last_n=1), errors.TimeUnitError),
        (lambda c: c.read([1], before=NOW, last_n=0), errors.InvalidRequestError),
        (lambda c: c.read([1], before=NOW, last_n=1 << 40), errors.LimitError),
        (lambda c: c.read([1], before=NOW, last_n=1, fields=["x"]), errors.UnknownFieldError),
        (lambda c: c.append({"user_id": [1]}), errors.UnknownFieldError),
        (lambda c: c.read_items([1], fields=["x"]), errors.UnknownFieldError),
        (lambda c: c.snapshot("/"), errors.InvalidRequestError),
    ],
)
def test_errors_arrive_with_their_type(server, call, error):
    with seqvault.connect(f"localhost:{server.port}") as client, pytest.raises(error):
        call(client)


def test_a_dead_server_and_a_taken_port_are_told(server, tmp_path):
    with pytest.raises(errors.ServerUnavailableError, match="cannot be reached"):
        seqvault.connect("localhost:1", timeout=5)
    with (
        SeqVault.open(tmp_path / "other", schema=SCHEMA) as other,
        pytest.raises(errors.InvalidRequestError, match="in use"),
    ):
        Server(other, f"127.0.0.1:{server.port}")


def test_tokens_have_scopes_and_an_end(tmp_path):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    entries = {
        "r": ["read"],
        "rw": {"scopes": ["read", "write"], "expires": "2999-01-01T00:00:00Z"},
        "old": {"scopes": ["read", "write"], "expires": "2020-01-01T00:00:00+00:00"},
    }
    server = Server(vault, tokens=entries)
    target = f"localhost:{server.port}"
    try:
        for token, reason in ((None, "missing"), ("guess", "unknown"), ("old", "expired")):
            with pytest.raises(errors.AccessDeniedError, match=reason) as caught:
                seqvault.connect(target, token=token)
            assert not caught.value.retryable
        with seqvault.connect(target, token="r") as reader:
            assert reader.read([1], before=None, last_n=1).lengths.tolist() == [0]
            with pytest.raises(errors.AccessDeniedError, match="write"):
                reader.append(some_events())
        with seqvault.connect(target, token="rw") as writer:
            assert writer.append(some_events()) == 400
    finally:
        server.stop(0)


def test_a_token_file_is_read_again_when_it_changes(tmp_path):
    file = tmp_path / "tokens.json"
    file.write_text('{"one": ["read"]}')
    tokens = Tokens(file)
    tokens.check("Bearer one", "read")
    file.write_text('{"one": ["read"], "another": ["write"')  # half-written: as before
    tokens.check("Bearer one", "read")
    for odd in (b'{"one": ["\xff', b'{"\\ud800": ["read"]', b'{"one": [["read"]]}', b"[]"):
        file.write_bytes(odd)
        tokens.check("Bearer one", "read")
    file.unlink()
    tokens.check("Bearer one", "read")
    file.write_text('{"another": ["write"]}')
    tokens.check("Bearer another", "write")
    with pytest.raises(errors.AccessDeniedError, match="unknown"):
        tokens.check("Bearer one", "read")


@pytest.mark.parametrize(
    "entry",
    ["read", ["admin"], [["read"]], {"expires": "2030-01-01"}, 5,
     {"scopes": ["read"], "until": "x"},
     {"scopes": ["read"], "expires": "2030-01-01T00:00:00"}, {"scopes": ["read"], "expires": 9}],
)  # fmt: skip
def test_a_wrong_entry_of_the_token_file_is_told(entry):
    with pytest.raises(errors.InvalidRequestError, match="a token's"):
        Tokens({"secret": entry})


def test_shards_and_replicas_answer_as_one_store_and_reads_fail_over(tmp_path):
    names = ("a1", "a2", "b1", "b2")
    servers = {
        n: Server(SeqVault.open(tmp_path / n, schema=SCHEMA), merge_seconds=0) for n in names
    }
    where = {name: f"localhost:{server.port}" for name, server in servers.items()}
    target = "{a1}|{a2},{b1}|{b2}".format(**where)
    plain = SeqVault.open(tmp_path / "plain", schema=SCHEMA)
    try:
        with seqvault.connect(target, timeout=30) as client:
            for seed in range(3):
                assert client.append(some_events(seed), source="log", offset=seed) == 400
                plain.append(some_events(seed))
            assert client.append(some_events(0), source="log", offset=0) == 0
            client.put_items({"item_id": [1], "value": [5]})
            counts = [servers[name].vault.stats()["events"] for name in names]
            assert counts[0] == counts[1] and counts[2] == counts[3]
            assert counts[0] + counts[2] == 1200 and min(counts) > 0
            assert client.stats()["events"] == 1200
            for _ in range(2):
                for arguments in (
                    {"before": NOW + 700, "last_n": 50},
                    {"before": [NOW + 90 * u for u in range(10)], "last_n": 5, "scenarios": [1]},
                ):
                    here, there = (s.read(range(10), **arguments) for s in (plain, client))
                    np.testing.assert_array_equal(here.lengths, there.lengths)
                    np.testing.assert_array_equal(here.version, there.version)
                    for name in here.columns:
                        np.testing.assert_array_equal(here[name], there[name])
                assert client.read_items([1])["value"].tolist() == [5]
                for name in ("a1", "b1"):
                    if name in servers:
                        servers.pop(name).stop(0)
            with pytest.raises(errors.ServerUnavailableError):
                client.append(some_events(9))
            servers.pop("a2").stop(0)
            with pytest.raises(errors.ServerUnavailableError):
                client.read(range(10), before=None, last_n=1)
    finally:
        plain.close()
        for server in servers.values():
            server.stop(0)


def test_users_spread_evenly_and_a_new_server_takes_only_its_part():
    users = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 50_000)
    for servers in range(1, 9):
        before, after = shard_of(users, servers), shard_of(users, servers + 1)
        assert set(before) == set(range(servers))
        shares = np.bincount(before) * servers / len(users)
        assert (abs(shares - 1) < 0.15).all()
        moved = before != after
        assert set(after[moved]) == {servers}
        assert moved.mean() < 1.15 / (servers + 1)
    # published values of splitmix64 (seed 0) and of jump consistent hashing
    assert virtual_shard_of(np.array([0]))[0] == 0xE220A8397B1DCDAF % 4096
    golden = {(1, 1): 0, (42, 57): 43, (0xDEAD10CC, 1): 0, (0xDEAD10CC, 666): 361, (256, 1024): 520}
    assert {pair: jump(*pair) for pair in golden} == golden


def test_growing_by_a_server_as_the_guide_says_it_answers_as_before(tmp_path):
    """Two shards become three: the new one is filled from the source, then clients change."""
    parts = [some_events(seed) for seed in range(3)]
    plain = SeqVault.open(tmp_path / "plain", schema=SCHEMA)
    history = str(tmp_path / "history.parquet")
    pq.write_table(pa.concat_tables([pa.table(part) for part in parts]), history)
    servers = [
        Server(SeqVault.open(tmp_path / f"s{n}", schema=SCHEMA), merge_seconds=0) for n in range(2)
    ]
    try:
        with seqvault.connect(",".join(f"localhost:{s.port}" for s in servers)) as client:
            for part in parts:
                client.append(part)
                plain.append(part)
        SeqVault.open(tmp_path / "s2", schema=SCHEMA).close()
        assert cli.main(["load", str(tmp_path / "s2"), history, "--shard", "2/3"]) == 0
        servers.append(Server(SeqVault.open(tmp_path / "s2"), merge_seconds=0))
        with seqvault.connect(",".join(f"localhost:{s.port}" for s in servers)) as client:
            assert servers[2].vault.stats()["events"] > 0
            here, there = (s.read(range(10), None, 400) for s in (plain, client))
            for name in ("timestamp", "item_id", "score"):
                np.testing.assert_array_equal(here[name], there[name])
    finally:
        plain.close()
        for server in servers:
            server.stop(0)


def certificate(folder, name, issuer=None):
    """PEM paths of a key and a certificate for localhost, by the issuer or by itself."""
    key, request, cert = (str(folder / f"{name}.{kind}") for kind in ("key", "csr", "pem"))
    extension = folder / f"{name}.ext"
    extension.write_text(
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:" + ("FALSE" if issuer else "TRUE")
    )
    sign = (
        ["-CA", issuer[1], "-CAkey", issuer[0], "-CAcreateserial"] if issuer else ["-signkey", key]
    )
    for command in (
        ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request,
         "-subj", f"/CN={name}"],
        ["x509", "-req", "-in", request, "-out", cert, "-days", "2", "-extfile", str(extension),
         *sign],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return key, cert


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_mutual_tls_lets_in_only_those_with_a_certificate(tmp_path):
    authority = certificate(tmp_path, "authority")
    ours, theirs = (certificate(tmp_path, name, authority) for name in ("server", "client"))
    stranger = certificate(tmp_path, "stranger")

    def read(path):
        return Path(path).read_bytes()

    server = Server(
        SeqVault.open(tmp_path / "vault", schema=SCHEMA),
        tls=Tls(read(ours[0]), read(ours[1]), read(authority[1])),
    )
    target = f"localhost:{server.port}"
    try:
        trust = {"ca": read(authority[1]), "timeout": 5}
        with seqvault.connect(
            target, key=read(theirs[0]), certificate=read(theirs[1]), **trust
        ) as client:
            assert client.append(some_events()) == 400
            client._call = None  # what follows goes by the read protocol, within TLS
            assert client.read(range(50), before=None, last_n=400).lengths.sum() == 400
        for wrong in (
            {},
            {"key": read(stranger[0]), "certificate": read(stranger[1])},
        ):
            with pytest.raises(errors.ServerUnavailableError):
                seqvault.connect(target, **trust, **wrong)
        with pytest.raises(errors.ServerUnavailableError):
            seqvault.connect(target, timeout=2)
        with pytest.raises(errors.AccessDeniedError, match="not of the authority"):
            seqvault.connect(
                target, ca=read(stranger[1]), key=read(theirs[0]), certificate=read(theirs[1]),
                timeout=2,
            )  # fmt: skip
    finally:
        server.stop(0)


def test_health_and_reflection_answer_in_the_standard_way(server):
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", NAME):
            answer = check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        requests = (
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
        )
        services, files = ask(iter(requests), timeout=5)
        names = {service.name for service in services.list_services_response.service}
        assert names >= {NAME, "grpc.health.v1.Health"}
        (file,) = files.file_descriptor_response.file_descriptor_proto
        told = descriptor_pb2.FileDescriptorProto.FromString(file)
        published = {method.name for service in told.service for method in service.method}
        assert published == {
            "Describe", "Append", "Read", "PutItems", "ReadItems", "Merge", "Verify", "Stats",
            "Snapshot", "UserIds", "Fingerprint",
        }  # fmt: skip


def test_the_published_proto_and_the_generated_code_agree():
    source = Path(seqvault_pb2.__file__).with_name("seqvault.proto").read_text()
    for message in seqvault_pb2.DESCRIPTOR.message_types_by_name.values():
        assert f"message {message.name} " in source
        for field in message.fields:
            assert re.search(rf"\b{field.name} = {field.number};", source)
    for value in seqvault_pb2.DESCRIPTOR.enum_types_by_name["Encoding"].values:
        assert f"  {value.name} = {value.number};" in source


class Gate:
    """Holds the store's reads until it is opened."""

    def __init__(self, vault):
        self.entered, self.open = threading.Event(), threading.Event()
        self.calls = 0
        vault.read_ragged = self.before(vault.read_ragged)
        vault.read_packed = self.before(vault.read_packed)
        vault.read_framed = self.before(vault.read_framed)

    def before(self, read):
        def held(*arguments, **named):
            self.calls += 1
            self.entered.set()
            assert self.open.wait(30)
            return read(*arguments, **named)

        return held


MANY = 9000  # events of a read that has a worker over either protocol
either_protocol = pytest.mark.parametrize("read_port", [None, 0])


@either_protocol
def test_a_call_whose_deadline_has_passed_is_not_worked_on(tmp_path, read_port):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    gate = Gate(vault)
    with (
        Server(vault, workers=1, merge_seconds=0, read_port=read_port) as server,
        ThreadPoolExecutor() as pool,
        seqvault.connect(f"localhost:{server.port}") as patient,
        seqvault.connect(f"localhost:{server.port}", timeout=5) as hasty,
    ):
        waiting = pool.submit(patient.read, [1], None, MANY)
        assert gate.entered.wait(10)
        hasty._timeout = 0.1  # the only worker for reads is busy for longer
        with pytest.raises(errors.ServerUnavailableError, match="took too long") as caught:
            hasty.read([1], None, MANY)
        assert caught.value.retryable
        time.sleep(0.3)  # the server got the call later than the caller began to wait
        gate.open.set()
        assert waiting.result(10).lengths.tolist() == [0]
        assert patient.append(some_events(1, count=3)) == 3
        assert vault.stats()["events"] == 3
        assert "seqvault_calls_total" in server.metrics_text()
        assert gate.calls == 1


def until_taken(call):
    """Repeats a call while it is refused: the server may still be ending the one before."""
    for _ in range(1000):
        try:
            return call()
        except errors.LimitError:
            time.sleep(0.01)
    raise AssertionError("refused for ten seconds")


@either_protocol
def test_too_many_calls_are_refused_and_can_be_repeated(tmp_path, read_port):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    gate = Gate(vault)
    with (
        Server(vault, workers=1, merge_seconds=0, read_port=read_port, waiting=1) as server,
        ThreadPoolExecutor() as pool,
        seqvault.connect(f"localhost:{server.port}") as client,
    ):
        waiting = pool.submit(until_taken, lambda: client.read([1], None, MANY))
        assert gate.entered.wait(10)
        with pytest.raises(errors.LimitError, match="try again") as caught:
            client.read([2], None, MANY)
        assert caught.value.retryable
        assert client.append(some_events()) == 400  # appends have workers of their own
        gate.open.set()
        waiting.result(10)
        assert until_taken(lambda: client.read([1], None, MANY)).lengths[0] > 1


@pytest.mark.parametrize(("read_port", "most"), [(None, 60_000), (0, 45_000)])
def test_too_many_bytes_in_flight_are_refused_and_given_back(tmp_path, read_port, most):
    vault = SeqVault.open(tmp_path / "vault", schema=SCHEMA)
    gate = Gate(vault)
    with (
        Server(vault, merge_seconds=0, read_port=read_port, bytes_in_flight=most) as server,
        ThreadPoolExecutor() as pool,
        seqvault.connect(f"localhost:{server.port}") as client,
    ):
        flight = server.bytes_in_flight
        many = np.arange(1000)
        waiting = pool.submit(client.read, many, None, 9)
        assert gate.entered.wait(10)
        assert flight.held > 8 * len(many)
        with pytest.raises(errors.LimitError, match=f"limit of the server is {most}") as caught:
            client.append(some_events())
        assert caught.value.retryable
        gate.open.set()
        assert len(waiting.result(10).lengths) == len(many)
        assert until_taken(lambda: client.append(some_events())) == 400
        with pytest.raises(errors.UnknownFieldError):  # a call that fails gives back, too
            until_taken(lambda: client.read([1], None, 1, fields=["nothing"]))
        end = time.monotonic() + 10
        while flight.held and time.monotonic() < end:
            time.sleep(0.01)
        assert flight.held == 0


def test_users_of_one_server_and_of_shards_are_listed_alike(tmp_path):
    names = ("one", "two")
    servers = [
        Server(SeqVault.open(tmp_path / name, schema=SCHEMA), merge_seconds=0) for name in names
    ]
    try:
        address = ",".join(f"localhost:{server.port}" for server in servers)
        with seqvault.connect(address) as shards:
            shards.append(some_events())
            expected = np.unique(some_events()["user_id"]).tolist()
            assert shards.user_ids().tolist() == expected
            assert shards.user_ids(limit=3).tolist() == expected[:3]
            assert shards.user_ids(after=expected[2], limit=2).tolist() == expected[3:5]
        parts = []
        for server in servers:
            with seqvault.connect(f"localhost:{server.port}") as client:
                parts += client.user_ids().tolist()
                with pytest.raises(errors.InvalidRequestError, match="1 to 1048576"):
                    client.user_ids(limit=0)
        assert sorted(parts) == expected
    finally:
        for server in servers:
            server.stop(0)


def test_a_conditional_append_stores_only_where_the_source_is_believed_to_be(server):
    with seqvault.connect(f"localhost:{server.port}") as client:
        assert client.append(some_events(0, 3), "log", 2, after=-1) == 3
        for wrong in (-1, 1, 3):
            with pytest.raises(errors.SourceConflictError, match="at offset 2"):
                client.append(some_events(0, 3), "log", 5, after=wrong)
        assert client.append(some_events(0, 3), "log", 5, after=2) == 3
        assert client.stats()["events"] == 6


def test_calls_are_logged_as_json_lines_with_the_callers_request_id(server, caplog):
    with (
        caplog.at_level("INFO", "seqvault.calls"),
        seqvault.connect(f"localhost:{server.port}") as client,
    ):
        client.append(some_events())
        client.read([1, 2], before=None, last_n=5)
        with pytest.raises(errors.UnknownFieldError):
            client.read([1], before=None, last_n=5, fields=["x"])
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        stats = channel.unary_unary(f"/{NAME}/Stats")
        with caplog.at_level("INFO", "seqvault.calls"):
            _, call = stats.with_call(b"", timeout=5, metadata=(("x-request-id", "mine"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "mine"
    lines = [json.loads(r.message) for r in caplog.records if r.name == "seqvault.calls"]
    described, appended, read, failed, told = lines
    assert described["method"] == "Describe"
    assert (appended["events"], appended["outcome"]) == (400, "OK")
    assert read["users"] == 2 and 0 < read["events"] <= 10 and read["ms"] > 0
    assert (failed["outcome"], failed["error"][:18]) == ("INVALID_ARGUMENT", "UnknownFieldError:")
    assert told["request_id"] == "mine"
    assert len({line["request_id"] for line in lines}) == 5


def test_every_metric_is_documented(server):
    with seqvault.connect(f"localhost:{server.port}") as client:
        client.append(some_events(), source='with "quotes"', offset=3)
    text = server.metrics_text()
    guide = Path(__file__, "../../../docs/seqvault/operations.md").resolve().read_text()
    names = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    assert len(names) >= 14
    for name in names:
        assert f"`{name}" in guide, name
    assert 'seqvault_source_offset{source="with \\"quotes\\""} 3\n' in text


def test_the_command_serves_and_stops_without_loss(tmp_path):
    path = str(tmp_path / "vault")
    SeqVault.open(path, schema=SCHEMA).close()
    command = [sys.executable, "-m", "seqvault.cli", "serve", path, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        target = "localhost:" + process.stdout.readline().rsplit(":", 1)[1].strip()
        with seqvault.connect(target) as client:
            assert client.append(some_events()) == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stdout.close()
    with SeqVault.open(path) as vault:
        assert vault.stats()["events"] == 400


def test_sigterm_amid_appends_loses_none_that_was_acknowledged(tmp_path):
    path, acknowledged = str(tmp_path / "vault"), {}
    SeqVault.open(path, schema=SCHEMA).close()
    command = [sys.executable, "-m", "seqvault.cli", "serve", path, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})

    def write(source):
        with seqvault.connect(target) as client:
            for offset in range(1_000_000):
                try:
                    assert client.append(some_events(offset, 20), source, offset) == 20
                except errors.ServerUnavailableError:
                    return
                acknowledged[source] = offset

    try:
        target = "localhost:" + process.stdout.readline().rsplit(":", 1)[1].strip()
        with ThreadPoolExecutor() as pool:
            writers = [pool.submit(write, f"source {n}") for n in range(4)]
            while len(acknowledged) < 4 or min(acknowledged.values()) < 5:
                assert not any(writer.done() for writer in writers)
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            for writer in writers:
                writer.result(30)
    finally:
        process.kill()
        process.stdout.close()
    with SeqVault.open(path, read_only=True) as vault:
        stats = vault.stats()
        for source, offset in acknowledged.items():
            # the one under way may have arrived
            assert stats["sources"][source] in (offset, offset + 1)
        assert stats["events"] == 20 * sum(offset + 1 for offset in stats["sources"].values())
        vault.verify()


def test_metrics_are_prometheus_text(server):
    from seqvault.service.metrics import serve_metrics

    with seqvault.connect(f"localhost:{server.port}") as client:
        client.append(some_events())
    web = serve_metrics("127.0.0.1", 0, server.metrics_text)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{web.server_port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        web.shutdown()
        web.server_close()
    assert 'seqvault_calls_total{method="Append",status="OK"} 1\n' in text
    assert "seqvault_events 400\n" in text


def test_command_line_round_trip(tmp_path, capsys, monkeypatch):
    path = str(tmp_path / "vault")
    assert cli.main(["init", path, "--field", "item_id:int64", "--field", "action:int8"]) == 0
    line = json.dumps({"user_id": 3, "timestamp": NOW, "item_id": 5, "action": 1})
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{line}\n\n{line}\n"))
    assert cli.main(["append", path]) == 0
    assert cli.main(["merge", path, "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["get", path, "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "user_id": 3, "length": 2, "timestamp": [NOW, NOW], "item_id": [5, 5], "action": [1, 1],
    }  # fmt: skip
    assert cli.main(["get", path, "3", "--last-n", "1"]) == 0
    assert "2023-11-14 22:13:20.000" in capsys.readouterr().out
    assert cli.main(["verify", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == 2
    assert cli.main(["snapshot", path, str(tmp_path / "copy")]) == 0
    assert cli.main(["stats", str(tmp_path / "copy"), "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["warm-up", "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["stats", str(tmp_path / "nothing")]) == 2
    assert cli.main(["init", str(tmp_path / "x"), "--field", "a:text"]) == 2
    assert cli.main(["get", path, "3", "--before", "1700000000"]) == 2
    assert "multiply by 1000" in capsys.readouterr().err


def test_a_call_that_the_server_does_not_know_says_that_the_server_is_older(tmp_path, monkeypatch):
    known = StoreService.methods
    monkeypatch.setattr(
        StoreService,
        "methods",
        lambda service: {name: how for name, how in known(service).items() if name != "UserIds"},
    )
    older = Server(SeqVault.open(tmp_path / "vault", schema=SCHEMA), merge_seconds=0)
    try:
        with seqvault.connect(f"localhost:{older.port}") as client:
            with pytest.raises(errors.OlderServerError, match=r"UserIds.*older version.*Upgrade"):
                client.user_ids()
            assert client.stats()["users"] == 0
    finally:
        older.stop(0)
