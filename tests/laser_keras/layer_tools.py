"""Backend-neutral helpers of the layer tests: NumPy in, NumPy out."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

BACKEND = keras.backend.backend()


def to_numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def assert_close(actual: Any, expected: Any, relative: float = 1e-5) -> None:
    """Equal up to ``relative`` of the largest magnitude in ``expected``."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    scale = max(float(np.abs(expected).max(initial=0.0)), 1e-6)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale)


def randomise(layer: keras.layers.Layer, seed: int = 0, scale: float = 0.3) -> None:
    """Give every weight (biases and normalisation included) a random value."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, scale, weight.shape).astype("float32"))


def weights_by_name(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """The layer's own weights and its sublayers', float64, by the last part of their path."""
    return {
        weight.path.split("/", 1)[-1]: to_numpy(weight).astype("float64")
        for weight in layer.weights
    }


def gradients(
    layer: keras.layers.Layer,
    function: Callable[..., Any],
    inputs: list[np.ndarray],
) -> list[np.ndarray]:
    """Gradients of ``function(*inputs)``, a scalar, to the layer's weights, then to the inputs."""
    weights = layer.trainable_weights
    dtype = layer.variable_dtype
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(value, dtype) for value in inputs]
        sources = [weight.value for weight in weights] + tensors
        with tf.GradientTape() as tape:
            tape.watch(sources)
            loss = function(*tensors)
        found = tape.gradient(loss, sources)
        found = [
            tf.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, source in zip(found, sources)
        ]
        return [gradient.numpy() for gradient in found]
    if BACKEND == "jax":
        import jax

        fixed = [(v, v.value) for v in layer.non_trainable_variables]

        def loss_of(values: list[Any], tensors: list[Any]) -> Any:
            mapping = list(zip(weights, values)) + fixed
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return function(*tensors)

        arguments = (
            [weight.value for weight in weights],
            [jax.numpy.array(v, dtype) for v in inputs],
        )
        first, second = jax.grad(loss_of, argnums=(0, 1))(*arguments)
        return [np.asarray(gradient) for gradient in (*first, *second)]
    import torch

    tensors = [
        torch.tensor(value, dtype=getattr(torch, dtype), requires_grad=True) for value in inputs
    ]
    sources = [weight.value for weight in weights] + tensors
    found = torch.autograd.grad(function(*tensors), sources, allow_unused=True)
    return [
        np.zeros(tuple(source.shape)) if gradient is None else gradient.detach().numpy()
        for gradient, source in zip(found, sources)
    ]
