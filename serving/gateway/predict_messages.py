"""The part of TensorFlow Serving's messages that the gateway sends and reads.

The classes are made from the field numbers below, in a descriptor pool of their own: importing
``tensorflow_serving.apis`` would load TensorFlow, and registering the same names twice would
clash with it in a process that has both. On the wire they are the published messages
(``tensorflow_serving/apis/{model,predict,get_model_status}.proto``,
``tensorflow/core/framework/tensor.proto``); a test compares both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "double": _FIELD.TYPE_DOUBLE,
    "float": _FIELD.TYPE_FLOAT,
    "int64": _FIELD.TYPE_INT64,
    "int32": _FIELD.TYPE_INT32,
    "bool": _FIELD.TYPE_BOOL,
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
}
# Message -> (field, number, type, repeated); a type that is no scalar is a message above it.
# A map<K, V> is, on the wire, a repeated message of key and value.
_MESSAGES: dict[str, list[tuple[str, int, str, bool]]] = {
    "Dim": [("size", 1, "int64", False)],
    "TensorShape": [("dim", 2, "Dim", True), ("unknown_rank", 3, "bool", False)],
    "Tensor": [
        ("dtype", 1, "int32", False),
        ("tensor_shape", 2, "TensorShape", False),
        ("tensor_content", 4, "bytes", False),
        ("float_val", 5, "float", True),
        ("double_val", 6, "double", True),
        ("int_val", 7, "int32", True),
        ("int64_val", 10, "int64", True),
    ],
    "NamedTensor": [("key", 1, "string", False), ("value", 2, "Tensor", False)],
    "Version": [("value", 1, "int64", False)],
    "ModelSpec": [
        ("name", 1, "string", False),
        ("version", 2, "Version", False),
        ("signature_name", 3, "string", False),
    ],
    "PredictRequest": [
        ("model_spec", 1, "ModelSpec", False),
        ("inputs", 2, "NamedTensor", True),
        ("output_filter", 3, "string", True),
    ],
    "PredictResponse": [("outputs", 1, "NamedTensor", True), ("model_spec", 2, "ModelSpec", False)],
    "GetModelStatusRequest": [("model_spec", 1, "ModelSpec", False)],
    "ModelVersionStatus": [("version", 1, "int64", False), ("state", 2, "int32", False)],
    "GetModelStatusResponse": [("model_version_status", 1, "ModelVersionStatus", True)],
}
_DTYPES = {
    "float32": (1, "float_val"),
    "float64": (2, "double_val"),
    "int32": (3, "int_val"),
    "int64": (9, "int64_val"),
}
_BY_NUMBER = {number: (np.dtype(name), field) for name, (number, field) in _DTYPES.items()}
AVAILABLE = 30


def _make_classes() -> dict[str, Any]:
    package = "laser.serving"
    file = descriptor_pb2.FileDescriptorProto(
        name="laser/serving/predict.proto", package=package, syntax="proto3"
    )
    for message, fields in _MESSAGES.items():
        made = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            made.field.add(
                name=name,
                number=number,
                type=_TYPES.get(kind, _FIELD.TYPE_MESSAGE),
                type_name=None if kind in _TYPES else f".{package}.{kind}",
                label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    descriptors = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in _MESSAGES}
    if hasattr(message_factory, "GetMessageClass"):
        return {name: message_factory.GetMessageClass(d) for name, d in descriptors.items()}
    factory = message_factory.MessageFactory(pool)  # protobuf before 4.22
    return {name: factory.GetPrototype(d) for name, d in descriptors.items()}


_CLASSES = _make_classes()
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
GetModelStatusRequest = _CLASSES["GetModelStatusRequest"]
GetModelStatusResponse = _CLASSES["GetModelStatusResponse"]


def add_tensor(request: Any, name: str, array: NDArray) -> None:
    """Add an array of int32, int64, float32 or float64 to a PredictRequest, by its bytes."""
    entry = request.inputs.add(key=name)
    tensor = entry.value
    tensor.dtype = _DTYPES[array.dtype.name][0]
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = np.ascontiguousarray(array).tobytes()


def read_tensor(tensor: Any) -> NDArray:
    """The array of a reply's tensor, whichever of its two forms it has.

    Raises:
        ValueError: The type is not one of the four, or the content does not fit the shape.
    """
    if tensor.dtype not in _BY_NUMBER:
        raise ValueError(f"tensor of type {tensor.dtype}; expected a float or an integer")
    dtype, field = _BY_NUMBER[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    return np.array(getattr(tensor, field), dtype).reshape(shape)
