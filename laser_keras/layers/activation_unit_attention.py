"""DIN's local activation unit."""

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_choice,
    check_inputs,
    check_int,
)
from laser_keras.layers.dice import Dice
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import linear, masked_softmax, stable_dtype, zero_masked
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class ActivationUnitAttention(SequenceLayer):
    """Sums the history weighted by a small network of each event and the target.

    Use it for histories of up to about a hundred events, where the strength of an interest matters
    and not only its share. For longer ones ``TargetAttention`` costs far less.

    ``sum_j a_j h_j`` with ``a_j = MLP([t, h_j, t - h_j, t * h_j])``. By default the weights are
    not normalised, so that the strength of an interest is kept.

    The first layer is evaluated as ``t (W1 + W3) + h_j (W2 - W3) + (t * h_j) W4``: the same
    function, but only the product term is computed per pair of target and event.

    Args:
        hidden_units: Widths of the hidden layers. Defaults to (80, 40).
        activation: ``"dice"`` or a Keras activation. Defaults to ``"dice"``.
        normalize: None or ``"softmax"``. Defaults to None.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.

    Returns:
        Float tensor of the target's shape.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = ActivationUnitAttention()
    >>> tuple(layer(np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")).shape)
    (2, 3, 8)

    Source: DIN (arXiv 1706.06978), section 4.3; the input and the widths are those of common code.
    """

    def __init__(
        self,
        hidden_units: Sequence[int] = (80, 40),
        activation: Any = "dice",
        normalize: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_units = tuple(
            check_int(self.name, "hidden_units", units, 1) for units in hidden_units
        )
        if not self.hidden_units:
            raise ValueError(
                f"{self.name}: `hidden_units` must name at least one width. "
                f"Received: {hidden_units!r}"
            )
        self.activation = activation
        self.normalize = check_choice(self.name, "normalize", normalize, (None, "softmax"))
        self._activations = [self._make_activation(i) for i in range(len(self.hidden_units))]

    def _make_activation(self, index: int) -> Any:
        if self.activation == "dice":
            return Dice(dtype=self.float_policy, name=f"dice_{index}")
        return keras.layers.Activation(
            self.activation, dtype=self.float_policy, name=f"activation_{index}"
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        self.kernels, self.biases = [], []
        sizes = [4 * width, *self.hidden_units, 1]
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            self.kernels.append(self.add_kernel(f"kernel_{i}", (inputs, outputs)))
            # A softmax would cancel a bias that all events share.
            needed = i < len(self.hidden_units) or self.normalize is None
            self.biases.append(self.add_bias(f"bias_{i}", (outputs,)) if needed else None)
        for activation, units in zip(self._activations, self.hidden_units, strict=True):
            activation.build((None, None, None, units))
        self.finish_build()

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        width = self._check_target_and_history(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        history = zero_masked(history, mask)
        single = len(target.shape) == 2
        if single:
            target = ops.expand_dims(target, 1)
        pair_mask = None
        if mask is not None:
            pair_mask = ops.broadcast_to(
                ops.expand_dims(mask, 1), (*ops.shape(target)[:2], ops.shape(mask)[1])
            )
        first, *kernels = map(self.effective, self.kernels)
        of_target, of_event, of_difference, of_product = (
            first[i * width : (i + 1) * width] for i in range(4)
        )
        products = ops.expand_dims(target, 2) * ops.expand_dims(history, 1)  # [B, N, L, d]
        hidden = (
            linear(products, of_product)
            + ops.expand_dims(linear(target, of_target + of_difference, self.biases[0]), 2)
            + ops.expand_dims(linear(history, of_event - of_difference), 1)
        )
        for activation, kernel, bias in zip(
            self._activations, kernels, self.biases[1:], strict=True
        ):
            if isinstance(activation, Dice):
                hidden = activation(hidden, mask=pair_mask, training=training)
            else:
                hidden = activation(hidden)
            hidden = linear(hidden, kernel, bias)
        weights = ops.squeeze(hidden, -1)
        if self.normalize == "softmax":
            weights = masked_softmax(ops.cast(weights, stable_dtype(self.compute_dtype)), pair_mask)
        elif pair_mask is not None:
            weights = ops.where(pair_mask, weights, 0.0)
        outputs = ops.einsum("bnl,bld->bnd", ops.cast(weights, self.compute_dtype), history)
        return ops.squeeze(outputs, 1) if single else outputs

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        self._check_target_and_history(target_shape, history_shape)
        return tuple(target_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "hidden_units": list(self.hidden_units),
            "activation": self.activation,
            "normalize": self.normalize,
        }
