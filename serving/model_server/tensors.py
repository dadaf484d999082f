"""Between TensorProto and NumPy arrays, exactly as TensorFlow's runtime reads and writes them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2, types_pb2

_FIELDS = {
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_UINT8: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
}
_HALVES = (types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
# Tag of float_val and of double_val, packed.
_PACKED = {types_pb2.DT_FLOAT: b"\x2a", types_pb2.DT_DOUBLE: b"\x32"}
_COMPLEX = (types_pb2.DT_COMPLEX64, types_pb2.DT_COMPLEX128)
# A TensorFlow string is 24 bytes, beside the pointer to the bytes object.
_STRING_BYTES = 32
_NAMES = {"float32": "float", "float64": "double", "float16": "half"}


def dtype_name(data_type: int) -> str:
    """TensorFlow Serving's name of a data type, for instance ``float`` for DT_FLOAT."""
    name = tf.dtypes.as_dtype(data_type).name
    return _NAMES.get(name, name)


def to_array(
    proto: tensor_pb2.TensorProto, take: Callable[[int], object] = lambda size: None
) -> NDArray:
    """The array that a TensorProto stands for.

    Takes ``tensor_content`` or the typed field; one that is shorter than the shape is padded
    with its last value, an empty one means zeros.

    Args:
        proto: The message.
        take: Called with the array's bytes before they are taken; raises to refuse them.

    Raises:
        ValueError: The message is not a tensor: unknown type or shape, or content of another size.
    """
    if proto.dtype not in _FIELDS:
        raise ValueError(f"data type {proto.dtype} cannot be sent")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape is not fully known")
    count = math.prod(shape)
    if proto.dtype == types_pb2.DT_STRING:
        take(count * _STRING_BYTES)
        return _strings(proto, count).reshape(shape)
    dtype = tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype
    if proto.tensor_content:
        if len(proto.tensor_content) != count * np.dtype(dtype).itemsize:
            raise ValueError(
                f"tensor_content has {len(proto.tensor_content)} bytes for {count} elements"
            )
        take(len(proto.tensor_content))
        return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
    take(count * np.dtype(dtype).itemsize)
    return _fit(_typed_values(proto, dtype), count).reshape(shape)


def to_proto(array: NDArray) -> tensor_pb2.TensorProto:
    """A TensorProto with the array in its typed field (not in ``tensor_content``)."""
    array = np.asarray(array)
    proto = tensor_pb2.TensorProto()
    strings = array.dtype.kind in "OSU"
    proto.dtype = (
        types_pb2.DT_STRING if strings else tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    )
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = array.ravel()
    if proto.dtype in _HALVES:
        flat = flat.view(np.uint16)
    elif proto.dtype in _COMPLEX:
        flat = flat.view(np.float32 if proto.dtype == types_pb2.DT_COMPLEX64 else np.float64)
    if proto.dtype in _PACKED and sys.byteorder == "little":
        # On the wire such a field is the array's bytes: nothing needs to be made of each value.
        proto.MergeFromString(_PACKED[proto.dtype] + _varint(flat.nbytes) + flat.tobytes())
    else:
        values = flat.tolist() if strings else flat.data
        getattr(proto, _FIELDS[proto.dtype]).extend(values)
    return proto


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _typed_values(proto: tensor_pb2.TensorProto, dtype: Any) -> NDArray:
    values = getattr(proto, _FIELDS[proto.dtype])
    if proto.dtype in _HALVES:
        return np.fromiter(values, np.int64, len(values)).astype(np.uint16).view(dtype)
    if proto.dtype in _COMPLEX:
        part = np.float32 if proto.dtype == types_pb2.DT_COMPLEX64 else np.float64
        pairs = np.fromiter(values, part, len(values))
        return pairs[: len(pairs) // 2 * 2].view(dtype)
    if _FIELDS[proto.dtype] == "int_val":
        return np.fromiter(values, np.int32, len(values)).astype(dtype)
    return np.fromiter(values, dtype, len(values))


def _strings(proto: tensor_pb2.TensorProto, count: int) -> NDArray:
    if proto.tensor_content:
        raise ValueError("strings are sent in string_val, not in tensor_content")
    values = list(proto.string_val)[:count]
    values += [values[-1] if values else b""] * (count - len(values))
    array = np.empty(count, object)
    array[:] = values
    return array


def _fit(values: NDArray, count: int) -> NDArray:
    if len(values) >= count:
        return values[:count]
    if not len(values):
        return np.zeros(count, values.dtype)
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))])
