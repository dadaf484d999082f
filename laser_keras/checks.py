"""Argument checks shared by the layers: every message says what was expected and what came."""

from collections.abc import Sequence
from typing import Any

import keras

from laser_keras.types import Shape, Tensor


def check_int(owner: str, name: str, value: Any, minimum: int) -> int:
    """Return ``value`` if it is an integer of at least ``minimum``, else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(
            f"{owner}: `{name}` must be an integer of at least {minimum}. Received: {value!r}"
        )
    return value


def check_rate(owner: str, name: str, value: float) -> float:
    """Return ``value`` if it is a fraction in [0, 1), else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
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
    width = shape[-1]
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
    """Return a boolean ``mask`` of shape ``expected`` or raise ``ValueError``.

    Float and integer masks are refused: it is too easy to pass lengths or additive masks.
    """
    mask = keras.ops.convert_to_tensor(mask)
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if dtype != "bool":
        raise ValueError(
            f"{owner}: `{name}` must be boolean (True marks a valid position). "
            f"Received dtype: {dtype}"
        )
    check_agrees(owner, name, tuple(mask.shape), expected, layout)
    return mask


def check_ages(owner: str, name: str, age: Tensor, expected: Shape, layout: str) -> Tensor:
    """Return an integer tensor of ages of shape ``expected`` or raise ``ValueError``."""
    age = keras.ops.convert_to_tensor(age)
    dtype = keras.backend.standardize_dtype(age.dtype)
    if "int" not in dtype:
        raise ValueError(
            f"{owner}: `{name}` must be an integer tensor of seconds (request time minus "
            f"event time, subtracted as integers). Received dtype: {dtype}"
        )
    check_agrees(owner, name, tuple(age.shape), expected, layout)
    return age
