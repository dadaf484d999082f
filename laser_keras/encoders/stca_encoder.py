"""STCA: stacked target-to-history cross attention."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_bool, check_divides, check_int
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.swiglu_feed_forward import SwiGLUFeedForward
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import linear
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class STCAEncoder(WeighingEncoder):
    """Stacks cross attentions from the target to the history, each over its own encoding of it.

    Use it where one target attention is too weak and self-attention over the history too slow: its
    cost stays linear in L. For many candidates per request prefer ``LaserEncoder``, which reads the
    history fewer times.

    With ``F`` a SwiGLU feed-forward network, ``q_1 = LN(F(t))`` and per layer ``i``::

        X_i = LN(F_i(H))                            (candidate-independent)
        o_i = attention(q_i, X_i) Wo_i              (one query, softmax, multi-head)
        q_{i+1} = LN(F'_i([o_1 .. o_i, t] C_i))

    The output is ``F_z([o_1 .. o_M, t] C_z)``, without a norm. Keys and values are absorbed or
    projected as in ``TargetAttention``.

    Args:
        num_layers: Integer M. Defaults to 2.
        num_heads: Integer, divides the width d. Defaults to 4.
        ffn_expansion: Integer. Defaults to 4.
        implementation: ``"auto"``, ``"project"`` or ``"absorb"``. Defaults to ``"auto"``.
        norm_fused: Boolean, whether the fused queries are normalised; accounts of the paper differ.
            Defaults to True.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, 1, d] or [B, 1, d]. With ``return_gates`` a pair of it and a dict of
        ``"gates"`` [B, N, num_heads, L] ([B, num_heads, L]): the weights of the first layer's
        attention, one per event in the order they came in, zero where masked.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")
    >>> tuple(STCAEncoder()(target, history).shape)
    (2, 3, 1, 8)

    Source: STCA (arXiv 2511.06077), section 3.1; accounts differ on the number of layers and
    heads. Request-level batching is this package's contract (one history, N targets); for the
    training lengths see ``RandomSuffix``.
    """

    def __init__(
        self,
        num_layers: int = 2,
        num_heads: int = 4,
        ffn_expansion: int = 4,
        implementation: str = "auto",
        norm_fused: bool = True,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 1)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 1)
        self.implementation = implementation
        self.norm_fused = check_bool(self.name, "norm_fused", norm_fused)
        policy, options = self.dtype_policy, self.kernel_options()
        layers = range(num_layers)
        self._query_ffns = [
            SwiGLUFeedForward(ffn_expansion, **options, dtype=policy, name=f"query_ffn_{i}")
            for i in layers
        ]
        self._history_ffns = [
            SwiGLUFeedForward(ffn_expansion, **options, dtype=policy, name=f"history_ffn_{i}")
            for i in layers
        ]
        self._query_norms, self._history_norms = (
            [
                keras.layers.LayerNormalization(
                    epsilon=1e-6, dtype=self.float_policy, name=f"{side}_norm_{i}"
                )
                for i in layers
                if side == "history" or i == 0 or norm_fused
            ]
            for side in ("query", "history")
        )
        self._attentions = [
            TargetAttention(
                num_heads,
                implementation=implementation,
                **options,
                dtype=policy,
                name=f"attention_{i}",
            )
            for i in layers
        ]
        self._output_ffn = SwiGLUFeedForward(
            ffn_expansion, **options, dtype=policy, name="output_ffn"
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        for sublayer in (
            *self._query_ffns,
            *self._history_ffns,
            *self._query_norms,
            *self._history_norms,
            self._output_ffn,
        ):
            sublayer.build((None, None, width))
        for attention in self._attentions:
            attention.build((None, None, width), (None, None, width))
        self.output_kernels, self.fusion_kernels = [], []
        for i in range(self.num_layers):
            self.output_kernels.append(self.add_kernel(f"output_kernel_{i}", (width, width)))
            self.fusion_kernels.append(
                self.add_kernel(f"fusion_kernel_{i}", ((i + 2) * width, width))
            )
        self.finish_build()

    def encode_with_gates(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, 1, d], and the first layer's weights [B, N, heads, L]."""
        outputs: list[Tensor] = []
        of_layers: list[Tensor] = []
        fused = target
        for i in range(self.num_layers):
            query = self._query_ffns[i](fused)
            if i == 0 or self.norm_fused:
                query = self._query_norms[i](query)
            encoded = self._history_norms[i](self._history_ffns[i](history))
            output, weights = self._attentions[i](query, encoded, mask=mask, return_weights=True)
            of_layers.append(weights)
            outputs.append(linear(output, self.effective(self.output_kernels[i])))
            every = ops.concatenate([*outputs, target], axis=-1)
            fused = linear(every, self.effective(self.fusion_kernels[i]))
        return ops.expand_dims(self._output_ffn(fused), 2), of_layers[0]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "ffn_expansion": self.ffn_expansion,
            "implementation": self.implementation,
            "norm_fused": self.norm_fused,
        }
