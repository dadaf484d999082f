"""Replication by an ordered log: librdkafka's own mock brokers, the real protocol, real clients."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

confluent_kafka = pytest.importorskip("confluent_kafka")

import seqvault  # noqa: E402
from seqvault import Schema, SeqVault, cli, errors  # noqa: E402
from seqvault.ingest import dead_letters as dead_letters_module  # noqa: E402
from seqvault.ingest import kafka_ingest  # noqa: E402
from seqvault.ingest.dead_letters import DeadLetters  # noqa: E402
from seqvault.ingest.kafka_ingest import KafkaIngest, source_of  # noqa: E402
from seqvault.service.server import Server  # noqa: E402
from seqvault.service.shards import shard_of  # noqa: E402
from seqvault.service.wire import table_to_bytes  # noqa: E402

SCHEMA = Schema.from_arrow(
    pa.schema([("item_id", pa.int64()), ("scenario", pa.int8()), ("score", pa.float32())])
)
NOW = 1_700_000_000_000
USERS = range(40)


PATIENCE = 240  # seconds that a process may take on a busy machine: no test is about them
# The mock brokers notice that a consumer has left only when its session ends; the first of a group
# they let wait for three seconds.
SHORT_SESSION = {"session.timeout.ms": "4000", "heartbeat.interval.ms": "500"}


class Cluster:
    """A producer that holds two mock brokers for everybody; topics have four partitions."""

    def __init__(self):
        config = {"bootstrap.servers": "none:1", "test.mock.num.brokers": 2, "linger.ms": 5}
        self.producer = confluent_kafka.Producer(config)
        found = self.producer.list_topics(timeout=10).brokers.values()
        self.brokers = ",".join(f"{broker.host}:{broker.port}" for broker in found)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    running = Cluster()
    config = tmp_path_factory.mktemp("kafka") / "short.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in SHORT_SESSION.items()))
    running.config = str(config)
    return running


def event(number):
    return {
        "user_id": number % len(USERS),
        "timestamp": NOW + number % 97,
        "item_id": number,
        "scenario": number % 3,
        "score": number / 2,
    }


def produce(cluster, topic, numbers):
    for number in numbers:
        one = event(number)
        cluster.producer.produce(topic, json.dumps(one).encode(), key=str(one["user_id"]).encode())
    assert cluster.producer.flush(PATIENCE) == 0


def check(store, numbers):
    """The store answers as a dict of sorted lists does."""
    expected = {user: [] for user in USERS}
    for number in numbers:
        one = event(number)
        expected[one["user_id"]].append((one["timestamp"], one["item_id"], one["score"]))
    batch = store.read(list(USERS), before=None, last_n=1 + max(map(len, expected.values())))
    for row, user in enumerate(USERS):
        newest_first = sorted(expected[user], key=lambda one: one[0])[::-1]
        count = batch.lengths[row]
        assert newest_first == [
            (int(batch["timestamp"][row, i]), int(batch["item_id"][row, i]),
             float(batch["score"][row, i]))
            for i in range(count)
        ]  # fmt: skip


def answers(path):
    """Bytes of every field of every user's whole history."""
    with SeqVault.open(path) as vault:
        batch = vault.read(list(USERS), before=None, last_n=4096)
        names = ["timestamp", *vault.schema.names]
        return [batch.lengths.tobytes(), *(batch[name].tobytes() for name in names)]


def merged_segments(path):
    """Names and bytes of the segment files after one merge of all that is in the log."""
    with SeqVault.open(path) as vault:
        assert vault.stats()["segments"] == 0  # no background merge came in between
        vault.merge()
    return {file.name: file.read_bytes() for file in (Path(path) / "segments").iterdir()}


def make(path):
    SeqVault.open(path, schema=SCHEMA).close()
    return str(path)


def arguments(cluster, topic, target):
    return ["ingest", target, "--kafka", cluster.brokers, "--topic", topic,
            "--kafka-config", cluster.config]  # fmt: skip


def ingest(cluster, topic, target, *more):
    return cli.main([*arguments(cluster, topic, target), "--once", *more])


def start(cluster, topic, target, *more):
    command = [sys.executable, "-m", "seqvault.cli", *arguments(cluster, topic, target)]
    command += ["--json", *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


def wait_for(condition, seconds=PATIENCE):
    """Waits longer and longer between two looks: some open a store, and the one waited for needs
    the processor."""
    end, pause = time.monotonic() + seconds, 0.02
    while not condition():
        assert time.monotonic() < end, "this does not happen"
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


@pytest.mark.timeout(4 * PATIENCE)
def test_a_kill_in_the_middle_a_restart_and_a_second_replica_end_with_the_same_bytes(
    cluster, tmp_path, capsys
):
    """Killed while it appends, ended by SIGTERM, run to the end: the same as run once."""
    numbers = range(6000)
    produce(cluster, "killed", numbers[:3000])
    broken, whole = make(tmp_path / "broken"), make(tmp_path / "whole")
    still = ("--merge-seconds", "0")  # merges at other times lay the same events out otherwise

    def stored():
        with SeqVault.open(broken, read_only=True) as vault:
            return vault.stats()["events"]

    for end in (signal.SIGKILL, signal.SIGTERM):
        before = stored()
        process = start(cluster, "killed", broken, *still)
        try:
            produced = 3000 if end == signal.SIGKILL else 4000
            produce(cluster, "killed", numbers[produced : produced + 1000])
            wait_for(lambda before=before: stored() > before)
            process.send_signal(end)
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
        if end == signal.SIGTERM:
            assert process.returncode == 0, err
            assert json.loads(out)["events"] == stored() - before
        assert before < stored() <= produced + 1000
    produce(cluster, "killed", numbers[5000:])
    assert ingest(cluster, "killed", broken, "--json", *still) == 0
    assert ingest(cluster, "killed", whole, "--json", *still) == 0
    capsys.readouterr()
    assert ingest(cluster, "killed", whole, "--json", *still) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["events"] == 0
    with SeqVault.open(broken) as one, SeqVault.open(whole) as other:
        check(one, numbers)
        assert one.stats()["sources"] == other.stats()["sources"]
        assert one.stats()["sources"].keys() <= {source_of("killed", p) for p in range(4)}
    assert answers(broken) == answers(whole)
    segments = merged_segments(broken)
    assert len(segments) == 1 and segments == merged_segments(whole)
    assert answers(broken) == answers(whole)


def test_two_processes_of_a_group_share_a_server_and_store_each_event_once(cluster, tmp_path):
    """The second joins while the first works, the first is killed, and nothing is there twice."""
    numbers = range(3000)
    server = Server(SeqVault.open(tmp_path / "vault", schema=SCHEMA), merge_seconds=0)
    target = f"localhost:{server.port}"
    letters = [str(tmp_path / name) for name in ("first", "second")]
    processes = []
    try:
        for place, file in enumerate(letters):
            processes.append(start(cluster, "shared", target, "--dead-letters", file))
            produce(cluster, "shared", numbers[1000 * place : 1000 * place + 1000])
            # the first has all partitions before the second comes
            wait_for(lambda most=500 * place: server.vault.stats()["events"] > most)
        processes[0].kill()
        produce(cluster, "shared", numbers[2000:])
        wait_for(lambda: server.vault.stats()["events"] >= 3000)
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(30) == 0
        check(server.vault, numbers)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        server.stop(0)


def consumer(cluster, topic, store, folder, **more):
    return KafkaIngest(
        store,
        cluster.brokers,
        topic,
        f"group-{folder.name}",
        DeadLetters(folder / "dead"),
        config=SHORT_SESSION,
        **more,
    )


def test_an_answer_that_was_lost_and_a_second_writer_change_nothing(cluster, tmp_path):
    """An append arrives and its answer does not; another one appends in between."""
    produce(cluster, "lossy", range(200))
    with Server(SeqVault.open(tmp_path / "vault", schema=SCHEMA), merge_seconds=0) as server:
        with seqvault.connect(f"localhost:{server.port}") as client:
            append, calls = client.append, []

            def lossy(columns, source, offset, after):
                calls.append(offset)
                if len(calls) == 1:  # somebody else stores the first part of the batch
                    half = len(columns["user_id"]) // 2
                    part = {name: values[:half] for name, values in columns.items()}
                    append(part, source, offset - (len(columns["user_id"]) - half))
                stored = append(columns, source, offset, after=after)
                if len(calls) in (2, 3):
                    raise errors.ServerUnavailableError("the answer was lost")
                return stored

            client.append = lossy
            run = consumer(cluster, "lossy", client, tmp_path)
            run.run(once=True)
            run.close()
            assert run.counts["retries"] == 2
        check(server.vault, range(200))


def test_malformed_messages_are_told_kept_and_passed(cluster, tmp_path, caplog):
    """Each has one line with its place, reason and content; the rest is stored."""
    good = event(1)
    malformed = {
        b"not json": "is not JSON",
        b"[1, 2]": "not a JSON object",
        json.dumps({**good, "item_id": 2.5}).encode(): "whole number",
        json.dumps({**good, "item_id": 2**70}).encode(): "field 'item_id' has values",
        json.dumps({**good, "item_id": True}).encode(): "whole number",
        json.dumps({**good, "scenario": 300}).encode(): "int8",
        json.dumps({**good, "surprise": 1}).encode(): "surprise",
        json.dumps({**good, "timestamp": NOW // 1000}).encode(): "multiply by 1000",
        json.dumps({"user_id": 1, "timestamp": NOW}).encode(): "item_id",
        b"\xff\xff\xff\xff\x08\x00\x00\x00nonsense": "Arrow",
        b"": "empty",
    }
    for value in malformed:
        cluster.producer.produce("dirty", value, key=b"k", partition=2)
        produce(cluster, "dirty", range(3))
    cluster.producer.produce("dirty", None, key=b"deleted", partition=2)
    arrow = pa.table({name: [event(n)[name] for n in (7, 8)] for name in event(0)})
    cluster.producer.produce("dirty", table_to_bytes(arrow), partition=2)
    lines = "\n".join(json.dumps({k: v for k, v in event(n).items() if k != "score"}) for n in (9,))
    cluster.producer.produce("dirty", lines.encode(), partition=2)
    assert cluster.producer.flush(10) == 0
    for _ in range(2):  # the second time there is nothing new
        with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
            run = consumer(cluster, "dirty", vault, tmp_path)
            with caplog.at_level("WARNING", "seqvault.ingest"):
                run.run(once=True)
            text = run.metrics_text()
            run.close()
            run._dead.close()
            assert vault.stats()["events"] == 3 * len(malformed) + 3
            scores = vault.read([9], before=None, last_n=1)["score"]
            assert scores.tolist() == [[0.0]]  # the field without a role was left out
    assert "seqvault_ingest_messages_total 0\n" in text
    assert 'seqvault_ingest_lag{topic="dirty",partition="2"} 0\n' in text
    entries = [json.loads(line) for line in (tmp_path / "dead").read_text().splitlines()]
    assert len(entries) == len(malformed) + 1
    for entry, (value, reason) in zip(entries, malformed.items(), strict=False):
        assert (entry["topic"], entry["partition"]) == ("dirty", 2)
        assert reason in entry["reason"], entry
        assert base64.b64decode(entry["value"]) == value
        assert base64.b64decode(entry["key"]) == b"k"
    assert entries[-1]["value"] is None
    assert [entry["offset"] for entry in entries] == sorted({e["offset"] for e in entries})
    warnings = [record for record in caplog.records if "malformed" in record.message]
    assert 1 <= len(warnings) < len(entries)  # one line a second at most


def test_dead_letters_are_bounded_each_once_and_go_on_after_a_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(dead_letters_module, "KEPT_PER_MINUTE", 2)
    now = [0.0]
    path = tmp_path / "dead"
    letters = DeadLetters(path, clock=lambda: now[0])
    for offset in range(4):
        assert letters.add("t", 0, offset, "why", None, b"v")
    now[0] = 61.0
    assert letters.add("t", 0, 4, "why", None, b"v")
    with pytest.raises(errors.InvalidRequestError, match="in use"):
        DeadLetters(path)
    letters.close()
    with path.open("a") as file:
        file.write('{"torn')
    letters = DeadLetters(path)
    assert not letters.add("t", 0, 4, "why", None, b"v")
    assert letters.add("t", 1, 0, "why", None, b"v")
    letters.close()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry.get("omitted", False) for entry in entries] == [False] * 2 + [True] * 2 + [
        False, False,
    ]  # fmt: skip
    (tmp_path / "other").write_text("something\n")
    with pytest.raises(errors.InvalidRequestError, match="is not a dead-letter file"):
        DeadLetters(tmp_path / "other")


def test_a_shard_takes_its_users_alone(cluster, tmp_path):
    produce(cluster, "sharded", range(100))
    path = make(tmp_path / "vault")
    assert ingest(cluster, "sharded", path, "--shard", "1/2") == 0
    mine = [n for n in range(100) if shard_of(np.array([event(n)["user_id"]]), 2)[0] == 1]
    with SeqVault.open(path) as vault:
        check(vault, mine)
        assert 0 < len(mine) < 100


def test_a_log_that_does_not_fit_the_store_is_refused(cluster, tmp_path):
    """A store that is ahead of the log must not go on as if nothing were."""
    produce(cluster, "anew", range(10))
    with SeqVault.open(tmp_path / "vault", schema=SCHEMA) as vault:
        one = {name: [value] for name, value in event(0).items()}
        vault.append(one, source=source_of("anew", 0), offset=999)
        run = consumer(cluster, "anew", vault, tmp_path)
        with pytest.raises(errors.LogGapError, match="was recreated"):
            run.run(once=True)
        run.close()


def test_dead_brokers_unknown_topics_and_wrong_targets_are_told(
    cluster, tmp_path, capsys, monkeypatch
):
    path = make(tmp_path / "vault")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kafka_ingest, "BROKER_SECONDS", 2)
    produce(cluster, "known", range(1))
    assert ingest(cluster, "unknown", path) == 2
    assert "no topic 'unknown'" in capsys.readouterr().err
    assert cli.main(["ingest", path, "--kafka", "localhost:1", "--topic", "t"]) == 4
    assert "no Kafka broker at localhost:1" in capsys.readouterr().err
    assert ingest(cluster, "known", "localhost:1", "--timeout", "2") == 4
    assert "cannot be reached" in capsys.readouterr().err
    (tmp_path / "wrong.properties").write_text("# comment\nnonsense\n")
    with_config = ["--kafka-config", "wrong.properties"]
    assert ingest(cluster, "known", path, *with_config) == 2
    assert "line 2" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    assert ingest(cluster, "known", path) == 2
    assert "pip install 'laser-ranking[kafka]'" in capsys.readouterr().err
