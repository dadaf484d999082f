"""Per-token mixture of experts with ReLU routing, trained densely and inferred sparsely."""

from typing import Any

import keras
from keras import ops

from laser_keras.activations import activate, activation_name, get_activation
from laser_keras.checks import (
    check_inputs,
    check_int,
    check_known_width,
    check_number,
    check_rank,
    check_rate,
    is_number,
)
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.layers.per_token_feed_forward import per_token_kernel
from laser_keras.types import Shape, Tensor

# ReMoE's rule: the penalty grows or shrinks by this factor at every training step.
_PENALTY_STEP = 1.2


@keras.saving.register_keras_serializable(package="laser_keras")
class PerTokenMixtureOfExperts(KernelLayer):
    """Each token's feed-forward network is a gated sum of experts of its own.

    Use it in place of ``PerTokenFeedForward`` to add parameters without the same growth of the
    active ones. Start with the dense network: it is simpler and has no penalty to tune.

    With ``g = ReLU(router(x_t))`` the output is ``sum_j g_j expert_tj(x_t)``: gates are not
    normalised, and the number of active experts varies by token. Two routers are trained: the
    output in training averages their gates (so every expert keeps learning), inference uses the
    inference router alone. An L1 penalty, on the inference router's gates only, is added as a loss
    whose weight adapts until the share of active experts meets the budget.

    Gates of zero are multiplied out, not skipped: this is the portable form, without a grouped
    matrix product.

    Args:
        num_experts: Integer. Defaults to 4.
        expansion: Integer k, the hidden width of an expert is ``k D``. Defaults to 4.
        activation: Defaults to ``"gelu"``.
        dropout: Float in [0, 1), on the hidden layer. Defaults to 0.
        active_budget: Float in (0, 1], the share of gates above zero to aim at. Defaults to 0.5.
        penalty: Float, where the adaptive weight of the L1 penalty starts. Defaults to 1e-4.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [T, M, D]: T tokens of M samples.

    Returns:
        Float tensor [T, M, D]. The weight ``active_ratio`` holds the share of active experts of
        the last training step.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = PerTokenMixtureOfExperts(num_experts=2)
    >>> tuple(layer(np.ones((4, 3, 8), "float32")).shape)
    (4, 3, 8)

    Source: RankMixer (arXiv 2507.15551), section 3.4. How the inference router gets the task's
    gradient and how the penalty adapts are not printed: averaging and ReMoE's rule are ours.
    """

    def __init__(
        self,
        num_experts: int = 4,
        expansion: int = 4,
        activation: Any = "gelu",
        dropout: float = 0.0,
        active_budget: float = 0.5,
        penalty: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_experts = check_int(self.name, "num_experts", num_experts, 1)
        self.expansion = check_int(self.name, "expansion", expansion, 1)
        self.activation = get_activation(activation)
        self.dropout = check_rate(self.name, "dropout", dropout)
        if not (is_number(active_budget) and 0 < active_budget <= 1):
            raise ValueError(
                f"{self.name}: `active_budget` must be a number in (0, 1]. "
                f"Received: {active_budget!r}"
            )
        self.active_budget = active_budget
        self.penalty = check_number(self.name, "penalty", penalty, 0)
        self._dropout = (
            keras.layers.Dropout(self.dropout, dtype=self.float_policy) if self.dropout else None
        )

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        check_rank(self.name, "inputs", input_shape, (3,), "[T, M, D]")
        width, tokens = check_known_width(self.name, "inputs", input_shape), input_shape[0]
        if tokens is None:
            raise ValueError(
                f"{self.name}: the number of tokens of `inputs` must be known, because weights "
                f"depend on it. Received shape: {tuple(input_shape)}"
            )
        experts, hidden = self.num_experts, self.expansion * width
        leading = (tokens, experts)
        self.hidden_kernel = per_token_kernel(self, leading, width, hidden, "hidden_kernel")
        self.output_kernel = per_token_kernel(self, leading, hidden, width, "output_kernel")
        self.hidden_bias = self._zeros("hidden_bias", (tokens, 1, experts, hidden))
        self.output_bias = self._zeros("output_bias", (tokens, experts, width))
        self.train_kernel = per_token_kernel(self, (tokens,), width, experts, "train_kernel")
        self.train_bias = self._zeros("train_bias", (tokens, 1, experts))
        self.inference_kernel = per_token_kernel(
            self, (tokens,), width, experts, "inference_kernel"
        )
        self.inference_bias = self._zeros("inference_bias", (tokens, 1, experts))
        self.penalty_weight = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(self.penalty),
            trainable=False,
            autocast=False,
            name="penalty_weight",
        )
        self.active_ratio = self.add_weight(
            shape=(), initializer="ones", trainable=False, autocast=False, name="active_ratio"
        )
        self.finish_build()

    def _zeros(self, name: str, shape: tuple[int, ...]) -> Any:
        return self.add_bias(name, shape)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        gates = ops.relu(
            ops.einsum("tmd,tde->tme", inputs, self.effective(self.inference_kernel))
            + self.inference_bias
        )
        if training:
            self._regularise(gates)
            train_gates = ops.relu(
                ops.einsum("tmd,tde->tme", inputs, self.effective(self.train_kernel))
                + self.train_bias
            )
            gates = (gates + train_gates) / 2
        hidden = (
            ops.einsum("tmd,tedf->tmef", inputs, self.effective(self.hidden_kernel))
            + self.hidden_bias
        )
        hidden = activate(self.activation, hidden)
        if self._dropout is not None:
            hidden = self._dropout(hidden, training=training)
        # Gating the hidden layer needs one product with all experts instead of one output each.
        outputs = ops.einsum(
            "tmef,tefd->tmd",
            hidden * ops.expand_dims(gates, -1),
            self.effective(self.output_kernel),
        )
        return outputs + ops.einsum("tme,ted->tmd", gates, self.output_bias)

    def _regularise(self, gates: Tensor) -> None:
        """Add the L1 penalty (mean over samples of all gates) and adapt its weight."""
        dtype = self.penalty_weight.dtype
        samples = ops.cast(ops.shape(gates)[1], dtype)
        # A copy: PyTorch must still find the old value when it differentiates the loss.
        weight = self.penalty_weight * 1.0
        self.add_loss(weight * ops.sum(ops.cast(gates, dtype)) / samples)
        active = ops.sum(ops.cast(gates > 0, dtype)) / ops.cast(ops.size(gates), dtype)
        self.active_ratio.assign(active)
        self.penalty_weight.assign(weight * _PENALTY_STEP ** ops.sign(active - self.active_budget))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "expansion": self.expansion,
            "activation": activation_name(self.activation),
            "dropout": self.dropout,
            "active_budget": self.active_budget,
            "penalty": self.penalty,
        }
