"""Calls that may take long say how far they are, from a server as from a directory."""

import re

import grpc
import numpy as np
import pyarrow as pa
import pytest

import seqvault
from seqvault import Schema, SeqVault, cli, errors
from seqvault.cli import progress as shown_progress
from seqvault.service import seqvault_pb2 as pb
from seqvault.service.server import Server
from seqvault.service.wire import NAME

SCHEMA = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
EVENTS = {
    "user_id": np.arange(400) % 9,
    "timestamp": 1_700_000_000_000 + np.arange(400),
    "item_id": np.arange(400),
}


def serve(path):
    """A server of a store with 400 events in its segments and 400 in its log."""
    vault = SeqVault.open(path, schema=SCHEMA)
    vault.append(EVENTS)
    vault.merge()
    vault.append({**EVENTS, "timestamp": EVENTS["timestamp"] + 1000})
    return Server(vault, merge_seconds=0, snapshots=str(path.parent))


@pytest.fixture
def server(tmp_path):
    with serve(tmp_path / "vault") as running:
        yield running


def collected(call):
    told = []
    answer = call(lambda unit, done, total: told.append((unit, done, total)))
    return answer, told


def test_a_server_tells_what_the_store_tells(server, tmp_path):
    with (
        SeqVault.open(tmp_path / "twin", schema=SCHEMA) as twin,
        seqvault.connect(f"localhost:{server.port}") as client,
    ):
        twin.append(EVENTS)
        twin.merge()
        twin.append({**EVENTS, "timestamp": EVENTS["timestamp"] + 1000})
        for method in ("merge", "verify"):
            there, remotely = collected(lambda p, m=method: getattr(client, m)(progress=p))
            here, locally = collected(lambda p, m=method: getattr(twin, m)(progress=p))
            assert remotely and remotely[-1] == locally[-1]  # between, few enough to send
            assert there == here
            assert set(remotely) <= set(locally)
        _, told = collected(lambda p: client.snapshot(tmp_path / "copy", p))
        unit, done, total = told[-1]
        assert unit == "bytes" and done == total > 0
        with SeqVault.open(tmp_path / "copy", read_only=True) as copy:
            assert copy.stats()["events"] == 800


def test_shards_tell_of_all_together(tmp_path):
    with serve(tmp_path / "one") as one, serve(tmp_path / "two") as two:
        address = f"localhost:{one.port},localhost:{two.port}"
        with seqvault.connect(address) as shards:
            answer, told = collected(lambda p: shards.merge(p))
            assert told[-1] == ("events", 1600, 1600) and answer["events"] == 1600


def test_what_the_work_raises_arrives_with_its_type(server, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with (
        seqvault.connect(f"localhost:{server.port}") as client,
        pytest.raises(errors.InvalidRequestError, match="taken"),
    ):
        collected(lambda p: client.snapshot(tmp_path / "taken", p))


def test_what_the_progress_raises_ends_the_waiting_alone(server):
    def refuse(*told):
        raise RuntimeError("enough")

    with seqvault.connect(f"localhost:{server.port}") as client:
        with pytest.raises(RuntimeError, match="enough"):
            client.merge(refuse)
        client.merge()
        assert client.stats()["events"] == 800 and client.stats()["events_in_log"] == 0


def test_clients_and_servers_from_before_there_was_progress_are_understood(server):
    with grpc.insecure_channel(f"localhost:{server.port}") as channel:
        call = channel.unary_unary(
            f"/{NAME}/Verify",
            request_serializer=pb.VerifyRequest.SerializeToString,
            response_deserializer=pb.JsonReply.FromString,
        )
        assert '"events": 400' in call(pb.VerifyRequest(), timeout=30).json
    reply = pb.JsonReply(json="{}").SerializeToString()
    assert pb.WorkReply.FromString(reply) == pb.WorkReply(json="{}")


@pytest.mark.parametrize("command", ["verify", "merge", "snapshot"])
def test_a_command_shows_it(server, tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(shown_progress, "LINE_SECONDS", 0.0)
    target = [str(tmp_path / "copy")] if command == "snapshot" else []
    assert cli.main([command, f"localhost:{server.port}", *target]) == 0
    *_, last = capsys.readouterr().err.splitlines()
    done, total = re.fullmatch(rf"seqvault {command}: ([\d,]+) of ([\d,]+) \w+", last).groups()
    assert done == total
