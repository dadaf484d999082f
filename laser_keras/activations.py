"""Activations of the layers' networks: Keras' own, with GELU the same on every backend."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.types import Tensor


def exact_gelu(inputs: Tensor) -> Tensor:
    """GELU by the error function, ``x (1 + erf(x / sqrt(2))) / 2``, in the precision of ``x``.

    TensorFlow's own rounds a constant to float32 for float64 inputs.

    >>> import numpy as np
    >>> value = exact_gelu(np.array([1.0], "float32"))
    >>> round(float(ops.convert_to_numpy(value)[0]), 6)
    0.841345
    """
    if keras.backend.backend() == "tensorflow":
        return inputs * normal_distribution(inputs)
    return ops.gelu(inputs, approximate=False)


def normal_distribution(x: Tensor) -> Tensor:
    """The standard normal distribution function; gelu(x) is x times it."""
    return 0.5 + 0.5 * ops.erf(x * math.sqrt(0.5))


@keras.saving.register_keras_serializable(package="laser_keras")
def gelu_tanh(inputs: Tensor) -> Tensor:
    """GELU by its tanh approximation, for runtimes without an error function (TFLite's built-ins).

    Within 5e-4 of the exact one. Ask for it by name: ``activation="gelu_tanh"``.

    >>> import numpy as np
    >>> value = gelu_tanh(np.array([1.0], "float32"))
    >>> round(float(ops.convert_to_numpy(value)[0]), 6)
    0.841192
    """
    return ops.gelu(inputs, approximate=True)


def get_activation(identifier: Any) -> Callable[[Tensor], Tensor]:
    """``keras.activations.get``, which also knows ``"gelu_tanh"`` by name."""
    return gelu_tanh if identifier == "gelu_tanh" else keras.activations.get(identifier)


def activation_name(activation: Callable[[Tensor], Tensor]) -> Any:
    """The name from which ``get_activation`` finds this activation again."""
    if activation is gelu_tanh:
        return "gelu_tanh"
    return keras.activations.serialize(activation)


def activate(activation: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Apply an activation that ``get_activation`` found."""
    return exact_gelu(inputs) if activation is keras.activations.gelu else activation(inputs)
