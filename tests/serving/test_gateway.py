"""The gateway with a real store and a real model server."""

import numpy as np
import pytest
from serving_helpers import T0, make_store, run_gateway, wait_for
from tensorflow_serving.apis import predict_pb2

from laser_features import RequestBatch, build_model_inputs
from seqvault import SeqVault
from seqvault.merge.background_merge import BackgroundMerge
from seqvault.service.server import Server
from serving.gateway.errors import GatewayError
from serving.gateway.predict_messages import PredictRequest, add_tensor
from serving.gateway.ranker import Ranker, _check_scores
from serving.gateway.store import check_store, open_store
from serving.model_server.limits import Limits
from serving.model_server.model_server import ModelServer, ServerOptions
from serving.model_server.tensors import to_array
from serving.model_server.versions import ModelConfig
from serving.runtime.call import Call


@pytest.fixture(scope="module")
def ranker_server(ranker_model):
    server = ModelServer(
        [ModelConfig("ranker", ranker_model)],
        ServerOptions(
            grpc_port=0, limits=Limits(threads=2), intra_op_threads=1, inter_op_threads=1
        ),
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def store(store_path, spec):
    vault = SeqVault.open(str(store_path))
    check_store(vault, spec, str(store_path))
    yield vault
    vault.close()


@pytest.fixture(scope="module")
def client(spec, store, ranker_server):
    yield from run_gateway(spec, store, ranker_server.grpc_address)


def test_appended_event_changes_the_very_next_answer(client):
    request = {"user_id": 1, "candidates": [3, 5, 8], "time_ms": T0 + 100}
    status, before = client.rank(**request)
    assert status == 200
    assert [entry["item_id"] for entry in before["ranked"]] == [3, 5, 8]  # ties keep their order
    assert before["history_length"] == 0

    assert client.append({"user_id": 1, "timestamp": T0, "item_id": 8, "scenario": 1}) == (
        200,
        {"appended": 1},
    )
    status, after = client.rank(**request)
    assert status == 200
    assert [entry["item_id"] for entry in after["ranked"]] == [8, 3, 5]
    assert after["history_length"] == 1
    assert after["model_version"] == 7
    # sigmoid(1 match - 1) and sigmoid(-1); the absent position is missing: row 0.
    scores = [entry["score"] for entry in after["ranked"]]
    assert scores == pytest.approx([0.5, 0.2689414, 0.2689414], abs=1e-6)


def test_events_at_and_after_the_request_time_change_nothing(client):
    request = {"user_id": 2, "candidates": [3, 5], "time_ms": T0}
    _, before = client.rank(**request)
    client.append(
        {"user_id": 2, "timestamp": T0, "item_id": 5},
        {"user_id": 2, "timestamp": T0 + 1, "item_id": 5},
    )
    _, after = client.rank(**request)
    assert before["ranked"] == after["ranked"]
    _, later = client.rank(**{**request, "time_ms": T0 + 1})
    assert later["history_length"] == 1


def test_latency_is_split(client):
    _, answer = client.rank(user_id=1, candidates=[1])
    latency = answer["latency"]
    parts = latency["store_ms"] + latency["features_ms"] + latency["model_ms"]
    assert 0 < parts <= latency["total_ms"] + 0.01
    assert min(latency.values()) >= 0


def test_top_k_and_candidate_fields(client):
    candidates = [{"item_id": item, "position": item} for item in (1, 2, 3)]
    status, answer = client.rank(user_id=9, candidates=candidates, top_k=2)
    assert status == 200
    assert [entry["item_id"] for entry in answer["ranked"]] == [3, 2]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": "7"}, "user_id"),
        ({"candidates": []}, "candidates"),
        ({"candidates": [1, "x"]}, "candidates[1]"),
        ({"candidates": [{"item_id": 1, "colour": 2}]}, "colour"),
        ({"context": {"weather": 1}}, "weather"),
        ({"context": {"scenario": 1000}}, "context.scenario"),
        ({"time_ms": T0 // 1000}, "seconds"),
        ({"top_k": 0}, "top_k"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_wrong_rank_request_names_the_field(client, change, named):
    status, answer = client.rank(**{"user_id": 1, "candidates": [1], **change})
    assert status == 400
    assert named in answer["error"]


@pytest.mark.parametrize(
    ("event", "named"),
    [
        ({"user_id": 1, "timestamp": T0}, "events[0].item_id"),
        ({"user_id": 1, "item_id": 3}, "events[0].timestamp"),
        ({"user_id": 1, "timestamp": T0, "item_id": "a"}, "events[0].item_id"),
        ({"user_id": 1, "timestamp": T0 // 1000, "item_id": 3}, "seconds"),
        ({"user_id": 1, "timestamp": T0, "item_id": 3, "scenario": 300}, "events[0].scenario"),
        ({"user_id": 1, "timestamp": T0, "item_id": 3, "play": 1}, "play"),
    ],
)
def test_wrong_event_names_the_field(client, event, named):
    status, answer = client.append(event)
    assert status == 400
    assert named in answer["error"]


def test_a_wrong_event_stores_none_of_its_call(client):
    good = {"user_id": 77, "timestamp": T0, "item_id": 3}
    assert client.append(good, {**good, "item_id": None})[0] == 400
    assert client.rank(user_id=77, candidates=[1])[1]["history_length"] == 0


def test_body_that_is_no_json(client):
    for path in ("/v1/rank", "/v1/events"):
        status, answer = client.call("POST", path, b'{"user_id": NaN}')
        assert status == 400
        assert "JSON" in answer["error"]


def test_unknown_paths_and_methods_answer_json(client):
    assert client.call("GET", "/v2")[0] == 404
    status, answer = client.call("GET", "/v1/rank")
    assert status == 405
    assert "error" in answer


def test_health_and_metrics(client):
    wait_for(lambda: client.call("GET", "/readyz")[0] == 200)
    for path in ("/readyz", "/healthz"):
        assert client.call("GET", path) == (200, {"status": "ok", "model_versions": [7]})
    assert client.call("GET", "/livez") == (200, {"status": "ok"})
    client.rank(user_id=1, candidates=[1])
    status, text = client.call("GET", "/metrics")
    assert status == 200
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    ranked = float(lines['laser_gateway_requests_total{path="/v1/rank",status="200"}'])
    assert ranked == float(lines['laser_gateway_rank_latency_seconds_count{stage="total"}']) > 0
    assert float(lines["laser_gateway_events_appended_total"]) > 0
    assert (lines["laser_gateway_store_up"], lines["laser_gateway_model_up"]) == ("1.0", "1.0")


def test_model_server_that_is_down(spec, store):
    gateway = run_gateway(spec, store, "127.0.0.1:1")
    client = next(gateway)
    status, answer = client.rank(user_id=1, candidates=[1])
    assert status == 503
    assert "127.0.0.1:1" in answer["error"]
    wait_for(lambda: "127.0.0.1:1" in str(client.call("GET", "/readyz")[1]))
    status, answer = client.call("GET", "/readyz")
    assert status == 503 and answer["error"].startswith("model: ")
    assert client.call("GET", "/livez")[0] == 200
    assert next(gateway, None) is None


def test_model_that_was_never_pushed(spec, store, ranker_server):
    gateway = run_gateway(spec, store, ranker_server.grpc_address, model_name="other")
    client = next(gateway)
    status, answer = client.rank(user_id=1, candidates=[1])
    assert status == 503
    assert "'other'" in answer["error"]
    assert next(gateway, None) is None


def test_model_in_the_gateways_own_process(spec, store, ranker_model, basic_model):
    from serving.gateway.in_process_model import InProcessModel

    gateway = run_gateway(spec, store, InProcessModel(ranker_model, "ranker"))
    client = next(gateway)
    wait_for(
        lambda: client.call("GET", "/readyz") == (200, {"status": "ok", "model_versions": [7]})
    )
    status, answer = client.rank(user_id=404, candidates=[3, 5])
    assert (status, answer["model_version"]) == (200, 7)
    assert [entry["score"] for entry in answer["ranked"]] == pytest.approx([0.2689414] * 2)
    assert next(gateway, None) is None
    other = run_gateway(spec, store, InProcessModel(basic_model, "basic"))
    client = next(other)
    wait_for(lambda: client.call("GET", "/readyz")[0] == 200)
    status, answer = client.rank(user_id=404, candidates=[3])
    assert status == 502 and "does not take" in answer["error"]
    assert next(other, None) is None


def test_deadline(spec, store, ranker_server):
    gateway = run_gateway(spec, store, ranker_server.grpc_address, deadline_seconds=0.0)
    client = next(gateway)
    assert client.rank(user_id=1, candidates=[1])[0] == 504
    assert next(gateway, None) is None


def test_model_that_does_not_fit_the_spec(spec, store, server):
    gateway = run_gateway(spec, store, server.grpc_address, model_name="m")
    client = next(gateway)
    status, answer = client.rank(user_id=1, candidates=[1])
    assert status == 502
    assert "does not take" in answer["error"]
    assert next(gateway, None) is None


def test_store_behind_a_server(tmp_path, spec, ranker_server):
    """The same answers when the store is a SeqVault server; 503 when it goes away."""
    server = Server(SeqVault.open(str(make_store(tmp_path / "vault", spec))))
    address = f"127.0.0.1:{server.port}"
    remote = open_store(address, 60.0)
    check_store(remote, spec, address)
    gateway = run_gateway(spec, remote, ranker_server.grpc_address)
    client = next(gateway)
    assert client.append({"user_id": 1, "timestamp": T0, "item_id": 8})[0] == 200
    request = {"user_id": 1, "candidates": [3, 8], "time_ms": T0 + 1}
    status, answer = client.rank(**request)
    assert status == 200
    assert [entry["item_id"] for entry in answer["ranked"]] == [8, 3]
    server.stop(0.1)
    event = {"user_id": 1, "timestamp": T0, "item_id": 8}
    for status, answer in (client.rank(**request), client.append(event)):
        assert status == 503
        assert address in answer["error"]
    assert next(gateway, None) is None
    remote.close()


def test_merging_empties_the_log_and_changes_no_answer(tmp_path, spec):
    with SeqVault.open(str(make_store(tmp_path / "vault", spec))) as vault:
        many = np.ones(60, np.int64)  # enough for a record of their own
        vault.append(
            {"user_id": many, "timestamp": T0 * many, "item_id": 3 * many, "scenario": many}
        )
        merge = BackgroundMerge(vault, seconds=0.02)
        wait_for(lambda: vault.stats()["events_in_log"] == 0)
        merge.stop()
        assert vault.read([1], before=None, last_n=61)["item_id"].tolist() == [[3] * 60 + [0]]


def test_candidates_padded_by_a_batching_model_server():
    scores = _check_scores(np.array([[0.5, 0.25, np.nan]], np.float32), 2)
    assert scores.tolist() == [0.5, 0.25]
    for wrong in (np.zeros((1, 1)), np.zeros((2, 2)), np.zeros(2), np.array([[0.1, np.nan]])):
        with pytest.raises(GatewayError) as caught:
            _check_scores(wrong, 2)
        assert caught.value.status == 502


def test_the_gateway_sends_what_training_would_see(spec, store):
    """The arrays that reach the model are, byte for byte, those of ``build_model_inputs``."""
    sent = {}

    class Recorder:
        def predict(self, inputs, output, call):
            request = PredictRequest()
            for name, array in inputs.items():
                add_tensor(request, name, array)
            wire = predict_pb2.PredictRequest.FromString(request.SerializeToString())
            sent.update({name: to_array(proto) for name, proto in wire.inputs.items()})
            return 1, np.zeros((1, 3), np.float32)

    times = T0 + 1000 * np.arange(6)
    store.append(
        {
            "user_id": np.full(6, 500),
            "timestamp": times,
            "item_id": np.arange(6),
            "scenario": np.zeros(6, np.int8),
        }
    )
    content = {"user_id": 500, "time_ms": int(times[5]), "candidates": [3, 19, 99]}
    Ranker(spec, store, Recorder()).rank(content, Call(None))
    batch = RequestBatch(
        user_id=np.array([500]),
        time_ms=times[5:],
        candidate_item_id=np.array([[3, 19, 99]]),
        candidate_count=np.array([3], np.int32),
    )
    history = store.read([500], times[5:], spec.max_history)
    expected = build_model_inputs(spec, batch, history, store)
    assert set(sent) == set(expected)
    for name, array in expected.items():
        assert sent[name].dtype == array.dtype
        assert sent[name].tobytes() == array.tobytes(), name
    assert sent["history_item_id"].tolist() == [[5, 4, 3, 2]]  # items 4 to 1, strictly before
