"""Backend-neutral helpers of the layer tests: NumPy in, NumPy out.

JAX compiles every operation of every new shape by itself when a layer is called eagerly, which
takes most of a test's time. ``run`` and ``gradients`` compile a whole call at once there.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

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


_COMPILED: dict[str, Any] = {}
"""Compiled calls by what they compute: class, configuration and static arguments of a layer."""


def run(layer: keras.layers.Layer, **inputs: Any) -> Any:
    """``layer(**inputs)`` as users call it; on JAX the whole call is compiled at once.

    Weights that the call changes (moving averages) are changed in the layer as well.
    """
    if BACKEND != "jax":
        return layer(**inputs)
    import jax

    if not layer.built:
        build_symbolically(layer, inputs)
    leaves, static = tensors_and_static(inputs)
    config = {name: value for name, value in layer.get_config().items() if name != "name"}
    key = repr((type(layer), config, len(layer.variables), sorted(static.items())))
    if key not in _COMPILED:

        def call(values: Any, tensors: Any) -> Any:
            # Not ``stateless_call``, which leaves out what Keras does around ``call``.
            mapping = list(zip(layer.variables, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping) as scope:
                outputs = layer(**tensors, **static)
            return outputs, [scope.get_current_value(variable) for variable in layer.variables]

        _COMPILED[key] = jax.jit(call)
    outputs, values = _COMPILED[key]([v.value for v in layer.variables], leaves)
    if static.get("training"):
        for variable, value in zip(layer.variables, values, strict=True):
            variable.assign(value)
    return outputs


def build_symbolically(layer: keras.layers.Layer, inputs: dict[str, Any]) -> None:
    """Create the weights without computing, so that JAX has nothing to compile."""
    leaves, static = tensors_and_static(inputs)
    symbolic = keras.tree.map_structure(
        lambda v: keras.KerasTensor(v.shape, dtype=keras.backend.standardize_dtype(v.dtype)), leaves
    )
    layer(**symbolic, **static)


def tensors_and_static(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a call that are tensors (or hold them), and the others."""
    leaves = {name: value for name, value in inputs.items() if not is_static(value)}
    return leaves, {name: value for name, value in inputs.items() if name not in leaves}


def is_static(value: Any) -> bool:
    """Whether an argument of a call is none of its tensors."""
    return value is None or isinstance(value, (bool, int, float, str))


@contextlib.contextmanager
def float64_enabled() -> Iterator[None]:
    """Let the backend compute in float64; JAX must be asked to."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def long_on(backends: tuple[str, ...], values: Iterable[Any]) -> list[Any]:
    """Parameters that count as long on these backends, where they cost most.

    `.ci/run` tries them on the others, `make test-layers` on all.
    """
    marks = [pytest.mark.long] if BACKEND in backends else []
    return [pytest.param(value, marks=marks) for value in values]


def randomise(layer: keras.layers.Layer, seed: int = 0, scale: float = 0.3) -> None:
    """Give every weight (biases and normalisation included) a random value."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, scale, weight.shape).astype("float32"))


def built(layer: keras.layers.Layer, **inputs: Any) -> keras.layers.Layer:
    """The layer with random weights, built for these inputs."""
    if BACKEND == "jax":
        build_symbolically(layer, inputs)
    else:
        run(layer, **inputs)
    randomise(layer)
    return layer


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
    return gradient_function(layer, function)(inputs)


def gradient_function(
    layer: keras.layers.Layer, function: Callable[..., Any]
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """``gradients`` for several inputs; compiled once on JAX."""
    weights = layer.trainable_weights
    dtype = layer.variable_dtype
    if BACKEND == "tensorflow":
        return lambda inputs: _tensorflow_gradients(weights, dtype, function, inputs)
    if BACKEND == "torch":
        return lambda inputs: _torch_gradients(weights, dtype, function, inputs)
    import jax

    other = layer.non_trainable_variables

    def loss_of(values: list[Any], tensors: list[Any], fixed: list[Any]) -> Any:
        mapping = [*zip(weights, values, strict=True), *zip(other, fixed, strict=True)]
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return function(*tensors)

    compiled = jax.jit(jax.grad(loss_of, argnums=(0, 1)))

    def of(inputs: list[np.ndarray]) -> list[np.ndarray]:
        first, second = compiled(
            [weight.value for weight in weights],
            [jax.numpy.array(v, dtype) for v in inputs],
            [variable.value for variable in other],
        )
        return [np.asarray(gradient) for gradient in (*first, *second)]

    return of


def _tensorflow_gradients(
    weights: list, dtype: str, function: Callable[..., Any], inputs: list[np.ndarray]
) -> list[np.ndarray]:
    import tensorflow as tf

    tensors = [tf.constant(value, dtype) for value in inputs]
    sources = [weight.value for weight in weights] + tensors
    with tf.GradientTape() as tape:
        tape.watch(sources)
        loss = function(*tensors)
    found = tape.gradient(loss, sources)
    return [
        (tf.zeros_like(source) if gradient is None else tf.convert_to_tensor(gradient)).numpy()
        for gradient, source in zip(found, sources)
    ]


def _torch_gradients(
    weights: list, dtype: str, function: Callable[..., Any], inputs: list[np.ndarray]
) -> list[np.ndarray]:
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
