"""The service: the client answers as the store does, and fails in typed ways."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pytest

import seqvault
from seqvault import Schema, SeqVault, cli, errors
from seqvault.service.server import Server, Tls

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
        for wrong in (
            {},
            {"key": read(stranger[0]), "certificate": read(stranger[1])},
        ):
            with pytest.raises(errors.ServerUnavailableError):
                seqvault.connect(target, **trust, **wrong)
        with pytest.raises(errors.ServerUnavailableError):
            seqvault.connect(target, timeout=2)
    finally:
        server.stop(0)


def test_health_answers_in_the_standard_way(server):
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=5) == b"\x08\x01"


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
