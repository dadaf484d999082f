"""A plain multi-layer perceptron over concatenated features."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from laser_keras.activations import activate, activation_name, get_activation
from laser_keras.checks import check_inputs, check_int, check_known_width, check_rate
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.sequence import linear
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class FeatureMLP(KernelLayer):
    """Dense layers over the concatenation of all features: the plain alternative to RankMixer.

    Use it as the head of a small model, or as the control for RankMixer. RankMixer makes better use
    of many features and of a large budget.

    Args:
        dim: Integer, width of every layer. Defaults to 128.
        num_layers: Integer. Defaults to 2.
        activation: Defaults to ``"relu"``.
        dropout: Float in [0, 1), after every layer. Defaults to 0.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [..., E], or a mapping of such tensors with the same leading
            dimensions, concatenated in the order of their names.

    Returns:
        Float tensor [..., dim].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> features = {"a": np.ones((2, 5, 3), "float32"), "b": np.ones((2, 5, 7), "float32")}
    >>> tuple(FeatureMLP(dim=4)(features).shape)
    (2, 5, 4)

    Source: the usual head of a click model; nothing of a paper's own.
    """

    def __init__(
        self,
        dim: int = 128,
        num_layers: int = 2,
        activation: Any = "relu",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim = check_int(self.name, "dim", dim, 1)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 1)
        self.activation = get_activation(activation)
        self.dropout = check_rate(self.name, "dropout", dropout)
        self._dropout = (
            keras.layers.Dropout(self.dropout, dtype=self.float_policy) if self.dropout else None
        )

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of these shapes."""
        shapes = list(input_shape.values()) if isinstance(input_shape, Mapping) else [input_shape]
        width = sum(check_known_width(self.name, "inputs", shape) for shape in shapes)
        self.kernels, self.biases = [], []
        for i in range(self.num_layers):
            shape = (self.dim if i else width, self.dim)
            self.kernels.append(self.add_kernel(f"kernel_{i}", shape))
            self.biases.append(self.add_bias(f"bias_{i}", (self.dim,)))
        self.finish_build()

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        if isinstance(inputs, Mapping):
            inputs = ops.concatenate([inputs[name] for name in sorted(inputs)], axis=-1)
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            inputs = activate(self.activation, linear(inputs, self.effective(kernel), bias))
            if self._dropout is not None:
                inputs = self._dropout(inputs, training=training)
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Shape:
        """The output's shape for inputs of these shapes."""
        shape = (
            next(iter(input_shape.values())) if isinstance(input_shape, Mapping) else input_shape
        )
        return (*shape[:-1], self.dim)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "dim": self.dim,
            "num_layers": self.num_layers,
            "activation": activation_name(self.activation),
            "dropout": self.dropout,
        }
