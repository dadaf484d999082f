"""The LASER encoder: compress, refine, fuse."""

from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_choice, check_inputs, known_size
from laser_keras.layers.global_stacked_target_attention import GlobalStackedTargetAttention
from laser_keras.layers.multi_resolution_fusion import MultiResolutionFusion
from laser_keras.layers.segmented_target_attention import SegmentedTargetAttention
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.sequence import newest_first, restore_order, segment_mask
from laser_keras.types import Shape, Tensor

PRINTED = {"gamma": None, "gate_bias": None, "aligned_start": False, "norm": "post"}
"""Arguments of the paper's printed form, where the defaults differ: equations 5 and 6."""

FAST = {"ffn_expansion": 2, "activation": "relu"}
"""Arguments of a cheaper network on the segments, which costs no AUC where it was measured."""


@keras.saving.register_keras_serializable(package="laser_keras")
class LaserEncoder(SequenceLayer):
    """Encodes a long history for each candidate: STA, then GSTA, then multi-resolution fusion.

    Use it for histories of hundreds to ten thousand events, where self-attention is too slow and
    one attention per candidate loses detail. Below a hundred events ``DINEncoder`` or
    ``TransformerEncoder`` are simpler and cost less.

    Its linear cost in L is dominated by the feed-forward network on the ``L / w`` segments of
    each candidate (see ``laser_keras.complexity``).

    The defaults are those that learn best (``docs/layers/decisions.md`` has the measurements);
    ``LaserEncoder.as_printed()`` has the arguments that the paper prints.

    Args:
        num_heads: Integer, heads of both attentions. Defaults to 2.
        key_dim: Integer, width of queries and keys per head in STA. Defaults to 16.
        segment_size: Integer w. Defaults to 10.
        ffn_expansion: Integer. Defaults to 4.
        num_layers: Integer M, GSTA layers. Defaults to 2.
        num_recent_segments: Integer R. Defaults to 5.
        salient_token: Boolean. Whether the maximum over the segments is among the tokens.
            Defaults to True.
        order: ``"newest_first"`` or ``"oldest_first"``. Defaults to ``"newest_first"``.
        implementation: ``"auto"``, ``"project"`` or ``"absorb"``: the execution order of both
            attentions, one function and one set of weights. Defaults to ``"auto"``.
        gamma: Scale of the gates: smaller makes them sharper, see ``SegmentedTargetAttention``,
            whose own default is ``sqrt(key_dim)``. Defaults to 0.1.
        gate_bias: None, or the initial value of a trainable number per head added to the scores.
            ``"auto"`` is ``-log(segment_size)``: gates start nearly closed. Defaults to ``"auto"``.
        aligned_start: Boolean. Whether the projections of queries and keys start equal, so that
            scores start as similarities of target and event. Defaults to True.
        norm: ``"post"``, ``"pre"`` or ``"none"``, around the feed-forward network. With ``"none"``
            a segment whose gates are closed stays small. Defaults to ``"none"``.
        gate, use_bias, activation, epsilon, dropout, value_dim, use_output_projection: see
            ``SegmentedTargetAttention``.
        stacked_norm: ``norm`` of ``GlobalStackedTargetAttention``. Defaults to ``"none"``.
        stacked_ffn_expansion: Integer, its ``ffn_expansion``. Defaults to 0. With either, a target
            without a valid event does not come back unchanged.
        **kwargs: ``kernel_initializer``, ``bias_initializer``, ``kernel_regularizer``,
            ``bias_regularizer``, ``kernel_constraint`` and ``bias_constraint`` as of
            ``keras.layers.Dense``, ``lora_rank`` (see ``enable_lora``), and the arguments of
            ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d], newest first, right-padded.
        mask: Boolean tensor [B, L], True for valid events; None for the Keras mask that
            ``history`` carries, or all valid.
        similarity: Optional float tensor [B, N, L, m] ([B, L, m] with a target [B, d]), see
            ``SegmentedTargetAttention``.
        return_gates: Boolean. Whether to return the gates and the segments' weights as well.

    Returns:
        Float tensor [B, N, 2 + R, d] ([B, 2 + R, d] with a target [B, d]): the refined target z,
        the maximum over segments, the R newest segments. With no valid event: z is the target
        (by default), the other tokens are zero. With ``return_gates`` a pair of it and a dict of
        ``"gates"`` [B, N, num_heads, L], one per event in the order they came in, and
        ``"segment_weights"`` [B, N, num_layers, num_heads, ceil(L / w)], what each layer of the
        stacked attention made of the segments, newest first. Both are zero where masked.

    Raises:
        ValueError: for shapes, dtypes or arguments that do not fit; nothing is broadcast silently.

    Example:

    >>> import numpy as np
    >>> target, history = np.ones((2, 3, 32), "float32"), np.ones((2, 100, 32), "float32")
    >>> tuple(LaserEncoder()(target, history, mask=np.ones((2, 100), bool)).shape)
    (2, 3, 7, 32)

    Source: LASER (arXiv 2602.11562), sections 3.4.2 to 3.4.4.
    """

    def __init__(
        self,
        num_heads: int = 2,
        key_dim: int = 16,
        segment_size: int = 10,
        ffn_expansion: int = 4,
        num_layers: int = 2,
        num_recent_segments: int = 5,
        gamma: float | str | None = 0.1,
        gate: str = "sigmoid",
        gate_bias: float | str | None = "auto",
        aligned_start: bool = True,
        use_bias: bool = False,
        activation: Any = "gelu",
        norm: str = "none",
        epsilon: float = 1e-6,
        dropout: float = 0.0,
        value_dim: int | None = None,
        use_output_projection: bool = False,
        order: str = "newest_first",
        implementation: str = "auto",
        stacked_norm: str = "none",
        stacked_ffn_expansion: int = 0,
        salient_token: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.order = check_choice(self.name, "order", order, ("newest_first", "oldest_first"))
        self.segmented_attention = SegmentedTargetAttention(
            num_heads=num_heads,
            key_dim=key_dim,
            segment_size=segment_size,
            ffn_expansion=ffn_expansion,
            gamma=gamma,
            gate=gate,
            gate_bias=gate_bias,
            aligned_start=aligned_start,
            use_bias=use_bias,
            activation=activation,
            norm=norm,
            epsilon=epsilon,
            dropout=dropout,
            value_dim=value_dim,
            use_output_projection=use_output_projection,
            implementation=implementation,
            **self.kernel_options(),
            dtype=self.dtype_policy,
            name="segmented_attention",
        )
        self.stacked_attention = GlobalStackedTargetAttention(
            num_layers=num_layers,
            num_heads=num_heads,
            implementation=implementation,
            norm=stacked_norm,
            ffn_expansion=stacked_ffn_expansion,
            epsilon=epsilon,
            **self.kernel_options(),
            dtype=self.dtype_policy,
            name="stacked_attention",
        )
        self.fusion = MultiResolutionFusion(
            num_recent_segments, salient_token, dtype=self.float_policy, name="fusion"
        )

    @classmethod
    def as_printed(cls, **options: Any) -> "LaserEncoder":
        """The encoder with what the paper prints, equations 5 and 6: open gates, normalised sums.

        Example:

        >>> LaserEncoder.as_printed(segment_size=20).segmented_attention.norm
        'post'
        """
        return cls(**{**PRINTED, **options})

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate: 2 + R, or 1 + R without the salient one."""
        return self.fusion.num_output_tokens

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        similarity_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        self._check_length(target_shape, history_shape)
        self.segmented_attention.build(target_shape, history_shape, similarity_shape)
        segments_shape = self.segmented_attention.compute_output_shape(target_shape, history_shape)
        self.stacked_attention.build(target_shape, segments_shape)
        self.fusion.build(target_shape, segments_shape)

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
        check_inputs(self, target=target, history=history, similarity=similarity)
        self._check_length(tuple(target.shape), tuple(history.shape))
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        given_mask = mask
        if self.order == "oldest_first":
            history, similarity, mask = newest_first(history, similarity, mask)
        segments = self.segmented_attention(
            target,
            history,
            mask=mask,
            similarity=similarity,
            training=training,
            return_gates=return_gates,
        )
        segments_mask = segment_mask(mask, self.segmented_attention.segment_size)
        if not return_gates:
            refined = self.stacked_attention(target, segments, mask=segments_mask)
            return self.fusion(refined, segments, mask=segments_mask)
        segments, gates = segments
        refined, weights = self.stacked_attention(
            target, segments, mask=segments_mask, return_weights=True
        )
        if self.order == "oldest_first":
            single = len(target.shape) == 2
            gates = restore_order(ops.expand_dims(gates, 1) if single else gates, given_mask)
            gates = ops.squeeze(gates, 1) if single else gates
        tokens = self.fusion(refined, segments, mask=segments_mask)
        return tokens, {"gates": gates, "segment_weights": weights}

    def _check_length(self, target_shape: Shape, history_shape: Shape) -> None:
        """Refuse a history with fewer segments than the recent ones; none at all is a new user."""
        if len(history_shape) != 3:
            return  # the attention says what is wrong
        length, recent = known_size(history_shape[1]), self.fusion.num_recent_segments
        size = self.segmented_attention.segment_size
        if length and -(-length // size) < recent:
            raise ValueError(
                f"{self.name}: `history` must hold at least {(recent - 1) * size + 1} events, "
                f"because `num_recent_segments` is {recent} and `segment_size` {size}. Lower one "
                "of them or keep more events; and pass `target` before `history`. Received shapes: "
                f"target {tuple(target_shape)}, history {tuple(history_shape)}"
            )

    def compute_output_shape(
        self,
        target_shape: Shape,
        history_shape: Shape,
        similarity_shape: Shape | None = None,
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        self._check_length(target_shape, history_shape)
        segments_shape = self.segmented_attention.compute_output_shape(
            target_shape, history_shape, similarity_shape
        )
        return self.fusion.compute_output_shape(target_shape, segments_shape)

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
        tokens = keras.KerasTensor(shape, dtype=self.compute_dtype)
        if not return_gates:
            return tokens
        attention, stacked = self.segmented_attention, self.stacked_attention
        length, size = history.shape[1], attention.segment_size
        segments = None if length is None else -(-length // size)
        leading = target.shape[:-1]
        shapes = {
            "gates": (*leading, attention.num_heads, length),
            "segment_weights": (*leading, stacked.num_layers, stacked.num_heads, segments),
        }
        return tokens, {
            name: keras.KerasTensor(each, dtype=self.compute_dtype) for name, each in shapes.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        segmented = self.segmented_attention.get_config()
        own = super().get_config()
        shared = {key: value for key, value in segmented.items() if key not in own}
        return {
            **own,
            **shared,
            "num_layers": self.stacked_attention.num_layers,
            "num_recent_segments": self.fusion.num_recent_segments,
            "salient_token": self.fusion.salient_token,
            "order": self.order,
            "stacked_norm": self.stacked_attention.norm,
            "stacked_ffn_expansion": self.stacked_attention.ffn_expansion,
        }
