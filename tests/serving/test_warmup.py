"""Warm-up requests, against the contract's row L15; optional inputs, row G12."""

import numpy as np
import pytest
import tensorflow as tf
from serving_helpers import save_basic
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server.model_server import ModelServer, ServerOptions
from serving.model_server.predict import parse_inputs
from serving.model_server.saved_model import SavedModel
from serving.model_server.status import ServingError
from serving.model_server.tensors import to_proto
from serving.model_server.versions import ModelConfig
from serving.model_server.warmup import WARMUP_FILE, warm_up


def predict_log(array, alias="x"):
    logged = prediction_log_pb2.PredictionLog()
    logged.predict_log.request.model_spec.name = "m"
    logged.predict_log.request.inputs[alias].CopyFrom(to_proto(array))
    return logged


ROW = predict_log(np.ones((1, 2), np.float32))


@pytest.fixture
def model(tmp_path):
    model = SavedModel(save_basic(tmp_path / "1"))
    yield model
    model.close()


def write(model, logs):
    path = model.path / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for logged in logs:
            writer.write(logged.SerializeToString())


def test_l15_no_file(model):
    assert warm_up(model) == 0


def test_l15_requests_run(model):
    write(model, [ROW, ROW])
    assert warm_up(model) == 2


def test_l15_a_failing_request_fails_the_load(model):
    write(model, [ROW, predict_log(np.ones((1, 3), np.float32))])
    with pytest.raises(ServingError, match="Matrix size-incompatible"):
        warm_up(model)
    server = ModelServer(
        [ModelConfig("m", model.path.parent)],
        ServerOptions(grpc_port=0, max_load_retries=0, intra_op_threads=1),
    )
    with pytest.raises(ServingError, match="did not become available"):
        server.start()


def test_l15_too_many_records(model):
    write(model, [ROW] * 1001)
    with pytest.raises(ServingError, match=r"exceeds the maximum \(1000\)"):
        warm_up(model)


def test_l15_other_kinds(model):
    session_run = prediction_log_pb2.PredictionLog()
    session_run.session_run_log.SetInParent()
    write(model, [session_run])
    with pytest.raises(ServingError) as caught:
        warm_up(model)
    assert caught.value.code == "UNIMPLEMENTED"
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.SetInParent()
    write(model, [classify, ROW])
    assert warm_up(model) == 1


def test_l15_not_a_tfrecord(model):
    write(model, [])
    (model.path / WARMUP_FILE).write_bytes(b"plain text, long enough to look for a length")
    with pytest.raises(ServingError) as caught:
        warm_up(model)
    assert caught.value.code == "DATA_LOSS"


@pytest.mark.skipif(
    not hasattr(meta_graph_pb2.SignatureDef(), "defaults"),
    reason="this TensorFlow's signatures have no defaults",
)
def test_g12_inputs_with_defaults_may_be_left_out():
    signature = meta_graph_pb2.SignatureDef()
    for alias in ("x", "k"):
        signature.inputs[alias].name = f"{alias}:0"
    signature.defaults["k"].CopyFrom(to_proto(np.array(7)))
    one = to_proto(np.array([1.5]))
    inputs = parse_inputs({"x": one}, signature)
    assert {alias: array.tolist() for alias, array in inputs.items()} == {"x": [1.5], "k": 7}
    given = parse_inputs({"x": one, "k": to_proto(np.array(8))}, signature)
    assert given["k"].tolist() == 8
    with pytest.raises(ServingError, match="x:0"):
        parse_inputs({"k": one}, signature)
    with pytest.raises(ServingError, match="invalid name"):
        parse_inputs({"x": one, "z": one}, signature)
