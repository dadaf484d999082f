"""Predict requests and replies in JSON: row format and column format."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.model_server.decimals import format_decimals
from serving.model_server.json_parser import json_text, json_type
from serving.model_server.status import ServingError, invalid

_FLOATS = {"float": np.float32, "double": np.float64}
_INTEGERS: dict[str, Any] = {
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint32": np.uint32,
    "uint64": np.uint64,
}
_WRITABLE = "fiubOSU"
# A number's text, separator and all, and once more when texts are joined.
_TEXT_BYTES = 48
# Values that are written at once: each is an object of its own until it is joined.
_AT_ONCE = 2**16
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_SHORT_ESCAPES = {
    b'"': b'\\"', b"\\": b"\\\\", b"\b": b"\\b", b"\f": b"\\f",
    b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t",
}  # fmt: skip


def read_request(
    document: Mapping[str, Any], inputs: Mapping[str, str]
) -> tuple[str, dict[str, NDArray]]:
    """The tensors of a predict request.

    Args:
        document: The parsed body.
        inputs: Data types (``float``, ``int64``, ...) by name of the signature's inputs.

    Returns:
        ``"row"`` or ``"column"``, the format to answer in, and the arrays by input name.

    Raises:
        ServingError: What does not fit, and where.

    Example:
        >>> read_request({"instances": [[1, 2], [3, 4]]}, {"x": "float"})
        ('row', {'x': array([[1., 2.],
               [3., 4.]], dtype=float32)})
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {json_text(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise invalid(
                f"JSON Value: {json_text(document)} Expecting 'instances' to be an list/array"
            )
        if not instances:
            raise invalid(f"JSON Value: {json_text(document)} No values in 'instances' array")
        return "row", _read_rows(instances, inputs)
    if "inputs" in document:
        return "column", _read_columns(document["inputs"], inputs)
    raise invalid("Missing 'inputs' or 'instances' key")


def write_reply(outputs: Mapping[str, NDArray], layout: str) -> bytes:
    """The body of a predict reply.

    Args:
        outputs: Arrays by output name; strings are arrays of bytes objects.
        layout: ``"row"`` or ``"column"``.

    Raises:
        ServingError: An output that JSON cannot hold, or rows that do not fit together.

    Example:
        >>> print(write_reply({"y": np.array([0.5, 2], np.float32)}, "row").decode())
        {
            "predictions": [0.5, 2.0]
        }
    """
    if layout == "row":
        return _write_rows(outputs)
    written = {name: _write_tensor(name, array) for name, array in outputs.items()}
    if len(written) == 1:
        return b'{\n    "outputs": ' + next(iter(written.values())) + b"\n}"
    members = b",\n".join(
        b"        " + _quote(name.encode()) + b": " + text for name, text in written.items()
    )
    return b'{\n    "outputs": {\n' + members + b"\n    }\n}"


def reply_cost(outputs: Mapping[str, NDArray]) -> int:
    """Bytes that ``write_reply`` takes for numbers; strings are as long as they are."""
    return sum(
        sum(map(len, array.ravel())) * 4 + array.size * _TEXT_BYTES
        if array.dtype == object
        else array.size * _TEXT_BYTES
        for array in outputs.values()
    )


def error_body(message: str) -> bytes:
    """The JSON of every REST error."""
    return json.dumps({"error": message}, indent=4, ensure_ascii=False).encode(
        "utf-8", "surrogateescape"
    )


def _read_rows(instances: list[Any], inputs: Mapping[str, str]) -> dict[str, NDArray]:
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if _is_object(instances[0]):
        keys = set(inputs)
        if all(_is_object(instance) and instance.keys() == keys for instance in instances):
            columns = {name: [instance[name] for instance in instances] for name in inputs}
            arrays = {name: _dense(columns[name], inputs[name]) for name in inputs}
            if all(array is not None for array in arrays.values()):
                return arrays  # type: ignore[return-value]
    elif not any(_is_object(instance) for instance in instances):
        name = next(iter(inputs))
        array = _dense(instances, inputs[name])
        if array is not None:
            return {name: array}
    return _read_rows_one_by_one(instances, inputs)


def _read_rows_one_by_one(instances: list[Any], inputs: Mapping[str, str]) -> dict[str, NDArray]:
    """The slow way, which names the first instance that does not fit."""
    objects = _is_object(instances[0])
    rows: dict[str, list[NDArray]] = {}
    for index, instance in enumerate(instances):
        if objects and not _is_object(instance):
            raise invalid(f"Expecting object but got list at item {index} of input list")
        if not objects and _is_object(instance):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
        members = instance if objects else {next(iter(inputs)): instance}
        for name, value in members.items():
            try:
                if name not in inputs:
                    raise invalid(f"JSON object: does not have named input: {name}")
                array = read_tensor(value, inputs[name])
                seen = rows.setdefault(name, [])
                if seen:
                    _check_alike(seen[0], array)
                seen.append(array)
            except ServingError as error:
                where = f"{index} key: {name}" if objects else str(index)
                raise invalid(
                    f"Failed to process element: {where} of 'instances' list. Error: {error}"
                ) from error
        if objects and set(members) != set(inputs):
            raise invalid(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{json_text(instance)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {name: np.stack(arrays) for name, arrays in rows.items()}


def _check_alike(first: NDArray, other: NDArray) -> None:
    if first.size != other.size:
        raise invalid(f"Expecting tensor size: {first.size} but got: {other.size}")
    if first.shape != other.shape:
        raise invalid(f"Expecting shape {_shape(first)} but got: {_shape(other)}")


def _shape(array: NDArray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _read_columns(value: Any, inputs: Mapping[str, str]) -> dict[str, NDArray]:
    if not _is_object(value):
        if len(inputs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        name = next(iter(inputs))
        return {name: read_tensor(value, inputs[name])}
    arrays = {}
    for name, dtype in inputs.items():
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = read_tensor(value[name], dtype)
    return arrays


def read_tensor(value: Any, dtype: str) -> NDArray:
    """One tensor of nested lists, a single value or a base64 object.

    Raises:
        ServingError: The lists are ragged, or a value does not fit the type.
    """
    array = _dense(value, dtype)
    if array is not None:
        return array
    _explain(value, 0, _shape_of(value), dtype)
    raise ServingError("INTERNAL", "the tensor's values could not be converted")


def _shape_of(value: Any) -> list[int]:
    """The shape that the first element of each list implies."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _dense(value: Any, dtype: str) -> NDArray | None:
    """The whole tensor at once, or None if something does not fit."""
    shape = _shape_of(value)
    level = [value]
    for size in shape:
        if not all(type(element) is list and len(element) == size for element in level):
            return None
        level = list(chain.from_iterable(level))
    flat = _convert(level, dtype)
    return None if flat is None else flat.reshape(shape)


def _convert(values: list[Any], dtype: str) -> NDArray | None:
    types = set(map(type, values))
    if dtype in _FLOATS and types <= {int, float}:
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype(_FLOATS[dtype])
    if dtype in _INTEGERS and types <= {int}:
        limits = np.iinfo(_INTEGERS[dtype])
        if values and not (limits.min <= min(values) and max(values) <= limits.max):
            return None
        return np.array(values, _INTEGERS[dtype])
    if dtype == "bool" and types <= {bool}:
        return np.array(values, bool)
    if dtype == "string" and types <= {str, dict}:
        try:
            decoded = [_to_bytes(value) for value in values]
        except ServingError:
            return None
        array = np.empty(len(decoded), object)
        array[:] = decoded
        return array
    return np.zeros(0, np.float32) if not values else None


def _explain(value: Any, level: int, shape: Sequence[int], dtype: str) -> None:
    """Raise the first thing that is wrong, in the order in which the lists are read."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {json_text(value)} found at incorrect level: {level + 1} in the "
                f"JSON DOM. Expected at level: {len(shape)}"
            )
        if isinstance(value, dict) and dtype == "string":
            _to_bytes(value)
        elif _convert([value], dtype) is None:
            if dtype in _FLOATS or dtype in _INTEGERS or dtype in ("bool", "string"):
                raise invalid(
                    f"JSON Value: {json_text(value)} Type: {json_type(value)} is not of expected "
                    f"type: {dtype}"
                )
            if isinstance(value, dict):
                raise invalid(
                    f"JSON Value: {json_text(value)} Type: Object is not of expected type: {dtype}"
                )
            raise ServingError(
                "UNIMPLEMENTED", f"Conversion of JSON Value: {json_text(value)} to type: {dtype}"
            )
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for element in value:
        _explain(element, level + 1, shape, dtype)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _to_bytes(value: str | dict[str, Any]) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if not _is_base64(value):
        raise invalid(f"JSON Value: {json_text(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    try:
        if not _BASE64.fullmatch(text):
            raise binascii.Error
        bare = text.rstrip("=")
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except binascii.Error:
        raise invalid("Unable to base64 decode") from None


def _write_rows(outputs: Mapping[str, NDArray]) -> bytes:
    size = 0
    for name, array in outputs.items():
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if len(array) < 1:
            raise invalid(f"Tensor name: {name} has invalid batch size: {len(array)}")
        if size and size != len(array):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}"
            )
        size = len(array)
    if len(outputs) == 1:
        name, array = next(iter(outputs.items()))
        return b'{\n    "predictions": ' + _write_tensor(name, array) + b"\n}"
    columns = {
        _quote(name.encode()): _nest(_leaves(name, array), array.shape[1:], size)
        for name, array in outputs.items()
    }
    rows = (
        b"        {"
        + b", ".join(name + b": " + texts[row] for name, texts in columns.items())
        + b"}"
        for row in range(size)
    )
    return b'{\n    "predictions": [\n' + b",\n".join(rows) + b"\n    ]\n}"


def _write_tensor(name: str, array: NDArray) -> bytes:
    if array.size > _AT_ONCE and array.ndim > 1 and len(array) == 1:
        return b"[" + _write_tensor(name, array[0]) + b"]"
    if array.size > _AT_ONCE and array.ndim:
        step = max(1, len(array) * _AT_ONCE // array.size)
        parts = (array[at : at + step] for at in range(0, len(array), step))
        return b"[" + b", ".join(_write_tensor(name, part)[1:-1] for part in parts) + b"]"
    return _nest(_leaves(name, array), array.shape, 1)[0]


def _nest(texts: list[bytes], shape: Sequence[int], count: int) -> list[bytes]:
    """Bracket the leaves into ``count`` tensors of the given shape."""
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        groups = count * int(np.prod(shape[:axis], dtype=np.int64))
        texts = [
            b"[" + b", ".join(texts[group * size : (group + 1) * size]) + b"]"
            for group in range(groups)
        ]
    return texts


def _leaves(name: str, array: NDArray) -> list[bytes]:
    kind = array.dtype.kind
    if kind not in _WRITABLE or array.dtype in (np.float16, np.uint16):
        if not array.size:
            return []
        shown = {"float16": "half"}.get(array.dtype.name, array.dtype.name)
        raise invalid(f"Failed to write JSON value for tensor type: {shown}")
    if kind == "f":
        return format_decimals(array)
    flat = array.ravel().tolist()
    if kind == "b":
        return [b"true" if value else b"false" for value in flat]
    if kind in "iu":
        return [str(value).encode() for value in flat]
    if name.endswith("_bytes"):
        return [b'{"b64": "' + base64.b64encode(value) + b'"}' for value in flat]
    return [_quote(value) for value in flat]


def _quote(text: bytes) -> bytes:
    return b'"' + _ESCAPED.sub(_escape, text) + b'"'


def _escape(found: re.Match[bytes]) -> bytes:
    character = found.group()
    return _SHORT_ESCAPES.get(character) or b"\\u%04X" % character[0]
