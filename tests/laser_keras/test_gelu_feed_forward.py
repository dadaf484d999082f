"""The feed-forward network that computes its hidden layer again, against the plain formula."""

import keras
import numpy as np
import pytest
from keras import ops
from layer_tools import assert_close, float64_enabled, gradients, randomise, to_numpy

from laser_keras import FeedForward


def plain(layer: FeedForward, inputs: object) -> object:
    """``gelu(x W1 + b1) W2 + b2``, differentiated by the backend."""
    # Over flat rows: TensorFlow 2.16 with oneDNN multiplies float32 [2, 3, 5, 6] by [6, 6] wrongly
    # on some processors.
    rows = ops.reshape(inputs, (-1, inputs.shape[-1]))
    hidden = ops.einsum("md,dh->mh", rows, layer.hidden_kernel) + layer.hidden_bias
    hidden = 0.5 * hidden * (1 + ops.erf(hidden / np.sqrt(2).item()))
    outputs = ops.einsum("mh,hd->md", hidden, layer.output_kernel) + layer.output_bias
    return ops.reshape(outputs, inputs.shape)


def example(expansion: int, shape: tuple[int, ...], dtype: str) -> tuple[FeedForward, np.ndarray]:
    layer = FeedForward(expansion, dtype=dtype)
    layer.build(shape)
    randomise(layer)
    return layer, np.random.default_rng(1).normal(0, 2, shape).astype(dtype)


@pytest.mark.parametrize("expansion", [1, 3, 4])
@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 5, 6), (0, 6)])
@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-5), ("float64", 1e-10)])
def test_values_and_gradients_equal_the_plain_formula(
    expansion: int, shape: tuple[int, ...], dtype: str, relative: float
) -> None:
    with float64_enabled():
        layer, inputs = example(expansion, shape, dtype)
        upstream = np.random.default_rng(2).normal(size=shape).astype(dtype)
        upstream = ops.convert_to_tensor(upstream)
        tensor = ops.convert_to_tensor(inputs)
        outputs, plainly = ops.stop_gradient(layer(tensor)), ops.stop_gradient(plain(layer, tensor))
        assert_close(outputs, plainly, relative)
        found = gradients(layer, lambda x: ops.sum(layer(x) * upstream), [inputs])
        expected = gradients(layer, lambda x: ops.sum(plain(layer, x) * upstream), [inputs])
        assert len(found) == 5
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, relative)


def test_golden_gradient_of_one_hidden_unit() -> None:
    """y = 2 gelu(x): y' = 2 (Phi(x) + x phi(x)), at x = 1 by the tables of the normal law."""
    layer = FeedForward(1)
    layer.build((1, 1))
    for variable, value in zip(layer.trainable_variables, [[[1.0]], [0.0], [[2.0]], [0.0]]):
        variable.assign(value)
    inputs = np.ones((1, 1), "float32")
    assert_close(layer(inputs), [[2 * 0.8413447]])
    found = gradients(layer, lambda x: ops.sum(layer(x)), [inputs])
    slope = 2 * (0.8413447 + 0.2419707)
    hidden_kernel, hidden_bias, output_kernel, output_bias, by_inputs = (x.item() for x in found)
    assert [hidden_kernel, hidden_bias, by_inputs] == pytest.approx([slope] * 3, rel=1e-6)
    assert (output_kernel, output_bias) == pytest.approx((0.8413447, 1.0), rel=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_weights_and_gradients_finite(policy: str) -> None:
    layer = FeedForward(dtype=policy)
    inputs = np.random.default_rng(0).normal(size=(5, 8)).astype("float32")
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    found = gradients(layer, lambda x: ops.sum(ops.cast(layer(x), "float32")), [inputs])
    reference = FeedForward()
    reference.build((5, 8))
    reference.set_weights(layer.get_weights())
    expected = gradients(reference, lambda x: ops.sum(reference(x)), [inputs])
    for one, other in zip(found, expected, strict=True):
        assert to_numpy(one).dtype == "float32"
        assert_close(one, other, 0.05)
