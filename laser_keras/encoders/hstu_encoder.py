"""HSTU: attention without softmax, gated, over the history."""

import math
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_ages, check_choice, check_divides, check_int, check_rate
from laser_keras.encoders.hstu_time import (
    PRODUCTION_ROWS,
    RESEARCH_ROWS,
    pair_seconds,
    production_buckets,
    research_buckets,
)
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.target_attention import TargetAttention
from laser_keras.sequence import linear, merge_heads, split_heads, stable_dtype
from laser_keras.types import Shape, Tensor

_EPSILON = 1e-6  # Keras' 1e-3 would swamp sums of the size 1/n and silence the layer.


@keras.saving.register_keras_serializable(package="laser_keras")
class HSTUEncoder(WeighingEncoder):
    """Layers of ``x + Wo(u * LN(A v))`` with ``A = SiLU(q k^T + bias) / n``, causal in time.

    Use it where the order and the timing of events matter and the history is short enough for a
    cost quadratic in L. It is also the baseline for generative recommenders.

    The two dialects of the public repository differ:

    * ``"research"``: input LN without affine weights; ``u, v, q, k`` all through SiLU, no bias;
      scores unscaled, plus a learned bias by distance in positions and one by the seconds between
      event j and the event after i (logarithmic buckets); LN without affine weights;
    * ``"dlrm_v3"``: a learned row for the position (0 the target, 1 the newest event) and one for
      the age (``floor(sqrt(minutes))``) added to the inputs; affine LN; a bias, SiLU on ``u``
      only; scores divided by ``sqrt(d / heads)``, no bias in the scores; affine LN; the output
      layer reads ``[u, A v, u * LN(A v)]``.

    Time enters when ``age`` is passed: the tables for it are created by the first call (or by
    ``build`` with ``age_shape``). Candidates never see each other: several in one call equal one
    call each.

    Args:
        num_layers: Integer. Defaults to 1.
        num_heads: Integer, divides the width d. Defaults to 2.
        dialect: ``"research"`` or ``"dlrm_v3"``. Defaults to ``"research"``.
        read_out: ``"target_attention"`` over the encoded history (the LASER paper's row), or
            ``"target_position"``: targets are appended and see all events and themselves.
            Defaults to ``"target_attention"``.
        normalizer: What n is: ``"max_length"``, the padded length, or ``"length"``, the user's
            valid events. Only the latter makes outputs independent of the padding's length.
            Defaults to ``"max_length"``.
        max_distance: Integer, rows of the table by position; farther events share the last.
            Defaults to 1024.
        dropout: Float in [0, 1), before each layer's output projection. Defaults to 0.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        age: Integer tensor [B, L], seconds from the event to the request; None for an encoder
            without time.
        return_gates: Boolean. Whether to return what each event weighed as well; of
            ``read_out="target_attention"`` alone.

    Returns:
        Float tensor [B, N, 1, d] or [B, 1, d]. With ``return_gates`` a pair of it and a dict of
        ``"gates"`` [B, N, num_heads, L] ([B, num_heads, L]): the weights of the target attention,
        one per event in the order they came in, zero where masked. An event's place holds what
        the event has read from older ones as well.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, and for an ``age`` that is
            missing or given against what the layer was built with.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 5, 8), "float32")
    >>> tuple(HSTUEncoder(read_out="target_position")(target, history).shape)
    (2, 3, 1, 8)

    >>> age = np.array([[5, 60, 3600, 7200, 86400]] * 2)
    >>> tuple(HSTUEncoder()(target, history, age=age).shape)
    (2, 3, 1, 8)

    Source: HSTU (arXiv 2402.17152), section 3.2, and its public code, in which the dialects are
    ``research/modeling`` and ``modules``. Not here: contextual prefixes, local windows
    (``max_attn_len``) and the stochastic length, for which see ``RandomSuffix``.
    """

    gates_need = ("read_out", "target_attention")

    def __init__(
        self,
        num_layers: int = 1,
        num_heads: int = 2,
        dialect: str = "research",
        read_out: str = "target_attention",
        normalizer: str = "max_length",
        max_distance: int = 1024,
        dropout: float = 0.0,
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
        self.dropout = check_rate(self.name, "dropout", dropout)
        self._dropout = keras.layers.Dropout(dropout, dtype=self.float_policy) if dropout else None
        affine = dialect == "dlrm_v3"
        self._norms = [
            keras.layers.LayerNormalization(
                epsilon=_EPSILON,
                center=affine,
                scale=affine,
                dtype=self.float_policy,
                name=f"{place}_norm_{i}",
            )
            for i in range(num_layers)
            for place in ("input", "output")
        ]
        self._attention = (
            TargetAttention(
                num_heads, **self.kernel_options(), dtype=self.dtype_policy, name="read_out"
            )
            if read_out == "target_attention"
            else None
        )

    def build(
        self, target_shape: Shape, history_shape: Shape, age_shape: Shape | None = None
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        research = self.dialect == "research"
        self._has_time = age_shape is not None
        if not research:
            self.position_rows = self._table("position_rows", self.max_distance, width)
            if self._has_time:
                self.time_rows = self._table("time_rows", PRODUCTION_ROWS, width)
        self._layers_weights = []
        for i in range(self.num_layers):
            weights = {
                "input_kernel": self.add_kernel(
                    f"input_kernel_{i}",
                    (width, 4 * width),
                    self.initial(
                        keras.initializers.RandomNormal(stddev=0.02) if research else None
                    ),
                ),
                "output_kernel": self.add_kernel(
                    f"output_kernel_{i}", (width if research else 3 * width, width)
                ),
            }
            if research:
                weights["output_bias"] = self.add_bias(f"output_bias_{i}", (width,))
                weights["distance_bias"] = self.add_weight(
                    shape=(self.max_distance,),
                    initializer=keras.initializers.RandomNormal(stddev=0.02),
                    name=f"distance_bias_{i}",
                )
                if self._has_time:
                    weights["time_bias"] = self.add_weight(
                        shape=(RESEARCH_ROWS,),
                        initializer=keras.initializers.RandomNormal(stddev=0.02),
                        name=f"time_bias_{i}",
                    )
            else:
                weights["input_bias"] = self.add_bias(f"input_bias_{i}", (4 * width,))
            self._layers_weights.append(weights)
        for norm in self._norms:
            norm.build((None, None, width))
        if self._attention is not None:
            self._attention.build((None, None, width), (None, None, width))
        self.finish_build()

    def _table(self, name: str, rows: int, width: int) -> Any:
        limit = 1.0 / math.sqrt(rows)
        initializer = keras.initializers.RandomUniform(-limit, limit)
        return self.add_weight(shape=(rows, width), initializer=initializer, name=name)

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        age: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        if return_gates:
            self._check_gates()
        if (age is not None) != self._has_time:
            wanted = "with an `age`, which is missing" if self._has_time else "without an `age`"
            raise ValueError(
                f"{self.name}: the layer was built {wanted}. Pass `age` in every call, the first "
                f"included, or in none. Received: {age}"
            )
        single = len(target.shape) == 2
        mask = given = self._checked_mask(target, history, mask)
        if age is not None:
            expected = tuple(history.shape[:2])
            age = check_ages(self.name, "age", age, expected, "[B, L]")
            age = self._newest_first(age, mask)
        target, history, mask = self._canonical(target, history, mask)
        tokens, weights = self._encode(target, history, mask, age, training)
        if not return_gates:
            return ops.squeeze(tokens, 1) if single else tokens
        return self._answer(tokens, weights, given, single)

    def _encode(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor,
        age: Tensor | None,
        training: bool | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, N, 1, d], and the weights of the target attention, if one reads out."""
        length, candidates = ops.shape(history)[1], ops.shape(target)[1]
        # Position of an event: its rank from the newest, the targets come before all at -1.
        positions = ops.arange(length, dtype="int32")
        sequence = history
        if self._attention is None:
            sequence = ops.concatenate([target, history], axis=1)
            front = ops.zeros((candidates,), dtype="int32") - 1
            positions = ops.concatenate([front, positions], axis=0)
            ones = ops.ones(ops.shape(target)[:2], dtype="bool")
            mask = ops.concatenate([ones, mask], axis=1)
            if age is not None:  # a candidate is of the request's own time
                now = ops.zeros(ops.shape(target)[:2], dtype="int32")
                age = ops.concatenate([now, age], axis=1)
        if self.dialect == "dlrm_v3":
            sequence = sequence + self._rows(positions, age)
        distance = positions[None, :] - positions[:, None]  # how much older j is than i
        visible = distance >= 0
        if self._attention is None:
            # Targets are all at distance 0 of each other: each sees but itself.
            is_target = positions < 0
            same = ops.eye(ops.shape(positions)[0], dtype="bool")
            both = ops.logical_and(is_target[:, None], is_target[None, :])
            visible = ops.logical_and(visible, ops.logical_or(ops.logical_not(both), same))
        visible = ops.logical_and(visible[None], mask[:, None, :])  # [B, i, j]
        if self.normalizer == "length":
            valid = ops.sum(ops.cast(mask[:, -length:], "float32"), axis=1)
            counts = ops.reshape(ops.maximum(valid, 1.0), (-1, 1, 1, 1))
        else:
            counts = ops.cast(ops.maximum(length, 1), "float32")
        buckets = None
        if age is not None and self.dialect == "research":
            buckets = research_buckets(pair_seconds(age, mask))
        for i, weights in enumerate(self._layers_weights):
            bias = self._score_bias(distance, buckets, weights)
            input_norm, output_norm = self._norms[2 * i : 2 * i + 2]
            input_kernel, output_kernel = (
                self.effective(weights[name]) for name in ("input_kernel", "output_kernel")
            )
            mixed = linear(input_norm(sequence), input_kernel, weights.get("input_bias"))
            gated = self._attend(mixed, visible, bias, counts, output_norm)
            if self._dropout is not None:
                gated = self._dropout(gated, training=training)
            output = linear(gated, output_kernel, weights.get("output_bias"))
            sequence = sequence + output
        if self._attention is not None:
            read, read_weights = self._attention(target, sequence, mask=mask, return_weights=True)
            return ops.expand_dims(read, 2), read_weights
        return ops.expand_dims(sequence[:, :candidates], 2), None

    def _rows(self, positions: Tensor, age: Tensor | None) -> Tensor:
        """What the production dialect adds to its inputs: [S, d], or [B, S, d] with ages."""
        rows = ops.clip(positions + 1, 0, self.max_distance - 1)
        added = ops.take(self.position_rows, rows, axis=0)
        if age is not None:
            added = added + ops.take(self.time_rows, production_buckets(age), axis=0)
        return ops.cast(added, self.compute_dtype)

    def _score_bias(
        self, distance: Tensor, buckets: Tensor | None, weights: dict[str, Any]
    ) -> Tensor | None:
        """The research dialect's bias [S, S], or [B, 1, S, S] with time."""
        if self.dialect != "research":
            return None
        rows = ops.clip(distance, 0, self.max_distance - 1)
        bias = ops.take(weights["distance_bias"], rows, axis=0)
        if buckets is not None:
            bias = bias + ops.expand_dims(ops.take(weights["time_bias"], buckets, axis=0), 1)
        return bias

    def _attend(
        self,
        mixed: Tensor,
        visible: Tensor,
        bias: Tensor | None,
        counts: Tensor,
        output_norm: keras.layers.Layer,
    ) -> Tensor:
        """From the projected inputs [B, S, 4 d] to what the output projection reads."""
        research = self.dialect == "research"
        width = mixed.shape[-1] // 4
        if research:
            mixed = ops.silu(mixed)
        u, v, q, k = (mixed[..., i * width : (i + 1) * width] for i in range(4))
        if not research:
            u = ops.silu(u)
        v, q, k = (split_heads(part, self.num_heads) for part in (v, q, k))
        scores = ops.einsum("bihe,bjhe->bhij", q, k)
        scores = ops.cast(scores, stable_dtype(self.compute_dtype))
        if bias is not None:
            scores = scores + ops.cast(bias, scores.dtype)
        else:
            scores = scores / math.sqrt(width // self.num_heads)
        attention = ops.silu(scores) / ops.cast(counts, scores.dtype)
        attention = ops.where(ops.expand_dims(visible, 1), attention, 0.0)
        attention = ops.cast(attention, self.compute_dtype)
        summed = merge_heads(ops.einsum("bhij,bjhe->bihe", attention, v))
        gated = u * output_norm(summed)
        return gated if research else ops.concatenate([u, summed, gated], axis=-1)

    def compute_output_shape(
        self, target_shape: Shape, history_shape: Shape, age_shape: Shape | None = None
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        return super().compute_output_shape(target_shape, history_shape)

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
            "dropout": self.dropout,
        }
