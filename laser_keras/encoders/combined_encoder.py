"""Several encoders side by side."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_agrees
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class CombinedEncoder(SequenceLayer):
    """Concatenates the tokens of several encoders, each with weights of its own.

    The LASER paper's comparison gives every system a two-stage branch beside it: for instance its
    "HSTU" row is ``CombinedEncoder([HSTUEncoder(), TWINEncoder()])``.

    Args:
        encoders: The encoders, all with the calling contract of ``LaserEncoder``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Float tensor [B, N, T, d] or [B, T, d], T the sum of the encoders' tokens.

    Example:

    >>> import numpy as np
    >>> from laser_keras import DINEncoder, TWINEncoder
    >>> encoder = CombinedEncoder([DINEncoder(), TWINEncoder()])
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(encoder(target, history).shape)
    (2, 3, 3, 8)

    Source: LASER (arXiv 2602.11562), section 4.1.3.
    """

    def __init__(self, encoders: Sequence[keras.layers.Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not encoders:
            raise ValueError(f"{self.name}: `encoders` must hold at least one encoder.")
        self.encoders = list(encoders)

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return sum(encoder.num_output_tokens for encoder in self.encoders)

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        for encoder in self.encoders:
            if not encoder.built:  # it is when it comes from a saved model
                encoder.build(target_shape, history_shape)

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_agrees(
            self.name, "history", history.shape[:1], target.shape[:1], "with the target's batch"
        )
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        return ops.concatenate(
            [encoder(target, history, mask=mask, training=training) for encoder in self.encoders],
            axis=-2,
        )

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        return (*target_shape[:-1], self.num_output_tokens, target_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        encoders = [keras.saving.serialize_keras_object(encoder) for encoder in self.encoders]
        return {**super().get_config(), "encoders": encoders}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CombinedEncoder":
        """Make the layer from its configuration."""
        encoders = [keras.saving.deserialize_keras_object(part) for part in config["encoders"]]
        return cls(**{**config, "encoders": encoders})
