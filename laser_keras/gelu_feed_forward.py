"""A GELU feed-forward network with a memory-saving gradient."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.activations import exact_gelu, normal_distribution
from laser_keras.types import Tensor


def gelu_feed_forward(
    inputs: Tensor,
    hidden_kernel: Tensor,
    hidden_bias: Tensor,
    output_kernel: Tensor,
    output_bias: Tensor,
) -> Tensor:
    """Compute ``gelu(x W1 + b1) W2 + b2`` with the exact GELU.

    The hidden layer is several times as large as the input, and automatic differentiation keeps up
    to five tensors of its size, most of the memory of an encoder's training step. The result is the
    same on every backend; what is kept for the gradient depends on the backend:

    * JAX: the input alone. The gradient computes the hidden layer again, a part at a time (six
      products of the network's size in a step instead of five; no forward-mode differentiation).
    * TensorFlow: the hidden layer before its activation. Its loops run their parts side by side,
      so that computing it again in parts takes longer and saves nothing.
    * PyTorch: as PyTorch does, with its own kernel for GELU and its gradient.

    Args:
        inputs: Float tensor [M, d].
        hidden_kernel: Float tensor [d, e d], for an integer expansion e.
        hidden_bias: Float tensor [e d].
        output_kernel: Float tensor [e d, d].
        output_bias: Float tensor [d].

    Returns:
        Float tensor [M, d].
    """
    weights = (hidden_kernel, hidden_bias, output_kernel, output_bias)
    if keras.backend.backend() == "tensorflow":
        return _network(_gelu_from_input, inputs, *weights)
    if keras.backend.backend() != "jax":
        return _network(exact_gelu, inputs, *weights)

    def forward(inputs: Tensor, *weights: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        def backward(upstream: Any) -> tuple[Tensor, ...]:
            return _gradients(upstream, inputs, *weights[:3])

        return _network(exact_gelu, inputs, *weights), backward

    cast = [ops.cast(weight, inputs.dtype) for weight in weights]
    return ops.custom_gradient(forward)(inputs, *cast)


def _network(
    activation: Callable[[Tensor], Tensor],
    inputs: Tensor,
    hidden_kernel: Tensor,
    hidden_bias: Tensor,
    output_kernel: Tensor,
    output_bias: Tensor,
) -> Tensor:
    hidden = activation(ops.add(ops.einsum("md,dh->mh", inputs, hidden_kernel), hidden_bias))
    return ops.add(ops.einsum("mh,hd->md", hidden, output_kernel), output_bias)


def _gelu_from_input(inputs: Tensor) -> Tensor:
    """GELU that keeps nothing but its input for the gradient."""

    def forward(inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def backward(upstream: Tensor) -> Tensor:
            return upstream * (normal_distribution(inputs) + inputs * _density(inputs))

        return exact_gelu(inputs), backward

    return ops.custom_gradient(forward)(inputs)


def _density(x: Tensor) -> Tensor:
    """The standard normal density."""
    return ops.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _gradients(
    upstream: Tensor, inputs: Tensor, hidden_kernel: Tensor, hidden_bias: Tensor, output_kernel: Any
) -> tuple[Tensor, ...]:
    """Gradients to inputs, kernels and biases, one part of d hidden units after another."""
    width, hidden = hidden_kernel.shape
    # Parts along the first axis: [e, d, d], [e, d] and [e, d, d].
    into = ops.transpose(ops.reshape(hidden_kernel, (width, -1, width)), (1, 0, 2))
    bias = ops.reshape(hidden_bias, (-1, width))
    out_of = ops.reshape(output_kernel, (-1, width, width))

    def add_part(part: Any, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before = ops.add(ops.einsum("md,dh->mh", inputs, into[part]), bias[part])
        below = normal_distribution(before)
        slope = below + before * _density(before)
        by_before = ops.einsum("md,hd->mh", upstream, out_of[part]) * slope
        by_inputs, *by_weights = found
        parts = (
            ops.einsum("md,mh->dh", inputs, by_before),
            ops.sum(by_before, axis=0),
            ops.einsum("mh,md->hd", before * below, upstream),
        )
        return (
            by_inputs + ops.einsum("mh,dh->md", by_before, into[part]),
            *(
                ops.slice_update(whole, (part, *(0,) * len(new.shape)), ops.expand_dims(new, 0))
                for whole, new in zip(by_weights, parts, strict=True)
            ),
        )

    # A loop of the compiler: one in Python would be unrolled, and all parts held at once.
    nothing = tuple(ops.zeros_like(each) for each in (inputs, into, bias, out_of))
    by_inputs, by_into, by_bias, by_out_of = ops.fori_loop(0, hidden // width, add_part, nothing)
    return (
        by_inputs,
        ops.reshape(ops.transpose(by_into, (1, 0, 2)), (width, hidden)),
        ops.reshape(by_bias, (hidden,)),
        ops.reshape(by_out_of, (hidden, width)),
        ops.sum(upstream, axis=0),
    )
