"""SIM: search a long history for the target, attend over what was found."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_choice, check_int, check_mask
from laser_keras.encoders.search import gather_events, top_events
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.layers.global_stacked_target_attention import GlobalStackedTargetAttention
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import linear, reverse_candidates, stable_dtype
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SIMEncoder(SequenceEncoder):
    """Finds ``top_k`` events that are relevant to the target and attends over them.

    *Soft* search takes the best scores ``(h_j Wb) . (t Wa)``. *Hard* search takes the newest
    events of the target's category, and has no weights. The three tokens are the attention over
    the found events, the target attention over the newest events, and the search's own pooled
    result: ``sum_j score_j h_j`` over valid events divided by their number (soft), or the mean of
    the found events (hard). Selection has no gradient: the soft search learns through the pooled
    token (in the paper: through a click loss of its own on that vector).

    Args:
        search: ``"soft"`` or ``"hard"``. Defaults to ``"soft"``.
        top_k: Integer, events kept. Defaults to 100.
        num_heads: Integer, of the attentions, divides the width d. Defaults to 2.
        recent_events: Integer, length of the short-term window. Defaults to 50.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d]; L must be known.
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        category_match: Boolean tensor [B, N, L] or [B, L], True for events of the target's
            category; for the hard search alone.

    Returns:
        Float tensor [B, N, 3, d] or [B, 3, d]. A search that finds nothing gives zeros.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(SIMEncoder()(target, history).shape)
    (2, 3, 3, 8)
    >>> match = np.random.default_rng(0).random((2, 3, 200)) < 0.1
    >>> tuple(SIMEncoder("hard")(target, history, category_match=match).shape)
    (2, 3, 3, 8)

    Source: SIM (arXiv 2006.05639), section 3.
    """

    def __init__(
        self,
        search: str = "soft",
        top_k: int = 100,
        num_heads: int = 2,
        recent_events: int = 50,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.search = check_choice(self.name, "search", search, ("soft", "hard"))
        self.top_k = check_int(self.name, "top_k", top_k, 1)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.recent_events = check_int(self.name, "recent_events", recent_events, 1)
        self._short_term = TargetAttention(num_heads, dtype=self.dtype_policy, name="short_term")
        # One layer of it, less the residual, is attention over a sequence per candidate.
        self._long_term = GlobalStackedTargetAttention(
            1, num_heads, dtype=self.dtype_policy, name="long_term"
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 3

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        category_match_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        if self.search == "soft":
            self.target_kernel = self.add_weight(shape=(width, width), name="target_kernel")
            self.event_kernel = self.add_weight(shape=(width, width), name="event_kernel")
        self._short_term.build((None, None, width), (None, None, width))
        self._long_term.build((None, None, width), (None, None, None, width))

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        category_match: Tensor | None = None,
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        if (category_match is None) != (self.search == "soft"):
            raise ValueError(
                f"{self.name}: `category_match` belongs to the hard search and to no other. "
                f"Received: search {self.search!r}, category_match {category_match}"
            )
        if history.shape[1] is None:
            raise ValueError(
                f"{self.name}: the length of `history` must be known, because `top_k` events are "
                "selected from it. Give the input a fixed length."
            )
        single = len(target.shape) == 2
        if category_match is not None:
            expected = (*target.shape[:-1], history.shape[1])
            category_match = check_mask(
                self.name, "category_match", category_match, expected, "[B, N, L] or [B, L]"
            )
            if single:
                category_match = ops.expand_dims(category_match, 1)
            if self.order == "oldest_first":
                explicit = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
                category_match = ops.squeeze(
                    reverse_candidates(ops.expand_dims(category_match, -1), explicit), -1
                )
        target, history, mask = self._canonical(target, history, mask)
        if category_match is None:
            found, valid, pooled = self._soft_search(target, history, mask)
        else:
            found, valid, pooled = self._hard_search(history, mask, category_match)
        batch, candidates, count, width = ops.shape(found)
        # One candidate per row, so that every candidate has a mask of its own.
        rows = ops.reshape(target, (batch * candidates, width))
        attended = self._long_term(
            rows,
            ops.reshape(found, (batch * candidates, count, width)),
            mask=ops.reshape(valid, (batch * candidates, count)),
        )
        long_term = ops.reshape(attended - rows, (batch, candidates, width))
        newest, newest_mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        short_term = self._short_term(target, newest, mask=newest_mask)
        tokens = ops.stack([long_term, short_term, pooled], axis=2)
        return ops.squeeze(tokens, 1) if single else tokens

    def _soft_search(
        self, target: Tensor, history: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys = linear(target, self.target_kernel), linear(history, self.event_kernel)
        scores = ops.einsum("bnd,bld->bnl", queries, keys)
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        visible = ops.expand_dims(mask, 1)
        index, valid = top_events(
            ops.stop_gradient(scores), visible, min(self.top_k, history.shape[1])
        )
        count = ops.sum(ops.cast(mask, scores.dtype), axis=1)
        weights = ops.where(visible, scores, 0.0)
        weights = weights / ops.reshape(ops.maximum(count, 1.0), (-1, 1, 1))
        pooled = ops.einsum("bnl,bld->bnd", ops.cast(weights, self.compute_dtype), history)
        return gather_events(history, index), valid, pooled

    def _hard_search(
        self, history: Tensor, mask: Tensor, category_match: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        length = history.shape[1]
        match = ops.logical_and(category_match, ops.expand_dims(mask, 1))
        newest_first = ops.broadcast_to(
            -ops.arange(length, dtype="float32"), ops.shape(category_match)
        )
        index, valid = top_events(newest_first, match, min(self.top_k, length))
        found = gather_events(history, index)
        counted = ops.cast(ops.expand_dims(valid, -1), self.compute_dtype)
        total = ops.maximum(ops.sum(counted, axis=2), 1.0)
        return found, valid, ops.sum(found * counted, axis=2) / total

    def compute_output_shape(
        self,
        target_shape: Shape,
        history_shape: Shape,
        category_match_shape: Shape | None = None,
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        return super().compute_output_shape(target_shape, history_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "search": self.search,
            "top_k": self.top_k,
            "num_heads": self.num_heads,
            "recent_events": self.recent_events,
        }
