"""Plain multi-head attention of a target over a sequence."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_bool,
    check_choice,
    check_divides,
    check_inputs,
    check_int,
    check_optional_int,
    check_positive,
    known_size,
)
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import (
    linear,
    masked_softmax,
    merge_heads,
    split_heads,
    stable_dtype,
    zero_masked,
)
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class TargetAttention(SequenceLayer):
    """``softmax((t Wq)(H Wk)^T / sqrt(key_dim)) (H Wv)`` per head, without output projection.

    Use it to read a history, or tokens made of one, with each candidate as the query. Its cost is
    linear in L; ``SegmentedTargetAttention`` keeps more detail of long histories.

    What the LASER paper's "DIN" row costs: ``2 L d^2 + 2 L d``. Without a valid event the output
    is zero.

    Args:
        num_heads: Integer, divides the width d. Defaults to 2.
        key_dim: Integer, width of queries and keys per head; None for ``d / num_heads``.
            Defaults to None.
        score: ``"softmax"`` or ``"sigmoid"``. Defaults to ``"softmax"``.
        implementation: ``"auto"``, ``"project"`` or ``"absorb"``, as in
            ``SegmentedTargetAttention``. Defaults to ``"auto"``.
        value_dim: Integer, width of values per head; None for ``d / num_heads``.
            Defaults to None.
        gamma: Positive number that the scores are divided by, or None for ``sqrt(key_dim)``:
            smaller makes the weights sharper. Defaults to None.
        aligned_start: Boolean. Whether the projections of queries and keys start equal, so that
            scores start as similarities of target and event. Defaults to False.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.
        return_weights: Boolean. Whether the attention's weights are returned as well.

    Returns:
        Float tensor [B, N, num_heads * value_dim] (the target's shape by default), or
        [B, num_heads * value_dim] with a target [B, d]. With ``return_weights`` a pair of it and
        the weights [B, N, num_heads, L] ([B, num_heads, L]), zero where masked.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> layer = TargetAttention()
    >>> tuple(layer(np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")).shape)
    (2, 3, 8)

    Source: LASER (arXiv 2602.11562), equation 20.
    """

    def __init__(
        self,
        num_heads: int = 2,
        key_dim: int | None = None,
        score: str = "softmax",
        implementation: str = "auto",
        value_dim: int | None = None,
        gamma: float | None = None,
        aligned_start: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.gamma = None if gamma is None else check_positive(self.name, "gamma", gamma)
        self.aligned_start = check_bool(self.name, "aligned_start", aligned_start)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.key_dim = check_optional_int(self.name, "key_dim", key_dim, 1)
        self.value_dim = check_optional_int(self.name, "value_dim", value_dim, 1)
        self.score = check_choice(self.name, "score", score, ("softmax", "sigmoid"))
        self.implementation = check_choice(
            self.name, "implementation", implementation, ("auto", "project", "absorb")
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        if self.key_dim is None or self.value_dim is None:
            check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self._head_key_dim = self.key_dim or width // self.num_heads
        key_width = self.num_heads * self._head_key_dim
        # An initialiser object gives the same values each time it is called.
        start = self.initial(keras.initializers.GlorotUniform()) if self.aligned_start else None
        self.query_kernel = self.add_kernel("query_kernel", (width, key_width), start)
        self.key_kernel = self.add_kernel("key_kernel", (width, key_width), start)
        self.value_kernel = self.add_kernel("value_kernel", (width, self._value_width(width)))
        self.finish_build()

    def _value_width(self, width: int) -> int:
        return self.num_heads * self.value_dim if self.value_dim else width

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        width = self._check_target_and_history(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        history = zero_masked(history, mask)
        single = len(target.shape) == 2
        if single:
            target = ops.expand_dims(target, 1)
        heads = self.num_heads
        query = split_heads(linear(target, self.effective(self.query_kernel)), heads)
        key_kernel, value_kernel = map(self.effective, (self.key_kernel, self.value_kernel))
        absorb = self.absorbs(target.shape[1], history.shape[1], width)
        if absorb:
            query = ops.einsum("bnhe,dhe->bnhd", query, split_heads(key_kernel, heads))
            scores = ops.einsum("bnhd,bld->bnhl", query, history)
        else:
            keys = split_heads(linear(history, key_kernel), heads)
            scores = ops.einsum("bnhe,blhe->bnhl", query, keys)
        weights = self._weights(scores, mask)
        if absorb:
            sums = ops.einsum("bnhl,bld->bnhd", weights, history)
            outputs = ops.einsum("bnhd,dhe->bnhe", sums, split_heads(value_kernel, heads))
        else:
            values = split_heads(linear(history, value_kernel), heads)
            outputs = ops.einsum("bnhl,blhe->bnhe", weights, values)
        outputs = merge_heads(outputs)
        if single:
            outputs, weights = ops.squeeze(outputs, 1), ops.squeeze(weights, 1)
        return (outputs, weights) if return_weights else outputs

    def _weights(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        scores = scores / (math.sqrt(self._head_key_dim) if self.gamma is None else self.gamma)
        if mask is not None:
            mask = ops.expand_dims(ops.expand_dims(mask, 1), 1)
        if self.score == "softmax":
            weights = masked_softmax(scores, mask)
        else:
            weights = ops.sigmoid(scores)
            weights = weights if mask is None else ops.where(mask, weights, 0.0)
        return ops.cast(weights, self.compute_dtype)

    def absorbs(self, candidates: int | None, length: int | None, width: int) -> bool:
        """Whether N candidates of L events [d] are computed without keys and values.

        With ``implementation="auto"`` this is decided by the multiply-accumulates per request.
        """
        if self.implementation != "auto":
            return self.implementation == "absorb"
        candidates, length = known_size(candidates), known_size(length)
        if candidates is None or length is None:
            return False
        key_width = self.num_heads * (self.key_dim or width // self.num_heads)
        projected = key_width + self._value_width(width)
        project = length * (width + candidates) * projected
        absorb = candidates * width * (projected + 2 * self.num_heads * length)
        return absorb < project

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        return (*target_shape[:-1], self._value_width(width))

    def compute_output_spec(
        self, target: Any, history: Any, mask: Any = None, return_weights: bool = False
    ) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        shape = self.compute_output_shape(target.shape, history.shape)
        outputs = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_weights:
            return outputs
        weights = (*target.shape[:-1], self.num_heads, history.shape[1])
        return outputs, keras.KerasTensor(weights, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "score": self.score,
            "implementation": self.implementation,
            "value_dim": self.value_dim,
            "gamma": self.gamma,
            "aligned_start": self.aligned_start,
        }
