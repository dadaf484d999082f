"""TWIN: a two-stage encoder whose search and attention share one score."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_divides, check_int
from laser_keras.encoders.search import gather_events, round_robin_scores, top_events
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import linear, masked_softmax, stable_dtype
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class TWINEncoder(SequenceEncoder):
    """Keeps the events with the best attention scores, then attends over them by those scores.

    With several heads the search walks down the heads' ranked lists in turn until ``top_k``
    different events are found; every head then attends over the same events. Gradients flow
    through the attention only. A second token is the target attention over the newest events.

    The paper's split of an event into inherent and cross features is an economy of its cache: a
    token that is a linear map of both parts, as ``SequenceTokenizer`` makes it, has the same score.

    Args:
        top_k: Integer, events kept. Defaults to 100.
        num_heads: Integer, divides the width d. Defaults to 4.
        recent_events: Integer, length of the short-term window. Defaults to 50.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d]; L must be known.
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Float tensor [B, N, 2, d] or [B, 2, d]: the long-term and the short-term interest.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(TWINEncoder()(target, history).shape)
    (2, 3, 2, 8)

    Source: TWIN (arXiv 2302.02352), sections 3.2 to 3.4.
    """

    def __init__(
        self,
        top_k: int = 100,
        num_heads: int = 4,
        recent_events: int = 50,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.top_k = check_int(self.name, "top_k", top_k, 1)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.recent_events = check_int(self.name, "recent_events", recent_events, 1)
        self._short_term = TargetAttention(num_heads, dtype=self.dtype_policy, name="short_term")

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 2

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self.query_kernel, self.key_kernel, self.value_kernel, self.output_kernel = (
            self.add_weight(shape=(width, width), name=f"{kind}_kernel")
            for kind in ("query", "key", "value", "output")
        )
        self._short_term.build((None, None, width), (None, None, width))

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """Tokens [B, N, 2, d]."""
        scores = self.search_scores(target, history)
        index, valid = self.select(scores, mask)
        chosen = gather_events(history, index)
        index = ops.broadcast_to(
            ops.expand_dims(index, 2), (*ops.shape(scores)[:3], ops.shape(index)[-1])
        )
        kept = ops.take_along_axis(scores, index, axis=-1)
        weights = masked_softmax(kept, ops.expand_dims(valid, 2))
        weights = ops.cast(weights, self.compute_dtype)
        values = linear(chosen, self.value_kernel)
        shape = (*ops.shape(values)[:-1], self.num_heads, values.shape[-1] // self.num_heads)
        interest = ops.einsum("bnhk,bnkhe->bnhe", weights, ops.reshape(values, shape))
        long_term = linear(ops.reshape(interest, ops.shape(target)), self.output_kernel)
        newest, newest_mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        return ops.stack([long_term, self._short_term(target, newest, mask=newest_mask)], axis=2)

    def search_scores(self, target: Tensor, history: Tensor) -> Tensor:
        """The one score of both stages: [B, N, heads, L]."""
        head_width = target.shape[-1] // self.num_heads
        query = linear(target, self.query_kernel)
        query = ops.reshape(query, (*ops.shape(target)[:-1], self.num_heads, head_width))
        keys = linear(history, self.key_kernel)
        keys = ops.reshape(keys, (*ops.shape(history)[:-1], self.num_heads, head_width))
        scores = ops.einsum("bnhe,blhe->bnhl", query, keys)
        return ops.cast(scores, stable_dtype(self.compute_dtype)) / math.sqrt(head_width)

    def select(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Indices [B, N, K] of the events kept, and which of them are valid."""
        length = scores.shape[-1]
        if length is None:
            raise ValueError(
                f"{self.name}: the length of `history` must be known, because `top_k` events are "
                "selected from it. Give the input a fixed length."
            )
        mask = ops.expand_dims(mask, 1)
        order = scores[:, :, 0]
        if self.num_heads > 1:
            order = round_robin_scores(scores, ops.expand_dims(mask, 1))
        return top_events(ops.stop_gradient(order), mask, min(self.top_k, length))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "num_heads": self.num_heads,
            "recent_events": self.recent_events,
        }
