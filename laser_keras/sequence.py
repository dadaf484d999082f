"""Pure functions on padded sequences that several layers share."""

from typing import Any

import keras
import numpy as np
from keras import ops

from laser_keras.checks import check_int, check_mask, check_rank
from laser_keras.types import Tensor


def linear(inputs: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply the last axis of ``inputs`` [..., a] by ``kernel`` [a, b], giving [..., b].

    The leading axes are flattened first: backends otherwise broadcast the kernel over them, and
    its gradient is then formed once per leading index before it is summed. (``einsum`` rather than
    ``matmul`` throughout: Keras computes the latter in float32 for float64 inputs on PyTorch.)
    """
    leading = ops.shape(inputs)[:-1]
    outputs = ops.einsum("ma,ab->mb", ops.reshape(inputs, (-1, inputs.shape[-1])), kernel)
    if bias is not None:
        outputs = ops.add(outputs, bias)
    return ops.reshape(outputs, (*leading, kernel.shape[-1]))


def stable_dtype(dtype: str) -> str:
    """The dtype for gates, softmax and logarithms: at least float32, float64 where it came."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def lowest(values: Tensor) -> float:
    """The lowest finite number of the dtype of ``values``, for masking.

    Finite, unlike -inf: a softmax of nothing else is not NaN.
    """
    dtype = keras.backend.standardize_dtype(values.dtype)
    if dtype == "bfloat16":  # NumPy has none
        return -float.fromhex("0x1.fep127")
    return float(np.finfo(dtype).min)


def maximum_of(inputs: Tensor, axis: int) -> Tensor:
    """``ops.max`` that accepts empty tensors, for which it returns zeros or an empty tensor.

    Keras refuses to reduce a tensor without elements, even where the reduced axis is not the
    empty one.
    """
    if 0 not in inputs.shape:
        return ops.max(inputs, axis=axis)
    shape = list(ops.shape(inputs))
    del shape[axis]
    return ops.zeros(shape, dtype=inputs.dtype)


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis; masked positions, and rows with no valid position, are zero.

    ``scores`` are float32 or float64 (see :func:`stable_dtype`).
    """
    if scores.shape[-1] == 0:
        return scores
    if mask is not None:
        scores = ops.where(mask, scores, lowest(scores))
    if scores.shape[-1] == 1:  # Keras warns of a softmax over one position
        weights = ops.exp(scores - scores)
    else:
        weights = ops.softmax(scores, axis=-1)
    return weights if mask is None else ops.where(mask, weights, 0.0)


def exact_bucket(values: Tensor, estimate: Tensor, edges: np.ndarray) -> Tensor:
    """The bucket of each value by integer ``edges`` (the smallest value of each bucket).

    Args:
        values: int32 tensor of any shape, at least ``edges[0]``.
        estimate: Float tensor of the same shape, whose floor is the bucket give or take one:
            floating point can miss it next to an edge, on some backend or device.
        edges: int32 array, ascending.
    """
    values, last = ops.cast(values, "int32"), len(edges) - 1
    guess = ops.clip(ops.cast(ops.floor(estimate), "int32"), 0, last)
    starts = ops.convert_to_tensor(np.append(edges, np.iinfo(np.int32).max).astype("int32"))
    too_high = ops.cast(values < ops.take(starts, guess), "int32")
    too_low = ops.cast(values >= ops.take(starts, guess + 1), "int32")
    return ops.clip(guess - too_high + too_low, 0, last)


def pad_axis(inputs: Tensor, axis: int, multiple: int) -> Tensor:
    """Append zeros (or False) along ``axis`` until its length is a multiple of ``multiple``."""
    length = inputs.shape[axis]
    if length is not None and length % multiple == 0:
        return inputs
    shape: list[Any] = list(ops.shape(inputs))
    shape[axis] = -shape[axis] % multiple
    return ops.concatenate([inputs, ops.zeros(shape, dtype=inputs.dtype)], axis=axis)


def zero_masked(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Replace the rows of ``inputs`` [B, L, d] whose ``mask`` [B, L] is False by zeros.

    A select, not a product, so that even NaN in padding is removed.
    """
    if mask is None:
        return inputs
    return ops.where(ops.expand_dims(mask, -1), inputs, 0.0)


def merge_heads(inputs: Tensor) -> Tensor:
    """[..., heads, e] to [..., heads * e]."""
    return ops.reshape(inputs, (*ops.shape(inputs)[:-2], inputs.shape[-2] * inputs.shape[-1]))


def split_heads(inputs: Tensor, num_heads: int) -> Tensor:
    """[..., heads * e] to [..., heads, e]."""
    return ops.reshape(inputs, (*ops.shape(inputs)[:-1], num_heads, inputs.shape[-1] // num_heads))


def masked_mean(inputs: Tensor, mask: Tensor) -> Tensor:
    """Mean over axis 1 of the rows of ``inputs`` [B, L, d] that ``mask`` [B, L] marks; or zero."""
    counted = ops.cast(ops.expand_dims(mask, -1), inputs.dtype)
    total = ops.sum(zero_masked(inputs, mask), axis=1)
    return total / ops.maximum(ops.sum(counted, axis=1), 1.0)


def segment_mask(mask: Tensor | None, segment_size: int) -> Tensor | None:
    """Which segments hold a valid event: ``mask`` [B, L] becomes [B, ceil(L / segment_size)].

    Raises:
        ValueError: for a ``segment_size`` below one, and a ``mask`` that is not boolean [B, L].
    """
    check_int("segment_mask", "segment_size", segment_size, 1)
    if mask is None:
        return None
    check_rank("segment_mask", "mask", tuple(mask.shape), (2,), "[B, L]")
    mask = check_mask("segment_mask", "mask", mask, tuple(mask.shape), "[B, L]")
    mask = pad_axis(mask, 1, segment_size)
    batch, length = ops.shape(mask)
    return ops.any(ops.reshape(mask, (batch, length // segment_size, segment_size)), axis=-1)


def reverse_valid(sequence: Tensor, mask: Tensor | None) -> Tensor:
    """Turn an oldest-first ``sequence`` [B, L, ...] into a newest-first, right-padded one.

    Leading padding (common in public loaders) and trailing padding both end up on the right; the
    gaps inside stay where they are. ``reverse_valid(mask, mask)`` gives the matching mask.

    Args:
        sequence: Tensor [B, L, ...], oldest event first.
        mask: Boolean tensor [B, L], True for valid events, or None if all are valid.

    Raises:
        ValueError: for a ``mask`` that is not boolean, or not [B, L] of the ``sequence``.
    """
    flipped = ops.flip(sequence, axis=1)
    if mask is None or sequence.shape[1] == 0:
        return flipped
    shape = tuple(sequence.shape[:2])
    mask = check_mask("reverse_valid", "mask", mask, shape, "[B, L] of `sequence`")
    length = ops.shape(mask)[1]
    first_valid = ops.argmax(ops.cast(ops.flip(mask, axis=1), "int32"), axis=1)
    positions = ops.arange(length, dtype="int32")[None, :]
    rolled = (positions + ops.cast(first_valid, "int32")[:, None]) % length
    for _ in range(len(sequence.shape) - 2):
        rolled = ops.expand_dims(rolled, -1)
    if len(sequence.shape) == 2:
        return ops.take_along_axis(flipped, rolled, axis=1)
    rolled = ops.broadcast_to(rolled, ops.shape(flipped))
    return ops.take_along_axis(flipped, rolled, axis=1)


def restore_order(by_event: Tensor, mask: Tensor | None) -> Tensor:
    """Undoes ``reverse_valid`` for numbers per event [B, N, heads, L].

    ``mask`` [B, L] is in the order that ``reverse_valid`` was given.
    """
    if mask is None or by_event.shape[-1] == 0:
        return ops.flip(by_event, axis=-1)
    length = ops.shape(mask)[1]
    first_valid = ops.argmax(ops.cast(ops.flip(mask, axis=1), "int32"), axis=1)
    positions = ops.arange(length, dtype="int32")[None, :] + length
    index = (positions - ops.cast(first_valid, "int32")[:, None]) % length
    index = ops.broadcast_to(index[:, None, None, :], ops.shape(by_event))
    return ops.flip(ops.take_along_axis(by_event, index, axis=-1), axis=-1)


def reverse_candidates(similarity: Tensor, mask: Tensor | None) -> Tensor:
    """``reverse_valid`` for features [B, N, L, m] or [B, L, m] whose events share ``mask``."""
    if len(similarity.shape) == 3:
        return reverse_valid(similarity, mask)
    by_event = ops.transpose(similarity, (0, 2, 1, 3))
    return ops.transpose(reverse_valid(by_event, mask), (0, 2, 1, 3))


def newest_first(
    history: Tensor, similarity: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """An oldest-first history, its similarity features and its mask, newest first."""
    if similarity is not None:
        similarity = reverse_candidates(similarity, mask)
    return (
        reverse_valid(history, mask),
        similarity,
        None if mask is None else reverse_valid(mask, mask),
    )
