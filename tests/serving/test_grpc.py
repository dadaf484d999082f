"""The gRPC API against the contract's rows G."""

import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    session_service_pb2,
)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(
        server.grpc_address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def request(signature="", name="m", output_filter=(), **tensors):
    made = predict_pb2.PredictRequest(output_filter=output_filter)
    made.model_spec.name = name
    made.model_spec.signature_name = signature
    for alias, value in tensors.items():
        proto = value if isinstance(value, TensorProto) else tf.make_tensor_proto(value)
        made.inputs[alias].CopyFrom(proto)
    return made


ROW = np.array([[1, 2]], np.float32)


def refused(stub, made, code, timeout=30):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(made, timeout=timeout)
    assert caught.value.code() == grpc.StatusCode[code]
    return caught.value.details()


def test_g1_model_spec(stub):
    assert refused(stub, predict_pb2.PredictRequest(), "INVALID_ARGUMENT") == "Missing ModelSpec"
    text = refused(stub, request(name="", x=ROW), "INVALID_ARGUMENT")
    assert text == "ModelSpec has no name specified."


def test_g2_unknown_model_or_version(stub):
    text = refused(stub, request(name="nobody", x=ROW), "NOT_FOUND")
    assert text == "Servable not found for request: Latest(nobody)"
    made = request(x=ROW)
    made.model_spec.version.value = 5
    assert refused(stub, made, "NOT_FOUND") == "Servable not found for request: Specific(m, 5)"


def test_g3_unknown_label(stub):
    made = request(x=ROW)
    made.model_spec.version_label = "l"
    text = refused(stub, made, "INVALID_ARGUMENT")
    assert text == "Unrecognized servable version label: l"


def test_g4_unknown_signature(stub):
    text = refused(stub, request("x", x=ROW), "FAILED_PRECONDITION")
    assert text == 'Serving signature key "x" not found.'


def test_g5_number_of_inputs(stub):
    assert refused(stub, request(), "INVALID_ARGUMENT") == (
        "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
        "Missing but required: {x}."
    )
    text = refused(stub, request(x=ROW, z=ROW), "INVALID_ARGUMENT")
    assert "Sent extra: {z}. Missing but required: {}." in text


def test_g6_wrong_alias(stub):
    text = refused(stub, request(z=ROW), "INVALID_ARGUMENT")
    assert text.startswith("Signature input alias: x(feed name: serving_default_x:0) not found in ")
    assert "no default value provided. Inputs expected to be in the request {z}, " in text


@pytest.mark.parametrize(
    "text",
    [
        "",  # no type
        "dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 1",
        "dtype: DT_FLOAT tensor_shape { dim { size: -1 } } float_val: 1",
        r'dtype: DT_FLOAT tensor_shape { dim { size: 2 } } tensor_content: "\000\000\000\000"',
    ],
)
def test_g7_malformed_tensor(stub, text):
    from google.protobuf import text_format

    proto = text_format.Parse(text, TensorProto())
    assert refused(stub, request(x=proto), "INVALID_ARGUMENT") == "tensor parsing error: x"


def test_g8_wrong_type_or_shape(stub):
    text = refused(stub, request(x=ROW.astype(np.int32)), "INVALID_ARGUMENT")
    assert "Expects arg[0] to be float but int32 is provided" in text
    text = refused(stub, request(x=np.ones((1, 3), np.float32)), "INVALID_ARGUMENT")
    assert "Matrix size-incompatible: In[0]: [1,3], In[1]: [2,3]" in text


def test_g9_output_filter(stub):
    inputs = {"a": ROW, "b": np.array([5])}
    assert set(stub.Predict(request("two", **inputs)).outputs) == {"sum", "twice"}
    assert set(stub.Predict(request("two", output_filter=["sum"], **inputs)).outputs) == {"sum"}
    text = refused(stub, request("two", output_filter=["z"], **inputs), "INVALID_ARGUMENT")
    assert text == (
        "output tensor alias not found in signature: z Outputs expected to be in the set "
        "{sum,twice}."
    )
    text = refused(stub, request("two", output_filter=["sum", "sum"], **inputs), "INVALID_ARGUMENT")
    assert text == "duplicate output tensor alias: sum"


def test_g10_model_spec_of_the_reply(stub):
    spec = stub.Predict(request(x=ROW)).model_spec
    assert (spec.name, spec.signature_name, spec.version.value) == ("m", "serving_default", 123)
    assert spec.version_label == ""


def test_g11_typed_fields(stub):
    output = stub.Predict(request(x=ROW)).outputs["y"]
    assert list(output.float_val) == [3.0, 3.0, 3.0]
    assert output.tensor_content == b""
    assert [dim.size for dim in output.tensor_shape.dim] == [1, 3]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float", np.array([1.5, -2], np.float32)), ("double", np.array([1e300])),
        ("int8", np.array([-128], np.int8)), ("int16", np.array([-5], np.int16)),
        ("int32", np.array([2**31 - 1], np.int32)), ("int64", np.array([-(2**63)])),
        ("uint8", np.array([255], np.uint8)), ("uint16", np.array([65535], np.uint16)),
        ("uint32", np.array([2**32 - 1], np.uint32)), ("uint64", np.array([2**64 - 1], np.uint64)),
        ("bool", np.array([True, False])), ("half", np.array([1.5, -0.1], np.float16)),
        ("bfloat16", np.array([1.5, -0.1], tf.bfloat16.as_numpy_dtype)),
        ("complex64", np.array([1 + 2j, 3], np.complex64)),
    ],
)  # fmt: skip
def test_g11_both_forms_of_every_type(stub, dtype, values):
    content = tf.make_tensor_proto(values)
    content = (
        content
        if content.tensor_content
        else TensorProto(
            dtype=content.dtype, tensor_shape=content.tensor_shape, tensor_content=values.tobytes()
        )
    )
    reply = stub.Predict(request(f"as_{dtype}", x=content)).outputs["y"]
    assert not reply.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(reply), values)
    again = stub.Predict(request(f"as_{dtype}", x=reply)).outputs["y"]
    np.testing.assert_array_equal(tf.make_ndarray(again), values)


@pytest.mark.parametrize(
    ("sent", "expected"), [([], [0, 0, 0]), ([7], [7, 7, 7]), ([1, 2], [1, 2, 2])]
)
def test_g11_short_fields_are_padded(stub, sent, expected):
    proto = TensorProto(dtype=tf.float32.as_datatype_enum, float_val=sent)
    proto.tensor_shape.dim.add(size=3)
    assert list(stub.Predict(request("free", x=proto)).outputs["y"].float_val) == expected


def test_g11_strings(stub):
    values = np.array([[b"a\xff", b""], [b"c", b"d"]], object)
    output = stub.Predict(request("text", s=values)).outputs["plain"]
    assert tf.make_ndarray(output).tolist() == values.tolist()


def test_g13_deadline(stub):
    refused(stub, request("slow", x=np.float32(1)), "DEADLINE_EXCEEDED", timeout=0.5)


def test_g14_long_messages_are_cut(stub):
    text = refused(stub, request("x" * 3000, x=ROW), "FAILED_PRECONDITION")
    assert len(text) == 1036
    assert text.endswith("...TRUNCATED")


def test_g15_large_messages(stub):
    big = np.zeros((1_500_000, 2), np.float32)  # 12 MB in, 18 MB out
    assert stub.Predict(request(x=big)).outputs["y"].tensor_shape.dim[0].size == 1_500_000


def test_g16_metadata(stub):
    made = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    made.model_spec.name = "m"
    reply = stub.GetModelMetadata(made)
    assert (reply.model_spec.name, reply.model_spec.version.value) == ("m", 123)
    assert reply.model_spec.signature_name == ""
    packed = reply.metadata["signature_def"]
    assert packed.type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert packed.Unpack(signatures)
    assert set(signatures.signature_def["two"].inputs) == {"a", "b"}
    for fields, text in (
        ([], "must specify at least one metadata_field"),
        (["x"], "Metadata field x is not supported"),
    ):
        made = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
        made.model_spec.name = "m"
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelMetadata(made)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert text in caught.value.details()


def test_g17_status(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    made = get_model_status_pb2.GetModelStatusRequest()
    made.model_spec.name = "m"
    made.model_spec.version_label = "ignored"
    (status,) = stub.GetModelStatus(made).model_version_status
    assert (status.version, status.state) == (123, status.AVAILABLE)
    for name, version, text in (
        ("nobody", None, "Could not find any versions of model nobody"),
        ("m", 5, "Could not find version 5 of model m"),
    ):
        made = get_model_status_pb2.GetModelStatusRequest()
        made.model_spec.name = name
        if version:
            made.model_spec.version.value = version
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelStatus(made)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == text
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())
    assert caught.value.details() == "Missing ModelSpec"


def test_calls_that_are_not_served(channel):
    reload = model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest
    run = channel.unary_unary(
        "/tensorflow.serving.SessionService/SessionRun",
        session_service_pb2.SessionRunRequest.SerializeToString,
        session_service_pb2.SessionRunResponse.FromString,
    )
    for method, made in (
        (reload, model_management_pb2.ReloadConfigRequest()),
        (run, session_service_pb2.SessionRunRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            method(made)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_threads_get_their_own_answers(stub):
    wrong = []

    def ask(number):
        for _ in range(20):
            reply = stub.Predict(request(x=np.full((1, 2), number, np.float32)))
            if list(reply.outputs["y"].float_val) != [2.0 * number] * 3:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
