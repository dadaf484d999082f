"""Selection of events of a long history: pure functions shared by the two-stage encoders."""

import keras
from keras import ops

from laser_keras.sequence import lowest, maximum_of
from laser_keras.types import Tensor


def kept_events(owner: str, top_k: int, length: int | None) -> int:
    """``min(top_k, length)``, or ``ValueError`` for an unknown length."""
    if length is None:
        raise ValueError(
            f"{owner}: the length of `history` must be known, because `top_k` events are "
            "selected from it. Give the input a fixed length. Received: None"
        )
    return min(top_k, length)


def top_events(scores: Tensor, mask: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Indices of the ``top_k`` best valid events and whether each is one.

    Args:
        scores: Float tensor [B, N, L].
        mask: Boolean tensor, broadcastable to [B, N, L]; other events are never preferred to a
            valid one, whatever the sign of the scores, and come back with False.
        top_k: Integer, at most L.

    Returns:
        int32 indices and a boolean tensor, both [B, N, top_k]; ties go to the newer event.

    >>> import keras
    >>> index, valid = top_events([[[-3.0, 9.0, -1.0]]], [[[True, False, True]]], 3)
    >>> keras.ops.convert_to_numpy(index).tolist(), keras.ops.convert_to_numpy(valid).tolist()
    ([[[2, 0, 1]]], [[[True, True, False]]])
    """
    scores, mask = ops.convert_to_tensor(scores), ops.convert_to_tensor(mask)
    mask = ops.broadcast_to(mask, ops.shape(scores))
    scores = ops.where(mask, scores, lowest(scores))
    if keras.backend.backend() == "torch":
        # Its top-k does not say which of several equal scores it takes; its sort is stable.
        index = ops.argsort(-scores, axis=-1)[..., :top_k]
    else:
        _, index = ops.top_k(scores, top_k)
    return ops.cast(index, "int32"), ops.take_along_axis(mask, index, axis=-1)


def round_robin_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Turn scores per head [B, N, heads, L] into one score [B, N, L] whose order is TWIN's union.

    TWIN walks down the ranked lists of all heads in turn and keeps what it has not met yet. Event
    j is first met at step ``min over heads of (rank of j in the head) * heads + head``; no two
    events share a step.
    """
    heads = scores.shape[2]
    scores = ops.where(mask, scores, lowest(scores))
    order = ops.flip(ops.argsort(ops.flip(scores, axis=-1), axis=-1), axis=-1)
    # Flipping before and after the stable ascending sort ranks equal scores newest first.
    length = ops.shape(scores)[-1]
    order = length - 1 - order
    rank = ops.cast(ops.argsort(order, axis=-1), "int32")
    head = ops.reshape(ops.arange(heads, dtype="int32"), (heads, 1))
    return ops.cast(maximum_of(-(rank * heads + head), axis=2), "float32")


def gather_events(history: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, N, K] of ``history`` [B, L, d]: [B, N, K, d]."""
    batch, candidates, count = ops.shape(index)
    flat = ops.reshape(index, (batch, candidates * count, 1))
    rows = ops.take_along_axis(history, flat, axis=1)
    return ops.reshape(rows, (batch, candidates, count, history.shape[-1]))
