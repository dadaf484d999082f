# Over 400 lines: the three execution orders of one formula stand side by side, to be compared.
"""Segmented target attention: a long history compressed to one token per segment."""

import math
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
    check_rate,
    check_same_width,
    is_number,
)
from laser_keras.gated_sums import event_scores, gated_segment_sums
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import (
    linear,
    masked_softmax,
    merge_heads,
    pad_axis,
    reverse_candidates,
    reverse_valid,
    split_heads,
    stable_dtype,
    zero_masked,
)
from laser_keras.types import Shape, Tensor

# Stands in for a history length that is unknown when the execution order is chosen.
_TYPICAL_LENGTH = 1000


@keras.saving.register_keras_serializable(package="laser_keras")
class SegmentedTargetAttention(SequenceLayer):
    """Compresses a history to one target-aware token per segment of consecutive events.

    Per head, with the target ``t`` and the events ``h_j`` of segment ``i``::

        a_j = sigmoid(t Wq . h_j Wk / gamma)        s_i = sum over the segment of a_j (h_j Wv)

    The heads are concatenated (each is ``d / num_heads`` wide unless ``value_dim`` says otherwise)
    and refined by one feed-forward network that all segments share: ``s_i = LN(FFN(s_i) + s_i)``.

    **Execution order.** One set of weights, the same function, three orders (exact in real
    arithmetic). ``"project"`` forms keys and values of every event once per request, as the paper
    does, and shares them between the candidates. ``"absorb"`` never forms them: the query is
    multiplied by ``Wk`` instead, and events are summed before ``Wv`` is applied, once per segment
    instead of once per event. ``"auto"`` takes, separately for keys and for values, the order with
    fewer multiplications for the static number of candidates N: with the default sizes both
    absorbed up to N=9, keys only up to N=17, both projected beyond, and both projected when N is
    unknown.

    Masked events never matter, whatever they hold (NaN too). A segment without a valid event
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
            the scores; ``-log(segment_size)`` makes the gates of a segment sum to about one at
            the start. Defaults to None.
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
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.
        similarity: Optional float tensor [B, N, L, m] ([B, L, m] with a target [B, d]):
            target-dependent features of the events, such as similarity scores. They act as if
            ``similarity @ P`` were added to the history of each candidate, with a trainable P
            [m, d], but keys and values stay shared between the candidates.

    Returns:
        Float tensor [B, N, ceil(L / w), d] ([B, ceil(L / w), d] with a target [B, d]), newest
        segment first.

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
        gate_bias: float | None = None,
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
        if isinstance(gamma, str):
            check_choice(self.name, "gamma", gamma, ("learned",))
        elif gamma is not None and not (is_number(gamma) and gamma > 0):
            raise ValueError(
                f"{self.name}: `gamma` must be a positive number, 'learned' or None. "
                f"Received: {gamma!r}"
            )
        self.gamma = gamma
        self.gate = check_choice(self.name, "gate", gate, ("sigmoid", "softmax"))
        if gate_bias is not None:
            gate_bias = check_number(self.name, "gate_bias", gate_bias)
        self.gate_bias = gate_bias
        self.use_bias = use_bias
        self.activation = keras.activations.get(activation)
        self.norm = check_choice(self.name, "norm", norm, ("post", "pre", "none"))
        self.epsilon = check_number(self.name, "epsilon", epsilon, 0)
        self.dropout = check_rate(self.name, "dropout", dropout)
        if value_dim is not None:
            check_int(self.name, "value_dim", value_dim, 1)
        self.value_dim = value_dim
        self.use_output_projection = use_output_projection
        self.order = check_choice(self.name, "order", order, ("newest_first", "oldest_first"))
        self.implementation = check_choice(
            self.name, "implementation", implementation, ("auto", "project", "absorb")
        )
        self._ffn = (
            FeedForward(
                ffn_expansion,
                self.activation,
                dropout,
                dtype=self.dtype_policy,
                name="feed_forward",
            )
            if ffn_expansion
            else None
        )
        self._layer_norm = (
            keras.layers.LayerNormalization(
                epsilon=epsilon, dtype=self.dtype_policy, name="layer_norm"
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
        self.query_kernel = self.add_weight(shape=(width, key_width), name="query_kernel")
        self.key_kernel = self.add_weight(shape=(width, key_width), name="key_kernel")
        self.value_kernel = self.add_weight(shape=(width, value_width), name="value_kernel")
        self.output_kernel = None
        if self.use_output_projection:
            self.output_kernel = self.add_weight(shape=(value_width, width), name="output_kernel")

        def bias(name: str, size: int, initializer: Any = "zeros") -> Any:
            return self.add_weight(shape=(size,), initializer=initializer, name=name)

        self.query_bias = bias("query_bias", key_width) if self.use_bias else None
        self.key_bias = bias("key_bias", key_width) if self.use_bias else None
        self.value_bias = bias("value_bias", value_width) if self.use_bias else None
        self.output_bias = None
        if self.use_bias and self.use_output_projection:
            self.output_bias = bias("output_bias", width)
        self.score_bias = None
        if self.gate_bias is not None:
            start = keras.initializers.Constant(self.gate_bias)
            self.score_bias = bias("score_bias", heads, start)
        self.raw_gamma = None
        if self.gamma == "learned":
            softplus_inverse = math.log(math.expm1(math.sqrt(self.key_dim)))
            start = keras.initializers.Constant(softplus_inverse)
            self.raw_gamma = self.add_weight(shape=(), initializer=start, name="raw_gamma")
        self.similarity_kernel = None
        if similarity_shape is not None:
            self.similarity_kernel = self.add_weight(
                shape=(similarity_shape[-1], width), name="similarity_kernel"
            )
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
    ) -> Tensor:
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
        if self.order == "oldest_first":
            history = reverse_valid(history, mask)
            if similarity is not None:
                similarity = reverse_candidates(similarity, mask)
            mask = None if mask is None else reverse_valid(mask, mask)
        segments = merge_heads(self._compress(target, history, mask, similarity))
        if self.output_kernel is not None:
            segments = linear(segments, self.output_kernel, self.output_bias)
        segments = self._refine(segments, training)
        return ops.squeeze(segments, 1) if single else segments

    def _compress(
        self, target: Tensor, history: Tensor, mask: Tensor | None, similarity: Tensor | None
    ) -> Tensor:
        """Gate and sum the values of each segment: [B, N, S, heads, value_dim]."""
        absorb_keys, absorb_values = self.resolve_implementation(
            target.shape[1], history.shape[1], history.shape[-1]
        )
        length = history.shape[1]
        if mask is None and (length is None or length % self.segment_size):
            mask = ops.ones(ops.shape(history)[:2], dtype="bool")  # told apart from the padding
        fused = absorb_keys and absorb_values and similarity is None and self.gate == "sigmoid"
        if not fused:
            history = zero_masked(history, mask)
        history = pad_axis(history, 1, self.segment_size)
        if similarity is not None:
            if mask is not None:
                visible = ops.expand_dims(ops.expand_dims(mask, 1), -1)
                similarity = ops.where(visible, similarity, 0.0)
            similarity = pad_axis(similarity, 2, self.segment_size)
        if mask is not None:
            mask = pad_axis(mask, 1, self.segment_size)
        if fused:
            return self._compress_absorbed(target, history, mask)
        gates = self._gates(target, history, mask, similarity, absorb_keys)
        return self._aggregate(gates, history, similarity, absorb_values)

    def _compress_absorbed(self, target: Tensor, history: Tensor, mask: Tensor | None) -> Tensor:
        """What ``_gates`` and ``_aggregate`` do with keys and values absorbed, without copies."""
        batch, candidates = ops.shape(target)[:2]
        heads, width = self.num_heads, target.shape[-1]
        query = self._query(target)
        sums, totals = gated_segment_sums(
            ops.reshape(self._absorb_keys(query), (batch, candidates * heads, width)),
            ops.reshape(self._score_offsets(query), (batch, candidates * heads)),
            history,
            mask,
            self.segment_size,
        )
        count = ops.shape(sums)[1]
        segments = self._project_sums(ops.reshape(sums, (batch, count, candidates, heads, width)))
        if self.value_bias is not None:
            totals = ops.reshape(totals, (batch, count, candidates, heads))
            segments = segments + self._bias_of(ops.transpose(totals, (0, 2, 1, 3)))
        return segments

    def _gates(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None,
        similarity: Tensor | None,
        absorb_keys: bool,
    ) -> Tensor:
        """Gates of all events: [B, N, heads, S, w], in the compute dtype."""
        batch, candidates = ops.shape(target)[:2]
        length = ops.shape(history)[1]
        heads, w = self.num_heads, self.segment_size
        query = self._query(target)
        if absorb_keys:
            flat = ops.reshape(self._absorb_keys(query), (batch, candidates * heads, -1))
            scores = event_scores(flat, history)
            scores = ops.reshape(scores, (batch, candidates, heads, length))
        else:
            keys = linear(history, self.key_kernel)
            keys = ops.reshape(keys, (batch, length, heads, self.key_dim))
            scores = ops.einsum("bnhk,blhk->bnhl", query, keys)
        if self.use_bias or self.score_bias is not None:
            scores = scores + ops.expand_dims(self._score_offsets(query), -1)
        if similarity is not None:
            weights = ops.einsum("bnhd,md->bnhm", self._absorb_keys(query), self.similarity_kernel)
            scores = scores + ops.einsum("bnlm,bnhm->bnhl", similarity, weights)
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        scores = ops.reshape(scores, (batch, candidates, heads, length // w, w))
        if mask is not None:
            mask = ops.reshape(mask, (batch, 1, 1, length // w, w))
        if self.gate == "softmax":
            gates = masked_softmax(scores, mask)
        else:
            gates = ops.sigmoid(scores)
            if mask is not None:
                gates = ops.where(mask, gates, 0.0)
        return ops.cast(gates, self.compute_dtype)

    def _aggregate(
        self, gates: Tensor, history: Tensor, similarity: Tensor | None, absorb_values: bool
    ) -> Tensor:
        """Sum the gated values of each segment: [B, N, S, heads, value_dim]."""
        batch, candidates, heads, count, w = ops.shape(gates)
        width = history.shape[-1]
        if absorb_values:
            by_segment = ops.transpose(gates, (0, 3, 1, 2, 4))
            by_segment = ops.reshape(by_segment, (batch, count, candidates * heads, w))
            events = ops.reshape(history, (batch, count, w, width))
            sums = ops.einsum("bsmw,bswd->bsmd", by_segment, events)
            sums = ops.reshape(sums, (batch, count, candidates, heads, width))
            segments = self._project_sums(sums)
        else:
            values = split_heads(linear(history, self.value_kernel), heads)
            values = ops.reshape(values, (batch, count, w, heads, values.shape[-1]))
            segments = ops.einsum("bnhsw,bswhe->bnshe", gates, values)
        if self.value_bias is not None:
            segments = segments + self._bias_of(ops.transpose(ops.sum(gates, -1), (0, 1, 3, 2)))
        if similarity is not None:
            features = ops.reshape(similarity, (batch, candidates, count, w, similarity.shape[-1]))
            sums = ops.einsum("bnhsw,bnswm->bnshm", gates, features)
            projected = split_heads(linear(self.similarity_kernel, self.value_kernel), heads)
            segments = segments + ops.einsum("bnshm,mhe->bnshe", sums, projected)
        return segments

    def _query(self, target: Tensor) -> Tensor:
        """Scaled queries [B, N, heads, key_dim]."""
        query = linear(target, self.query_kernel, self.query_bias)
        return split_heads(query * self._scale(query.dtype), self.num_heads)

    def _absorb_keys(self, query: Tensor) -> Tensor:
        """The vectors [B, N, heads, d] whose products with the events are the scores."""
        return ops.einsum("bnhk,dhk->bnhd", query, split_heads(self.key_kernel, self.num_heads))

    def _score_offsets(self, query: Tensor) -> Tensor:
        """What the biases add to all scores of a candidate: [B, N, heads]."""
        offsets = ops.zeros(ops.shape(query)[:3], dtype=query.dtype)
        if self.key_bias is not None:
            bias = ops.reshape(self.key_bias, (self.num_heads, self.key_dim))
            offsets = ops.einsum("bnhk,hk->bnh", query, bias)
        return offsets if self.score_bias is None else offsets + self.score_bias

    def _project_sums(self, sums: Tensor) -> Tensor:
        """Apply ``Wv`` to sums [B, S, N, heads, d]: [B, N, S, heads, value_dim]."""
        batch, count, candidates, heads, width = ops.shape(sums)
        kernel = ops.transpose(split_heads(self.value_kernel, heads), (1, 0, 2))
        # Heads first, one large product each: the same as a single `einsum` takes TensorFlow twice
        # as long, mostly for the gradient to the kernel.
        by_head = ops.reshape(ops.transpose(sums, (3, 0, 1, 2, 4)), (heads, -1, width))
        segments = ops.einsum("hmd,hde->hme", by_head, kernel)
        segments = ops.reshape(segments, (heads, batch, count, candidates, kernel.shape[-1]))
        return ops.transpose(segments, (1, 3, 2, 0, 4))

    def _bias_of(self, totals: Tensor) -> Tensor:
        """Gates do not sum to one, so the value bias counts once per unit of gate [B, N, S, h]."""
        bias = ops.reshape(self.value_bias, (self.num_heads, -1))
        return ops.expand_dims(totals, -1) * bias

    def _refine(self, segments: Tensor, training: bool | None) -> Tensor:
        if self._ffn is not None:
            inputs = segments
            if self.norm == "pre" and self._layer_norm is not None:
                inputs = self._layer_norm(segments)
            segments = segments + self._ffn(inputs, training=training)
        if self.norm == "post" and self._layer_norm is not None:
            segments = self._layer_norm(segments)
        return segments

    def _scale(self, dtype: str) -> Tensor | float:
        if self.raw_gamma is not None:
            return 1.0 / ops.softplus(ops.cast(self.raw_gamma, dtype))
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
        if candidates is None:
            return False, False
        length = _TYPICAL_LENGTH if length is None else max(length, 1)
        heads, key_width = self.num_heads, self.num_heads * self.key_dim
        segments = -(-length // self.segment_size)
        shared_keys = length * width * key_width + candidates * length * key_width
        absorbed_keys = candidates * (width * key_width + heads * length * width)
        value_width = self._value_width(width)
        shared_values = length * width * value_width + candidates * length * value_width
        absorbed_values = candidates * width * (heads * length + segments * value_width)
        return absorbed_keys < shared_keys, absorbed_values < shared_values

    def _check_shapes(
        self, target_shape: Shape, history_shape: Shape, similarity_shape: Shape | None
    ) -> int:
        check_rank(self.name, "target", target_shape, (2, 3), "[B, N, d] or [B, d]")
        check_rank(self.name, "history", history_shape, (3,), "[B, L, d]")
        width = check_same_width(self.name, "history", history_shape, "target", target_shape)
        check_agrees(
            self.name, "history", history_shape[:1], target_shape[:1], "with the target's batch"
        )
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
            "use_bias": self.use_bias,
            "activation": keras.activations.serialize(self.activation),
            "norm": self.norm,
            "epsilon": self.epsilon,
            "dropout": self.dropout,
            "value_dim": self.value_dim,
            "use_output_projection": self.use_output_projection,
            "order": self.order,
            "implementation": self.implementation,
        }
