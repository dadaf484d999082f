"""Multi-resolution fusion: the global, the salient and the recent view of a history."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_agrees,
    check_bool,
    check_inputs,
    check_int,
    check_rank,
    check_same_width,
)
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import maximum_of
from laser_keras.types import Shape, Tensor


def _largest(inputs: Tensor) -> Tensor:
    """Maximum over axis -2, whose gradient goes to the position of the maximum.

    XLA may compute ``inputs`` a second time for the gradient and round differently. The usual
    gradient of a maximum compares for equality with the first result, finds no match and silently
    becomes zero; the position of the maximum is safe.
    """
    if keras.backend.backend() == "torch" or 0 in inputs.shape:
        return maximum_of(inputs, axis=-2)

    def forward(inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def backward(upstream: Tensor) -> Tensor:
            positions = ops.expand_dims(ops.argmax(inputs, axis=-2), -2)
            all_positions = ops.arange(ops.shape(inputs)[-2], dtype=positions.dtype)
            chosen = ops.equal(ops.expand_dims(all_positions, -1), positions)
            return ops.where(chosen, ops.expand_dims(upstream, -2), 0.0)

        return ops.max(inputs, axis=-2), backward

    return ops.custom_gradient(forward)(inputs)


def _salient(segments: Tensor, visible: Tensor | None) -> Tensor:
    """The maximum over the visible segments [..., S, d]; zero where none is visible."""
    if visible is None:
        return _largest(segments)
    largest = _largest(ops.where(visible, segments, -math.inf))
    return ops.where(ops.any(visible, axis=-2), largest, 0.0)


@keras.saving.register_keras_serializable(package="laser_keras")
class MultiResolutionFusion(SequenceLayer):
    """Stacks ``[z, max over segments, s_1 .. s_R]`` as tokens; it has no weights.

    Use it between sequence layers and a feature mixer that takes tokens, such as ``RankMixer``. It
    keeps the recent segments apart that an average over the history would hide.

    Segments without a valid event are excluded from the maximum and are zero as recent tokens;
    without any valid segment both views are zero.

    Args:
        num_recent_segments: Integer R; 0 leaves the recent view out. The paper does not disclose
            its value; 5 segments of 10 events are the 50 events of TWIN's short-term window.
            Defaults to 5.
        salient_token: Boolean. Whether the maximum over the segments is among the tokens.
            Defaults to True.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d]: the refined target z.
        history: Float tensor [B, N, S, d] or [B, S, d]: the segments, newest first.
        mask: Boolean tensor [B, S], True for segments with a valid event; None if all have one.

    Returns:
        Float tensor [B, N, 2 + R, d] or [B, 2 + R, d]; one token less without the salient one.

    Raises:
        ValueError: if R is larger than the number of segments, or for shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> z, segments = np.zeros((1, 2), "float32"), np.array([[[1, 2], [3, 0]]], "float32")
    >>> keras.ops.convert_to_numpy(MultiResolutionFusion(1)(z, segments)).tolist()
    [[[0.0, 0.0], [3.0, 2.0], [1.0, 2.0]]]

    Source: LASER (arXiv 2602.11562), section 3.4.4.
    """

    def __init__(
        self, num_recent_segments: int = 5, salient_token: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_recent_segments = check_int(
            self.name, "num_recent_segments", num_recent_segments, 0
        )
        self.salient_token = check_bool(self.name, "salient_token", salient_token)

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate: the target, the maximum and R recent segments."""
        return 1 + int(self.salient_token) + self.num_recent_segments

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        self._check_shapes(target_shape, history_shape)

    def call(self, target: Tensor, history: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        self._check_shapes(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        mask = self._valid(mask, history, (history.shape[0], history.shape[-2]), "[B, S]")
        visible = None if mask is None else ops.expand_dims(mask, -1)
        if visible is not None and len(history.shape) == 4:
            visible = ops.expand_dims(visible, 1)
        views = [ops.expand_dims(target, -2)]
        if self.salient_token:
            views.append(ops.expand_dims(_salient(history, visible), -2))
        if self.num_recent_segments:
            recent = history[..., : self.num_recent_segments, :]
            if visible is not None:
                recent = ops.where(visible[..., : self.num_recent_segments, :], recent, 0.0)
            if not history.shape[-2]:  # unknown, and may turn out shorter than R; or none at all
                shape = (*ops.shape(recent)[:-2], self.num_recent_segments, recent.shape[-1])
                recent = ops.concatenate([recent, ops.zeros(shape, recent.dtype)], axis=-2)
            views.append(recent[..., : self.num_recent_segments, :])
        return ops.concatenate(views, axis=-2)

    def _check_shapes(self, target_shape: Shape, history_shape: Shape) -> None:
        check_rank(self.name, "target", target_shape, (2, 3), "[B, N, d] or [B, d]")
        rank = len(target_shape) + 1
        check_rank(self.name, "history", history_shape, (rank,), "[B, N, S, d] or [B, S, d]")
        check_same_width(self.name, "history", history_shape, "target", target_shape)
        check_agrees(
            self.name,
            "history",
            history_shape[:-2],
            target_shape[:-1],
            "with the target's leading dimensions",
        )
        segments = history_shape[-2]
        if isinstance(segments, int) and 0 < segments < self.num_recent_segments:
            raise ValueError(
                f"{self.name}: `num_recent_segments` must not be larger than the number of "
                f"segments. Received: num_recent_segments {self.num_recent_segments}, "
                f"{segments} segments. Lower it, or keep more events per history."
            )

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        self._check_shapes(target_shape, history_shape)
        return (*target_shape[:-1], self.num_output_tokens, target_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_recent_segments": self.num_recent_segments,
            "salient_token": self.salient_token,
        }
