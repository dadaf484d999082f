"""The yardsticks of the benchmarks: the paper's own vectorised LASER encoder, and lower bounds.

Equations 8 to 12, heads included, as section 3.5.1 prints them: keys and values of all events are
formed, and GSTA projects all segments in every layer. It has the weights of ``LaserEncoder``.
"""

import math
from typing import Any

import keras
from keras import ops

from laser_keras import FeedForward, LaserEncoder
from laser_keras.encoders.laser_encoder import PRINTED
from laser_keras.sequence import linear, masked_softmax, split_heads


class PaperForm(LaserEncoder):
    """``LaserEncoder`` with the paper's order of execution, one candidate per row.

    Written as well as the order allows: products over flattened rows, no copy of the history for
    a single candidate, no guard against NaN in padding, and none of the layers' own gradients.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**PRINTED, **options})

    def call(
        self,
        target: Any,
        history: Any,
        mask: Any = None,
        similarity: Any = None,
        training: Any = None,
    ) -> Any:
        sta, stacked = self.segmented_attention, self.stacked_attention
        if not sta.built:
            raise ValueError("PaperForm must be built before `call`: it reads the layers' weights")
        if similarity is not None:
            raise ValueError("PaperForm takes no `similarity`, which the paper's equations lack")
        if history.shape[1] % sta.segment_size:
            raise ValueError(
                f"PaperForm takes whole segments of {sta.segment_size} events. "
                f"Received: {history.shape[1]} events"
            )
        batch, candidates, width = ops.shape(target)
        length, heads, w = history.shape[1], sta.num_heads, sta.segment_size
        segments, head_width = length // w, width // heads
        # Each candidate is a row of its own, as the paper's impression-level batches are.
        rows = batch * candidates
        if candidates > 1:
            history = ops.repeat(history, candidates, axis=0)
            mask = None if mask is None else ops.repeat(mask, candidates, axis=0)
        target = ops.reshape(target, (rows, width))
        query = ops.reshape(linear(target, sta.query_kernel), (rows, heads, 1, sta.key_dim))
        keys = split_heads(linear(history, sta.key_kernel), heads)
        values = linear(history, sta.value_kernel)
        values = ops.reshape(values, (rows, segments, w, heads, head_width))
        scores = ops.matmul(query, ops.transpose(keys, (0, 2, 3, 1))) / math.sqrt(sta.key_dim)
        alpha = ops.sigmoid(ops.reshape(scores, (rows, heads, segments, 1, w)))
        if mask is not None:
            alpha = ops.where(ops.reshape(mask, (rows, 1, segments, 1, w)), alpha, 0.0)
        values = ops.transpose(values, (0, 3, 1, 2, 4))
        compressed = ops.matmul(alpha, values)  # [rows, heads, segments, 1, head_width]
        compressed = ops.transpose(compressed, (0, 2, 3, 1, 4))
        compressed = ops.reshape(compressed, (rows, segments, width))
        ffn = sta._ffn
        hidden = ops.gelu(linear(compressed, ffn.hidden_kernel, ffn.hidden_bias), approximate=False)
        compressed = compressed + linear(hidden, ffn.output_kernel, ffn.output_bias)
        compressed = sta._layer_norm(compressed)
        # Segments without an event reach neither the softmax nor the maximum, as in the layers.
        valid = None
        if mask is not None:
            valid = ops.any(ops.reshape(mask, (rows, segments, w)), axis=-1)
        refined = target
        for query_kernel, key_kernel, value_kernel in zip(
            stacked.query_kernels, stacked.key_kernels, stacked.value_kernels, strict=True
        ):
            query = ops.reshape(linear(refined, query_kernel), (rows, heads, 1, head_width))
            keys = split_heads(linear(compressed, key_kernel), heads)
            values = split_heads(linear(compressed, value_kernel), heads)
            scores = ops.matmul(query, ops.transpose(keys, (0, 2, 3, 1)))
            attention = masked_softmax(
                scores / math.sqrt(head_width), None if valid is None else valid[:, None, None]
            )
            output = ops.matmul(attention, ops.transpose(values, (0, 2, 1, 3)))
            refined = refined + ops.reshape(output, (rows, width))
        of_events, newest = compressed, compressed[:, : self.fusion.num_recent_segments]
        if valid is not None:
            of_events = ops.where(valid[..., None], compressed, -math.inf)
            newest = ops.where(valid[:, : newest.shape[1], None], newest, 0.0)
        salient = ops.max(of_events, axis=1)
        if valid is not None:
            salient = ops.where(ops.any(valid, axis=-1, keepdims=True), salient, 0.0)
        tokens = ops.concatenate([refined[:, None], salient[:, None], newest], axis=1)
        return ops.reshape(tokens, (batch, candidates, tokens.shape[-2], width))


class SegmentNetwork(keras.layers.Layer):
    """The feed-forward network and the norm on the segments: what no order of execution saves.

    Both forms of the encoder contain it, so its time by itself is the least that either takes.
    """

    def build(self, target_shape: Any, history_shape: Any) -> None:
        segments = (*target_shape[:-1], history_shape[1] // 10, target_shape[-1])
        self.feed_forward = FeedForward()
        self.feed_forward.build(segments)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6)
        self.norm.build(segments)

    def call(self, target: Any, history: Any, mask: Any = None) -> Any:
        segments = ops.expand_dims(history[:, : history.shape[1] // 10], 1)
        segments = segments + ops.expand_dims(target, 2)  # [B, N, S, d], another per candidate
        return self.norm(segments + self.feed_forward(segments))


class HistoryRead(keras.layers.Layer):
    """One pass over the history, and in the backward pass one written gradient of its size."""

    def build(self, target_shape: Any, history_shape: Any) -> None:
        """It has no weights."""

    def call(self, target: Any, history: Any, mask: Any = None) -> Any:
        return ops.sum(history, axis=(1, 2))


class KerasTargetAttention(keras.layers.Layer):
    """Target attention by ``keras.layers.MultiHeadAttention``, the usual building block."""

    def __init__(self, num_heads: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, target_shape: Any, history_shape: Any) -> None:
        width = target_shape[-1]
        self.attention = keras.layers.MultiHeadAttention(self.num_heads, width // self.num_heads)
        self.attention.build(target_shape, history_shape)

    def call(self, target: Any, history: Any, mask: Any = None) -> Any:
        attention_mask = None if mask is None else mask[:, None]
        return self.attention(target, history, attention_mask=attention_mask)
