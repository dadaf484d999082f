"""Position-wise feed-forward network."""

from typing import Any

import keras
from keras import ops

from laser_keras.activations import activate, activation_name, get_activation
from laser_keras.checks import check_inputs, check_int, check_known_width, check_rate
from laser_keras.gelu_feed_forward import gelu_feed_forward
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.sequence import linear
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class FeedForward(KernelLayer):
    """Two dense layers applied to every vector: ``activation(x W1 + b1) W2 + b2``.

    Use it after an attention layer, with a residual connection of your own. For a gated network
    without biases use ``SwiGLUFeedForward``.

    Args:
        expansion: Integer. Width of the hidden layer as a multiple of the input's. Defaults to 4.
        activation: Name or callable of the hidden activation. Defaults to ``"gelu"`` (exact).
        dropout: Float in [0, 1). Dropout on the hidden layer. Defaults to 0.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [..., d].

    Returns:
        Float tensor [..., d].

    Raises:
        ValueError: for arguments or shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> FeedForward()(np.ones((2, 3, 8), "float32")).shape[-1]
    8
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
        width = check_known_width(self.name, "inputs", input_shape)
        hidden = self.expansion * width
        self.hidden_kernel = self.add_kernel("hidden_kernel", (width, hidden))
        self.hidden_bias = self.add_bias("hidden_bias", (hidden,))
        self.output_kernel = self.add_kernel("output_kernel", (hidden, width))
        self.output_bias = self.add_bias("output_bias", (width,))
        self.finish_build()

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        hidden_kernel, output_kernel = (
            self.effective(kernel) for kernel in (self.hidden_kernel, self.output_kernel)
        )
        if self.activation is keras.activations.gelu and self._dropout is None:
            rows = ops.reshape(inputs, (-1, inputs.shape[-1]))
            outputs = gelu_feed_forward(
                rows, hidden_kernel, self.hidden_bias, output_kernel, self.output_bias
            )
            return ops.reshape(outputs, ops.shape(inputs))
        hidden = activate(self.activation, linear(inputs, hidden_kernel, self.hidden_bias))
        if self._dropout is not None:
            hidden = self._dropout(hidden, training=training)
        return linear(hidden, output_kernel, self.output_bias)

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
