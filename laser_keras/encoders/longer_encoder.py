# Over 400 lines: what a user token sees and what a target sees are rules of one layer.
"""LONGER: merged history tokens, read by a few queries."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from laser_keras.checks import (
    check_agrees,
    check_divides,
    check_inputs,
    check_int,
    check_known_width,
    check_rank,
)
from laser_keras.encoders.weighing_encoder import WeighingEncoder
from laser_keras.layers.feed_forward import FeedForward
from laser_keras.sequence import (
    linear,
    masked_mean,
    masked_softmax,
    merge_heads,
    pad_axis,
    segment_mask,
    split_heads,
    stable_dtype,
)
from laser_keras.types import Shape, Tensor

_KINDS = ("query", "key", "value", "output")


class UserState(NamedTuple):
    """What of a request does not depend on the candidate: computed once, read by each."""

    keys: list[Tensor]
    """Per block, [B, S, heads, e]."""
    values: list[Tensor]
    masks: list[Tensor]
    """Per block, [B, S]."""
    summary: Tensor
    """Mean of the history's queries after the last block, [B, K d]."""
    globals: Tensor
    """Global tokens after the last block, [B, G, K d]."""


@keras.saving.register_keras_serializable(package="laser_keras")
class LONGEREncoder(WeighingEncoder):
    """Merges adjacent events into wide tokens; the newest of them and the target attend to all.

    Use it where the recent events should exchange information among themselves at a cost below full
    self-attention. Its user part is computed once per request, so it suits many candidates.

    A learned row for its position is added to each event. K adjacent events become one token of
    width ``K d``; a small Transformer inside each group of K lets them exchange before that. A
    cross-causal layer lets the queries (the newest ``num_queries`` merged tokens, the global
    tokens, the target) read all merged tokens; self-causal layers then work on the queries alone.

    Visibility: a history token attends to tokens that are not newer than itself; a global token
    (learned ones as ``[CLS]``, and one per row of ``global_features``) to all history and all
    global tokens; a target to all of these and itself, never to another target. So the user part
    does not depend on a candidate: ``user_state`` computes it once per request and ``read`` scores
    any number of targets from it.

    Args:
        merge_size: Integer K. Defaults to 4.
        num_queries: Integer, newest merged tokens that query. Defaults to 100.
        num_layers: Integer, self-causal layers after the cross-causal one. Defaults to 2.
        num_heads: Integer, divides ``K d``, and d with an inner Transformer. Defaults to 2.
        ffn_expansion: Integer. Defaults to 4.
        inner_layers: Integer, layers of the Transformer inside a group; 0 merges by concatenation
            alone. Defaults to 1.
        num_learned_tokens: Integer, learned global tokens. Defaults to 1.
        num_positions: Integer, rows of the table by position; older events share the last.
            Defaults to 2048.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        global_features: Float tensor [B, U, u], U vectors of the user or the request, each made
            into a global token; None for an encoder without them.
        return_gates: Boolean. Whether to return what each event weighed as well.

    Returns:
        Float tensor [B, N, 3, d] or [B, 3, d]: the target's token, the mean of the history's
        queries, the mean of the global tokens (2 tokens without global tokens), projected to d.
        With ``return_gates`` a pair of it and a dict of ``"gates"`` [B, N, num_heads, L]
        ([B, num_heads, L]): what the target's cross-causal layer weighed, one number per event in
        the order they came in; the events of a merged token share its weight, masked ones have
        zero.

    Raises:
        ValueError: for arguments, shapes or dtypes that do not fit, and for ``global_features``
            that are missing or given against what the layer was built with.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 50, 8), "float32")
    >>> encoder = LONGEREncoder()
    >>> tuple(encoder(target, history, global_features=np.ones((2, 1, 5), "float32")).shape)
    (2, 3, 3, 8)

    Source: LONGER (arXiv 2505.04421), section 3. Pre-norm layers; the event's age enters through
    the tokens' recency embedding instead of a concatenated feature.
    """

    def __init__(
        self,
        merge_size: int = 4,
        num_queries: int = 100,
        num_layers: int = 2,
        num_heads: int = 2,
        ffn_expansion: int = 4,
        inner_layers: int = 1,
        num_learned_tokens: int = 1,
        num_positions: int = 2048,
        order: str = "newest_first",
        **kwargs: Any,
    ) -> None:
        super().__init__(order=order, **kwargs)
        self.merge_size = check_int(self.name, "merge_size", merge_size, 1)
        self.num_queries = check_int(self.name, "num_queries", num_queries, 1)
        self.num_layers = check_int(self.name, "num_layers", num_layers, 0)
        self.num_heads = check_int(self.name, "num_heads", num_heads, 1)
        self.ffn_expansion = check_int(self.name, "ffn_expansion", ffn_expansion, 1)
        self.inner_layers = check_int(self.name, "inner_layers", inner_layers, 0)
        self.num_learned_tokens = check_int(self.name, "num_learned_tokens", num_learned_tokens, 0)
        self.num_positions = check_int(self.name, "num_positions", num_positions, 1)
        # Blocks of width d inside a group, then of width K d.
        self._block_names = [
            *(f"inner_{i}" for i in range(inner_layers)),
            *(f"{i}" for i in range(num_layers + 1)),
        ]
        policy = self.dtype_policy
        self._ffns = {
            name: FeedForward(
                ffn_expansion, **self.kernel_options(), dtype=policy, name=f"ffn_{name}"
            )
            for name in self._block_names
        }
        self._attention_norms, self._ffn_norms = (
            {
                name: keras.layers.LayerNormalization(
                    epsilon=1e-6, dtype=self.float_policy, name=f"{place}_norm_{name}"
                )
                for name in self._block_names
            }
            for place in ("attention", "ffn")
        )
        self._global_width: int | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return 3 if self.num_learned_tokens else 2

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        global_features_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        width = self._check_target_and_history(target_shape, history_shape)
        wide = self.merge_size * width
        check_divides(self.name, "`num_heads`", self.num_heads, "the merged width", wide)
        if self.inner_layers:
            check_divides(self.name, "`num_heads`", self.num_heads, "the width d", width)
        self.target_kernel = self.add_kernel("target_kernel", (width, wide))
        self.output_kernel = self.add_kernel("output_kernel", (wide, width))
        self.position_rows = self.add_weight(
            shape=(self.num_positions, width),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="position_rows",
        )
        if self.num_learned_tokens:
            self.learned_tokens = self.add_weight(
                shape=(self.num_learned_tokens, wide), name="learned_tokens"
            )
        if global_features_shape is not None:
            self._build_global_features(global_features_shape, wide)
        self._projections = {
            name: {kind: self._projection(kind, name, width, wide) for kind in _KINDS}
            for name in self._block_names
        }
        for name in self._block_names:
            block_width = self._block_width(name, width, wide)
            for sublayers in (self._ffns, self._attention_norms, self._ffn_norms):
                sublayers[name].build((None, None, block_width))
        self.finish_build()

    def _build_global_features(self, shape: Shape, wide: int) -> None:
        check_rank(self.name, "global_features", shape, (3,), "[B, U, u]")
        if not self.num_learned_tokens:
            raise ValueError(
                f"{self.name}: `global_features` need `num_learned_tokens` of at least 1, for the "
                f"token that reports them. Received: {self.num_learned_tokens}"
            )
        self._global_width = check_known_width(self.name, "global_features", shape)
        self.global_kernel = self.add_kernel("global_kernel", (self._global_width, wide))

    def _block_width(self, name: str, width: int, wide: int) -> int:
        return width if name.startswith("inner") else wide

    def _projection(self, kind: str, name: str, width: int, wide: int) -> tuple[Any, Any]:
        size = self._block_width(name, width, wide)
        kernel = self.add_kernel(f"{kind}_kernel_{name}", (size, size))
        if kind == "key":  # the softmax cancels a bias that all keys share
            return kernel, None
        bias = self.add_bias(f"{kind}_bias_{name}", (size,))
        return kernel, bias

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        global_features: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_inputs(self, target=target, history=history)
        state = self.user_state(target, history, mask, global_features)
        single = len(target.shape) == 2
        target = ops.expand_dims(target, 1) if single else target
        tokens, weights = self._read_with_weights(target, state)
        if not return_gates:
            return ops.squeeze(tokens, 1) if single else tokens
        given = self._checked_mask(target, history, mask)
        return self._answer(tokens, self._by_event(weights, history, given), given, single)

    def _by_event(self, weights: Tensor, history: Tensor, given: Tensor | None) -> Tensor:
        """A merged token's weight for each event in it, [B, N, heads, L] and zero where masked."""
        length = ops.shape(history)[1]
        merged = -(-length // self.merge_size)
        by_event = ops.repeat(weights[..., :merged], self.merge_size, axis=-1)[..., :length]
        if given is None:
            return by_event
        valid = ops.expand_dims(ops.expand_dims(self._newest_first(given, given), 1), 1)
        return ops.where(valid, by_event, 0.0)

    def user_state(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        global_features: Tensor | None = None,
    ) -> UserState:
        """The user part, independent of the targets; only the shape of ``target`` is used."""
        history = ops.convert_to_tensor(history, dtype=self.compute_dtype)
        self._check_global_features(global_features, target)
        if global_features is not None:
            global_features = ops.convert_to_tensor(global_features, dtype=self.compute_dtype)
        _, history, mask = self._canonical(target, history, mask)
        merged, merged_mask = self._merge(history, mask)
        tokens = self._global_tokens(merged, global_features)
        queries, queries_mask = merged[:, : self.num_queries], merged_mask[:, : self.num_queries]
        sources, sources_mask = merged, merged_mask
        state = UserState([], [], [], merged, merged)
        for name in self._block_names[self.inner_layers :]:
            every = ops.ones(ops.shape(tokens)[:2], dtype="bool")
            both = ops.concatenate([sources, tokens], axis=1)
            both_mask = ops.concatenate([sources_mask, every], axis=1)
            keys, values = self._keys_and_values(name, both)
            state.keys.append(keys)
            state.values.append(values)
            state.masks.append(both_mask)
            # Causal in time: the newest token (index 0) sees all history, and no global token.
            rows, columns = ops.shape(queries)[1], ops.shape(sources)[1]
            visible = ops.arange(columns)[None, :] >= ops.arange(rows)[:, None]
            visible = ops.logical_and(visible[None], sources_mask[:, None, :])
            reading = (keys[:, :columns], values[:, :columns])
            queries = self._block(name, queries, *reading, visible)
            tokens = self._block(name, tokens, keys, values, both_mask[:, None, :])
            sources, sources_mask = queries, queries_mask
        return state._replace(summary=masked_mean(queries, queries_mask), globals=tokens)

    def read(self, target: Tensor, state: UserState) -> Tensor:
        """Tokens [B, N, T, d] of targets [B, N, d] for what ``user_state`` returned."""
        return self._read_with_weights(target, state)[0]

    def _read_with_weights(self, target: Tensor, state: UserState) -> tuple[Tensor, Tensor]:
        """The tokens, and what the first block's user tokens weigh, [B, N, heads, S]."""
        target = ops.convert_to_tensor(target, dtype=self.compute_dtype)
        targets = linear(target, self.effective(self.target_kernel))
        names = self._block_names[self.inner_layers :]
        of_blocks: list[Tensor] = []
        for name, *cached in zip(names, state.keys, state.values, state.masks, strict=True):
            targets, weights = self._target_block(name, targets, *cached)
            of_blocks.append(weights)
        of_user = [state.summary]
        if self.num_learned_tokens:
            # `ops.mean` computes in float32 whatever the dtype, in some versions of Keras.
            of_user.append(ops.sum(state.globals / state.globals.shape[1], axis=1))
        shape = ops.shape(targets)
        views = [ops.broadcast_to(ops.expand_dims(view, 1), shape) for view in of_user]
        outputs = linear(ops.stack([targets, *views], axis=2), self.effective(self.output_kernel))
        return outputs, of_blocks[0]

    def _merge(self, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Canonical events [B, L, d] to tokens [B, ceil(L / K), K d] and their mask."""
        size, width = self.merge_size, history.shape[-1]
        batch, length = ops.shape(history)[:2]
        rows = ops.minimum(ops.arange(length, dtype="int32"), self.num_positions - 1)
        events = history + ops.cast(ops.take(self.position_rows, rows, axis=0), history.dtype)
        # Padding stays zero, so that its length never matters.
        events = pad_axis(ops.where(ops.expand_dims(mask, -1), events, 0.0), 1, size)
        merged_mask: Tensor = segment_mask(mask, size)
        if self.inner_layers:
            groups = ops.reshape(events, (-1, size, width))
            valid = ops.reshape(pad_axis(mask, 1, size), (-1, size))
            for name in self._block_names[: self.inner_layers]:
                keys, values = self._keys_and_values(name, groups)
                groups = self._block(name, groups, keys, values, valid[:, None, :])
            events = ops.where(ops.expand_dims(valid, -1), groups, 0.0)
        count = ops.shape(merged_mask)[1]
        return ops.reshape(events, (batch, count, size * width)), merged_mask

    def _global_tokens(self, merged: Tensor, global_features: Tensor | None) -> Tensor:
        """[B, G, K d]; G may be 0."""
        batch, wide = ops.shape(merged)[0], merged.shape[-1]
        if not self.num_learned_tokens:
            return merged[:, :0]
        learned = ops.cast(ops.expand_dims(self.learned_tokens, 0), self.compute_dtype)
        tokens = ops.broadcast_to(learned, (batch, self.num_learned_tokens, wide))
        if global_features is None:
            return tokens
        of_features = linear(global_features, self.effective(self.global_kernel))
        return ops.concatenate([tokens, of_features], axis=1)

    def _project(self, name: str, kind: str, inputs: Tensor) -> Tensor:
        kernel, bias = self._projections[name][kind]
        return linear(inputs, self.effective(kernel), bias)

    def _keys_and_values(self, name: str, tokens: Tensor) -> tuple[Tensor, Tensor]:
        normed = self._attention_norms[name](tokens)
        keys, values = (self._project(name, kind, normed) for kind in ("key", "value"))
        return split_heads(keys, self.num_heads), split_heads(values, self.num_heads)

    def _block(
        self, name: str, queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor
    ) -> Tensor:
        """One pre-norm block; ``visible`` is broadcastable to [B, queries, keys]."""
        normed = self._attention_norms[name](queries)
        heads = split_heads(self._project(name, "query", normed), self.num_heads)
        weights = masked_softmax(self._scores("bihe,bjhe->bhij", heads, keys), visible[:, None])
        read = ops.einsum("bhij,bjhe->bihe", ops.cast(weights, self.compute_dtype), values)
        return self._finish_block(name, queries, read)

    def _target_block(
        self, name: str, targets: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The block for targets, each of which sees the user's tokens and itself; its weights."""
        normed = self._attention_norms[name](targets)
        heads = split_heads(self._project(name, "query", normed), self.num_heads)
        own_keys, own_values = self._keys_and_values(name, targets)
        own = ops.expand_dims(self._scores("bihe,bihe->bhi", heads, own_keys), -1)
        scores = self._scores("bihe,bjhe->bhij", heads, keys)
        seen = ops.concatenate([ops.ones_like(mask[:, :1]), mask], axis=1)
        weights = masked_softmax(ops.concatenate([own, scores], axis=-1), seen[:, None, None])
        weights = ops.cast(weights, self.compute_dtype)
        read = ops.einsum("bhij,bjhe->bihe", weights[..., 1:], values)
        read = read + ops.einsum("bhi,bihe->bihe", weights[..., 0], own_values)
        of_user = ops.swapaxes(weights[..., 1:], 1, 2)
        return self._finish_block(name, targets, read), of_user

    def _finish_block(self, name: str, tokens: Tensor, read: Tensor) -> Tensor:
        tokens = tokens + self._project(name, "output", merge_heads(read))
        return tokens + self._ffns[name](self._ffn_norms[name](tokens))

    def _scores(self, equation: str, queries: Tensor, keys: Tensor) -> Tensor:
        scores = ops.cast(ops.einsum(equation, queries, keys), stable_dtype(self.compute_dtype))
        return scores / math.sqrt(queries.shape[-1])

    def _check_global_features(self, global_features: Tensor | None, target: Tensor) -> None:
        if (global_features is None) != (self._global_width is None):
            wanted = "without" if self._global_width is None else "with"
            raise ValueError(
                f"{self.name}: the layer was built {wanted} `global_features`. Pass them in every "
                f"call, the first included, or in none. Received: {global_features}"
            )
        check_inputs(self, global_features=global_features)
        if global_features is not None:
            shape, expected = (
                tuple(global_features.shape),
                (target.shape[0], None, self._global_width),
            )
            check_agrees(self.name, "global_features", shape, expected, "[B, U, u]")

    def compute_output_shape(
        self,
        target_shape: Shape,
        history_shape: Shape,
        global_features_shape: Shape | None = None,
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        return super().compute_output_shape(target_shape, history_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "merge_size": self.merge_size,
            "num_queries": self.num_queries,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "ffn_expansion": self.ffn_expansion,
            "inner_layers": self.inner_layers,
            "num_learned_tokens": self.num_learned_tokens,
            "num_positions": self.num_positions,
        }
