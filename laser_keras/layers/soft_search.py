"""SIM's learned search, with the click network that trains it."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_inputs, check_int, check_optional_int, check_rank
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.search import kept_events, top_events
from laser_keras.sequence import linear, stable_dtype, zero_masked
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SoftSearch(SequenceLayer):
    """Finds the ``top_k`` events with the best scores ``r_j = (h_j Wb) . (t Wa)``.

    Use it to cut a long history down when items have no category, or one too coarse to search by.
    It needs its own loss in training; ``HardSearch`` does not.

    A selection has no gradient. The search learns from a click task of its own: a small network
    predicts the click from the target and ``u = sum_j r_j h_j``. That prediction is the third
    output, a logit, to be trained on the same labels (``SequenceRanker`` does so in ``fit``)::

        loss = ranking_loss + binary_crossentropy(label, logit, from_logits=True)

    ``u`` is divided by the number of valid events, so that its size does not follow the history's.

    Args:
        top_k: Integer K; fewer are kept when the history is shorter. Defaults to 100.
        units: Integer, width of ``h_j Wb`` and ``t Wa``; None for the width d. Defaults to None.
        hidden_units: Widths of the click network's hidden layers. Defaults to (200, 80).
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d].
        history: Float tensor [B, L, d]; L must be known.
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.

    Returns:
        Three tensors: int32 indices [B, N, K] of the events, best first; whether each is one
        (False where fewer than K are valid), [B, N, K]; click logits [B, N].

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, and for an unknown L.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 50, 8), "float32")
    >>> index, found, logits = SoftSearch(top_k=5)(target, history)
    >>> tuple(index.shape), tuple(logits.shape)
    ((2, 3, 5), (2, 3))

    Source: SIM (arXiv 2006.05639), section 3.1; the network's widths are ours.
    """

    def __init__(
        self,
        top_k: int = 100,
        units: int | None = None,
        hidden_units: Sequence[int] = (200, 80),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.top_k = check_int(self.name, "top_k", top_k, 1)
        self.units = check_optional_int(self.name, "units", units, 1)
        self.hidden_units = tuple(
            check_int(self.name, "hidden_units", width, 1) for width in hidden_units
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        units = self.units or width
        self.target_kernel = self.add_kernel("target_kernel", (width, units))
        self.event_kernel = self.add_kernel("event_kernel", (width, units))
        sizes = [2 * width, *self.hidden_units, 1]
        self.click_kernels, self.click_biases = [], []
        for i, outputs in enumerate(sizes[1:]):
            shape = (sizes[i], outputs)
            self.click_kernels.append(self.add_kernel(f"click_kernel_{i}", shape))
            self.click_biases.append(self.add_bias(f"click_bias_{i}", (outputs,)))
        self.finish_build()

    def call(
        self, target: Tensor, history: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the output; the class docstring names shapes and dtypes."""
        self._check_shapes(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        count = kept_events(self.name, self.top_k, history.shape[1])
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        if mask is None:
            mask = ops.ones(ops.shape(history)[:2], dtype="bool")
        history = zero_masked(history, mask)
        queries = linear(target, self.effective(self.target_kernel))
        keys = linear(history, self.effective(self.event_kernel))
        scores = ops.einsum("bnd,bld->bnl", queries, keys)
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        visible = ops.expand_dims(mask, 1)
        index, found = top_events(ops.stop_gradient(scores), visible, count)
        valid = ops.maximum(ops.sum(ops.cast(mask, scores.dtype), axis=1), 1.0)
        weights = ops.where(visible, scores, 0.0) / ops.reshape(valid, (-1, 1, 1))
        pooled = ops.einsum("bnl,bld->bnd", ops.cast(weights, self.compute_dtype), history)
        return index, found, self._click(ops.concatenate([pooled, target], axis=-1))

    def _click(self, inputs: Tensor) -> Tensor:
        last = len(self.click_kernels) - 1
        for i, (kernel, bias) in enumerate(zip(self.click_kernels, self.click_biases, strict=True)):
            inputs = linear(inputs, self.effective(kernel), bias)
            inputs = ops.relu(inputs) if i < last else inputs
        return ops.squeeze(inputs, -1)

    def _check_shapes(self, target_shape: Shape, history_shape: Shape) -> int:
        check_rank(self.name, "target", target_shape, (3,), "[B, N, d]")
        return self._check_target_and_history(target_shape, history_shape)

    def compute_output_spec(self, target: Any, history: Any, mask: Any = None) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        self._check_shapes(tuple(target.shape), tuple(history.shape))
        count = kept_events(self.name, self.top_k, history.shape[1])
        shape = (*target.shape[:-1], count)
        return (
            keras.KerasTensor(shape, dtype="int32"),
            keras.KerasTensor(shape, dtype="bool"),
            keras.KerasTensor(target.shape[:-1], dtype=self.compute_dtype),
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "top_k": self.top_k,
            "units": self.units,
            "hidden_units": list(self.hidden_units),
        }
