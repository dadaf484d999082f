"""TWIN: a two-stage encoder whose search and attention share one score."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_agrees, check_divides, check_inputs, check_int, check_rank
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.search import gather_events, kept_events, round_robin_events, top_events
from laser_keras.sequence import (
    linear,
    masked_softmax,
    merge_heads,
    split_heads,
    stable_dtype,
    zero_masked,
)
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class TWINEncoder(WeighingEncoder):
    """Keeps the events with the best attention scores, then attends over them by those scores.

    Use it for histories of thousands of events when the search should agree with the attention
    behind it. Unlike ``SIMEncoder`` it needs neither a category nor an extra loss.

    One score serves the search (GSU) and the attention (ESU)::

        score_j = (h_j Wh) . (t Wq) / sqrt(d / heads) + sum_c beta_c (x_jc . w_c)

    The first term reads what belongs to the event's item (``h_j Wh`` can be computed once per item
    and looked up: ``project_events``), the second its *cross* features ``x_jc``, which belong to
    the interaction of user and item: each is reduced to one number, so that it costs next to
    nothing.
    The values of the kept events read both.

    With several heads the search walks down the heads' ranked lists in turn until ``top_k``
    different events are found; every head then attends over the same events. Gradients flow
    through the attention only. A second token is the target attention over the newest events.

    Cross features enter when ``cross`` is passed: the weights for them are created by the first
    call (or by ``build`` with ``cross_shape``).

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
        cross: Float tensor [B, L, J, k], J cross features of width k per event; None for an
            encoder without them.
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, 2, d] or [B, 2, d]: the long-term and the short-term interest. With
        ``return_gates`` a pair of it and a dict of ``"gates"`` [B, N, num_heads, L]
        ([B, num_heads, L]): the weights of the long-term attention, one per event in the order
        they came in, zero for events that were not kept.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, for an unknown L, and for a
            ``cross`` that is missing or given against what the layer was built with.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(TWINEncoder()(target, history).shape)
    (2, 3, 2, 8)
    >>> tuple(TWINEncoder()(target, history, cross=np.ones((2, 200, 5, 4), "float32")).shape)
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
        self._short_term = TargetAttention(
            num_heads, **self.kernel_options(), dtype=self.dtype_policy, name="short_term"
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 2

    def build(
        self, target_shape: Shape, history_shape: Shape, cross_shape: Shape | None = None
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self._cross_shape: tuple[int, int] | None = None
        cross_width = 0
        if cross_shape is not None:
            check_rank(self.name, "cross", cross_shape, (4,), "[B, L, J, k]")
            features, feature_width = cross_shape[-2:]
            if features is None or feature_width is None:
                raise ValueError(
                    f"{self.name}: the last two dimensions of `cross` must be known, because "
                    f"weights depend on them. Received shape: {tuple(cross_shape)}"
                )
            self._cross_shape = (features, feature_width)
            cross_width = features * feature_width
            self.cross_kernel = self.add_weight(
                shape=(self.num_heads, features, feature_width),
                initializer=keras.initializers.RandomNormal(stddev=feature_width**-0.5),
                name="cross_kernel",
            )
            self.cross_scale = self.add_weight(
                shape=(self.num_heads, features), initializer="ones", name="cross_scale"
            )
        self.query_kernel, self.key_kernel, self.output_kernel = (
            self.add_kernel(f"{kind}_kernel", (width, width)) for kind in ("query", "key", "output")
        )
        self.value_kernel = self.add_kernel("value_kernel", (width + cross_width, width))
        self._short_term.build((None, None, width), (None, None, width))
        self.finish_build()

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        cross: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        mask = given = self._checked_mask(target, history, mask)
        cross = self._checked_cross(cross, history, mask)
        single = len(target.shape) == 2
        target, history, mask = self._canonical(target, history, mask)
        scores = self.search_scores(target, self.project_events(history), cross)
        index, valid = self.select(scores, mask)
        full = history if cross is None else ops.concatenate([history, merge_heads(cross)], axis=-1)
        values = linear(gather_events(full, index), self.effective(self.value_kernel))
        values = split_heads(values, self.num_heads)
        by_head = ops.broadcast_to(
            ops.expand_dims(index, 2), (*ops.shape(scores)[:3], ops.shape(index)[-1])
        )
        kept = ops.take_along_axis(scores, by_head, axis=-1)
        weights = masked_softmax(kept, ops.expand_dims(valid, 2))
        weights = ops.cast(weights, self.compute_dtype)
        interest = merge_heads(ops.einsum("bnhk,bnkhe->bnhe", weights, values))
        long_term = linear(interest, self.effective(self.output_kernel))
        newest, newest_mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        short_term = self._short_term(target, newest, mask=newest_mask)
        tokens = ops.stack([long_term, short_term], axis=2)
        if not return_gates:
            return ops.squeeze(tokens, 1) if single else tokens
        return self._answer(tokens, self._weights_by_event(scores, index, valid), given, single)

    def _weights_by_event(self, scores: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        """The long-term attention's weights of all events, [B, N, heads, L] as the scores."""
        events = ops.arange(ops.shape(scores)[-1], dtype="int32")
        kept = ops.expand_dims(index, -1) == events
        kept = ops.any(kept & ops.expand_dims(valid, -1), axis=2)
        return ops.cast(masked_softmax(scores, ops.expand_dims(kept, 2)), self.compute_dtype)

    def _checked_cross(
        self, cross: Tensor | None, history: Tensor, mask: Tensor | None
    ) -> Tensor | None:
        """The cross features in the canonical order, zero where masked."""
        if (cross is None) != (self._cross_shape is None):
            wanted = "without" if self._cross_shape is None else "with"
            raise ValueError(
                f"{self.name}: the layer was built {wanted} `cross`. Pass it in every call, the "
                f"first included, or in none. Received: {cross}"
            )
        if cross is None:
            return None
        check_inputs(self, cross=cross)
        expected = (*history.shape[:2], *(self._cross_shape or ()))
        check_agrees(self.name, "cross", tuple(cross.shape), expected, "[B, L, J, k]")
        flat = self._newest_first(zero_masked(merge_heads(cross), mask), mask)
        return ops.reshape(flat, ops.shape(cross))

    def project_events(self, history: Tensor) -> Tensor:
        """``h_j Wh`` of events [..., d]: what a server keeps per item and looks up."""
        return linear(history, self.effective(self.key_kernel))

    def search_scores(self, target: Tensor, keys: Tensor, cross: Tensor | None = None) -> Tensor:
        """The one score of both stages: [B, N, heads, L].

        Args:
            target: Float tensor [B, N, d].
            keys: Float tensor [B, L, d], the result of ``project_events``.
            cross: Float tensor [B, L, J, k] or None.
        """
        query = linear(target, self.effective(self.query_kernel))
        query = split_heads(query, self.num_heads)
        scores = ops.einsum("bnhe,blhe->bnhl", query, split_heads(keys, self.num_heads))
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        scores = scores / math.sqrt(target.shape[-1] // self.num_heads)
        if cross is None:
            return scores
        # The candidate has no part in this term: one number per event and head.
        weights = self.cross_kernel * ops.expand_dims(self.cross_scale, -1)
        of_cross = ops.einsum("bljk,hjk->bhl", cross, ops.cast(weights, cross.dtype))
        return scores + ops.cast(ops.expand_dims(of_cross, 1), scores.dtype)

    def select(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Indices [B, N, K] of the events kept, and which of them are valid."""
        count = kept_events(self.name, self.top_k, scores.shape[-1])
        scores = ops.stop_gradient(scores)
        if self.num_heads == 1:
            return top_events(scores[:, :, 0], ops.expand_dims(mask, 1), count)
        return round_robin_events(scores, mask, count)

    def compute_output_shape(
        self, target_shape: Shape, history_shape: Shape, cross_shape: Shape | None = None
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        kept_events(self.name, self.top_k, history_shape[1])
        return super().compute_output_shape(target_shape, history_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "num_heads": self.num_heads,
            "recent_events": self.recent_events,
        }
