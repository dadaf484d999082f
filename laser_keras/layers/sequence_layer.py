"""Base of the layers that consume a padding mask."""

from typing import Any

from laser_keras.checks import check_agrees, check_mask, check_rank, check_same_width
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.types import Shape, Tensor


class SequenceLayer(KernelLayer):
    """Base of layers whose output lacks the padded axis, so that no Keras mask is passed on."""

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """No mask is passed on."""
        return None

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether ``auxiliary_logits`` need a loss on the labels as well."""
        return False

    def auxiliary_logits(
        self, target: Tensor, history: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Click logits for an auxiliary loss on the labels; most encoders have none."""
        return []

    def _check_target_and_history(self, target_shape: Shape, history_shape: Shape) -> int:
        """Check the shapes of a target and of a history shared by its candidates; their width."""
        check_rank(self.name, "target", target_shape, (2, 3), "[B, N, d] or [B, d]")
        check_rank(self.name, "history", history_shape, (3,), "[B, L, d]")
        check_agrees(
            self.name, "history", history_shape[:1], target_shape[:1], "with the target's batch"
        )
        return check_same_width(self.name, "history", history_shape, "target", target_shape)

    def _valid(
        self, mask: Tensor | None, history: Tensor, expected: Shape, layout: str
    ) -> Tensor | None:
        """The checked mask: the explicit one, else the Keras mask that ``history`` carries."""
        if mask is None:
            mask = getattr(history, "_keras_mask", None)
        return None if mask is None else check_mask(self.name, "mask", mask, expected, layout)
