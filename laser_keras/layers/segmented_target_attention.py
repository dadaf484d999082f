# Over 400 lines: all options of one formula are documented, checked and applied in one place.
"""Segmented target attention: a long history compressed to one token per segment."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.activations import activation_name, get_activation
from laser_keras.checks import (
    check_agrees,
    check_bool,
    check_choice,
    check_divides,
    check_inputs,
    check_int,
    check_number,
    check_optional_int,
    check_rate,
    known_size,
)
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.segment_gates import GateWeights, check_gamma, compress_segments
from laser_keras.segment_orders import cheaper_orders
from laser_keras.sequence import (
    linear,
    merge_heads,
    newest_first,
    restore_order,
)
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SegmentedTargetAttention(SequenceLayer):
    """Compresses a history to one target-aware token per segment of consecutive events.

    Use it for histories of hundreds to ten thousand events, ahead of layers that cannot afford all
    of them. For fewer than a hundred, attend to the events themselves (``TargetAttention``).

    Per head, with the target ``t`` and the events ``h_j`` of segment ``i``::

        a_j = sigmoid(t Wq . h_j Wk / gamma)        s_i = sum over the segment of a_j (h_j Wv)

    The heads are concatenated (each is ``d / num_heads`` wide unless ``value_dim`` says otherwise)
    and refined by one feed-forward network that all segments share: ``s_i = LN(FFN(s_i) + s_i)``.

    **Execution order.** One set of weights and one function, computed in one of several orders.
    ``"project"`` forms keys and values of every event once per request and shares them between the
    candidates. ``"absorb"`` never forms them: the query is multiplied by ``Wk``, and events are
    summed before ``Wv`` is applied. ``"auto"`` takes, for keys and for values, what needs fewer
    multiplications: with the default sizes both absorbed up to N=9, keys only up to N=17, neither
    beyond or when N is unknown.

    Masked events never change the output, even if they hold NaN. A segment without a valid event
    yields the constant ``LN(FFN(0))``: mask it downstream with ``laser_keras.segment_mask``.

    Args:
        num_heads: Integer, divides the width d. Defaults to 2.
        key_dim: Integer. Width of queries and keys per head. Defaults to 16.
        segment_size: Integer w, events per segment. Defaults to 10. The oldest segment may be
            partial; its sum is not rescaled.
        ffn_expansion: Integer. Hidden width of the feed-forward network as a multiple of d.
            Defaults to 4. 0 leaves the network out (Table 3's ablation).
        gamma: The gate's scale: a positive number (``inf`` opens all gates by half), ``"learned"``
            (positive, starts at the default) or None for ``sqrt(key_dim)``. Defaults to None.
        gate: ``"sigmoid"``, or ``"softmax"`` within each segment (Table 3's ablation).
            Defaults to ``"sigmoid"``.
        gate_bias: None, or the initial value of one trainable number per head that is added to
            the scores; ``"auto"`` stands for ``-log(segment_size)``, which makes the gates of a
            segment sum to about one at the start. Defaults to None.
        aligned_start: Boolean. Whether the projections of queries and keys start equal, so that
            scores start as similarities of target and event (they are trained apart all the
            same). Helps where both share their features' embeddings. Defaults to False.
        use_bias: Boolean. Biases of all projections of the attention. Defaults to False.
        activation: Hidden activation of the feed-forward network. Defaults to ``"gelu"``.
        norm: ``"post"`` as printed, ``"pre"`` (``s + FFN(LN(s))``) or ``"none"``.
            Defaults to ``"post"``.
        epsilon: Float of the layer normalisation. Keras' own default of 1e-3 would shrink weakly
            gated segments. Defaults to 1e-6.
        dropout: Float in [0, 1), inside the feed-forward network. Defaults to 0.
        value_dim: Integer, width of the values per head, or None for ``d / num_heads``, the
            paper's. Another total width than d needs the output projection. Defaults to None.
        use_output_projection: Boolean. A projection of the concatenated heads to d, ahead of the
            feed-forward network. The paper has none. Defaults to False.
        order: ``"newest_first"`` (right-padded) or ``"oldest_first"`` (padded on either side).
            Segments always count from the newest event. Defaults to ``"newest_first"``.
        implementation: ``"auto"``, ``"project"`` or ``"absorb"``. Defaults to ``"auto"``.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.
        similarity: Optional float tensor [B, N, L, m] ([B, L, m] with a target [B, d]):
            target-dependent features of the events, such as similarity scores. They act as if
            ``similarity @ P`` were added to the history of each candidate, with a trainable P
            [m, d], but keys and values stay shared between the candidates.
        return_gates: Boolean. Whether the gates are returned as well.

    Returns:
        Float tensor [B, N, ceil(L / w), d] ([B, ceil(L / w), d] with a target [B, d]), newest
        segment first. With ``return_gates`` a pair of it and the gates [B, N, num_heads, L]
        ([B, num_heads, L]), events in the order they came in, zero where masked.

    Raises:
        ValueError: for shapes, dtypes or arguments that do not fit; nothing is broadcast silently.

    Example:

    >>> import numpy as np
    >>> layer = SegmentedTargetAttention(segment_size=5)
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 12, 8), "float32")
    >>> mask = np.arange(12) < np.array([[12], [4]])
    >>> tuple(layer(target, history, mask=mask).shape)
    (2, 3, 3, 8)

    Source: LASER (arXiv 2602.11562), equations 3 to 6 and 8 to 12.
    """

    def __init__(
        self,
        num_heads: int = 2,
        key_dim: int = 16,
        segment_size: int = 10,
        ffn_expansion: int = 4,
        gamma: float | str | None = None,
        gate: str = "sigmoid",
        gate_bias: float | str | None = None,
        aligned_start: bool = False,
        use_bias: bool = False,
        activation: Any = "gelu",
        norm: str = "post",
        epsilon: float = 1e-6,
        dropout: float = 0.0,
        value_dim: int | None = None,
        use_output_projection: bool = False,
        order: str = "newest_first",
        implementation: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.key_dim = check_int(self.name, "key_dim", key_dim, 1)
        self.segment_size = check_int(self.name, "segment_size", segment_size, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 0)
        self.gamma = check_gamma(self.name, gamma)
        self.gate = check_choice(self.name, "gate", gate, ("sigmoid", "softmax"))
        if gate_bias is not None and gate_bias != "auto":
            gate_bias = check_number(self.name, "gate_bias", gate_bias)
        self.gate_bias = gate_bias
        self.aligned_start = check_bool(self.name, "aligned_start", aligned_start)
        self.use_bias = check_bool(self.name, "use_bias", use_bias)
        self.activation = get_activation(activation)
        self.norm = check_choice(self.name, "norm", norm, ("post", "pre", "none"))
        self.epsilon = check_number(self.name, "epsilon", epsilon, 0)
        self.dropout = check_rate(self.name, "dropout", dropout)
        self.value_dim = check_optional_int(self.name, "value_dim", value_dim, 1)
        self.use_output_projection = check_bool(
            self.name, "use_output_projection", use_output_projection
        )
        self.order = check_choice(self.name, "order", order, ("newest_first", "oldest_first"))
        self.implementation = check_choice(
            self.name, "implementation", implementation, ("auto", "project", "absorb")
        )
        self._ffn = (
            FeedForward(
                ffn_expansion,
                self.activation,
                dropout,
                **self.kernel_options(),
                dtype=self.dtype_policy,
                name="feed_forward",
            )
            if ffn_expansion
            else None
        )
        self._layer_norm = (
            keras.layers.LayerNormalization(
                epsilon=epsilon, dtype=self.float_policy, name="layer_norm"
            )
            if norm == "post" or (norm == "pre" and ffn_expansion)
            else None
        )

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        similarity_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape, similarity_shape)
        heads, key_width = self.num_heads, self.num_heads * self.key_dim
        if self.value_dim is None:
            check_divides(self.name, "`num_heads`", heads, "the width d", width)
        value_width = self._value_width(width)
        if value_width != width and not self.use_output_projection:
            raise ValueError(
                f"{self.name}: `value_dim` times `num_heads` must be the width d, unless "
                f"`use_output_projection` is set. Received: value_dim {self.value_dim}, "
                f"num_heads {heads}, width {width}"
            )
        # An initialiser object gives the same values each time it is called.
        start = self.initial(keras.initializers.GlorotUniform()) if self.aligned_start else None
        self.query_kernel = self.add_kernel("query_kernel", (width, key_width), start)
        self.key_kernel = self.add_kernel("key_kernel", (width, key_width), start)
        self.value_kernel = self.add_kernel("value_kernel", (width, value_width))
        self.output_kernel = None
        if self.use_output_projection:
            self.output_kernel = self.add_kernel("output_kernel", (value_width, width))

        self.query_bias = self.add_bias("query_bias", (key_width,)) if self.use_bias else None
        self.key_bias = self.add_bias("key_bias", (key_width,)) if self.use_bias else None
        self.value_bias = self.add_bias("value_bias", (value_width,)) if self.use_bias else None
        self.output_bias = None
        if self.use_bias and self.use_output_projection:
            self.output_bias = self.add_bias("output_bias", (width,))
        self.score_bias = None
        if self.gate_bias is not None:
            initial = -math.log(self.segment_size) if self.gate_bias == "auto" else self.gate_bias
            start = keras.initializers.Constant(initial)
            self.score_bias = self.add_weight(shape=(heads,), initializer=start, name="score_bias")
        self.raw_gamma = None
        if self.gamma == "learned":
            softplus_inverse = math.log(math.expm1(math.sqrt(self.key_dim)))
            start = keras.initializers.Constant(softplus_inverse)
            self.raw_gamma = self.add_weight(shape=(), initializer=start, name="raw_gamma")
        self.similarity_kernel = None
        if similarity_shape is not None:
            self.similarity_kernel = self.add_kernel(
                "similarity_kernel", (similarity_shape[-1], width)
            )
        self.finish_build()
        segments_shape = (None, None, None, width)
        if self._ffn is not None:
            self._ffn.build(segments_shape)
        if self._layer_norm is not None:
            self._layer_norm.build(segments_shape)

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        similarity: Tensor | None = None,
        training: bool | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        self._check_shapes(
            tuple(target.shape),
            tuple(history.shape),
            None if similarity is None else tuple(similarity.shape),
        )
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        if (similarity is None) != (self.similarity_kernel is None):
            raise ValueError(
                f"{self.name}: `similarity` must be passed at every call or at none. The layer was "
                f"built {'without' if self.similarity_kernel is None else 'with'} it. "
                f"Received: {'none' if similarity is None else tuple(similarity.shape)}"
            )
        check_inputs(self, target=target, history=history, similarity=similarity)
        single = len(target.shape) == 2
        if single:
            target = ops.expand_dims(target, 1)
            similarity = None if similarity is None else ops.expand_dims(similarity, 1)
        given_mask = mask
        if self.order == "oldest_first":
            history, similarity, mask = newest_first(history, similarity, mask)
        sums, gates = compress_segments(
            self._weights(),
            target,
            history,
            mask,
            similarity,
            segment_size=self.segment_size,
            gate=self.gate,
            absorbed=self.resolve_implementation(target.shape[1], *history.shape[1:]),
            return_gates=return_gates,
        )
        segments = merge_heads(sums)
        if self.output_kernel is not None:
            segments = linear(segments, self.effective(self.output_kernel), self.output_bias)
        segments = self._refine(segments, training)
        if not return_gates:
            return ops.squeeze(segments, 1) if single else segments
        if self.order == "oldest_first":
            gates = restore_order(gates, given_mask)
        return (ops.squeeze(segments, 1), ops.squeeze(gates, 1)) if single else (segments, gates)

    def _weights(self) -> GateWeights:
        return GateWeights(
            num_heads=self.num_heads,
            scale=self._scale(),
            query_kernel=self.effective(self.query_kernel),
            key_kernel=self.effective(self.key_kernel),
            value_kernel=self.effective(self.value_kernel),
            query_bias=self.query_bias,
            key_bias=self.key_bias,
            value_bias=self.value_bias,
            score_bias=self.score_bias,
            similarity_kernel=self.effective(self.similarity_kernel),
        )

    def _refine(self, segments: Tensor, training: bool | None) -> Tensor:
        if self._ffn is not None:
            inputs = segments
            if self.norm == "pre" and self._layer_norm is not None:
                inputs = self._layer_norm(segments)
            segments = segments + self._ffn(inputs, training=training)
        if self.norm == "post" and self._layer_norm is not None:
            segments = self._layer_norm(segments)
        return segments

    def _scale(self) -> Tensor | float:
        """What the queries are multiplied by."""
        if self.raw_gamma is not None:
            return 1.0 / ops.softplus(ops.cast(self.raw_gamma, self.compute_dtype))
        gamma = math.sqrt(self.key_dim) if self.gamma is None else float(self.gamma)
        return 1.0 / gamma

    def _value_width(self, width: int) -> int:
        return width if self.value_dim is None else self.num_heads * self.value_dim

    def resolve_implementation(
        self, candidates: int | None, length: int | None, width: int
    ) -> tuple[bool, bool]:
        """Whether keys, and whether values, are absorbed for N candidates of L events [d].

        With ``implementation="auto"`` each is decided by its multiply-accumulates per request.
        """
        if self.implementation != "auto":
            return (self.implementation == "absorb",) * 2
        return cheaper_orders(
            known_size(candidates),
            known_size(length),
            width,
            num_heads=self.num_heads,
            key_width=self.num_heads * self.key_dim,
            value_width=self._value_width(width),
            segment_size=self.segment_size,
        )

    def _check_shapes(
        self, target_shape: Shape, history_shape: Shape, similarity_shape: Shape | None
    ) -> int:
        width = self._check_target_and_history(target_shape, history_shape)
        if similarity_shape is not None:
            expected = (*target_shape[:-1], history_shape[1], similarity_shape[-1])
            check_agrees(
                self.name, "similarity", similarity_shape, expected, "[B, N, L, m] or [B, L, m]"
            )
        return width

    def compute_output_shape(
        self,
        target_shape: Shape,
        history_shape: Shape,
        similarity_shape: Shape | None = None,
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape, similarity_shape)
        length = history_shape[1]
        count = None if length is None else -(-length // self.segment_size)
        return (*target_shape[:-1], count, width)

    def compute_output_spec(
        self,
        target: Any,
        history: Any,
        mask: Any = None,
        similarity: Any = None,
        training: bool | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Shapes and dtypes of the outputs for symbolic inputs."""
        similarity_shape = None if similarity is None else similarity.shape
        shape = self.compute_output_shape(target.shape, history.shape, similarity_shape)
        segments = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_gates:
            return segments
        gates = (*target.shape[:-1], self.num_heads, history.shape[1])
        return segments, keras.KerasTensor(gates, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "segment_size": self.segment_size,
            "ffn_expansion": self.ffn_expansion,
            "gamma": self.gamma,
            "gate": self.gate,
            "gate_bias": self.gate_bias,
            "aligned_start": self.aligned_start,
            "use_bias": self.use_bias,
            "activation": activation_name(self.activation),
            "norm": self.norm,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "value_dim": self.value_dim,
            "use_output_projection": self.use_output_projection,
            "order": self.order,
            "implementation": self.implementation,
        }
