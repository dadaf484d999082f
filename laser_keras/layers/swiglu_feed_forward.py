"""Feed-forward network with a SwiGLU hidden layer."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_inputs, check_int, check_known_width, check_optional_int
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.sequence import linear
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SwiGLUFeedForward(KernelLayer):
    """``((x Wu) * swish(x Wv)) Wo`` on every vector, without biases.

    Use it where a gated feed-forward network is wanted, as in ``STCAEncoder`` or a modern
    Transformer. It has three kernels where ``FeedForward`` has two.

    Args:
        expansion: Integer r, the hidden width is ``r d``. Defaults to 4.
        units: Integer, width of the output; None for the width d of the inputs. Defaults to None.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [..., d].

    Returns:
        Float tensor [..., units].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> tuple(SwiGLUFeedForward(units=3)(np.ones((2, 5, 8), "float32")).shape)
    (2, 5, 3)

    Source: STCA (arXiv 2511.06077); Shazeer 2020 (arXiv 2002.05202).
    """

    def __init__(self, expansion: int = 4, units: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expansion = check_int(self.name, "expansion", expansion, 1)
        self.units = check_optional_int(self.name, "units", units, 1)

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = check_known_width(self.name, "inputs", input_shape)
        hidden, units = self.expansion * width, self.units or width
        self.up_kernel = self.add_kernel("up_kernel", (width, hidden))
        self.gate_kernel = self.add_kernel("gate_kernel", (width, hidden))
        self.output_kernel = self.add_kernel("output_kernel", (hidden, units))
        self.finish_build()

    def call(self, inputs: Tensor) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        gate = ops.silu(linear(inputs, self.effective(self.gate_kernel)))
        hidden = linear(inputs, self.effective(self.up_kernel)) * gate
        return linear(hidden, self.effective(self.output_kernel))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return (*input_shape[:-1], self.units or input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "expansion": self.expansion, "units": self.units}
