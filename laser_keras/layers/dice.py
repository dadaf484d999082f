"""Dice, DIN's activation that adapts to the data."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_inputs, check_known_width, check_mask, check_number, check_rate
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import stable_dtype
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class Dice(SequenceLayer):
    """``p s + (1 - p) alpha s`` with ``p = sigmoid((s - mean) / sqrt(variance + epsilon))``.

    Use it as the activation of ``ActivationUnitAttention`` or of an MLP whose inputs differ in
    scale by channel. Without large batches prefer PReLU or ReLU, because Dice depends on batch
    statistics.

    Moments per channel over all other axes: of the batch in training, moving averages otherwise.

    Args:
        momentum: Float in [0, 1), of the moving averages. Defaults to 0.99.
        epsilon: Float. Defaults to 1e-8.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        inputs: Float tensor [..., d].
        mask: Optional boolean tensor [...]: positions that count for the moments.

    Returns:
        Float tensor [..., d].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> keras.ops.convert_to_numpy(Dice()(np.array([[0.0, 50.0]], "float32"))).tolist()
    [[0.0, 50.0]]

    Source: DIN (arXiv 1706.06978), section 5.3.
    """

    def __init__(self, momentum: float = 0.99, epsilon: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = check_rate(self.name, "momentum", momentum)
        self.epsilon = check_number(self.name, "epsilon", epsilon, 0)

    def build(self, inputs_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = check_known_width(self.name, "inputs", inputs_shape)
        self.alpha = self.add_weight(shape=(width,), initializer="zeros", name="alpha")
        self.moving_mean, self.moving_variance = (
            self.add_weight(
                shape=(width,), initializer=start, trainable=False, autocast=False, name=name
            )
            for name, start in (("moving_mean", "zeros"), ("moving_variance", "ones"))
        )

    def call(
        self, inputs: Tensor, mask: Tensor | None = None, training: bool | None = None
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, inputs=inputs)
        dtype = stable_dtype(self.compute_dtype)
        values = ops.cast(inputs, dtype)
        mean, variance = ops.cast(self.moving_mean, dtype), ops.cast(self.moving_variance, dtype)
        if training:
            counted = ops.ones_like(values[..., :1], dtype="bool")
            if mask is not None:
                mask = check_mask(self.name, "mask", mask, tuple(inputs.shape[:-1]), "[...]")
                counted = ops.expand_dims(mask, -1)
            axes = list(range(len(inputs.shape) - 1))
            total = ops.maximum(ops.sum(ops.cast(counted, dtype)), 1.0)
            mean = ops.sum(ops.where(counted, values, 0.0), axis=axes) / total
            deviations = ops.where(counted, values - mean, 0.0)
            variance = ops.sum(ops.square(deviations), axis=axes) / total
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                new = moving * self.momentum + ops.cast(batch, moving.dtype) * (1 - self.momentum)
                moving.assign(ops.stop_gradient(new))
        gate = ops.sigmoid((values - mean) / ops.sqrt(variance + self.epsilon))
        gate = ops.cast(gate, self.compute_dtype)
        return inputs * (gate + (1.0 - gate) * self.alpha)

    def compute_output_shape(self, inputs_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return tuple(inputs_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "momentum": self.momentum, "epsilon": self.epsilon}
