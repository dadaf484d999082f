"""The model server under callers who mean harm: what is refused, before memory is taken."""

import contextlib
import gzip
import json
import logging
import resource
import socket
import threading
import time
from http.client import HTTPConnection

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving_helpers import wait_for
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.model_server import rest_api
from serving.model_server.limits import Limits
from serving.model_server.model_server import ModelServer, ServerOptions
from serving.model_server.rest_api import RestApi
from serving.model_server.versions import ModelConfig
from serving.model_server.wire_cost import predict_request_cost
from serving.runtime.call import Call
from serving.runtime.memory_budget import MemoryBudget

PREDICT = "/tensorflow.serving.PredictionService/Predict"
ROW = np.array([[1, 2]], np.float32)


@pytest.fixture(scope="module")
def small(basic_model):
    """A server that gives a request 4 MiB, two calls a thread, and three a place to wait."""
    server = ModelServer(
        [ModelConfig("m", basic_model)],
        ServerOptions(
            grpc_port=0,
            rest_port=0,
            rest_timeout_seconds=3.0,
            intra_op_threads=1,
            limits=Limits(
                request_bytes=4 * 2**20,
                in_flight_bytes=8 * 2**20,
                threads=2,
                waiting=3,
                body_seconds=0.5,
                run_seconds=3.0,
            ),
        ),
    )
    server.start()
    yield server
    server.stop()


@contextlib.contextmanager
def stopping(server):
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def channel(small):
    with grpc.insecure_channel(small.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature="", **tensors):
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "m"
    made.model_spec.signature_name = signature
    for alias, value in tensors.items():
        proto = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value)
        made.inputs[alias].CopyFrom(proto)
    return made


def short(dtype, size, **values):
    proto = TensorProto(dtype=dtype.as_datatype_enum, **values)
    proto.tensor_shape.dim.add(size=size)
    return proto


def refused(call, code):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == grpc.StatusCode[code], caught.value.details()
    return caught.value.details()


def post(server, body, headers=None, path="/v1/models/m:predict"):
    host, port = server.rest_address.split(":")
    connection = HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, json.loads(content)


@contextlib.contextmanager
def little_memory(mib=200):
    """Fails if this process, in which the server runs, grew by more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < mib, f"grew by {grown:.0f} MiB"


@pytest.mark.parametrize("size", [2**21, 2**31, 2**40, 2**62])
@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (tf.float32, {"float_val": [1.0]}),
        (tf.float32, {}),
        (tf.int64, {"int64_val": [1]}),
        (tf.string, {"string_val": [b"a"]}),
    ],
)
def test_short_tensors_are_not_expanded_beyond_the_limit(stub, size, dtype, values):
    proto = short(dtype, size, **values)
    with little_memory():
        text = refused(lambda: stub.Predict(request("free", x=proto)), "RESOURCE_EXHAUSTED")
    assert "the tensor 'x'" in text and str(4 * 2**20) in text


def test_a_short_tensor_within_the_limit_is_served(stub):
    proto = short(tf.float32, 100_000, float_val=[1.0])
    reply = stub.Predict(request("shapes", x=proto))
    assert tf.make_ndarray(reply.outputs["scalar"]) == 100_000


def test_gzip_bombs_are_not_inflated_beyond_the_limit(small):
    bomb = gzip.compress(b'{"instances": [' + b"1," * 50_000_000 + b"1]}")
    with little_memory():
        status, _, answer = post(small, bomb, {"Content-Encoding": "gzip"})
    assert status == 413
    assert str(4 * 2**20) in answer["error"]


@pytest.mark.parametrize("piece", [b"1,", b"[],", b"{},", b'"",', b"[[[]]],"])
def test_json_is_not_parsed_beyond_the_limit(small, piece):
    body = b'{"instances": [' + piece * (3_500_000 // len(piece)) + piece[:-1] + b"]}"
    with little_memory():
        status, _, answer = post(small, body)
    assert status == 413
    assert "the parsed JSON" in answer["error"] and str(4 * 2**20) in answer["error"]


def test_bodies_beyond_the_limit_are_not_read(small):
    status, _, answer = post(small, b"x" * (5 * 2**20))
    assert status == 413
    assert f"{5 * 2**20} bytes" in answer["error"]


def test_an_answer_beyond_the_limit(small):
    body = json.dumps({"signature_name": "text", "inputs": "a" * 1_000_000})
    status, _, answer = post(small, body)
    assert status == 413
    assert "the answer in JSON" in answer["error"]


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x07" * 100_000])
@pytest.mark.parametrize("method", [PREDICT, "/tensorflow.serving.ModelService/GetModelStatus"])
def test_bytes_that_are_no_message(channel, caplog, message, method):
    call = channel.unary_unary(method)
    with caplog.at_level(logging.WARNING):
        text = refused(lambda: call(message), "INVALID_ARGUMENT")
    assert "the bytes are not a tensorflow.serving." in text
    assert not caplog.records


def test_messages_of_many_small_parts_are_not_parsed_beyond_the_limit(channel):
    strings = TensorProto(dtype=tf.string.as_datatype_enum, string_val=[b""] * 1_000_000)
    message = request("text", s=strings).SerializeToString()
    assert predict_request_cost(message, 10**9) > 20 * len(message)
    with little_memory():
        text = refused(lambda: channel.unary_unary(PREDICT)(message), "RESOURCE_EXHAUSTED")
    assert "the parsed message" in text


def test_half_a_message_holds_nobody_up(small, stub):
    """Streams that begin a message and fall silent: more of them than there are threads."""
    host, port = small.grpc_address.split(":")
    sockets = [half_a_call(host, int(port)) for _ in range(20)]
    time.sleep(0.1)
    assert stub.Predict(request(x=ROW), timeout=5).outputs["y"].float_val
    for half in sockets:
        half.close()


def half_a_call(host, port):
    """HTTP/2 by hand: a Predict call whose message announces 1000 bytes and sends none."""
    connection = socket.create_connection((host, port))
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", PREDICT.encode()),
        (b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )
    connection.sendall(frame(1, 4, 1, block) + frame(0, 0, 1, b"\0" + (1000).to_bytes(4, "big")))
    return connection


def frame(kind, flags, stream, payload):
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def test_half_a_body_is_dropped(small):
    host, port = small.rest_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.5 s" in answer


def test_a_connection_that_never_speaks_http2_is_dropped(small):
    host, port = small.grpc_address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP")
        while connection.recv(1000):  # the server's own settings, until it hangs up
            pass


def test_large_documents_are_parsed_one_at_a_time(basic_model, monkeypatch):
    """Of documents that are wrong, too: their errors keep them until they are handled."""
    at_once, most = [], []

    class Document(dict):
        def __init__(self):
            at_once.append(1)
            most.append(len(at_once))

        def __del__(self):
            at_once.pop()

    def parse(body):
        document = Document()
        time.sleep(0.005)
        return document

    monkeypatch.setattr(rest_api, "parse_json", parse)
    with stopping(ModelServer([ModelConfig("m", basic_model)], ServerOptions())) as one:
        one.manager.start()
        one.manager.wait_until_available()
        api, budget = RestApi(one.manager), MemoryBudget(2**30, 2**30)
        body = b'{"candidates": [' + b"[]," * 100_000 + b"[]]}"

        def ask():
            with budget.open() as allowance:
                reply = api.answer("POST", "/v1/models/m:predict", {}, body, Call(60.0), allowance)
            assert reply.status == 400

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(most), max(most)) == (8, 1)


def test_the_queue_has_a_bound(small, stub):
    """Two run, three wait; beyond these a call is refused at once, not when its time is over."""
    outcomes = []

    def ask():
        started = time.monotonic()
        try:
            stub.Predict(request("slow", x=np.float32(1)), timeout=2.0)
        except grpc.RpcError as error:
            outcomes.append((error.code().name, time.monotonic() - started))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusals = [seconds for code, seconds in outcomes if code == "UNAVAILABLE"]
    assert len(refusals) >= 12 - 2 - 3
    assert max(refusals) < 1.5
    # Nothing runs on for callers who are gone, and what they took does not refuse the next one.
    wait_for(lambda: small._ports._work.running == 0, seconds=5)
    assert stub.Predict(request(x=ROW), timeout=2).outputs["y"].float_val


def test_rest_says_429_when_the_queue_is_full(small):
    answers = []

    def ask():
        body = json.dumps({"signature_name": "slow", "inputs": 1.0})
        answers.append(post(small, body))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = [status for status, _, _ in answers]
    assert set(statuses) == {429, 504}
    assert statuses.count(429) >= 8 - 2 - 3
    headers = next(headers for status, headers, _ in answers if status == 429)
    assert int(headers["Retry-After"]) >= 1


def test_abandoned_calls_are_not_begun(small, stub, channel):
    begun = []
    manager = small.manager
    use = manager.use

    def counted(*arguments):
        begun.append(arguments)
        return use(*arguments)

    manager.use = counted
    try:
        slow = [
            stub.Predict.future(request("slow", x=np.float32(1)), timeout=1.0) for _ in range(2)
        ]
        wait_for(lambda: len(begun) == 2)
        waiting = [stub.Predict.future(request(x=ROW), timeout=30) for _ in range(3)]
        time.sleep(0.2)
        for call in waiting:
            call.cancel()
        for call in slow:
            assert call.exception() is not None
        assert stub.Predict(request(x=ROW), timeout=5)
        assert len(begun) == 3
    finally:
        del manager.use


def test_a_call_without_a_deadline_ends(stub):
    started = time.monotonic()
    refused(lambda: stub.Predict(request("slow", x=np.float32(1))), "DEADLINE_EXCEEDED")
    assert time.monotonic() - started < 10


def test_states_are_told_while_every_thread_is_busy(small, stub, channel):
    slow = [stub.Predict.future(request("slow", x=np.float32(1)), timeout=2.0) for _ in range(5)]
    time.sleep(0.1)
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "m"
    status = model_service_pb2_grpc.ModelServiceStub(channel)
    assert status.GetModelStatus(asked, timeout=1).model_version_status[0].version == 123
    for call in slow:
        call.exception()


@pytest.mark.parametrize(
    ("tasks", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ([("nobody", "", "")], "NOT_FOUND", "Latest(nobody)"),
        ([("m", "", ""), ("n", "", "")], "INVALID_ARGUMENT", "access the same model name"),
        ([("m", "two", ""), ("m", "two", "")], "INVALID_ARGUMENT", "Duplicate evaluation"),
        ([("m", "nothing", "")], "INVALID_ARGUMENT", "No signature was found with the name"),
        ([("m", "", "tensorflow/serving/predict")], "UNIMPLEMENTED", "Unsupported signature"),
    ],
)
def test_g21_multi_inference_is_refused_as_the_reference_does(stub, tasks, code, text):
    made = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = made.tasks.add(method_name=method)
        task.model_spec.name = name
        task.model_spec.signature_name = signature
    assert text in refused(lambda: stub.MultiInference(made), code)


def test_memory_is_given_back(small, stub):
    wait_for(lambda: small.budget.held == 0, 10)
    with pytest.raises(grpc.RpcError):
        stub.Predict(request("free", x=short(tf.float32, 2**31, float_val=[1.0])))
    wait_for(lambda: small.budget.held == 0, 10)
