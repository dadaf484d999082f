"""HSTU: attention without softmax, gated, over the history."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_choice, check_divides, check_int
from laser_keras.encoders.sequence_encoder import SequenceEncoder
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import linear, stable_dtype
from laser_keras.types import Shape, Tensor

_EPSILON = 1e-6  # Keras' 1e-3 would swamp sums of the size 1/n and silence the layer.


@keras.saving.register_keras_serializable(package="laser_keras")
class HSTUEncoder(SequenceEncoder):
    """Layers of ``x + Wo(u * LN(A v))`` with ``A = SiLU(q k^T + bias) / n``, causal in time.

    The two dialects of the public repository differ:

    * ``"research"``: input LN without affine weights; ``u, v, q, k`` all through SiLU, no bias;
      scores unscaled, plus a learned bias by distance in positions; LN without affine weights;
    * ``"dlrm_v3"``: affine LN; a bias, SiLU on ``u`` only; scores divided by ``sqrt(d / heads)``,
      no distance bias; affine LN; the output layer reads ``[u, A v, u * LN(A v)]``.

    Candidates never see each other: several in one call equal one call each.

    Args:
        num_layers: Integer. Defaults to 1.
        num_heads: Integer, divides the width d. Defaults to 2.
        dialect: ``"research"`` or ``"dlrm_v3"``. Defaults to ``"research"``.
        read_out: ``"target_attention"`` over the encoded history (the LASER paper's row), or
            ``"target_position"``: targets are appended and see all events and themselves.
            Defaults to ``"target_attention"``.
        normalizer: What n is: ``"max_length"``, the padded length, or ``"length"``, the user's
            valid events. Defaults to ``"max_length"``.
        max_distance: Integer, rows of the distance bias; farther events share the last.
            Defaults to 1024.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.

    Returns:
        Float tensor [B, N, 1, d] or [B, 1, d].

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")
    >>> tuple(HSTUEncoder(read_out="target_position")(target, history).shape)
    (2, 3, 1, 8)

    Source: HSTU (arXiv 2402.17152) and its public code; time enters through the tokens' recency
    embedding instead of a second bias table.
    """

    def __init__(
        self,
        num_layers: int = 1,
        num_heads: int = 2,
        dialect: str = "research",
        read_out: str = "target_attention",
        normalizer: str = "max_length",
        max_distance: int = 1024,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 1)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.dialect = check_choice(self.name, "dialect", dialect, ("research", "dlrm_v3"))
        self.read_out = check_choice(
            self.name, "read_out", read_out, ("target_attention", "target_position")
        )
        self.normalizer = check_choice(
            self.name, "normalizer", normalizer, ("max_length", "length")
        )
        self.max_distance = check_int(self.name, "max_distance", max_distance, 1)
        affine = dialect == "dlrm_v3"
        self._norms = [
            keras.layers.LayerNormalization(
                epsilon=_EPSILON,
                center=affine,
                scale=affine,
                dtype=self.dtype_policy,
                name=f"{place}_norm_{i}",
            )
            for i in range(num_layers)
            for place in ("input", "output")
        ]
        self._attention = (
            TargetAttention(num_heads, dtype=self.dtype_policy, name="read_out")
            if read_out == "target_attention"
            else None
        )

    def build(self, target_shape: Shape, history_shape: Shape) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_shapes(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        research = self.dialect == "research"
        self._layers_weights = []
        for i in range(self.num_layers):
            weights = {
                "input_kernel": self.add_weight(
                    shape=(width, 4 * width),
                    initializer=keras.initializers.RandomNormal(stddev=0.02)
                    if research
                    else "glorot_uniform",
                    name=f"input_kernel_{i}",
                ),
                "output_kernel": self.add_weight(
                    shape=(width if research else 3 * width, width), name=f"output_kernel_{i}"
                ),
            }
            if research:
                weights["output_bias"] = self.add_weight(
                    shape=(width,), initializer="zeros", name=f"output_bias_{i}"
                )
                weights["distance_bias"] = self.add_weight(
                    shape=(self.max_distance,),
                    initializer=keras.initializers.RandomNormal(stddev=0.02),
                    name=f"distance_bias_{i}",
                )
            else:
                weights["input_bias"] = self.add_weight(
                    shape=(4 * width,), initializer="zeros", name=f"input_bias_{i}"
                )
            self._layers_weights.append(weights)
        for norm in self._norms:
            norm.build((None, None, width))
        if self._attention is not None:
            self._attention.build((None, None, width), (None, None, width))

    def encode(
        self, target: Tensor, history: Tensor, mask: Tensor, training: bool | None
    ) -> Tensor:
        """Tokens [B, N, 1, d]."""
        length = ops.shape(history)[1]
        # Position of an event: its rank from the newest, the targets come before all at -1.
        positions = ops.arange(length, dtype="int32")
        sequence, is_target = history, None
        if self._attention is None:
            candidates = ops.shape(target)[1]
            sequence = ops.concatenate([target, history], axis=1)
            front = ops.zeros((candidates,), dtype="int32") - 1
            positions = ops.concatenate([front, positions], axis=0)
            ones = ops.ones(ops.shape(target)[:2], dtype="bool")
            mask = ops.concatenate([ones, mask], axis=1)
            is_target = positions < 0
        distance = positions[None, :] - positions[:, None]  # how much older j is than i
        visible = distance >= 0
        if is_target is not None:
            same = ops.eye(ops.shape(positions)[0], dtype="bool")
            both = ops.logical_and(is_target[:, None], is_target[None, :])
            visible = ops.logical_and(visible, ops.logical_or(ops.logical_not(both), same))
        visible = ops.logical_and(visible[None], mask[:, None, :])  # [B, i, j]
        if self.normalizer == "length":
            valid = ops.sum(ops.cast(mask[:, -length:], "float32"), axis=1)
            counts = ops.reshape(ops.maximum(valid, 1.0), (-1, 1, 1, 1))
        else:
            counts = ops.cast(length, "float32")
        for i, weights in enumerate(self._layers_weights):
            sequence = sequence + self._transduce(
                sequence, visible, distance, counts, weights, *self._norms[2 * i : 2 * i + 2]
            )
        if self._attention is not None:
            return ops.expand_dims(self._attention(target, sequence, mask=mask), 2)
        return ops.expand_dims(sequence[:, : ops.shape(target)[1]], 2)

    def _transduce(
        self,
        sequence: Tensor,
        visible: Tensor,
        distance: Tensor,
        counts: Tensor,
        weights: dict[str, Any],
        input_norm: keras.layers.Layer,
        output_norm: keras.layers.Layer,
    ) -> Tensor:
        research = self.dialect == "research"
        width = sequence.shape[-1]
        mixed = linear(input_norm(sequence), weights["input_kernel"], weights.get("input_bias"))
        if research:
            mixed = ops.silu(mixed)
        u, v, q, k = (mixed[..., i * width : (i + 1) * width] for i in range(4))
        if not research:
            u = ops.silu(u)
        shape = (*ops.shape(sequence)[:-1], self.num_heads, width // self.num_heads)
        scores = ops.einsum("bihe,bjhe->bhij", ops.reshape(q, shape), ops.reshape(k, shape))
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        if research:
            rows = ops.clip(distance, 0, self.max_distance - 1)
            bias = ops.take(ops.cast(weights["distance_bias"], scores.dtype), rows)
            scores = scores + bias
        else:
            scores = scores / math.sqrt(width // self.num_heads)
        attention = ops.silu(scores) / ops.cast(counts, scores.dtype)
        attention = ops.where(ops.expand_dims(visible, 1), attention, 0.0)
        attention = ops.cast(attention, self.compute_dtype)
        summed = ops.einsum("bhij,bjhe->bihe", attention, ops.reshape(v, shape))
        summed = ops.reshape(summed, ops.shape(sequence))
        gated = u * output_norm(summed)
        if not research:
            gated = ops.concatenate([u, summed, gated], axis=-1)
        return linear(gated, weights["output_kernel"], weights.get("output_bias"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "dialect": self.dialect,
            "read_out": self.read_out,
            "normalizer": self.normalizer,
            "max_distance": self.max_distance,
        }
