"""The gateway under load and under callers who mean harm, and what it tells of what it was sent."""

import gzip
import json
import logging
import socket
import threading
import time
from http.client import HTTPConnection

import numpy as np
import pytest
from serving_helpers import T0, make_store, run_gateway, wait_for

from laser_features import FeatureSpec, RequestError, parse_rank_request
from laser_features.testing import tiny_content
from seqvault.errors import SeqVaultError
from seqvault.service.client import SeqVaultClient
from serving.gateway.events import parse_events
from serving.gateway.item_rules import ItemRules
from serving.gateway.ranker import Ranker
from serving.gateway.store import open_store
from serving.runtime.call import Call
from serving.runtime.errors import AbandonedError, DeadlinePassedError


class SlowModel:
    """Scores all alike, after a while; counts what it began and what ended with an answer."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.begun = 0
        self.stopped = 0
        self.versions = [1]

    def predict(self, inputs, output, call):
        call.check("the model was asked")
        self.begun += 1
        gone = threading.Event()
        with call.stopped_by(gone.set):
            if gone.wait(self.seconds):
                self.stopped += 1
                raise AbandonedError("gone")
        return 1, np.zeros(inputs["candidate_item_id"].shape, np.float32)

    def available_versions(self, timeout_seconds):
        return self.versions

    def close(self):
        pass


class Flaky:
    """A store that can be told to be down."""

    def __init__(self, store):
        self.store = store
        self.down = False
        self.reads = 0

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.reads += name == "read"
            if self.down:
                raise SeqVaultError("the store is down")
            return getattr(self.store, name)(*arguments, **named)

        return call


@pytest.fixture(scope="module")
def store(tmp_path_factory, spec):
    # With its kernels compiled, or the first request would wait for them.
    vault = open_store(str(make_store(tmp_path_factory.mktemp("limits") / "vault", spec)))
    vault.append({"user_id": [1], "timestamp": [T0], "item_id": [8], "scenario": [1]})
    yield vault
    vault.close()


@pytest.fixture
def serve(spec, store):
    """``serve(model, store, **rules)`` -> the client of a gateway."""
    running = []

    def serve(model=None, own_store=None, **rules):
        gateway = run_gateway(spec, own_store or store, model or SlowModel(), **rules)
        running.append(gateway)
        return next(gateway)

    yield serve
    for gateway in running:
        assert next(gateway, None) is None


def send(port, head, body=b"", seconds=10.0):
    """Raw bytes in, raw bytes out until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(head + body)
        received = b""
        while piece := connection.recv(65536):
            received += piece
            if b"\r\n\r\n" in received and b"}" in received:
                break
    return received


HEAD = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


# The caller's faults


def test_a_body_that_is_no_gzip(serve, caplog):
    client = serve()
    with caplog.at_level(logging.WARNING):
        for body in (b"xxxx", gzip.compress(b'{"user_id": 1}')[:-6]):
            status, answer = client.call("POST", "/v1/rank", body, {"Content-Encoding": "gzip"})
            assert status == 400
            assert "not gzip" in answer["error"]
    assert not caplog.records
    body = gzip.compress(json.dumps({"user_id": 1, "candidates": [3]}).encode())
    assert client.call("POST", "/v1/rank", body, {"Content-Encoding": "gzip"})[0] == 200


def test_gzip_bombs_and_json_bombs(serve):
    client = serve(request_bytes=2**20)
    bomb = gzip.compress(b"[" * 50_000_000)
    status, answer = client.call("POST", "/v1/rank", bomb, {"Content-Encoding": "gzip"})
    assert status == 413 and str(2**20) in answer["error"]
    status, answer = client.call("POST", "/v1/rank", b"[" + b"[]," * 50_000 + b"[]]")
    assert status == 413 and "the parsed JSON" in answer["error"]
    assert client.call("POST", "/v1/rank", b"[" * 5000)[0] == 400


def test_each_route_has_a_size(serve):
    client = serve(rank_bytes=1000, event_bytes=2000)
    for path, limit in (("/v1/rank", 1000), ("/v1/events", 2000)):
        status, answer = client.call("POST", path, b"x" * (limit + 1))
        assert status == 413
        assert str(limit) in answer["error"]
    # One that does not say how long it is, is cut off, too.
    connection = HTTPConnection("127.0.0.1", client.port, timeout=10)
    pieces = (b"x" * 100 for _ in range(50))
    connection.request("POST", "/v1/rank", pieces, encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().status == 413
    connection.close()


def test_half_a_body_then_silence(serve, caplog):
    client = serve(body_seconds=0.3)
    with caplog.at_level(logging.WARNING):
        received = send(client.port, HEAD % 100, b'{"user_id"')
        assert received.startswith(b"HTTP/1.1 408 ")
        assert b'{"error":"the body did not arrive' in received
        # And half a body, then gone.
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", client.port)) as connection:
                connection.sendall(HEAD % 100 + b"{")
        wait_for(lambda: client.http.connections == 0, 5)
    assert not caplog.records


def test_clients_that_never_finish_their_headers_are_dropped(serve):
    client = serve(body_seconds=0.3)
    sockets = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(50)]
    for number, connection in enumerate(sockets):
        connection.sendall(b"POST /v1/rank HTTP/1.1\r\nHos"[:number])
    wait_for(lambda: client.http.connections == 0, 10)
    for connection in sockets:
        connection.close()
    assert client.rank(user_id=1, candidates=[3])[0] == 200


def test_protocol_errors_are_json(serve, caplog):
    client = serve()
    with caplog.at_level(logging.WARNING):
        for head in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
            received = send(client.port, head)
            assert b" 400 Bad Request" in received.splitlines()[0]
            assert json.loads(received.split(b"\r\n\r\n", 1)[1])["error"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"candidates": [1, -3]}, "candidates[1] is -3"),
        ({"candidates": [-1]}, "-1 means missing"),
        ({"candidates": [-(2**63)]}, "candidates[0]"),
        ({"candidates": list(range(11))}, "at most 10"),
        ({"time_ms": 95_617_584_000_000}, "days from now"),
        ({"time_ms": int(time.time() * 1000) + 3_600_000}, "at most 300 s ahead"),
    ],
)
def test_rules_for_rank_requests(serve, change, named):
    status, answer = serve(max_candidates=10).rank(**{"user_id": 1, "candidates": [1], **change})
    assert status == 400
    assert named in answer["error"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"item_id": -3}, "events[0].item_id is -3"),
        ({"item_id": -1}, "-1 means missing"),
        ({"timestamp": int(time.time() * 1000) + 365 * 86_400_000}, "365.0 days from now"),
    ],
)
def test_rules_for_events(serve, change, named):
    client = serve(max_events=3)
    event = {"user_id": 50, "timestamp": T0, "item_id": 3}
    status, answer = client.append({**event, **change})
    assert status == 400
    assert named in answer["error"]
    status, answer = client.append(*[event] * 4)
    assert status == 400 and "at most 3" in answer["error"]
    assert client.rank(user_id=50, candidates=[3])[1]["history_length"] == 0


def test_numbers_beyond_a_fields_type_are_refused():
    """They would become infinite."""
    number, table = {"type": "float32"}, {"type": "int64", "table": "item"}
    content = tiny_content(
        event={"item_id": table, "weight": number}, item={}, label={"click": {"type": "int8"}},
        context={"price": {**number, "table": "item", "boundaries": [1.0]}}, candidate={},
    )  # fmt: skip
    spec = FeatureSpec.from_dict(content)
    event = {"user_id": 1, "timestamp": T0, "item_id": 1}
    request = {"user_id": 1, "candidates": [1]}
    with pytest.raises(RequestError, match=r"events\[0\].weight is -1e\+300; float32 holds"):
        parse_events(spec, {"events": [{**event, "weight": -1e300}]})
    with pytest.raises(RequestError, match=r"price is 1e\+300; float32 holds up to 3.4"):
        parse_rank_request(spec, {**request, "context": {"price": 1e300}})


def test_unknown_candidates_are_told_or_refused(serve):
    # 19 is the last item of the store, 98 the last with a row in the item table.
    request = {"user_id": 1, "candidates": [3, 42, 10**15]}
    client = serve()
    status, answer = client.rank(**request)
    assert (status, answer["unknown_candidates"]) == (200, [42, 10**15])
    assert len(answer["ranked"]) == 3
    assert answer["outside_ids"] == {"candidate_item_id": 1}
    assert "laser_gateway_unknown_candidates_total 2.0" in metrics(client)
    answer = client.rank(user_id=1, candidates=[3, 19])[1]
    assert "unknown_candidates" not in answer and "outside_ids" not in answer
    status, answer = serve(refuse_unknown=True).rank(**request)
    assert status == 400
    assert "2 candidates are not known" in answer["error"] and "42" in answer["error"]


def test_ids_outside_their_table_are_told_and_counted_by_input(serve):
    """In events, which are stored, in histories, and in what a request says of itself."""
    client = serve()
    event = {"user_id": 51, "timestamp": T0, "item_id": 10**15, "scenario": 7}
    # Of 8 rows the first means missing: 7 has none.
    assert client.append(event, {**event, "item_id": 98, "scenario": 6}) == (
        200,
        {"appended": 2, "outside_ids": {"item_id": 1, "scenario": 1}},
    )
    candidates = [{"item_id": 3, "position": 19}, {"item_id": 4, "position": -5}]
    answer = client.rank(user_id=51, candidates=candidates, context={"scenario": -2})[1]
    assert answer["history_length"] == 2
    told = {
        "history_item_id": 1,
        "history_scenario": 1,
        "candidate_position": 2,
        "context_scenario": 1,
    }
    assert answer["outside_ids"] == told
    text = metrics(client)
    assert 'laser_gateway_outside_ids_total{input="item_id",where="events"} 1.0' in text
    for name, number in told.items():
        assert f'laser_gateway_outside_ids_total{{input="{name}",where="rank"}} {number}.0' in text


def test_hashed_tables_take_every_id_but_the_missing_one(spec):
    from laser_features import FeatureSpec

    content = spec.to_dict()
    content["tables"]["item"] = {"rows": 100, "width": 4, "ids": "hash"}
    rules = ItemRules(FeatureSpec.from_dict(content), 300.0)
    ids = np.array([-3, 10**15, -(2**63)])
    rules.check_ids(ids, "candidates[{}]")
    assert not rules.beyond_table(ids).any()
    with pytest.raises(ValueError, match=r"candidates\[1\] is -1"):
        rules.check_ids(np.array([3, -1]), "candidates[{}]")


# Load


def test_overload_leaves_no_work_behind(serve):
    """Once 64 impatient clients are gone nothing is worked on for them.

    What they get is for ``test_many_impatient_callers_get_what_a_few_get``, where time is
    simulated, and for the benchmark to say: here clients and server share an interpreter.
    """
    model = SlowModel(0.02)
    client = serve(model, deadline_seconds=1.0, threads=4)
    storm(client.port, clients=64, seconds=1.5, patience=0.3)
    wait_for(lambda: "laser_gateway_running_requests 0.0" in metrics(client), 2)
    assert "laser_gateway_waiting_requests 0.0" in metrics(client)
    begun = model.begun
    assert client.rank(user_id=1, candidates=[3])[0] == 200
    assert model.begun == begun + 1


def storm(port, clients, seconds, patience):
    """Clients who hang up after their patience and ask again."""
    body = json.dumps({"user_id": 1, "candidates": [3]})
    end = time.monotonic() + seconds

    def ask():
        connection = HTTPConnection("127.0.0.1", port, timeout=patience)
        while time.monotonic() < end:
            started = time.monotonic()
            try:
                connection.request("POST", "/v1/rank", body)
                response = connection.getresponse()
                response.read()
            except OSError:
                connection.close()
            else:
                if response.status == 503:
                    time.sleep(max(0.0, patience - (time.monotonic() - started)))
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_refusals_say_when_to_come_again(serve):
    client = serve(SlowModel(0.5), threads=1, waiting=1, deadline_seconds=5.0)
    answers = []

    def ask():
        connection = HTTPConnection("127.0.0.1", client.port, timeout=10)
        connection.request("POST", "/v1/rank", '{"user_id": 1, "candidates": [3]}')
        response = connection.getresponse()
        answers.append((response.status, response.getheader("Retry-After"), response.read()))
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    refused = [(after, body) for status, after, body in answers if status == 503]
    assert len(refused) == 4
    assert all(int(after) >= 1 and b"rank is overloaded" in body for after, body in refused)


def test_a_client_that_hangs_up_stops_its_work(serve):
    model = SlowModel(10.0)
    client = serve(model, threads=1)
    body = b'{"user_id": 1, "candidates": [3]}'
    first = socket.create_connection(("127.0.0.1", client.port))
    first.sendall(HEAD % len(body) + body)
    wait_for(lambda: model.begun == 1)
    second = socket.create_connection(("127.0.0.1", client.port))
    second.sendall(HEAD % len(body) + body)
    wait_for(lambda: "laser_gateway_waiting_requests 1.0" in metrics(client))
    second.close()
    first.close()
    wait_for(lambda: model.stopped == 1)
    wait_for(lambda: "laser_gateway_running_requests 0.0" in metrics(client))
    assert model.begun == 1
    assert 'laser_gateway_refused_requests_total{reason="abandoned"} 2.0' in metrics(client)


def test_the_deadline_counts_from_the_first_byte_and_holds(serve):
    client = serve(SlowModel(10.0), threads=1, deadline_seconds=0.5)
    started = time.monotonic()
    assert client.rank(user_id=1, candidates=[3])[0] == 504
    assert 0.4 < time.monotonic() - started < 2.0
    # The time that a body takes is part of it.
    with socket.create_connection(("127.0.0.1", client.port), timeout=5) as connection:
        started = time.monotonic()
        body = b'{"user_id": 1, "candidates": [3]}'
        connection.sendall(HEAD % len(body) + body[:5])
        time.sleep(0.3)
        connection.sendall(body[5:])
        assert connection.recv(1000).startswith(b"HTTP/1.1 504 ")
        assert time.monotonic() - started < 0.75


def test_a_slow_store_is_not_asked_again_when_the_time_is_over(spec, store):
    class Slow:
        def read(self, *arguments, **more):
            time.sleep(0.05)
            return store.read(*arguments, **more)

        def read_items(self, *arguments, **more):
            raise AssertionError("nobody waits for these items any more")

    with pytest.raises(DeadlinePassedError, match="before the items were read"):
        Ranker(spec, Slow(), SlowModel()).rank({"user_id": 1, "candidates": [3]}, Call(0.02))


def test_a_server_of_the_store_gets_the_time_that_is_left(spec, store):
    class Client(SeqVaultClient):
        def __init__(self):
            self.told = []

        def read(self, *arguments, timeout, **more):
            self.told.append(timeout)
            time.sleep(0.05)
            return store.read(*arguments, **more)

        def read_items(self, *arguments, timeout, **more):
            self.told.append(timeout)
            return store.read_items(*arguments, **more)

    client = Client()
    Ranker(spec, client, SlowModel()).rank({"user_id": 1, "candidates": [3]}, Call(9.0))
    history, items = client.told
    assert 0 < items < history - 0.04 < 9.0


def test_health_waits_in_no_queue(serve):
    client = serve(SlowModel(0.8), threads=1)
    wait_for(lambda: client.call("GET", "/readyz")[0] == 200)
    threads = [
        threading.Thread(target=client.rank, kwargs={"user_id": 1, "candidates": [3]})
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    for path in ("/livez", "/readyz", "/metrics"):
        started = time.monotonic()
        assert client.call("GET", path)[0] == 200
        assert time.monotonic() - started < 0.7  # one request takes longer
    for thread in threads:
        thread.join()


# Dependencies


def test_ready_means_that_store_and_model_answer(serve, store):
    model, flaky = SlowModel(), Flaky(store)
    client = serve(model, flaky)
    wait_for(lambda: client.call("GET", "/readyz")[0] == 200)
    flaky.down = True
    wait_for(lambda: client.call("GET", "/readyz")[0] == 503)
    assert "the store is down" in client.call("GET", "/readyz")[1]["error"]
    flaky.down, model.versions = False, []
    wait_for(lambda: "no version" in str(client.call("GET", "/readyz")[1]))
    model.versions = [2]
    wait_for(
        lambda: client.call("GET", "/readyz") == (200, {"status": "ok", "model_versions": [2]})
    )
    client.gateway.drain()
    assert client.call("GET", "/readyz")[0] == 503
    assert client.call("GET", "/livez")[0] == 200
    assert client.rank(user_id=1, candidates=[3])[0] == 200


def test_without_the_store_an_answer_says_what_it_lacks(serve, store):
    flaky = Flaky(store)
    client = serve(own_store=flaky, degrade_history=True)
    request = {"user_id": 1, "candidates": [8, 3]}
    status, answer = client.rank(**request)
    assert (status, answer["history_length"], "degraded" in answer) == (200, 1, False)
    flaky.down = True
    status, answer = client.rank(**request)
    assert (status, answer["history_length"], answer["degraded"]) == (200, 0, ["history"])
    assert [entry["item_id"] for entry in answer["ranked"]] == [8, 3]
    assert "unknown_candidates" not in answer
    # Once it is known to be down, only the probe asks it; requests do not wait for it.
    wait_for(lambda: client.call("GET", "/readyz")[1].get("degraded") == ["history"])
    reads = flaky.reads
    assert client.rank(**request)[0] == 200
    assert flaky.reads - reads <= 1
    assert client.append({"user_id": 1, "timestamp": T0, "item_id": 3})[0] == 503
    assert 'laser_gateway_degraded_answers_total{without="history"} 2.0' in metrics(client)
    flaky.down = False
    wait_for(lambda: "degraded" not in client.call("GET", "/readyz")[1])
    status, answer = client.rank(**request)
    assert (status, answer["history_length"], "degraded" in answer) == (200, 1, False)


def test_without_leave_a_store_that_is_down_is_an_error(serve, store):
    flaky = Flaky(store)
    flaky.down = True
    status, answer = serve(own_store=flaky).rank(user_id=1, candidates=[3])
    assert status == 503 and "the store is down" in answer["error"]


def test_merges_that_keep_failing_are_told(serve):
    class Merge:
        healthy, failing_seconds, failures = False, 75.4, 9

    client = serve(merge=Merge())
    wait_for(lambda: client.call("GET", "/readyz")[0] == 200)
    status, answer = client.call("GET", "/healthz")
    assert status == 503 and "merges have failed for 75 s" in answer["error"]
    assert "laser_gateway_merge_failures_total 9.0" in metrics(client)
    Merge.healthy = True
    assert client.call("GET", "/healthz")[0] == 200


# Metrics


def metrics(client) -> str:
    status, text = client.call("GET", "/metrics")
    assert status == 200
    return text


def test_metrics_keep_to_the_conventions(serve):
    """What ``promtool check metrics`` asks: help, base units, counters that end in _total."""
    client = serve()
    client.rank(user_id=1, candidates=[3])
    families, helps = {}, set()
    for line in metrics(client).splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            families[name] = kind
        elif line.startswith("# HELP "):
            helps.add(line.split()[2])
            assert len(line.split()) > 3
    assert helps == set(families)
    for name, kind in families.items():
        assert name.startswith("laser_gateway_")
        assert not name.endswith(("_ms", "_milliseconds", "_created"))
        assert (kind == "counter") == name.endswith("_total")
    assert families["laser_gateway_rank_latency_seconds"] == "histogram"


# Stopping


def test_draining_ends_no_request_and_no_kept_connection(serve):
    """Clients that keep their connections see answers only, each the last of its connection."""
    client = serve(SlowModel(0.05), threads=4)
    stop, errors, closed = threading.Event(), [], []

    def ask():
        connection = HTTPConnection("127.0.0.1", client.port, timeout=10)
        while not stop.is_set():
            try:
                connection.request("POST", "/v1/rank", '{"user_id": 1, "candidates": [3]}')
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    errors.append(response.status)
                if response.getheader("Connection") == "close":
                    closed.append(1)
                    return  # to another gateway
            except OSError as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    client.gateway.drain()
    client.http.close_after_answers()
    time.sleep(0.3)
    client.loop.run(client.http.stop(5.0))
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(closed) == 8
