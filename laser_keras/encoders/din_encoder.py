"""DIN as a sequence encoder: target attention or activation unit."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_bool, check_choice
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.activation_unit_attention import ActivationUnitAttention
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class DINEncoder(WeighingEncoder):
    """One interest vector per candidate.

    Use it as the standard baseline, and where histories are short or the budget small: it costs one
    attention per candidate. Prefer ``LaserEncoder`` when what matters lies hundreds of events back.

    Args:
        unit: ``"target_attention"``, what the LASER paper compares with under this name, or
            ``"activation_unit"``, the DIN paper's network. Defaults to ``"target_attention"``.
        num_heads: Integer, of the target attention. Defaults to 2.
        hidden_units: Widths of the activation unit. Defaults to (80, 40).
        activation: Of the activation unit. Defaults to ``"dice"``.
        normalize: None or ``"softmax"``, of the activation unit. Defaults to None.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        gamma: Of the target attention, see ``TargetAttention``. Defaults to None.
        aligned_start: Of the target attention. With ``gamma=0.1`` it starts as ``LaserEncoder``'s
            gates do. Defaults to False.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        return_gates: Boolean. Whether to return what each event weighed as well; of
            ``unit="target_attention"`` alone.

    Returns:
        Float tensor [B, N, 1, d] or [B, 1, d]; zero without a valid event. With ``return_gates``
        a pair of it and a dict of ``"gates"`` [B, N, num_heads, L] ([B, num_heads, L]): the
        weights of the softmax, one per event in the order they came in, zero where masked.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")
    >>> tuple(DINEncoder(unit="activation_unit")(target, history).shape)
    (2, 3, 1, 8)

    Source: DIN (arXiv 1706.06978); LASER (arXiv 2602.11562), section 4.1.3 and equation 20.
    """

    gates_need = ("unit", "target_attention")

    def __init__(
        self,
        unit: str = "target_attention",
        num_heads: int = 2,
        hidden_units: Sequence[int] = (80, 40),
        activation: Any = "dice",
        normalize: str | None = None,
        order: str = "newest_first",
        gamma: float | None = None,
        aligned_start: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.unit = check_choice(self.name, "unit", unit, ("target_attention", "activation_unit"))
        self.num_heads = num_heads
        self.hidden_units = tuple(hidden_units)
        self.activation = activation
        self.normalize = normalize
        self.gamma = gamma
        self.aligned_start = check_bool(self.name, "aligned_start", aligned_start)
        self._attention = (
            TargetAttention(
                num_heads,
                gamma=gamma,
                aligned_start=aligned_start,
                **self.kernel_options(),
                dtype=self.dtype_policy,
                name="target_attention",
            )
            if unit == "target_attention"
            else ActivationUnitAttention(
                hidden_units,
                activation,
                normalize,
                **self.kernel_options(),
                dtype=self.dtype_policy,
                name=unit,
            )
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        self._check_target_and_history(target_shape, history_shape)
        self._attention.build(target_shape, history_shape)

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """Tokens [B, N, 1, d]."""
        if self.has_gates:
            return super().encode(target, history, mask, training)
        interest = self._attention(target, history, mask=mask, training=training)
        return ops.expand_dims(interest, 2)

    def encode_with_gates(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, 1, d] and the softmax's weights [B, N, heads, L]."""
        interest, weights = self._attention(target, history, mask=mask, return_weights=True)
        return ops.expand_dims(interest, 2), weights

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "unit": self.unit,
            "num_heads": self.num_heads,
            "hidden_units": list(self.hidden_units),
            "activation": self.activation,
            "normalize": self.normalize,
            "gamma": self.gamma,
            "aligned_start": self.aligned_start,
        }
