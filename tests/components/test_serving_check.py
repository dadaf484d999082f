"""The serving check: answers compared with the model's own, servers that fail."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from components.serving_check.answers import check_answers, model_inputs
from components.serving_check.server_process import ServerError, ServerProcess, free_port
from components.serving_check.warm_up import CANDIDATES, warm_up_records, write_warm_up


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Scores from history and candidates; histories are padded to 4."""

    class Model(tf.Module):
        def score(self, ids, length, duration):
            known = tf.where(tf.math.is_nan(duration), 0.0, duration)
            total = tf.reduce_sum(ids, axis=1, keepdims=True) + length[:, None]
            return {"probability": tf.sigmoid(tf.cast(total, tf.float32) / 100 + known)}

    module = Model()
    arrays = {
        "history_item_id": tf.TensorSpec([None, 4], tf.int32, "history_item_id"),
        "history_length": tf.TensorSpec([None], tf.int32, "history_length"),
        "candidate_duration": tf.TensorSpec([None, None], tf.float32, "candidate_duration"),
    }

    @tf.function(input_signature=list(arrays.values()))
    def default(history_item_id, history_length, candidate_duration):
        return module.score(history_item_id, history_length, candidate_duration)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")])
    def from_examples(examples):
        features = {
            "history_item_id": tf.io.RaggedFeature(tf.int64),
            "history_length": tf.io.FixedLenFeature([], tf.int64),
            "candidate_duration": tf.io.RaggedFeature(tf.float32),
        }
        parsed = tf.io.parse_example(examples, features)
        ids = tf.cast(parsed["history_item_id"].to_tensor(shape=[None, 4]), tf.int32)
        length = tf.cast(parsed["history_length"], tf.int32)
        return module.score(ids, length, parsed["candidate_duration"].to_tensor())

    path = str(tmp_path_factory.mktemp("model"))
    signatures = {"serving_default": default, "serving_examples": from_examples}
    tf.saved_model.save(module, path, signatures=signatures)
    return tf.saved_model.load(path)


def example(ids, durations):
    feature = {
        "history_item_id": tf.train.Feature(int64_list=tf.train.Int64List(value=ids)),
        "history_length": tf.train.Feature(int64_list=tf.train.Int64List(value=[len(ids)])),
        "candidate_duration": tf.train.Feature(
            float_list=tf.train.FloatList(value=[np.nan if d is None else d for d in durations])
        ),
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


EXAMPLES = [example([3, 1], [0.5, None]), example([], [0.25]), example([1, 2, 3, 4], [1.0, 2.0])]


@pytest.fixture
def serve(model):
    """Serve the model over REST in a thread, each answer changed by a function; gives the URL."""
    servers = []

    def start(change):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                signature = model.signatures[request["signature_name"]]
                given = request["inputs"]
                specs = signature.structured_input_signature[1]
                if isinstance(given, list):
                    given = {"examples": [base64.b64decode(each["b64"]) for each in given]}
                tensors = {name: tf.constant(given[name], spec.dtype)
                           for name, spec in specs.items()}  # fmt: skip
                status, body = change(signature(**tensors)["probability"].numpy())
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/models/m:predict"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_padding_follows_the_dtype_and_the_signature(model):
    parsed = tf.train.Example.FromString(EXAMPLES[0])
    inputs = model_inputs(parsed, model.signatures["serving_default"])
    assert inputs["history_item_id"].tolist() == [[3, 1, 0, 0]]
    assert inputs["history_length"].tolist() == [2]
    np.testing.assert_array_equal(inputs["candidate_duration"], np.float32([[0.5, np.nan]]))


def test_several_values_of_an_item_are_padded_row_by_row():
    class Signature:
        structured_input_signature = (
            (),
            {
                "history_tags": tf.TensorSpec([None, 3, 2], tf.int32, "history_tags"),
                "candidate_tags": tf.TensorSpec([None, None, 2], tf.int32, "candidate_tags"),
            },
        )

    values = {"history_tags": [1, 2, 3, 4], "candidate_tags": [5, 6]}
    feature = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=value))
        for name, value in values.items()
    }
    parsed = tf.train.Example(features=tf.train.Features(feature=feature))
    inputs = model_inputs(parsed, Signature())
    assert inputs["history_tags"].tolist() == [[[1, 2], [3, 4], [0, 0]]]
    assert inputs["candidate_tags"].tolist() == [[[5, 6]]]


def test_warm_up_requests_are_real_and_of_the_shapes_that_serving_sees(model, tmp_path):
    path = str(tmp_path / "assets.extra" / "tf_serving_warmup_requests")
    logs = warm_up_records(model.signatures, EXAMPLES, "m")
    assert write_warm_up(path, logs) == 2 * (len(CANDIDATES) + len(EXAMPLES)) + 2
    sent, filtered = {}, 0
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "m"
        signature = model.signatures[request.model_spec.signature_name]
        inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
        names = signature.structured_input_signature[1]
        answer = signature(**{
            name: tf.constant(inputs[name], names[name].dtype) for name in names
        })  # fmt: skip
        assert set(request.output_filter) <= set(answer)
        filtered += list(request.output_filter) == ["probability"]
        if "candidate_duration" in inputs:
            sent[inputs["candidate_duration"].shape] = inputs["history_item_id"].tolist()
    assert filtered == len(CANDIDATES) + len(EXAMPLES)
    assert {(1, count) for count in CANDIDATES} <= set(sent)
    assert sent[1, 500] == [[3, 1, 0, 0]]  # the history of the first request


def test_a_server_that_gives_the_models_answers_passes(model, serve):
    url = serve(lambda scores: (200, {"outputs": scores.tolist()}))
    assert check_answers(model, EXAMPLES, url) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda scores: (200, {"outputs": (scores + 1e-3).tolist()}), "differs from the model's"),
        (lambda scores: (200, {"outputs": scores[:, :-1].tolist()}), "has shape"),
        (lambda scores: (200, {"outputs": (scores * np.nan).tolist()}), "differs .* by nan"),
        (lambda scores: (500, {"error": "out of memory"}), "HTTP 500: .*out of memory"),
        (lambda scores: (200, {"predictions": []}), "no outputs but"),
    ],
)
def test_wrong_answers_are_told(model, serve, change, problem):
    import re

    problems = check_answers(model, EXAMPLES[:1], serve(change))
    assert len(problems) == 2  # one for each signature
    assert problems[0].startswith("request 0, signature serving_default: ")
    assert all(re.search(problem, line) for line in problems)


HTTP_SERVER = (
    "import http.server as h, sys;"
    "print('listening', flush=True);"
    "h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_server_runs_inside_the_block_and_not_after_it():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", HTTP_SERVER, str(port)]
    with pytest.raises(KeyboardInterrupt), ServerProcess(command, ready_url=url) as server:
        pid = server.pid
        assert is_alive(pid)
        assert server.last_words().startswith("listening")
        raise KeyboardInterrupt
    assert not is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end the child")
def test_a_server_ends_with_a_process_that_is_killed():
    port = free_port()
    code = (
        "import sys, time; from components.serving_check.server_process import ServerProcess;"
        f"command = [sys.executable, '-c', {HTTP_SERVER!r}, '{port}'];"
        f"server = ServerProcess(command, 'http://127.0.0.1:{port}', ends_with_us=True);"
        "server.start(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)


def test_a_detached_server_goes_on():
    port = free_port()
    command = [sys.executable, "-c", HTTP_SERVER, str(port)]
    with ServerProcess(command, ready_url=f"http://127.0.0.1:{port}") as server:
        pid = server.pid
        server.detach()
    try:
        assert is_alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_server_that_ends_early_is_quoted():
    command = [sys.executable, "-c", "import sys; sys.exit('the model is broken')"]
    server = ServerProcess(command, ready_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ServerError, match=r"(?s)exit code 1 before it was ready: the model is bro"):
        server.start()


def test_a_server_that_never_listens_is_stopped():
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=r"was not ready after 1 s"):
        ServerProcess(command, ready_url=url, start_seconds=1).start()


@pytest.mark.parametrize("ends_with_us", [False, True])
def test_a_program_that_is_not_installed_is_named(ends_with_us):
    server = ServerProcess(
        ["tensorflow_model_server_9"], ready_url="http://127.0.0.1:1", ends_with_us=ends_with_us
    )
    with pytest.raises(ServerError, match=r"cannot start 'tensorflow_model_server_9' .*install"):
        server.start()
