"""Base of the layers that consume a padding mask."""

from typing import Any

import keras

from laser_keras.checks import check_mask
from laser_keras.types import Shape, Tensor


class SequenceLayer(keras.layers.Layer):
    """A layer whose outputs no longer have the padded axis, so that no Keras mask is passed on."""

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """No mask is passed on."""
        return None

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether ``auxiliary_logits`` are to be trained on the labels as well."""
        return False

    def auxiliary_logits(
        self, target: Tensor, history: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Click logits that an encoder's parts want to be trained on; most have none."""
        return []

    def _valid(
        self, mask: Tensor | None, history: Tensor, expected: Shape, layout: str
    ) -> Tensor | None:
        """The checked mask: the explicit one, else the Keras mask that ``history`` carries."""
        if mask is None:
            mask = getattr(history, "_keras_mask", None)
        return None if mask is None else check_mask(self.name, "mask", mask, expected, layout)
