"""Self-attention over the history and the target, read out by target attention."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.appended_target import AttentionKernels, attend_with_appended_target
from laser_keras.checks import (
    check_bool,
    check_choice,
    check_divides,
    check_int,
    check_optional_int,
    check_rate,
)
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import (
    linear,
    masked_mean,
    masked_softmax,
    merge_heads,
    split_heads,
    stable_dtype,
)
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class TransformerEncoder(WeighingEncoder):
    """The LASER paper's "Transformer" row, and with ``recent_events=100`` its "Base" row.

    Use it as the quality reference for histories of up to a few hundred events. Its cost grows with
    L squared, so pass ``recent_events`` for longer ones.

    Self-attention (four projections, padding mask, no causal mask) over the events and the target,
    which is appended as one more token, then a target attention over its output. In the first
    layer the events' attention to each other is the same for every candidate and computed once;
    the target's presence makes every later layer a cost per candidate. ``append_target=False``
    computes all of them once per request.

    The first layer's scores take ``B heads L^2`` numbers. Those of later layers, and of all with
    ``append_target=False``, are ``keras.ops.dot_product_attention``'s in float32 and bfloat16:
    fused ("flash") where the backend has that for the device, otherwise ``B N heads L^2`` numbers.

    Without a feed-forward network each layer is ``x + attention(x)``, as the paper's cost formula
    charges; with one it is ``x + attention(LN(x))`` then ``x + FFN(LN(x))``.

    Args:
        num_layers: Integer. Defaults to 1.
        num_heads: Integer, divides the width d. Defaults to 2.
        ffn_expansion: Integer; 0 leaves the feed-forward network out. Defaults to 0.
        append_target: Boolean. Defaults to True.
        recent_events: Integer, only that many newest events are used; None for all.
            Defaults to None.
        mode: ``"serial"``, the target attention reads the self-attention's output, or
            ``"parallel"``, it reads the events and the self-attention's mean over valid events is
            a token of its own. Defaults to ``"serial"``.
        dropout: Float in [0, 1), inside the feed-forward network. Defaults to 0.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, T, d] or [B, T, d]; T is 1, or 2 in the parallel mode. With
        ``return_gates`` a pair of it and a dict of ``"gates"`` [B, N, num_heads, L]
        ([B, num_heads, L]): the weights of the target attention that reads out, one per event in
        the order they came in; zero where masked and for events beyond ``recent_events``. In the
        serial mode an event's place holds what the event has read from the others as well.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")
    >>> tuple(TransformerEncoder()(target, history).shape)
    (2, 3, 1, 8)

    Source: LASER (arXiv 2602.11562), section 4.1.3 and equations 19 and 20; Vaswani et al. 2017.
    """

    def __init__(
        self,
        num_layers: int = 1,
        num_heads: int = 2,
        ffn_expansion: int = 0,
        append_target: bool = True,
        recent_events: int | None = None,
        mode: str = "serial",
        dropout: float = 0.0,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 1)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 0)
        self.append_target = check_bool(self.name, "append_target", append_target)
        self.recent_events = check_optional_int(self.name, "recent_events", recent_events, 1)
        self.mode = check_choice(self.name, "mode", mode, ("serial", "parallel"))
        self.dropout = check_rate(self.name, "dropout", dropout)
        self._ffns = [
            FeedForward(
                ffn_expansion,
                dropout=dropout,
                **self.kernel_options(),
                dtype=self.dtype_policy,
                name=f"ffn_{i}",
            )
            for i in range(num_layers if ffn_expansion else 0)
        ]
        self._norms = [
            keras.layers.LayerNormalization(
                epsilon=1e-6, dtype=self.float_policy, name=f"{place}_norm_{i}"
            )
            for i in range(num_layers if ffn_expansion else 0)
            for place in ("attention", "ffn")
        ]
        # With the target in its sequence each candidate reads one of its own: keys and values would
        # be projected for a single query.
        own_sequence = append_target and mode == "serial"
        self._read_out = TargetAttention(
            num_heads,
            implementation="absorb" if own_sequence else "auto",
            **self.kernel_options(),
            dtype=self.dtype_policy,
            name="read_out",
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 1 if self.mode == "serial" else 2

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self._layer_kernels = [
            [
                self.add_kernel(f"{kind}_kernel_{i}", (width, width))
                for kind in AttentionKernels._fields
            ]
            for i in range(self.num_layers)
        ]
        sequence_shape = (None, None, width)
        for sublayer in (*self._ffns, *self._norms):
            sublayer.build(sequence_shape)
        self._read_out.build((None, None, width), sequence_shape)
        self.finish_build()

    def encode_with_gates(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, T, d], and the read-out's weights of the events [B, N, heads, L]."""
        length = ops.shape(history)[1]
        if self.recent_events is not None:
            history, mask = history[:, : self.recent_events], mask[:, : self.recent_events]
        events, events_mask = history, mask
        batch, candidates, width = ops.shape(target)
        query = target
        if self.append_target:
            history = self._first_layer_for_each(target, history, mask, training)
            mask = ops.concatenate([ops.ones((batch, 1), dtype="bool"), mask], axis=1)
            mask = ops.repeat(mask, candidates, axis=0)
            query = ops.reshape(target, (batch * candidates, 1, width))
        for i in range(int(self.append_target), self.num_layers):
            read = self._attend(self._before_attention(i, history), mask, self._kernels_of(i))
            history = self._after_attention(i, history, read, training)
        if self.mode == "serial":
            output, weights = self._read_out(query, history, mask=mask, return_weights=True)
            tokens = ops.reshape(output, (batch, candidates, 1, width))
            shape = (batch, candidates, self.num_heads, ops.shape(weights)[-1])
            # The target itself comes first in the sequence that it is part of.
            weights = ops.reshape(weights, shape)[..., int(self.append_target) :]
        else:
            mean = masked_mean(history, mask)
            if not self.append_target:
                mean = ops.repeat(mean, candidates, axis=0)
            mean = ops.reshape(mean, (batch, candidates, width))
            output, weights = self._read_out(target, events, mask=events_mask, return_weights=True)
            tokens = ops.stack([output, mean], axis=2)
        if self.recent_events is not None:
            missing = length - ops.shape(weights)[-1]
            older = ops.zeros((batch, candidates, self.num_heads, missing), dtype=weights.dtype)
            weights = ops.concatenate([weights, older], axis=-1)
        return tokens, weights

    def _first_layer_for_each(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """The first layer's output [B N, L + 1, d] for each target before its history."""
        batch, candidates, width = ops.shape(target)
        length = ops.shape(history)[1]
        read = attend_with_appended_target(
            self._before_attention(0, target),
            self._before_attention(0, history),
            mask,
            self._kernels_of(0),
            self.num_heads,
        )
        shape = (batch, candidates, length, width)
        inputs = (target, ops.broadcast_to(ops.expand_dims(history, 1), shape))
        sequence, read_by_all = (
            ops.reshape(
                ops.concatenate([ops.expand_dims(of_target, 2), of_events], axis=2),
                (batch * candidates, length + 1, width),
            )
            for of_target, of_events in (inputs, read)
        )
        return self._after_attention(0, sequence, read_by_all, training)

    def _kernels_of(self, layer: int) -> AttentionKernels:
        return AttentionKernels(*map(self.effective, self._layer_kernels[layer]))

    def _before_attention(self, layer: int, sequence: Tensor) -> Tensor:
        return self._norms[2 * layer](sequence) if self._ffns else sequence

    def _after_attention(
        self, layer: int, sequence: Tensor, read: Tensor, training: bool | None
    ) -> Tensor:
        sequence = sequence + read
        if not self._ffns:
            return sequence
        inputs = self._norms[2 * layer + 1](sequence)
        return sequence + self._ffns[layer](inputs, training=training)

    def _attend(self, sequence: Tensor, mask: Tensor, kernels: AttentionKernels) -> Tensor:
        query, keys, values = (
            split_heads(linear(sequence, kernel), self.num_heads) for kernel in kernels[:3]
        )
        visible = ops.expand_dims(ops.expand_dims(mask, 1), 1)  # [B, heads, queries, keys]
        if self.compute_dtype in ("float16", "float64"):
            # Keras' form fails in float16 on JAX (CPU) and in float64 on PyTorch.
            scores = ops.einsum("bihe,bjhe->bhij", query, keys)
            scores = ops.cast(scores, stable_dtype(self.compute_dtype))
            weights = masked_softmax(scores / math.sqrt(query.shape[-1]), visible)
            weights = ops.cast(weights, self.compute_dtype)
            read = ops.einsum("bhij,bjhe->bihe", weights, values)
        else:
            # Rows without a visible key only exist for padding, whose values are zero.
            read = ops.dot_product_attention(query, keys, values, mask=visible)
        return linear(merge_heads(read), kernels.output)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "ffn_expansion": self.ffn_expansion,
            "append_target": self.append_target,
            "recent_events": self.recent_events,
            "mode": self.mode,
            "dropout": self.dropout,
        }
