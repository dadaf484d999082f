"""Per-token feed-forward network: every token position has weights of its own."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.activations import activate, activation_name, get_activation
from laser_keras.checks import check_inputs, check_int, check_known_width, check_rank, check_rate
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.types import Shape, Tensor


def per_token_kernel(
    layer: KernelLayer, leading: tuple[int, ...], inputs: int, outputs: int, name: str
) -> Any:
    """Add a kernel [*leading, inputs, outputs] to ``layer``, each matrix Glorot-uniform.

    Keras would count the leading axes into the fans and start too small.
    """
    limit = math.sqrt(6.0 / (inputs + outputs))
    start = layer.initial(keras.initializers.RandomUniform(-limit, limit))
    return layer.add_kernel(name, (*leading, inputs, outputs), start)


@keras.saving.register_keras_serializable(package="laser_keras")
class PerTokenFeedForward(KernelLayer):
    """``activation(x_t W1_t + b1_t) W2_t + b2_t`` for each token ``t``, on token-major tensors.

    Use it where token positions have fixed meanings, such as the feature groups of ``RankMixer``.
    For exchangeable positions, such as events, use ``FeedForward``.

    Args:
        expansion: Integer k, the hidden width is ``k D``. The paper does not disclose it, and no
            single integer reproduces its parameter counts. Defaults to 4.
        activation: Defaults to ``"gelu"`` (exact).
        dropout: Float in [0, 1), on the hidden layer. Defaults to 0.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [T, M, D]: T tokens of M samples. With the token axis first both
            products are plain batched matrix products, without a transposition.

    Returns:
        Float tensor [T, M, D].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = PerTokenFeedForward()
    >>> tuple(layer(np.ones((4, 2, 8), "float32")).shape), layer.count_params()
    ((4, 2, 8), 2208)

    Source: RankMixer (arXiv 2507.15551), section 3.3.
    """

    def __init__(
        self,
        expansion: int = 4,
        activation: Any = "gelu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.expansion = check_int(self.name, "expansion", expansion, 1)
        self.activation = get_activation(activation)
        self.dropout = check_rate(self.name, "dropout", dropout)
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
        hidden = self.expansion * width
        self.hidden_kernel = per_token_kernel(self, (tokens,), width, hidden, "hidden_kernel")
        self.hidden_bias = self.add_bias("hidden_bias", (tokens, 1, hidden))
        self.output_kernel = per_token_kernel(self, (tokens,), hidden, width, "output_kernel")
        self.output_bias = self.add_bias("output_bias", (tokens, 1, width))
        self.finish_build()

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        hidden_kernel = self.effective(self.hidden_kernel)
        hidden = ops.einsum("tmd,tdf->tmf", inputs, hidden_kernel) + self.hidden_bias
        hidden = activate(self.activation, hidden)
        if self._dropout is not None:
            hidden = self._dropout(hidden, training=training)
        output_kernel = self.effective(self.output_kernel)
        return ops.einsum("tmf,tfd->tmd", hidden, output_kernel) + self.output_bias

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "expansion": self.expansion,
            "activation": activation_name(self.activation),
            "dropout": self.dropout,
        }
