"""Gates of events, and the gated sums of their values, as pure functions of the weights.

``B`` requests, ``N`` candidates, ``L`` events (a multiple of the segment size ``w``), ``S = L / w``
segments. Every function is exact in real arithmetic for either order of execution; which order is
taken is decided by ``laser_keras.segment_orders``.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from laser_keras.checks import check_choice, is_number
from laser_keras.gated_sums import event_scores, gated_segment_sums
from laser_keras.sequence import (
    linear,
    masked_softmax,
    pad_axis,
    split_heads,
    stable_dtype,
    zero_masked,
)
from laser_keras.types import Tensor


class GateWeights(NamedTuple):
    """Weights of one segmented attention. Heads lie side by side in the kernels' last axis."""

    num_heads: int
    scale: Any
    """Number or scalar tensor that the queries are multiplied by."""
    query_kernel: Tensor
    key_kernel: Tensor
    value_kernel: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    score_bias: Tensor | None
    """[heads], added to the scores."""
    similarity_kernel: Tensor | None
    """[m, d]: what a unit of each similarity feature adds to an event."""


def check_gamma(owner: str, gamma: Any) -> Any:
    """Return a gate's scale as it is, or raise ``ValueError``."""
    if isinstance(gamma, str):
        return check_choice(owner, "gamma", gamma, ("learned",))
    if gamma is None or (is_number(gamma) and gamma > 0):
        return gamma
    raise ValueError(
        f"{owner}: `gamma` must be a positive number, 'learned' or None. Received: {gamma!r}"
    )


def compress_segments(
    weights: GateWeights,
    target: Tensor,
    history: Tensor,
    mask: Tensor | None,
    similarity: Tensor | None,
    *,
    segment_size: int,
    gate: str,
    absorbed: tuple[bool, bool],
    return_gates: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gate and sum the values of each segment, newest first.

    Args:
        weights: The attention's weights.
        target: Float tensor [B, N, d].
        history: Float tensor [B, L, d], any L. What the mask hides may be anything.
        mask: Boolean tensor [B, L] or None.
        similarity: Float tensor [B, N, L, m] or None.
        segment_size: Integer w.
        gate: ``"sigmoid"`` or ``"softmax"``.
        absorbed: Whether keys, and whether values, are absorbed.
        return_gates: Whether the gates are returned as well.

    Returns:
        Gated sums [B, N, ceil(L / w), heads, value_dim], and the gates [B, N, heads, L] or None.
    """
    length, events = history.shape[1], ops.shape(history)[1]
    if mask is None and (length is None or length % segment_size):
        mask = ops.ones(ops.shape(history)[:2], dtype="bool")  # told apart from the padding
    fused = all(absorbed) and similarity is None and gate == "sigmoid" and not return_gates
    if not fused:
        history = zero_masked(history, mask)
    history = pad_axis(history, 1, segment_size)
    if similarity is not None:
        if mask is not None:
            visible = ops.expand_dims(ops.expand_dims(mask, 1), -1)
            similarity = ops.where(visible, similarity, 0.0)
        similarity = pad_axis(similarity, 2, segment_size)
    if mask is not None:
        mask = pad_axis(mask, 1, segment_size)
    queries = scaled_queries(weights, target)
    if fused:
        return compress_absorbed(weights, queries, history, mask, segment_size), None
    scores = segment_scores(weights, queries, history, similarity, segment_size, absorbed[0])
    gates = open_gates(scores, mask, gate)
    sums = sum_values(weights, gates, history, similarity, absorbed[1])
    if not return_gates:
        return sums, None
    by_event = ops.reshape(gates, (*ops.shape(gates)[:3], ops.shape(history)[1]))
    return sums, by_event[..., :events]


def scaled_queries(weights: GateWeights, target: Tensor) -> Tensor:
    """Queries [B, N, heads, key_dim] of targets [B, N, d]."""
    query = linear(target, weights.query_kernel, weights.query_bias)
    return split_heads(query * weights.scale, weights.num_heads)


def compress_absorbed(
    weights: GateWeights,
    queries: Tensor,
    history: Tensor,
    mask: Tensor | None,
    segment_size: int,
) -> Tensor:
    """Gated sums [B, N, S, heads, value_dim] of sigmoid gates, without keys, values or copies.

    ``history`` [B, L, d] may hold anything where ``mask`` [B, L] is False.
    """
    batch, candidates = ops.shape(queries)[:2]
    heads, width = weights.num_heads, history.shape[-1]
    sums, totals = gated_segment_sums(
        ops.reshape(_absorb_keys(weights, queries), (batch, candidates * heads, width)),
        ops.reshape(_score_offsets(weights, queries), (batch, candidates * heads)),
        history,
        mask,
        segment_size,
    )
    count = ops.shape(sums)[1]
    segments = _project_sums(weights, ops.reshape(sums, (batch, count, candidates, heads, width)))
    if weights.value_bias is not None:
        totals = ops.reshape(totals, (batch, count, candidates, heads))
        segments = segments + _bias_of(weights, ops.transpose(totals, (0, 2, 1, 3)))
    return segments


def segment_scores(
    weights: GateWeights,
    queries: Tensor,
    history: Tensor,
    similarity: Tensor | None,
    segment_size: int,
    absorb_keys: bool,
) -> Tensor:
    """Scores of all events: [B, N, heads, S, w].

    ``history`` [B, L, d] and ``similarity`` [B, N, L, m] are zero where masked.
    """
    batch, candidates = ops.shape(queries)[:2]
    length = ops.shape(history)[1]
    heads = weights.num_heads
    if absorb_keys:
        flat = ops.reshape(
            _absorb_keys(weights, queries), (batch, candidates * heads, history.shape[-1])
        )
        scores = event_scores(flat, history)
        scores = ops.reshape(scores, (batch, candidates, heads, length))
    else:
        keys = split_heads(linear(history, weights.key_kernel), heads)
        scores = ops.einsum("bnhk,blhk->bnhl", queries, keys)
    if weights.key_bias is not None or weights.score_bias is not None:
        scores = scores + ops.expand_dims(_score_offsets(weights, queries), -1)
    if similarity is not None:
        absorbed = _absorb_keys(weights, queries)
        by_feature = ops.einsum("bnhd,md->bnhm", absorbed, weights.similarity_kernel)
        scores = scores + ops.einsum("bnlm,bnhm->bnhl", similarity, by_feature)
    return ops.reshape(scores, (batch, candidates, heads, length // segment_size, segment_size))


def open_gates(scores: Tensor, mask: Tensor | None, gate: str) -> Tensor:
    """Gates of scores [B, N, heads, S, w], zero where ``mask`` [B, L] is False."""
    batch, _, _, count, w = ops.shape(scores)
    dtype = keras.backend.standardize_dtype(scores.dtype)
    scores = ops.cast(scores, stable_dtype(dtype))
    if mask is not None:
        mask = ops.reshape(mask, (batch, 1, 1, count, w))
    if gate == "softmax":
        gates = masked_softmax(scores, mask)
    else:
        gates = ops.sigmoid(scores)
        if mask is not None:
            gates = ops.where(mask, gates, 0.0)
    return ops.cast(gates, dtype)


def sum_values(
    weights: GateWeights,
    gates: Tensor,
    history: Tensor,
    similarity: Tensor | None,
    absorb_values: bool,
) -> Tensor:
    """Sum the gated values of each segment: [B, N, S, heads, value_dim].

    ``gates`` [B, N, heads, S, w] and what they gate are zero where masked.
    """
    batch, candidates, heads, count, w = ops.shape(gates)
    width = history.shape[-1]
    if absorb_values:
        by_segment = ops.transpose(gates, (0, 3, 1, 2, 4))
        by_segment = ops.reshape(by_segment, (batch, count, candidates * heads, w))
        events = ops.reshape(history, (batch, count, w, width))
        sums = ops.einsum("bsmw,bswd->bsmd", by_segment, events)
        segments = _project_sums(
            weights, ops.reshape(sums, (batch, count, candidates, heads, width))
        )
    else:
        values = split_heads(linear(history, weights.value_kernel), heads)
        values = ops.reshape(values, (batch, count, w, heads, values.shape[-1]))
        segments = ops.einsum("bnhsw,bswhe->bnshe", gates, values)
    if weights.value_bias is not None:
        totals = ops.transpose(ops.sum(gates, -1), (0, 1, 3, 2))
        segments = segments + _bias_of(weights, totals)
    if similarity is not None:
        features = ops.reshape(similarity, (batch, candidates, count, w, similarity.shape[-1]))
        sums = ops.einsum("bnhsw,bnswm->bnshm", gates, features)
        projected = linear(weights.similarity_kernel, weights.value_kernel)
        projected = split_heads(projected, heads)
        segments = segments + ops.einsum("bnshm,mhe->bnshe", sums, projected)
    return segments


def _absorb_keys(weights: GateWeights, queries: Tensor) -> Tensor:
    """The vectors [B, N, heads, d] whose products with the events are the scores."""
    return ops.einsum("bnhk,dhk->bnhd", queries, split_heads(weights.key_kernel, weights.num_heads))


def _score_offsets(weights: GateWeights, queries: Tensor) -> Tensor:
    """What the biases add to all scores of a candidate: [B, N, heads]."""
    offsets = ops.zeros(ops.shape(queries)[:3], dtype=queries.dtype)
    if weights.key_bias is not None:
        bias = ops.reshape(weights.key_bias, (weights.num_heads, -1))
        offsets = ops.einsum("bnhk,hk->bnh", queries, bias)
    return offsets if weights.score_bias is None else offsets + weights.score_bias


def _project_sums(weights: GateWeights, sums: Tensor) -> Tensor:
    """Apply ``Wv`` to sums [B, S, N, heads, d]: [B, N, S, heads, value_dim]."""
    batch, count, candidates, heads, width = ops.shape(sums)
    kernel = ops.transpose(split_heads(weights.value_kernel, heads), (1, 0, 2))
    # Heads first, one large product each: the same as a single `einsum` takes TensorFlow twice
    # as long, mostly for the gradient to the kernel.
    by_head = ops.reshape(ops.transpose(sums, (3, 0, 1, 2, 4)), (heads, -1, width))
    segments = ops.einsum("hmd,hde->hme", by_head, kernel)
    segments = ops.reshape(segments, (heads, batch, count, candidates, kernel.shape[-1]))
    return ops.transpose(segments, (1, 3, 2, 0, 4))


def _bias_of(weights: GateWeights, totals: Tensor) -> Tensor:
    """Gates do not sum to one, so the value bias counts once per unit of gate [B, N, S, heads]."""
    bias = ops.reshape(weights.value_bias, (weights.num_heads, -1))
    return ops.expand_dims(totals, -1) * bias
