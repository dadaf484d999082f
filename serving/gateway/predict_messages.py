"""Tensors in PredictRequest and PredictResponse messages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.gateway.predict_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    PredictRequest,
    PredictResponse,
)

__all__ = [
    "AVAILABLE",
    "GetModelStatusRequest",
    "GetModelStatusResponse",
    "PredictRequest",
    "PredictResponse",
    "add_tensor",
    "read_tensor",
]

# State of a version that can be run, of tensorflow.serving.ModelVersionStatus.State.
AVAILABLE = 30
# Numbers of tensorflow.DataType, and where a TensorProto keeps such values one by one.
_DTYPES = {
    "float32": (1, "float_val"),
    "float64": (2, "double_val"),
    "int32": (3, "int_val"),
    "int64": (9, "int64_val"),
}
_BY_NUMBER = {number: (np.dtype(name), field) for name, (number, field) in _DTYPES.items()}


def add_tensor(request: Any, name: str, array: NDArray) -> None:
    """Add an array of int32, int64, float32 or float64 to a PredictRequest, by its bytes."""
    tensor = request.inputs[name]
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
