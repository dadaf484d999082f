"""Global stacked target attention: a query refined against the same sequence, layer by layer."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_agrees,
    check_choice,
    check_divides,
    check_inputs,
    check_int,
    check_number,
    check_rank,
    check_same_width,
    known_size,
)
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import linear, masked_softmax, stable_dtype
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class GlobalStackedTargetAttention(SequenceLayer):
    """Refines a target against a sequence with a stack of residual target attentions.

    Use it after ``SegmentedTargetAttention``, on tens to hundreds of positions, to relate distant
    parts of a history through the target. On a raw history of thousands of events it costs one full
    attention per layer.

    Layer ``l`` has its own ``Wq, Wk, Wv`` [d, d]; the sequence ``H`` is the same for all::

        t_l = t_{l-1} + softmax((t_{l-1} Wq) (H Wk)^T / sqrt(d / num_heads)) (H Wv)

    By default there is no normalisation, feed-forward network or output projection, as printed.
    ``num_heads=1`` is equation 7 exactly as printed.

    A target without a valid position comes back exactly as it went in.

    Two options, off by default, make each layer a Transformer's: ``norm`` normalises, and
    ``ffn_expansion`` adds a residual feed-forward network after the attention. They apply to every
    target, so that one without a valid position no longer comes back as it went in.

    Args:
        num_layers: Integer M; 0 returns the target. Defaults to 2.
        num_heads: Integer, divides the width d. Defaults to 2.
        scale: Float the scores are multiplied by, or None for ``1 / sqrt(d / num_heads)``.
            Defaults to None.
        implementation: ``"project"`` forms the keys and values, ``"absorb"`` multiplies the query
            by ``Wk`` and the weighted sum by ``Wv`` instead: the same function with up to 44 times
            fewer multiplications. ``"auto"`` absorbs, except when many candidates share one
            sequence. Defaults to ``"auto"``.
        norm: ``"none"`` as printed, ``"post"`` (``LN(t + attention(t))``) or ``"pre"``
            (``t + attention(LN(t))``), likewise around the feed-forward network. The sequence is
            not normalised. Defaults to ``"none"``.
        ffn_expansion: Integer. Hidden width of each layer's feed-forward network as a multiple of
            d; 0 leaves it out, as printed. Defaults to 0.
        epsilon: Float of the layer normalisations. Defaults to 1e-6.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor, [B, L, d] shared by the candidates, or [B, N, L, d] with a sequence
            per candidate (what ``SegmentedTargetAttention`` returns for a target [B, N, d]).
        mask: Boolean tensor [B, L], True for valid positions; None for the Keras mask that
            ``history`` carries, or all valid.
        return_weights: Boolean. Whether the attention's weights are returned as well.

    Returns:
        Float tensor of the target's shape. With ``return_weights`` a pair of it and the weights
        [B, N, num_layers, num_heads, L] ([B, num_layers, num_heads, L]), zero where masked.

    Raises:
        ValueError: for shapes, dtypes or arguments that do not fit; nothing is broadcast silently.

    Example:

    >>> import numpy as np
    >>> layer = GlobalStackedTargetAttention()
    >>> target, segments = np.ones((2, 3, 8), "float32"), np.ones((2, 3, 5, 8), "float32")
    >>> tuple(layer(target, segments).shape)
    (2, 3, 8)

    Source: LASER (arXiv 2602.11562), equation 7.
    """

    def __init__(
        self,
        num_layers: int = 2,
        num_heads: int = 2,
        scale: float | None = None,
        implementation: str = "auto",
        norm: str = "none",
        ffn_expansion: int = 0,
        epsilon: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 0)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.scale = None if scale is None else check_number(self.name, "scale", scale)
        self.implementation = check_choice(
            self.name, "implementation", implementation, ("auto", "project", "absorb")
        )
        self.norm = check_choice(self.name, "norm", norm, ("none", "post", "pre"))
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 0)
        self.epsilon = check_number(self.name, "epsilon", epsilon, 0)
        self._attention_norms = self._layer_norms("attention_norm") if norm != "none" else []
        self._ffns: list[FeedForward] = []
        self._ffn_norms: list[keras.layers.Layer] = []
        if ffn_expansion:
            self._ffns = [
                FeedForward(
                    ffn_expansion,
                    **self.kernel_options(),
                    dtype=self.dtype_policy,
                    name=f"feed_forward_{i}",
                )
                for i in range(num_layers)
            ]
            self._ffn_norms = self._layer_norms("ffn_norm") if norm != "none" else []

    def _layer_norms(self, name: str) -> list[keras.layers.Layer]:
        """One normalisation for each layer of the stack."""
        return [
            keras.layers.LayerNormalization(
                epsilon=self.epsilon, dtype=self.float_policy, name=f"{name}_{i}"
            )
            for i in range(self.num_layers)
        ]

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self._scale = math.sqrt(self.num_heads / width) if self.scale is None else self.scale
        self.query_kernels: list[Any] = []
        self.key_kernels: list[Any] = []
        self.value_kernels: list[Any] = []
        for layer in range(self.num_layers):
            for kind, kernels in (
                ("query", self.query_kernels),
                ("key", self.key_kernels),
                ("value", self.value_kernels),
            ):
                kernels.append(self.add_kernel(f"{kind}_kernel_{layer}", (width, width)))
        self.finish_build()
        for sublayer in (*self._attention_norms, *self._ffns, *self._ffn_norms):
            sublayer.build((None, None, width))

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        self._check_shapes(tuple(target.shape), tuple(history.shape))
        check_inputs(self, target=target, history=history)
        mask = self._valid(mask, history, (history.shape[0], history.shape[-2]), "[B, L]")
        single = len(target.shape) == 2
        query = ops.expand_dims(target, 1) if single else target
        # "n" is the candidates' axis of a sequence per candidate; a shared sequence has none.
        sequence_axes = "bld" if len(history.shape) == 3 else "bnld"
        if mask is not None:
            visible = mask if sequence_axes == "bld" else ops.expand_dims(mask, 1)
            history = ops.where(ops.expand_dims(visible, -1), history, 0.0)
            mask = ops.expand_dims(ops.expand_dims(mask, 1), 1)  # [B, 1, 1, L], as the scores
        attend = (
            self._attend_absorbed
            if self.resolve_implementation(query.shape[1], tuple(history.shape)) == "absorb"
            else self._attend_projected
        )
        found: list[Tensor] = []
        kernels = [
            tuple(self.effective(kernel) for kernel in of_layer)
            for of_layer in zip(
                self.query_kernels, self.key_kernels, self.value_kernels, strict=True
            )
        ]
        for i in range(self.num_layers):
            norm = self._attention_norms[i] if self._attention_norms else None

            def attention(inputs: Tensor, own: tuple[Any, ...] = kernels[i]) -> Tensor:
                outputs, weights = attend(inputs, history, mask, sequence_axes, *own)
                found.append(weights)
                return outputs

            query = self._add(query, attention, norm)
            if self._ffns:
                query = self._add(query, self._ffns[i], self._ffn_norms[i] if norm else None)
        if not return_weights:
            return ops.squeeze(query, 1) if single else query
        shape = (*ops.shape(query)[:2], 0, self.num_heads, ops.shape(history)[-2])
        weights = ops.stack(found, axis=2) if found else ops.zeros(shape, self.compute_dtype)
        return (ops.squeeze(query, 1), ops.squeeze(weights, 1)) if single else (query, weights)

    def _add(
        self, inputs: Tensor, part: Callable[[Tensor], Tensor], norm: keras.layers.Layer | None
    ) -> Tensor:
        """The residual connection around ``part``, normalised where ``norm`` stands."""
        if norm is None:
            return inputs + part(inputs)
        if self.norm == "pre":
            return inputs + part(norm(inputs))
        return norm(inputs + part(inputs))

    def _attend_absorbed(
        self,
        query: Tensor,
        history: Tensor,
        mask: Tensor | None,
        sequence_axes: str,
        query_kernel: Tensor,
        key_kernel: Tensor,
        value_kernel: Tensor,
    ) -> tuple[Tensor, Tensor]:
        heads = self._split(linear(query, query_kernel))
        absorbed = ops.einsum("bnhe,dhe->bnhd", heads, self._split(key_kernel))
        scores = ops.einsum(f"bnhd,{sequence_axes}->bnhl", absorbed, history)
        weights = self._weights(scores, mask)
        sums = ops.einsum(f"bnhl,{sequence_axes}->bnhd", weights, history)
        outputs = ops.einsum("bnhd,dhe->bnhe", sums, self._split(value_kernel))
        return ops.reshape(outputs, ops.shape(query)), weights

    def _attend_projected(
        self,
        query: Tensor,
        history: Tensor,
        mask: Tensor | None,
        sequence_axes: str,
        query_kernel: Tensor,
        key_kernel: Tensor,
        value_kernel: Tensor,
    ) -> tuple[Tensor, Tensor]:
        axes = sequence_axes.replace("d", "he")
        heads = self._split(linear(query, query_kernel))
        keys = self._split(linear(history, key_kernel))
        values = self._split(linear(history, value_kernel))
        weights = self._weights(ops.einsum(f"bnhe,{axes}->bnhl", heads, keys), mask)
        outputs = ops.einsum(f"bnhl,{axes}->bnhe", weights, values)
        return ops.reshape(outputs, ops.shape(query)), weights

    def _split(self, inputs: Tensor) -> Tensor:
        """[..., d] to [..., heads, d / heads]."""
        head_width = inputs.shape[-1] // self.num_heads
        return ops.reshape(inputs, (*ops.shape(inputs)[:-1], self.num_heads, head_width))

    def _weights(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        scores = ops.cast(scores, stable_dtype(self.compute_dtype)) * self._scale
        return ops.cast(masked_softmax(scores, mask), self.compute_dtype)

    def resolve_implementation(self, candidates: int | None, history_shape: Shape) -> str:
        """The order that ``"auto"`` takes for N candidates and a history of this shape.

        With a sequence per candidate nothing can be shared, so absorption wins at every size; a
        shared sequence is decided by the multiply-accumulates per request and layer.
        """
        if self.implementation != "auto":
            return self.implementation
        if len(history_shape) == 4:
            return "absorb"
        candidates = known_size(candidates)
        length, width = (known_size(size) for size in history_shape[-2:])
        if candidates is None or length is None or width is None:
            return "project"
        project = 2 * length * width * (width + candidates)
        absorb = 2 * candidates * width * (width + self.num_heads * length)
        return "absorb" if absorb < project else "project"

    def _check_shapes(self, target_shape: Shape, history_shape: Shape) -> int:
        check_rank(self.name, "target", target_shape, (2, 3), "[B, N, d] or [B, d]")
        ranks = (3,) if len(target_shape) == 2 else (3, 4)
        check_rank(
            self.name,
            "history",
            history_shape,
            ranks,
            "[B, L, d], or [B, N, L, d] with a target [B, N, d]",
        )
        width = check_same_width(self.name, "history", history_shape, "target", target_shape)
        shared = len(history_shape) - 2
        check_agrees(
            self.name,
            "history",
            history_shape[:shared],
            target_shape[:shared],
            "with the target's leading dimensions",
        )
        return width

    def compute_output_shape(self, target_shape: Shape, history_shape: Shape) -> Shape:
        """The output's shape for inputs of these shapes."""
        self._check_shapes(target_shape, history_shape)
        return tuple(target_shape)

    def compute_output_spec(
        self, target: Any, history: Any, mask: Any = None, return_weights: bool = False
    ) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        shape = self.compute_output_shape(target.shape, history.shape)
        refined = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_weights:
            return refined
        weights = (*target.shape[:-1], self.num_layers, self.num_heads, history.shape[-2])
        return refined, keras.KerasTensor(weights, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "scale": self.scale,
            "implementation": self.implementation,
            "norm": self.norm,
            "ffn_expansion": self.ffn_expansion,
            "epsilon": self.epsilon,
        }
