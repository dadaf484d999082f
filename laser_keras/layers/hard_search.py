"""SIM's search without weights: the newest events of the target's category."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_int, check_mask, check_rank
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.search import kept_events, top_events
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class HardSearch(SequenceLayer):
    """Finds the newest ``top_k`` events that share the target's category.

    Use it to cut a long history down to events like the target when items have a category: it needs
    no weights and no training. Without categories use ``SoftSearch``.

    Args:
        top_k: Integer K; fewer are kept when the history is shorter. Defaults to 100.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        category_match: Boolean tensor [B, N, L], True where the event has the target's category;
            newest event first, L known.
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Two tensors [B, N, K]: int32 indices of events, newest first, and whether each is one
        (False where fewer than K match).

    Raises:
        ValueError: for shapes or dtypes that do not fit, and for an unknown L.

    Example:

    >>> import numpy as np
    >>> match = np.array([[[False, True, False, True, True]]])
    >>> index, found = HardSearch(top_k=2)(match)
    >>> keras.ops.convert_to_numpy(index).tolist()
    [[[1, 3]]]

    Source: SIM (arXiv 2006.05639), section 3.1.
    """

    def __init__(self, top_k: int = 100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.top_k = check_int(self.name, "top_k", top_k, 1)

    def build(self, category_match_shape: Shape) -> None:
        """Check the shape; there are no weights."""
        check_rank(self.name, "category_match", category_match_shape, (3,), "[B, N, L]")

    def call(self, category_match: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the output; the class docstring names shapes and dtypes."""
        shape = tuple(category_match.shape)
        check_rank(self.name, "category_match", shape, (3,), "[B, N, L]")
        count = kept_events(self.name, self.top_k, shape[-1])
        match = check_mask(self.name, "category_match", category_match, shape, "[B, N, L]")
        if mask is not None:
            mask = check_mask(self.name, "mask", mask, (shape[0], shape[-1]), "[B, L]")
            match = ops.logical_and(match, ops.expand_dims(mask, 1))
        newest_first = -ops.arange(shape[-1], dtype="float32")
        return top_events(ops.broadcast_to(newest_first, ops.shape(match)), match, count)

    def compute_output_spec(self, category_match: Any, mask: Any = None) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        count = kept_events(self.name, self.top_k, category_match.shape[-1])
        shape = (*category_match.shape[:-1], count)
        return keras.KerasTensor(shape, dtype="int32"), keras.KerasTensor(shape, dtype="bool")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {**super().get_config(), "top_k": self.top_k}
