"""LONGER: merged history tokens, read by a few queries."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_divides, check_int
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.sequence import linear, masked_softmax, pad_axis, segment_mask, stable_dtype
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class LONGEREncoder(SequenceEncoder):
    """Merges adjacent events into wide tokens and attends from the newest of them and the target.

    K adjacent events become one token of width ``K d``. A cross-causal layer lets the newest
    ``num_queries`` merged tokens and the target read all merged tokens; self-causal layers then
    work on the queries and the target alone. A history token sees what is not newer than itself
    and never a target, so its keys and values are computed once per request; a target sees all
    history and itself, never another target.

    Args:
        merge_size: Integer K. Defaults to 4.
        num_queries: Integer, newest merged tokens that query. Defaults to 100.
        num_layers: Integer, self-causal layers after the cross-causal one. Defaults to 2.
        num_heads: Integer, divides ``K d``. Defaults to 2.
        ffn_expansion: Integer. Defaults to 4.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Float tensor [B, N, 2, d] or [B, 2, d]: the target's token and the mean of the history's
        queries, both projected to d.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 50, 8), "float32")
    >>> tuple(LONGEREncoder()(target, history).shape)
    (2, 3, 2, 8)

    Source: LONGER (arXiv 2505.04421), section 3. Pre-norm layers; merging without an inner
    transformer; the target is the only global token; time enters through the recency embedding.
    """

    def __init__(
        self,
        merge_size: int = 4,
        num_queries: int = 100,
        num_layers: int = 2,
        num_heads: int = 2,
        ffn_expansion: int = 4,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.merge_size = check_int(self.name, "merge_size", merge_size, 1)
        self.num_queries = check_int(self.name, "num_queries", num_queries, 1)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 0)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 1)
        blocks = range(num_layers + 1)
        self._ffns = [
            FeedForward(ffn_expansion, dtype=self.dtype_policy, name=f"ffn_{i}") for i in blocks
        ]
        self._attention_norms, self._ffn_norms = (
            [
                keras.layers.LayerNormalization(
                    epsilon=1e-6, dtype=self.dtype_policy, name=f"{place}_norm_{i}"
                )
                for i in blocks
            ]
            for place in ("attention", "ffn")
        )

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 2

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        wide = self.merge_size * width
        check_divides(self.name, "`num_heads`", self.num_heads, "the merged width", wide)
        self.target_kernel = self.add_weight(shape=(width, wide), name="target_kernel")
        self.output_kernel = self.add_weight(shape=(wide, width), name="output_kernel")
        self._kernels = [
            [
                self.add_weight(shape=(wide, wide), name=f"{kind}_kernel_{i}")
                for kind in ("query", "key", "value", "output")
            ]
            for i in range(self.num_layers + 1)
        ]
        for sublayer in (*self._ffns, *self._attention_norms, *self._ffn_norms):
            sublayer.build((None, None, wide))

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """Tokens [B, N, 2, d]."""
        batch, wide = ops.shape(target)[0], self.merge_size * target.shape[-1]
        merged = ops.reshape(pad_axis(history, 1, self.merge_size), (batch, -1, wide))
        merged_mask: Tensor = segment_mask(mask, self.merge_size)
        targets = linear(target, self.target_kernel)
        keys, keys_mask = merged, merged_mask
        queries, queries_mask = merged[:, : self.num_queries], merged_mask[:, : self.num_queries]
        for i in range(self.num_layers + 1):
            queries, targets = self._block(i, queries, targets, keys, keys_mask)
            keys, keys_mask = queries, queries_mask
        counted = ops.cast(ops.expand_dims(queries_mask, -1), queries.dtype)
        mean = ops.sum(queries * counted, axis=1) / ops.maximum(ops.sum(counted, axis=1), 1.0)
        mean = ops.broadcast_to(ops.expand_dims(mean, 1), ops.shape(targets))
        return linear(ops.stack([targets, mean], axis=2), self.output_kernel)

    def _block(
        self, i: int, queries: Tensor, targets: Tensor, keys: Tensor, keys_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        query_kernel, key_kernel, value_kernel, output_kernel = self._kernels[i]
        norm = self._attention_norms[i]
        sources = norm(keys)
        key_heads = self._split(linear(sources, key_kernel))
        value_heads = self._split(linear(sources, value_kernel))
        # History: causal in time, the newest token (index 0) sees all of them.
        rows, columns = ops.shape(queries)[1], ops.shape(keys)[1]
        visible = ops.arange(columns)[None, :] >= ops.arange(rows)[:, None]
        visible = ops.logical_and(visible[None], keys_mask[:, None, :])
        query_heads = self._split(linear(norm(queries), query_kernel))
        scores = self._scores("bihe,bjhe->bhij", query_heads, key_heads)
        weights = ops.cast(masked_softmax(scores, visible[:, None]), self.compute_dtype)
        read = ops.einsum("bhij,bjhe->bihe", weights, value_heads)
        queries = queries + linear(self._join(read), output_kernel)
        # Targets: all history and themselves.
        inputs = norm(targets)
        target_queries = self._split(linear(inputs, query_kernel))
        own_keys = self._split(linear(inputs, key_kernel))
        own_values = self._split(linear(inputs, value_kernel))
        scores = self._scores("bihe,bjhe->bhij", target_queries, key_heads)
        own = self._scores("bihe,bihe->bhi", target_queries, own_keys)
        scores = ops.concatenate([ops.expand_dims(own, -1), scores], axis=-1)
        first = ops.ones_like(keys_mask[:, :1])
        seen = ops.concatenate([first, keys_mask], axis=1)[:, None, None]
        weights = ops.cast(masked_softmax(scores, seen), self.compute_dtype)
        read = ops.einsum("bhij,bjhe->bihe", weights[..., 1:], value_heads)
        read = read + ops.einsum("bhi,bihe->bihe", weights[..., 0], own_values)
        targets = targets + linear(self._join(read), output_kernel)
        ffn, ffn_norm = self._ffns[i], self._ffn_norms[i]
        return queries + ffn(ffn_norm(queries)), targets + ffn(ffn_norm(targets))

    def _scores(self, equation: str, queries: Tensor, keys: Tensor) -> Tensor:
        scores = ops.cast(ops.einsum(equation, queries, keys), stable_dtype(self.compute_dtype))
        return scores / math.sqrt(queries.shape[-1])

    def _split(self, inputs: Tensor) -> Tensor:
        head_width = inputs.shape[-1] // self.num_heads
        return ops.reshape(inputs, (*ops.shape(inputs)[:-1], self.num_heads, head_width))

    def _join(self, heads: Tensor) -> Tensor:
        return ops.reshape(heads, (*ops.shape(heads)[:-2], heads.shape[-2] * heads.shape[-1]))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "merge_size": self.merge_size,
            "num_queries": self.num_queries,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "ffn_expansion": self.ffn_expansion,
        }
