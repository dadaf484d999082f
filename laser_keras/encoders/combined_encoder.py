"""Several encoders side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from laser_keras.checks import check_agrees, check_optional_int, check_rank
from laser_keras.encoders.extras import extras_for, newest_events, newest_shape
from laser_keras.layers.sequence_layer import SequenceLayer
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class CombinedEncoder(SequenceLayer):
    """Concatenates the tokens of several encoders, each with weights of its own.

    Use it to put a recent window, a search or a baseline beside another encoder in one ranker. One
    encoder alone needs no wrapper.

    The LASER paper's comparison gives every system a two-stage branch beside it: for instance its
    "HSTU" row is ``CombinedEncoder([HSTUEncoder(), TWINEncoder()], recent_events=[1000, None])``,
    a search over the whole life cycle beside an encoder of the newest 1,000 events.

    Args:
        encoders: The encoders, all with the calling contract of ``LaserEncoder``.
        recent_events: For each encoder how many of the newest events it gets, an integer, or None
            for all; None gives all events to all. Defaults to None.
        **kwargs: Arguments of ``keras.layers.Layer``.

    Call arguments:
        target: Float tensor [B, N, d] or [B, d].
        history: Float tensor [B, L, d].
        mask: Boolean tensor [B, L], True for valid events; None if all are valid.
        similarity, age, cross, category_match, global_features: Passed to those encoders that take
            an argument of this name.

    Returns:
        Float tensor [B, N, T, d] or [B, T, d], T the sum of the encoders' tokens.

    Raises:
        ValueError: without encoders, for a ``recent_events`` of another length or with an entry
            that is no positive integer, for an argument that no encoder takes, and whatever the
            encoders raise.

    Example:

    >>> import numpy as np
    >>> from laser_keras import DINEncoder, TWINEncoder
    >>> encoder = CombinedEncoder([DINEncoder(), TWINEncoder()])
    >>> target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 200, 8), "float32")
    >>> tuple(encoder(target, history).shape)
    (2, 3, 3, 8)

    Source: LASER (arXiv 2602.11562), section 4.1.3.
    """

    def __init__(
        self,
        encoders: Sequence[keras.layers.Layer],
        recent_events: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not encoders:
            raise ValueError(
                f"{self.name}: `encoders` must hold at least one encoder. Received: {encoders}"
            )
        self.encoders = list(encoders)
        limits = [None] * len(self.encoders) if recent_events is None else list(recent_events)
        if len(limits) != len(self.encoders):
            raise ValueError(
                f"{self.name}: `recent_events` must have an entry for each of the "
                f"{len(self.encoders)} encoders. Received: {recent_events}"
            )
        self.recent_events = [
            check_optional_int(self.name, "recent_events", limit, 1) for limit in limits
        ]

    @property
    def num_output_tokens(self) -> int:
        """Tokens per candidate."""
        return sum(encoder.num_output_tokens for encoder in self.encoders)

    def build(
        self,
        target_shape: Shape,
        history_shape: Shape,
        similarity_shape: Shape | None = None,
        age_shape: Shape | None = None,
        cross_shape: Shape | None = None,
        category_match_shape: Shape | None = None,
        global_features_shape: Shape | None = None,
    ) -> None:
        """Create the weights for inputs of these shapes."""
        shapes = {
            "similarity": similarity_shape,
            "age": age_shape,
            "cross": cross_shape,
            "category_match": category_match_shape,
            "global_features": global_features_shape,
        }
        given = {name: shape for name, shape in shapes.items() if shape is not None}
        self._check_taken(given)
        for encoder, limit in zip(self.encoders, self.recent_events, strict=True):
            if encoder.built:  # it is when it comes from a saved model
                continue
            seen = {"history": history_shape, **extras_for(encoder, given)}
            if limit is not None:
                seen = {name: newest_shape(name, shape, limit) for name, shape in seen.items()}
            named = {f"{name}_shape": shape for name, shape in seen.items()}
            encoder.build(target_shape, **named)

    def _check_taken(self, given: Mapping[str, Any]) -> None:
        unused = set(given) - set(extras_for(self, given))
        if unused:
            raise ValueError(
                f"{self.name}: none of `encoders` takes the argument. Received: {sorted(unused)}"
            )

    def call(
        self,
        target: Tensor,
        history: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        similarity: Tensor | None = None,
        age: Tensor | None = None,
        cross: Tensor | None = None,
        category_match: Tensor | None = None,
        global_features: Tensor | None = None,
    ) -> Tensor:
        """Compute the output; the class docstring names shapes and dtypes."""
        check_rank(self.name, "target", tuple(target.shape), (2, 3), "[B, N, d] or [B, d]")
        check_rank(self.name, "history", tuple(history.shape), (3,), "[B, L, d]")
        check_agrees(
            self.name, "history", history.shape[:1], target.shape[:1], "with the target's batch"
        )
        mask = self._valid(mask, history, tuple(history.shape[:2]), "[B, L]")
        extras = {
            "similarity": similarity,
            "age": age,
            "cross": cross,
            "category_match": category_match,
            "global_features": global_features,
        }
        given = {name: value for name, value in extras.items() if value is not None}
        self._check_taken(given)
        tokens = [
            encoder(target, training=training, **self._seen_by(i, history, mask, given))
            for i, encoder in enumerate(self.encoders)
        ]
        return ops.concatenate(tokens, axis=-2)

    def _seen_by(
        self, i: int, history: Tensor, mask: Tensor | None, given: Mapping[str, Tensor]
    ) -> dict[str, Tensor | None]:
        """What encoder ``i`` gets beside the target: its newest events, and the extras it takes."""
        encoder, limit = self.encoders[i], self.recent_events[i]
        inputs = {"history": history, "mask": mask, **extras_for(encoder, given)}
        if limit is None:
            return inputs
        return newest_events(inputs, limit, getattr(encoder, "order", "newest_first"))

    def _saved_apart(self) -> list[keras.layers.Layer]:
        return self.encoders

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether ``auxiliary_logits`` need a loss on the labels as well."""
        return any(getattr(encoder, "has_auxiliary_loss", False) for encoder in self.encoders)

    def auxiliary_logits(
        self, target: Tensor, history: Tensor, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Click logits of all encoders that need an auxiliary loss on the labels."""
        return [
            logits
            for i, encoder in enumerate(self.encoders)
            if getattr(encoder, "has_auxiliary_loss", False)
            for logits in encoder.auxiliary_logits(target, **self._seen_by(i, history, mask, {}))
        ]

    def compute_output_shape(
        self, target_shape: Shape, history_shape: Shape, **extra_shapes: Shape
    ) -> Shape:
        """The output's shape for inputs of these shapes."""
        return (*target_shape[:-1], self.num_output_tokens, target_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        encoders = [keras.saving.serialize_keras_object(encoder) for encoder in self.encoders]
        return {
            **super().get_config(),
            "encoders": encoders,
            "recent_events": list(self.recent_events),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CombinedEncoder":
        """Make the layer from its configuration."""
        encoders = [keras.saving.deserialize_keras_object(part) for part in config["encoders"]]
        return cls(**{**config, "encoders": encoders})
