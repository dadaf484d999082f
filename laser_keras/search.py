"""Selection of events of a long history: pure functions shared by the two-stage encoders."""

import keras
from keras import ops

from laser_keras.sequence import lowest
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
    index = _best(ops.where(mask, scores, lowest(scores)), top_k)
    return index, ops.take_along_axis(mask, index, axis=-1)


def round_robin_events(scores: Tensor, mask: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """``top_events`` for scores of several heads: the union that TWIN takes.

    TWIN walks down the ranked lists of all heads in turn and keeps what it has not met yet, until
    it holds ``top_k`` events. None of them stands below place ``top_k`` of a list, because one
    list alone holds that many different ones: so the best of each head are all that is sorted.

    Args:
        scores: Float tensor [B, N, heads, L].
        mask: Boolean tensor [B, L].
        top_k: Integer, at most L.

    >>> import keras
    >>> index, _ = round_robin_events([[[[9.0, 8, 1], [9.0, 1, 8]]]], [[True] * 3], 3)
    >>> keras.ops.convert_to_numpy(index).tolist()  # both heads name event 0 first
    [[[0, 1, 2]]]
    """
    scores, mask = ops.convert_to_tensor(scores), ops.convert_to_tensor(mask)
    batch, candidates, heads, length = ops.shape(scores)
    visible = ops.broadcast_to(mask[:, None, None, :], ops.shape(scores))
    lists = _best(ops.where(visible, scores, lowest(scores)), top_k)
    steps = heads * top_k
    # Events by the step of the walk that meets them, [B, N, steps].
    met = ops.reshape(ops.swapaxes(lists, 2, 3), (batch, candidates, steps))
    # Sorted by event and then by step, an event's first meeting follows another event. The
    # products fit int32 up to histories of millions of events.
    met = ops.sort(met * steps + ops.arange(steps, dtype="int32"), axis=-1)
    event, step = met // steps, met % steps
    again = ops.pad(event[..., 1:] == event[..., :-1], ((0, 0), (0, 0), (1, 0)))
    # A step is below 2^24: it is exact in float32, which PyTorch and JAX can rank as well.
    late = ops.cast(step + ops.where(again, steps, 0), "float32")
    index = ops.take_along_axis(event, _best(-late, top_k), axis=-1)
    seen = ops.broadcast_to(mask[:, None], (batch, candidates, length))
    return index, ops.take_along_axis(seen, index, axis=-1)


def _best(scores: Tensor, top_k: int) -> Tensor:
    """int32 indices of the best scores along the last axis; ties go to the lower index."""
    if keras.backend.backend() == "torch":
        # Its top-k does not say which of several equal scores it takes; its sort is stable.
        return ops.cast(ops.argsort(-scores, axis=-1)[..., :top_k], "int32")
    return ops.cast(ops.top_k(scores, top_k)[1], "int32")


def gather_events(history: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [B, N, K] of ``history`` [B, L, d]: [B, N, K, d]."""
    batch, candidates, count = ops.shape(index)
    length, width = ops.shape(history)[1], history.shape[-1]
    # Rows of one matrix: TensorFlow's gather along an axis moves single numbers.
    first = ops.arange(batch, dtype="int32")[:, None] * length
    rows = ops.reshape(index, (batch, candidates * count)) + first
    found = ops.take(ops.reshape(history, (batch * length, width)), rows, axis=0)
    return ops.reshape(found, (batch, candidates, count, width))
