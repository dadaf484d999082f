"""Self-attention over a history with a target appended, for many targets at once."""

import math
from typing import NamedTuple

import keras
from keras import ops

from laser_keras.sequence import (
    linear,
    lowest,
    masked_softmax,
    maximum_of,
    merge_heads,
    split_heads,
    stable_dtype,
)
from laser_keras.types import Tensor


class AttentionKernels(NamedTuple):
    """The four projections [d, d] of a self-attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


def attend_with_appended_target(
    target: Tensor, history: Tensor, mask: Tensor, kernels: AttentionKernels, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Self-attention over ``[target; history]``, one such sequence per target.

    What the events say to each other is the same for every target: it is computed once. A target
    adds one key to each event's softmax, which can be joined to it afterwards. With Z_i the sum of
    exponentials over the events and s_in the score of target n, event i reads::

        o_i + a_in (v_n - o_i)    with    a_in = sigmoid(s_in - log Z_i)

    So N targets cost one square of the history's length instead of N.

    Args:
        target: Float tensor [B, N, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events.
        kernels: The projections.
        num_heads: Integer, divides d.

    Returns:
        What each target reads, [B, N, d], and what each event reads beside each target,
        [B, N, L, d], both through the output projection.
    """
    dtype = keras.backend.standardize_dtype(history.dtype)
    precise = stable_dtype(dtype)

    def heads(inputs: Tensor, kernel: Tensor) -> Tensor:
        return split_heads(linear(inputs, kernel), num_heads)

    def scores(equation: str, queries: Tensor, keys: Tensor) -> Tensor:
        found = ops.cast(ops.einsum(equation, queries, keys), precise)
        return found / math.sqrt(queries.shape[-1])

    query, key, value = (heads(history, kernel) for kernel in kernels[:3])
    own_query, own_key, own_value = (heads(target, kernel) for kernel in kernels[:3])
    visible = ops.expand_dims(ops.expand_dims(mask, 1), 1)

    among_events = scores("bihe,bjhe->bhij", query, key)
    among_events = ops.where(visible, among_events, lowest(among_events))
    highest = ops.stop_gradient(maximum_of(among_events, axis=-1))  # it cancels
    powers = ops.where(visible, ops.exp(among_events - ops.expand_dims(highest, -1)), 0.0)
    # One for a history without a valid event, whose sum is zero. (A maximum with one would halve
    # the gradient of a sum that is one.)
    no_event = ops.logical_not(ops.any(visible, axis=-1))
    total = ops.sum(powers, axis=-1) + ops.cast(no_event, precise)
    # Divided before the sum over events, which float16 might not hold.
    weights = ops.cast(powers / ops.expand_dims(total, -1), dtype)
    read = ops.einsum("bhij,bjhe->bihe", weights, value)
    to_target = scores("bihe,bnhe->bnih", query, own_key)
    log_total = ops.swapaxes(highest + ops.log(total), 1, 2)  # [B, L, heads]
    share = ops.sigmoid(to_target - ops.expand_dims(log_total, 1))
    share = ops.cast(ops.expand_dims(share, -1), dtype)
    read = ops.expand_dims(read, 1)
    of_events = read + share * (ops.expand_dims(own_value, 2) - read)

    to_events = scores("bnhe,blhe->bnhl", own_query, key)
    to_itself = ops.cast(ops.sum(own_query * own_key, axis=-1, keepdims=True), precise)
    to_itself = to_itself / math.sqrt(own_key.shape[-1])
    itself = ops.ones((ops.shape(mask)[0], 1, 1, 1), dtype="bool")
    seen = ops.concatenate([itself, visible], axis=-1)
    weights = masked_softmax(ops.concatenate([to_itself, to_events], axis=-1), seen)
    weights = ops.cast(weights, dtype)
    of_targets = ops.einsum("bnhl,blhe->bnhe", weights[..., 1:], value)
    of_targets = of_targets + weights[..., :1] * own_value
    return tuple(linear(merge_heads(each), kernels.output) for each in (of_targets, of_events))
