"""Mean pooling, a control that shows what a long history is worth."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_optional_int
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.sequence import masked_mean
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class PoolingEncoder(SequenceEncoder):
    """Averages the valid events, without looking at the target; it has no weights.

    Use it as a control: a target-aware encoder that does not beat it has learned nothing from the
    target. With ``recent_events`` it shows what the newest events alone are worth.

    Args:
        recent_events: Integer, only that many newest events count; None for all.
            Defaults to None.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Float tensor [B, N, 1, d] or [B, 1, d]; zero without a valid event.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((1, 1), "float32"), np.array([[[1], [3], [8]]], "float32")
    >>> keras.ops.convert_to_numpy(PoolingEncoder(2)(target, history)).tolist()
    [[[2.0]]]

    Source: a control that the papers leave out.
    """

    def __init__(
        self, recent_events: int | None = None, order: str = "newest_first", **kwargs: Any
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.recent_events = check_optional_int(self.name, "recent_events", recent_events, 1)

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Check the shapes; there are no weights."""
        self._check_target_and_history(target_shape, history_shape)

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """Tokens [B, N, 1, d]."""
        history, mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        mean = ops.expand_dims(ops.expand_dims(masked_mean(history, mask), 1), 1)
        return ops.broadcast_to(mean, (*ops.shape(target)[:2], 1, target.shape[-1]))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "recent_events": self.recent_events}
