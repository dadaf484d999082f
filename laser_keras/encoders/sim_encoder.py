"""SIM: searches a long history by the target and attends over the events found."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_choice, check_int, check_mask
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.global_stacked_target_attention import GlobalStackedTargetAttention
from laser_keras.layers.hard_search import HardSearch
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.layers.soft_search import SoftSearch
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.search import gather_events, kept_events
from laser_keras.sequence import reverse_candidates
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SIMEncoder(WeighingEncoder):
    """Finds ``top_k`` events that are relevant to the target and attends over them.

    Use it for histories too long to attend to in full, when a small relevant subset is enough. The
    hard search needs a category per item; the soft search needs none but trains an extra loss.

    *Soft* search takes the best scores of a learned inner product (``SoftSearch``), *hard* search
    the newest events of the target's category (``HardSearch``), without weights. The two tokens
    are the attention over the found events and the target attention over the newest events.

    Selection has no gradient, so the soft search learns from a click task of its own:
    ``auxiliary_logits`` are to be trained on the labels as well. ``SequenceRanker`` does so in
    ``fit``; in a training loop of your own add their cross entropy to the loss, or the search
    stays as random as it began.

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
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, 2, d] or [B, 2, d]: the long-term and the short-term interest. A
        search that finds nothing gives zeros. With ``return_gates`` a pair of it and a dict of
        ``"gates"`` [B, N, num_heads, L] ([B, num_heads, L]): the weights of the long-term
        attention, one per event in the order they came in, zero for events that were not found.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, for an unknown L, and for a
            ``category_match`` that the search does not take or that is missing.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(SIMEncoder()(target, history).shape)
    (2, 3, 2, 8)
    >>> match = np.random.default_rng(0).random((2, 3, 200)) < 0.1
    >>> tuple(SIMEncoder("hard")(target, history, category_match=match).shape)
    (2, 3, 2, 8)

    Source: SIM (arXiv 2006.05639), section 3. The attention over the found events has value
    projections; time intervals enter through the tokens' recency embedding.
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
        if search == "soft":
            self.search_layer: SequenceLayer = SoftSearch(
                top_k, **self.kernel_options(), dtype=self.dtype_policy, name="search"
            )
        else:
            self.search_layer = HardSearch(top_k, dtype=self.float_policy, name="search")
        self._short_term = TargetAttention(
            num_heads, **self.kernel_options(), dtype=self.dtype_policy, name="short_term"
        )
        # One layer of it, less the residual, is attention over a sequence per candidate.
        self._long_term = GlobalStackedTargetAttention(
            1, num_heads, **self.kernel_options(), dtype=self.dtype_policy, name="long_term"
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 2

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        category_match_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        if self.search == "soft":
            self.search_layer.build((None, None, width), history_shape)
        else:
            self.search_layer.build((None, None, history_shape[1]))
        self._short_term.build((None, None, width), (None, None, width))
        self._long_term.build((None, None, width), (None, None, None, width))

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        category_match: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        if (category_match is None) != (self.search == "soft"):
            raise ValueError(
                f"{self.name}: `category_match` belongs to the hard search and to no other. "
                f"Received: search {self.search!r}, category_match {category_match}"
            )
        mask = given = self._checked_mask(target, history, mask)
        single = len(target.shape) == 2
        if category_match is not None:
            category_match = self._canonical_match(category_match, target, history, mask)
        target, history, mask = self._canonical(target, history, mask)
        if category_match is None:
            index, valid, _ = self.search_layer(target, history, mask=mask)
        else:
            index, valid = self.search_layer(category_match, mask=mask)
        found = gather_events(history, index)
        batch, candidates, count, width = ops.shape(found)
        # One candidate per row, so that every candidate has a mask of its own.
        rows = ops.reshape(target, (batch * candidates, width))
        attended, weights = self._long_term(
            rows,
            ops.reshape(found, (batch * candidates, count, width)),
            mask=ops.reshape(valid, (batch * candidates, count)),
            return_weights=True,
        )
        long_term = ops.reshape(attended - rows, (batch, candidates, width))
        newest, newest_mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        short_term = self._short_term(target, newest, mask=newest_mask)
        tokens = ops.stack([long_term, short_term], axis=2)
        if not return_gates:
            return ops.squeeze(tokens, 1) if single else tokens
        weights = ops.reshape(weights, (batch, candidates, self.num_heads, count))
        return self._answer(tokens, _by_event(weights, index, mask), given, single)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether ``auxiliary_logits`` need a loss on the labels as well."""
        return self.search == "soft"

    def auxiliary_logits(
        self, target: Tensor, history: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Click logits [B, N] (or [B]) of the soft search, to be trained on the labels.

        An empty list for the hard search, which has nothing to learn. Arguments as in a call.
        """
        if self.search == "hard":
            return []
        single = len(target.shape) == 2
        target, history, mask = self._canonical(target, history, mask)
        _, _, logits = self.search_layer(target, history, mask=mask)
        return [ops.squeeze(logits, 1) if single else logits]

    def _canonical_match(
        self, category_match: Tensor, target: Tensor, history: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The checked ``category_match`` [B, N, L], newest first."""
        expected = (*target.shape[:-1], history.shape[1])
        category_match = check_mask(
            self.name, "category_match", category_match, expected, "[B, N, L] or [B, L]"
        )
        if len(target.shape) == 2:
            category_match = ops.expand_dims(category_match, 1)
        if self.order == "newest_first":
            return category_match
        return ops.squeeze(reverse_candidates(ops.expand_dims(category_match, -1), mask), -1)

    def compute_output_shape(
        self,
        target_shape: Shape,
        history_shape: Shape,
        category_match_shape: Shape | None = None,
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        kept_events(self.name, self.top_k, history_shape[1])
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


def _by_event(weights: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Weights [B, N, heads, K] of the events ``index`` [B, N, K], as [B, N, heads, L]."""
    events = ops.arange(ops.shape(mask)[1], dtype="int32")
    places = ops.cast(ops.expand_dims(index, -1) == events, weights.dtype)
    return ops.einsum("bnhk,bnkl->bnhl", weights, places)
