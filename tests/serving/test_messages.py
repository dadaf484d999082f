"""The gateway's own messages are, on the wire, the published ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from serving.gateway import predict_messages
from serving.gateway.predict_messages import add_tensor, read_tensor
from serving.model_server.tensors import to_array, to_proto

ARRAYS = st.sampled_from(["float32", "float64", "int32", "int64"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)


@given(ARRAYS)
def test_request_is_read_by_the_published_message(array):
    made = predict_messages.PredictRequest(output_filter=["y"])
    made.model_spec.name = "m"
    made.model_spec.signature_name = "s"
    made.model_spec.version.value = 5
    add_tensor(made, "x", array)
    published = predict_pb2.PredictRequest.FromString(made.SerializeToString())
    assert published.model_spec.name == "m"
    assert published.model_spec.signature_name == "s"
    assert published.model_spec.version.value == 5
    assert list(published.output_filter) == ["y"]
    received = to_array(published.inputs["x"])
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)


@given(ARRAYS, st.booleans())
def test_reply_of_the_published_message_is_read(array, as_content):
    published = predict_pb2.PredictResponse()
    published.model_spec.version.value = 2**40
    tensor = to_proto(array)
    if as_content:
        field = [field for field, _ in tensor.ListFields() if field.name.endswith("_val")]
        for descriptor in field:
            tensor.ClearField(descriptor.name)
        tensor.tensor_content = array.tobytes()
    published.outputs["y"].CopyFrom(tensor)
    reply = predict_messages.PredictResponse.FromString(published.SerializeToString())
    assert reply.model_spec.version.value == 2**40
    assert list(reply.outputs) == ["y"]
    received = read_tensor(reply.outputs["y"])
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)


def test_status_messages():
    made = predict_messages.GetModelStatusRequest()
    made.model_spec.name = "m"
    published = get_model_status_pb2.GetModelStatusRequest.FromString(made.SerializeToString())
    assert published.model_spec.name == "m"
    status = get_model_status_pb2.GetModelStatusResponse()
    status.model_version_status.add(
        version=7, state=get_model_status_pb2.ModelVersionStatus.AVAILABLE
    )
    reply = predict_messages.GetModelStatusResponse.FromString(status.SerializeToString())
    assert reply.model_version_status[0].version == 7
    assert reply.model_version_status[0].state == predict_messages.AVAILABLE


def test_tensor_of_a_type_that_is_no_number():
    with pytest.raises(ValueError, match="expected a float or an integer"):
        read_tensor(tensor_pb2.TensorProto(dtype=7))
