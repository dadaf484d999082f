"""Sigmoid-gated sums of the events of each segment, with few passes over the history."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.sequence import stable_dtype, zero_masked
from laser_keras.types import Tensor


def gated_segment_sums(
    queries: Tensor,
    offsets: Tensor,
    history: Tensor,
    mask: Tensor | None,
    segment_size: int,
) -> tuple[Tensor, Tensor]:
    """Sum the events of each segment, each gated by ``sigmoid(query . event + offset)``.

    The history is the largest tensor by far, so the number of passes over it decides time and
    memory. The forward computation reads it twice (scores, sums) and writes nothing of its size.
    The gradient is written by hand: two passes read and one writes. Automatic differentiation
    would keep a copy of the history with its masked events zeroed and write its gradient twice,
    then add and mask the two.

    On TensorFlow and JAX the gradient is therefore custom (JAX: no forward-mode differentiation);
    PyTorch, where Keras has custom gradients for functions of a single output only,
    differentiates the same forward computation by itself.

    Args:
        queries: Float tensor [B, M, d], scaled as the scores are to be.
        offsets: Float tensor [B, M], added to the scores.
        history: Float tensor [B, L, d], L a multiple of the segment size.
        mask: Boolean tensor [B, L], True for valid events, or None if all are valid. Masked events
            never change the result, even if they hold NaN.
        segment_size: Integer w.

    Returns:
        The sums [B, L / w, M, d], and the sums of the gates [B, L / w, M].
    """
    if keras.backend.backend() == "torch":
        history = zero_masked(history, mask)
        gates, _ = _gates(queries, offsets, history, mask, segment_size)
        return _sum_events(history, gates), ops.sum(gates, axis=-1)

    def forward(*inputs: Tensor) -> tuple[tuple[Tensor, Tensor], Callable[..., Any]]:
        queries, offsets, history = inputs[:3]
        # An argument, not captured, and a float: JAX asks for both.
        mask = ops.cast(inputs[3], "bool") if len(inputs) == 4 else None
        gates, clean = _gates(queries, offsets, history, mask, segment_size)
        sums = _without_masked(_sum_events, clean, history, mask, gates)

        def backward(*upstream: Any) -> tuple[Tensor, ...]:
            # TensorFlow passes one argument per output, JAX a tuple of all.
            by_sums, by_totals = upstream if len(upstream) == 2 else upstream[0]
            # Events before queries here: JAX is much slower the other way round.
            by_event = ops.transpose(gates, (0, 1, 3, 2))
            by_scores, by_queries = _without_masked(
                _gradients_by_request, clean, history, mask, by_event, by_sums, by_totals
            )
            found = (
                by_queries,
                ops.cast(ops.sum(by_scores, axis=(1, 2)), offsets.dtype),
                _history_gradient(queries, by_event, by_sums, by_scores),
            )
            return (*found, ops.zeros_like(inputs[3])) if len(inputs) == 4 else found

        return (sums, ops.sum(gates, axis=-1)), backward

    inputs = [queries, offsets, history]
    if mask is not None:
        inputs.append(ops.cast(mask, history.dtype))
    return ops.custom_gradient(forward)(*inputs)


def _gates(
    queries: Tensor, offsets: Tensor, history: Tensor, mask: Tensor | None, segment_size: int
) -> tuple[Tensor, Tensor]:
    """Gates [B, S, M, w] (zero where masked), and whether masked events are finite throughout.

    A score is finite only if all numbers of its event are, so no pass is needed to find out.
    """
    batch, count = ops.shape(queries)[:2]
    segments = ops.shape(history)[1] // segment_size
    scores = event_scores(queries, history) + ops.expand_dims(offsets, -1)
    gates = ops.sigmoid(ops.cast(scores, stable_dtype(scores.dtype)))
    clean = ops.convert_to_tensor(True)
    if mask is not None:
        visible = ops.expand_dims(mask, 1)
        gates = ops.where(visible, gates, 0.0)
        clean = ops.all(ops.logical_or(visible, ops.isfinite(scores)))
    gates = ops.reshape(ops.cast(gates, scores.dtype), (batch, count, segments, segment_size))
    return ops.transpose(gates, (0, 2, 1, 3)), clean


def _without_masked(
    function: Callable[..., Any], clean: Tensor, history: Tensor, mask: Tensor | None, *others: Any
) -> Any:
    """``function(history, *others)`` as if masked events were zero.

    The function multiplies masked events by zero, which is enough if they are finite; padding
    nearly always is. If not, requests are cleaned one after another: that takes longer, but a
    compiler that reserves memory for both branches needs none for a copy of the whole history.
    """
    if mask is None:
        return function(history, *others)

    def clean_one(request: tuple[Tensor, ...]) -> Any:
        one_history, one_mask, *rest = (ops.expand_dims(x, 0) for x in request)
        outputs = function(zero_masked(one_history, one_mask), *rest)
        return keras.tree.map_structure(lambda x: ops.squeeze(x, 0), outputs)

    return ops.cond(
        clean,
        lambda: function(history, *others),
        lambda: ops.map(clean_one, (history, mask, *others)),
    )


def event_scores(queries: Tensor, history: Tensor) -> Tensor:
    """Products of M queries [B, M, d] with events [B, L, d]: [B, M, L].

    The long operand comes first: TensorFlow is much slower the other way round.
    """
    return ops.transpose(ops.einsum("bld,bmd->blm", history, queries), (0, 2, 1))


def _sum_events(history: Tensor, gates: Tensor) -> Tensor:
    """Gated sums [B, S, M, d]."""
    return ops.einsum("bsmw,bswd->bsmd", gates, _by_segment(history, gates.shape[-1]))


def _gradients_by_request(
    history: Tensor, gates: Tensor, by_sums: Tensor, by_totals: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to the scores [B, S, w, M] and to the queries [B, M, d], of gates [B, S, w, M]."""
    batch, segments, segment_size, count = ops.shape(gates)
    events = _by_segment(history, segment_size)
    by_gates = ops.einsum("bswd,bsmd->bswm", events, by_sums) + ops.expand_dims(by_totals, 2)
    # Selected, not multiplied by the zero gate of a masked event: its gradient may overflow.
    by_scores = ops.where(gates > 0, by_gates * gates * (1.0 - gates), 0.0)
    flat = ops.reshape(by_scores, (batch, segments * segment_size, count))
    return by_scores, ops.einsum("bml,bld->bmd", ops.transpose(flat, (0, 2, 1)), history)


def _history_gradient(queries: Tensor, gates: Tensor, by_sums: Tensor, by_scores: Tensor) -> Tensor:
    """Gradient to the events, ``gate * d sums + d score * query``, as one matrix product."""
    batch, segments, segment_size, _ = ops.shape(gates)
    queries = ops.broadcast_to(ops.expand_dims(queries, 1), ops.shape(by_sums))
    factors = ops.concatenate([gates, by_scores], axis=-1)
    vectors = ops.concatenate([by_sums, queries], axis=2)
    by_events = ops.einsum("bswf,bsfd->bswd", factors, vectors)
    return ops.reshape(by_events, (batch, segments * segment_size, queries.shape[-1]))


def _by_segment(history: Tensor, segment_size: int) -> Tensor:
    """[B, L, d] as [B, S, w, d]."""
    batch, length, width = ops.shape(history)
    return ops.reshape(history, (batch, length // segment_size, segment_size, width))
