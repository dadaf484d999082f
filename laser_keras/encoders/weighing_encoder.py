"""Base of the encoders that can say what each past event weighed."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.sequence import restore_order
from laser_keras.types import Tensor


class WeighingEncoder(SequenceEncoder):
    """A ``SequenceEncoder`` with ``return_gates``; subclasses write ``encode_with_gates``.

    Use it for an encoder of your own whose attention has one weight per candidate, head and event:
    a ranker returns them, and ``laser-pipeline compare`` says whether they mean something.

    A subclass implements ``encode_with_gates(target, history, mask, training)``, which gets what
    ``SequenceEncoder.encode`` gets, and returns its tokens and the weights [B, N, num_heads, L] in
    the order of the canonical history; and has ``num_heads``. One that needs more inputs overrides
    ``call`` and answers with ``_answer``.

    Args:
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, num_output_tokens, d], without N for a target [B, d]. With
        ``return_gates`` a pair of it and a dict of ``"gates"`` [B, N, num_heads, L]
        ([B, num_heads, L]), one weight per event in the order they came in, zero where masked.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> class LikeTheTarget(WeighingEncoder):
    ...     num_heads = 1
    ...     def build(self, target_shape, history_shape):
    ...         pass
    ...     def encode_with_gates(self, target, history, mask, training):
    ...         weights = ops.softmax(ops.einsum("bnd,bld->bnl", target, history))
    ...         return ops.einsum("bnl,bld->bnd", weights, history)[:, :, None], weights[:, :, None]
    >>> tokens, found = LikeTheTarget()(np.ones((2, 3, 8)), np.ones((2, 50, 8)), return_gates=True)
    >>> tuple(tokens.shape), tuple(found["gates"].shape)
    ((2, 3, 1, 8), (2, 3, 1, 50))

    Source: the contract that the encoders here share; nothing of a paper's own.
    """

    num_heads: int
    gates_need: tuple[str, str] | None = None
    """Name and value of the argument without which there are no weights per event."""
    encode_with_gates: Callable[[Tensor, Tensor, Tensor, bool | None], tuple[Tensor, Tensor]]

    @property
    def has_gates(self) -> bool:
        """Whether ``return_gates`` works with this layer's arguments."""
        return self.gates_need is None or getattr(self, self.gates_need[0]) == self.gates_need[1]

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """The tokens alone, see ``SequenceEncoder``."""
        return self.encode_with_gates(target, history, mask, training)[0]

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        *,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        if not return_gates:
            return super().call(target, history, mask=mask, training=training)
        self._check_gates()
        given = self._checked_mask(target, history, mask)
        single = len(target.shape) == 2
        found = self.encode_with_gates(*self._canonical(target, history, mask), training)
        return self._answer(*found, given, single)

    def _check_gates(self) -> None:
        if not self.has_gates:
            name, value = self.gates_need or ("", "")
            raise ValueError(
                f"{self.name}: `return_gates` needs {name}={value!r}, which weighs each event. "
                f"Received: {name}={getattr(self, name)!r}"
            )

    def _answer(
        self, tokens: Tensor, gates: Tensor, given: Tensor | None, single: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``return_gates`` returns.

        Args:
            tokens: [B, N, T, d].
            gates: [B, N, heads, L] in the order of the canonical history.
            given: The mask in the order it came in, or None.
            single: Whether the target came without N.
        """
        if self.order == "oldest_first":
            gates = restore_order(gates, given)
        if single:
            tokens, gates = ops.squeeze(tokens, 1), ops.squeeze(gates, 1)
        return tokens, {"gates": gates}

    def compute_output_spec(
        self,
        target: Any,
        history: Any,
        mask: Any = None,
        training: bool | None = None,
        return_gates: bool = False,
        **extras: Any,
    ) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        shape = self.compute_output_shape(target.shape, history.shape)
        tokens = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_gates:
            return tokens
        self._check_gates()
        gates = (*target.shape[:-1], self.num_heads, history.shape[1])
        return tokens, {"gates": keras.KerasTensor(gates, dtype=self.compute_dtype)}
