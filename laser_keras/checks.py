"""Argument checks shared by the layers; messages say what was expected and what was received."""

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from laser_keras.types import Shape, Tensor


def check_bool(owner: str, name: str, value: Any) -> bool:
    """Return ``value`` as a ``bool`` if it is a Boolean, NumPy's too, or raise ``ValueError``.

    Text is refused: "false" would count as True.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{owner}: `{name}` must be True or False. Received: {value!r}")
    return bool(value)


def check_int(owner: str, name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an ``int`` if it is an integer of at least ``minimum``, or raise.

    NumPy's integers count; Booleans and floats do not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(
            f"{owner}: `{name}` must be an integer of at least {minimum}. Received: {value!r}"
        )
    return int(value)


def check_optional_int(owner: str, name: str, value: Any, minimum: int) -> int | None:
    """``check_int``, except that None is returned as it is."""
    return None if value is None else check_int(owner, name, value, minimum)


def known_size(size: Any) -> int | None:
    """A dimension that is known now; None where it is unknown, or symbolic as in ``jax.export``."""
    return size if isinstance(size, int) else None


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, NaN and infinities included, and no Boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(owner: str, name: str, value: Any, minimum: float = -math.inf) -> float:
    """Return ``value`` if it is a finite number of at least ``minimum``, else ``ValueError``."""
    if not is_number(value) or not math.isfinite(value) or value < minimum:
        least = "" if minimum == -math.inf else f" of at least {minimum}"
        raise ValueError(f"{owner}: `{name}` must be a finite number{least}. Received: {value!r}")
    return float(value)


def check_positive(owner: str, name: str, value: Any) -> float:
    """Return ``value`` if it is a finite number above zero, else raise ``ValueError``."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{owner}: `{name}` must be a finite number above 0. Received: {value!r}")
    return float(value)


def check_rate(owner: str, name: str, value: float) -> float:
    """Return ``value`` if it is a fraction in [0, 1), else raise ``ValueError``."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{owner}: `{name}` must be a number in [0, 1). Received: {value!r}")
    return float(value)


def check_choice(owner: str, name: str, value: Any, choices: Sequence[Any]) -> Any:
    """Return ``value`` if it is one of ``choices``, else raise ``ValueError``."""
    if value not in choices:
        raise ValueError(f"{owner}: `{name}` must be one of {list(choices)}. Received: {value!r}")
    return value


def check_rank(owner: str, name: str, shape: Shape, ranks: Sequence[int], layout: str) -> None:
    """Raise ``ValueError`` unless ``shape`` has one of ``ranks`` dimensions."""
    if len(shape) not in ranks:
        raise ValueError(
            f"{owner}: `{name}` must have shape {layout}. Received shape: {tuple(shape)}"
        )


def check_known_width(owner: str, name: str, shape: Shape) -> int:
    """Return the last dimension of ``shape``, which weights depend on, or raise."""
    width = shape[-1] if shape else None
    if width is None or width < 1:
        raise ValueError(
            f"{owner}: the last dimension of `{name}` must be known and positive, because weights "
            f"depend on it. Received shape: {tuple(shape)}"
        )
    return int(width)


def check_same_width(owner: str, name: str, shape: Shape, other: str, other_shape: Shape) -> int:
    """Return the common last dimension of two shapes or raise ``ValueError``."""
    width = check_known_width(owner, name, shape)
    if check_known_width(owner, other, other_shape) != width:
        raise ValueError(
            f"{owner}: `{name}` and `{other}` must have the same last dimension; project one of "
            f"them first. Received shapes: {name} {tuple(shape)}, {other} {tuple(other_shape)}"
        )
    return width


def check_divides(owner: str, divisor: str, divisor_value: int, name: str, value: int) -> None:
    """Raise ``ValueError`` unless ``divisor_value`` divides ``value``."""
    if value % divisor_value:
        raise ValueError(
            f"{owner}: {name} must be a multiple of {divisor}. "
            f"Received: {name} {value}, {divisor} {divisor_value}"
        )


def check_agrees(owner: str, name: str, shape: Shape, expected: Shape, layout: str) -> None:
    """Raise ``ValueError`` unless ``shape`` equals ``expected`` wherever both are known."""
    agrees = len(shape) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(shape, expected, strict=False)
    )
    if not agrees:
        raise ValueError(
            f"{owner}: `{name}` must have shape {layout}, here {tuple(expected)}. "
            f"Received shape: {tuple(shape)}"
        )


def check_mask(owner: str, name: str, mask: Tensor, expected: Shape, layout: str) -> Tensor:
    """Return the boolean ``mask`` of shape ``expected`` or raise ``ValueError``.

    int8 is accepted as well (0 is False), because Keras averages the inputs of a replicated model
    (not of ``SequenceRanker``) and cannot average Booleans. Other dtypes are refused: they are
    likely lengths or additive masks.
    """
    mask = keras.ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype not in ("bool", "int8"):
        raise ValueError(
            f"{owner}: `{name}` must be boolean (True marks a valid position) or int8. "
            f"Received dtype: {dtype}"
        )
    check_agrees(owner, name, tuple(mask.shape), expected, layout)
    return mask if dtype == "bool" else keras.ops.not_equal(mask, 0)


def check_ages(owner: str, name: str, age: Tensor, expected: Shape, layout: str) -> Tensor:
    """Return ages of shape ``expected`` as int32 within [0, 2^31 - 1], or raise ``ValueError``.

    Any integer dtype is taken; negative ages (clock skew) become 0.
    """
    age = keras.ops.convert_to_tensor(age)
    dtype = keras.backend.standardize_dtype(age.dtype)
    if "int" not in dtype:
        raise ValueError(
            f"{owner}: `{name}` must be an integer tensor of seconds (request time minus "
            f"event time, subtracted as integers). Received dtype: {dtype}"
        )
    check_agrees(owner, name, tuple(age.shape), expected, layout)
    if dtype in ("int8", "int16", "uint8", "uint16"):  # cannot hold the bound below
        age = keras.ops.cast(age, "int32")
    return keras.ops.cast(keras.ops.clip(age, 0, 2**31 - 1), "int32")


def check_float(owner: str, name: str, dtype: Any) -> None:
    """Raise ``ValueError`` unless the input ``name`` is of a float ``dtype``."""
    dtype = keras.backend.standardize_dtype(dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(f"{owner}: `{name}` must be a float tensor. Received dtype: {dtype}")


def check_inputs(layer: keras.layers.Layer, ids: Collection[str] = (), **inputs: Any) -> None:
    """Raise ``ValueError`` unless a call's ``inputs`` are float and as wide as at the build.

    Without it, backends fail far from the cause or broadcast silently. The parts of a mapping of
    tensors must have the names given to ``build`` and agree in all dimensions but the last; parts
    named in ``ids`` are not checked, nor is an input that is None.
    """
    owner, config = layer.name, layer.get_build_config() or {}
    for name, value in inputs.items():
        if value is None:
            continue
        shapes = config.get("shapes_dict", {}).get(f"{name}_shape", config.get("input_shape"))
        built = shapes if isinstance(shapes, Mapping) else {None: shapes}
        parts = value if isinstance(value, Mapping) else {None: value}
        if set(parts) != set(built):
            expected = "one tensor" if None in built else f"a mapping with the keys {sorted(built)}"
            received = type(value).__name__ if None in parts else f"the keys {sorted(parts)}"
            raise ValueError(f"{owner}: `{name}` must be {expected}. Received: {received}")
        vectors = {key: part for key, part in parts.items() if key not in ids}
        leading: Shape | None = None
        for key, part in vectors.items():
            label, shape = name if key is None else f"{name}[{key!r}]", tuple(part.shape)
            check_float(owner, label, part.dtype)
            leading = shape[:-1] if leading is None else leading
            layout = "[..., width], as wide as when the layer was built"
            if len(vectors) > 1:
                layout += " and with the other inputs' leading dimensions"
            check_agrees(owner, label, shape, (*leading, built[key][-1]), layout)
