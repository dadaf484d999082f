"""Base of the comparison encoders: one contract for targets, history, mask and order."""

from collections.abc import Callable
from typing import Any

from keras import ops

from laser_keras.checks import (
    check_choice,
    check_inputs,
)
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import reverse_valid, zero_masked
from laser_keras.types import Shape, Tensor


class SequenceEncoder(SequenceLayer):
    """Base of encoders that turn a target and a history into tokens; subclasses write ``encode``.

    Use it for an encoder of your own: ``call`` checks the inputs, brings the history into the
    canonical order (newest first, right-padded, zeros where masked) and lets a target [B, d]
    through as one candidate. ``laser_keras.testing.check_encoder`` tests the rest of the contract.

    A subclass implements ``encode(target, history, mask, training)``, which gets a target
    [B, N, d], a canonical history [B, L, d] and a boolean mask [B, L] and returns
    [B, N, num_output_tokens, d]; ``build(target_shape, history_shape)``, which creates the
    weights; ``num_output_tokens`` if it is not 1; and ``get_config`` if it has arguments.

    Args:
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.

    Returns:
        Float tensor [B, N, num_output_tokens, d], without N for a target [B, d].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> class NewestEvent(SequenceEncoder):
    ...     def build(self, target_shape, history_shape):
    ...         pass
    ...     def encode(self, target, history, mask, training):
    ...         return ops.zeros_like(target)[:, :, None] + history[:, None, None, 0]
    >>> tuple(NewestEvent()(np.ones((2, 3, 8)), np.ones((2, 50, 8))).shape)
    (2, 3, 1, 8)

    Source: the contract that all encoders here share; nothing of a paper's own.
    """

    encode: Callable[[Tensor, Tensor, Tensor, bool | None], Tensor]

    def __init__(self, order: str = "newest_first", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = check_choice(self.name, "order", order, ("newest_first", "oldest_first"))

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 1

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        single = len(target.shape) == 2
        tokens = self.encode(*self._canonical(target, history, mask), training)
        return ops.squeeze(tokens, 1) if single else tokens

    def _checked_mask(self, target: Tensor, history: Tensor, mask: Tensor | None) -> Tensor | None:
        """Check the shapes; the mask as it came, or the one that ``history`` carries, or None."""
        self._check_target_and_history(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        return self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")

    def _canonical(
        self, target: Tensor, history: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Checked targets [B, N, d], history in the canonical order, and its mask."""
        mask = self._checked_mask(target, history, mask)
        if len(target.shape) == 2:
            target = ops.expand_dims(target, 1)
        history = self._newest_first(zero_masked(history, mask), mask)
        if mask is None:
            return target, history, ops.ones(ops.shape(history)[:2], dtype="bool")
        return target, history, self._newest_first(mask, mask)

    def _newest_first(self, by_event: Tensor, mask: Tensor | None) -> Tensor:
        """``by_event`` [B, L, ...] in the canonical order; ``mask`` in the order it came in."""
        return reverse_valid(by_event, mask) if self.order == "oldest_first" else by_event

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        return (*target_shape[:-1], self.num_output_tokens, width)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "order": self.order}
