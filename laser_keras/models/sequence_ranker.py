"""A click model around any sequence encoder."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from laser_keras.checks import (
    check_choice,
    check_int,
    check_known_width,
    check_rank,
    check_rate,
)
from laser_keras.encoders.extras import extras_for
from laser_keras.layers.feature_mlp import FeatureMLP
from laser_keras.layers.rank_mixer import RankMixer
from laser_keras.layers.sequence_tokenizer import SequenceTokenizer
from laser_keras.models.candidate_trainer import CandidateTrainer
from laser_keras.models.ranker_inputs import (
    check_features,
    check_gates,
    check_names,
    encoder_extras,
)
from laser_keras.models.saved_by_inputs import SavedByInputs
from laser_keras.portable_state import PortableState
from laser_keras.quantizable import Quantizable
from laser_keras.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="laser_keras")
class SequenceRanker(Quantizable, PortableState, CandidateTrainer, SavedByInputs):
    """Scores the candidates of a request: tokenizer, sequence encoder, RankMixer, click head.

    Use it to compare encoders with everything else equal, or to train an encoder of your own. For
    LASER itself ``LaserRanker`` is shorter.

    The encoder's tokens and the other features (target, candidate and context, in this order) are
    two groups of RankMixer's tokens.

    Args:
        encoder: Layer called as ``encoder(target, history, mask=..., similarity=...)`` that
            returns [B, N, T, d] and has the property ``num_output_tokens`` (T).
        dim: Integer d, width of the tokens that the encoder sees. Defaults to 128.
        recency: ``"add"``, ``"concat"`` or ``"none"``, see ``SequenceTokenizer``.
            Defaults to ``"add"``.
        shared_width: Integer. The first ``shared_width`` columns of ``history`` and of ``target``
            hold the same features, see ``SequenceTokenizer``. Defaults to 0.
        num_tokens: Integer, RankMixer's tokens in all; divides ``mixer_dim`` and is larger than
            T. Defaults to 16.
        mixer_dim: Integer D. Defaults to 128.
        mixer_blocks: Integer. Defaults to 2.
        mixer_expansion: Integer. Defaults to 4.
        mixer: ``"rankmixer"``, or ``"mlp"``: ``mixer_blocks`` dense layers of width ``mixer_dim``
            over the concatenation of everything (``num_tokens`` and ``mixer_expansion`` do not
            matter then). Defaults to ``"rankmixer"``.
        dropout: Float in [0, 1), inside RankMixer or the MLP and before the last dense layer.
            Defaults to 0.
        activation: Of the output: ``"sigmoid"`` for probabilities, ``"linear"`` for logits.
            Defaults to ``"sigmoid"``.
        recency_options: Further arguments of ``RecencyEmbedding``. Defaults to None.
        mixer_options: Further arguments of ``RankMixer`` or ``FeatureMLP``, for instance
            ``{"num_experts": 4}``. Defaults to None.
        num_outputs: Integer K, labels with a head each over the shared parts; with more than one
            the output has one more axis [..., K]. Defaults to 1.
        embedding: Optional layer that turns the raw inputs (any mapping of tensors) into the
            inputs below; it is part of the model. Defaults to None.
        **kwargs: Arguments of ``keras.Model``.

    Call arguments:
        inputs: A mapping, after the embedding, of

            * ``history``: float [B, L, e_h], newest first, right-padded;
            * ``history_mask``: boolean [B, L];
            * ``history_age``: integer [B, L], seconds (may be absent with ``recency="none"``);
            * ``target``: float [B, N, e_t] or [B, e_t];
            * ``candidate``: float [B, N, e_x] or [B, e_x], may be absent;
            * ``context``: float [B, e_c], may be absent;
            * ``similarity``, ``cross``, ``global_features`` (float) and ``category_match``
              (boolean): handed to an encoder that takes an argument of this name, as is
              ``history_age`` under the name ``age``; may be absent, and are ignored by others.
        return_gates: Boolean. Whether to return what weighted the events as well, if the encoder
            has gates or weights per event (all of this package but ``PoolingEncoder`` and
            ``CombinedEncoder`` do).

    Returns:
        Tensor [B, N] ([B] with a target [B, e_t]), float32 even under a half-precision policy.
        With ``return_gates`` a dict of it (``"scores"``), of ``"gates"`` and, with
        ``LaserEncoder``, of ``"segment_weights"``, as the encoder returns them.

    Training: where the encoder has ``auxiliary_logits`` (the soft search of SIM), ``fit`` adds
    their cross entropy with the labels to the loss.

    Raises:
        ValueError: for missing or unexpected inputs and shapes that do not fit.

    Example:

    >>> import numpy as np
    >>> from laser_keras import DINEncoder
    >>> ranker = SequenceRanker(DINEncoder(), dim=16, num_tokens=4, mixer_dim=32)
    >>> inputs = {
    ...     "history": np.ones((2, 60, 24), "float32"),
    ...     "history_mask": np.ones((2, 60), bool),
    ...     "history_age": np.ones((2, 60), "int32"),
    ...     "target": np.ones((2, 3, 20), "float32"),
    ... }
    >>> tuple(ranker(inputs).shape)
    (2, 3)

    Source: LASER (arXiv 2602.11562), figure 1 and section 3.4.4.
    """

    def __init__(
        self,
        encoder: keras.layers.Layer,
        dim: int = 128,
        recency: str = "add",
        num_tokens: int = 16,
        mixer_dim: int = 128,
        mixer_blocks: int = 2,
        mixer_expansion: int = 4,
        mixer: str = "rankmixer",
        dropout: float = 0.0,
        activation: Any = "sigmoid",
        recency_options: Mapping[str, Any] | None = None,
        mixer_options: Mapping[str, Any] | None = None,
        embedding: keras.layers.Layer | None = None,
        shared_width: int = 0,
        num_outputs: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder
        self.dim = check_int(self.name, "dim", dim, 1)
        self.recency = recency
        self.num_tokens = check_int(self.name, "num_tokens", num_tokens, 2)
        self.mixer_dim = mixer_dim
        self.mixer_blocks = mixer_blocks
        self.mixer_expansion = mixer_expansion
        self.dropout = check_rate(self.name, "dropout", dropout)
        self.activation = keras.activations.get(activation)
        self.recency_options = dict(recency_options or {})
        self.mixer_options = dict(mixer_options or {})
        self.embedding = embedding
        self.mixer_kind = check_choice(self.name, "mixer", mixer, ("rankmixer", "mlp"))
        self.tokenizer = SequenceTokenizer(
            dim,
            recency=recency,
            recency_options=self.recency_options,
            shared_width=shared_width,
            dtype=self.dtype_policy,
            name="tokenizer",
        )
        self.mixer = self._rank_mixer() if mixer == "rankmixer" else self._mlp()
        self._dropout = keras.layers.Dropout(dropout, dtype=self.float_policy) if dropout else None
        self.num_outputs = check_int(self.name, "num_outputs", num_outputs, 1)
        self.head = keras.layers.Dense(num_outputs, dtype=self.float_policy, name="head")

    def _rank_mixer(self) -> keras.layers.Layer:
        sequence_tokens = self.encoder.num_output_tokens
        if sequence_tokens >= self.num_tokens:
            raise ValueError(
                f"{self.name}: `num_tokens` must be larger than the encoder's {sequence_tokens} "
                f"tokens, to leave room for the other features. Received: {self.num_tokens}"
            )
        return RankMixer(
            dim=self.mixer_dim,
            num_blocks=self.mixer_blocks,
            ffn_expansion=self.mixer_expansion,
            groups={"sequence": sequence_tokens, "features": self.num_tokens - sequence_tokens},
            dropout=self.dropout,
            dtype=self.dtype_policy,
            name="mixer",
            **self.mixer_options,
        )

    def _mlp(self) -> keras.layers.Layer:
        return FeatureMLP(
            self.mixer_dim,
            self.mixer_blocks,
            dropout=self.dropout,
            dtype=self.dtype_policy,
            name="mixer",
            **self.mixer_options,
        )

    def build(self, input_shape: Mapping[str, Shape]) -> None:
        """Create the weights for inputs of these shapes."""
        # What a plug-in embedding returns is only known when it is called; Keras then builds the
        # parts of the model one by one as they are called.
        if self.embedding is None:
            self._build_tower({name: tuple(shape) for name, shape in input_shape.items()})

    def _build_tower(self, shapes: dict[str, Shape]) -> None:
        check_names(self.name, shapes, age_needed=self.recency != "none")
        check_rank(self.name, "history", shapes["history"], (3,), "[B, L, e_h]")
        check_rank(self.name, "target", shapes["target"], (2, 3), "[B, N, e_t] or [B, e_t]")
        history, target = shapes["history"], shapes["target"]
        self.tokenizer.build(history, target, shapes.get("history_age"))
        tokens = self.tokenizer.compute_output_shape(history, target)
        extras = extras_for(self.encoder, encoder_extras(shapes))
        named = {f"{name}_shape": shape for name, shape in extras.items()}
        if not self.encoder.built:  # it is when it comes from a saved model
            self.encoder.build(tokens["target"], tokens["history"], **named)
        feature_width = sum(
            check_known_width(self.name, name, shapes[name])
            for name in ("target", "candidate", "context")
            if name in shapes
        )
        leading = target[:-1]
        self.mixer.build(
            {
                "sequence": (*leading, self.encoder.num_output_tokens * self.dim),
                "features": (*leading, feature_width),
            }
        )
        self.head.build((*leading, self.mixer_dim))

    def call(
        self,
        inputs: Mapping[str, Tensor],
        training: bool | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Compute the output; the class docstring names shapes and dtypes."""
        given = inputs
        inputs, tokens = self._tokens(inputs)
        self._remember(given)  # not before they are checked
        mask, target = inputs["history_mask"], inputs["target"]
        extras = extras_for(self.encoder, encoder_extras(inputs))
        found: dict[str, Tensor] = {}
        if return_gates:
            check_gates(self.name, self.encoder)
            extras["return_gates"] = True
        encoded = self.encoder(
            tokens["target"], tokens["history"], mask=mask, training=training, **extras
        )
        if return_gates:
            encoded, found = encoded
        leading = ops.shape(target)[:-1]
        features = [target]
        check_features(self.name, inputs)
        if "candidate" in inputs:
            features.append(inputs["candidate"])
        if "context" in inputs:
            context = inputs["context"]
            if len(target.shape) == 3:
                context = ops.expand_dims(context, 1)
            features.append(ops.broadcast_to(context, (*leading, context.shape[-1])))
        mixed = self.mixer(
            {
                "sequence": ops.reshape(
                    encoded, (*leading, self.encoder.num_output_tokens * self.dim)
                ),
                "features": ops.concatenate(
                    [ops.cast(feature, self.compute_dtype) for feature in features], axis=-1
                ),
            },
            training=training,
        )
        if self._dropout is not None:
            mixed = self._dropout(mixed, training=training)
        logits = ops.cast(self.head(mixed), self._output_dtype)
        scores = self.activation(ops.squeeze(logits, -1) if self.num_outputs == 1 else logits)
        return {"scores": scores, **found} if return_gates else scores

    def compute_output_spec(
        self,
        inputs: Mapping[str, keras.KerasTensor],
        training: bool | None = None,
        return_gates: bool = False,
    ) -> Any:
        """What a call returns for these symbolic inputs."""
        # The shapes say it all: tracing `call` fails on JAX, which cannot compare unknown sizes.
        given = inputs
        if self.embedding is not None:
            inputs = self.embedding(inputs)
        check_names(self.name, inputs, age_needed=self.recency != "none")
        check_features(self.name, inputs)
        if not self.head.built:  # a plug-in embedding's output is known only now, see `build`
            self._build_tower({name: tuple(value.shape) for name, value in inputs.items()})
        self._remember(given)
        outputs = () if self.num_outputs == 1 else (self.num_outputs,)
        scores = keras.KerasTensor((*inputs["target"].shape[:-1], *outputs), self._output_dtype)
        if not return_gates:
            return scores
        check_gates(self.name, self.encoder)
        tokens = {
            name: keras.KerasTensor((*inputs[name].shape[:-1], self.dim), dtype=self.compute_dtype)
            for name in ("target", "history")
        }
        _, found = self.encoder.compute_output_spec(**tokens, return_gates=True)
        return {"scores": scores, **found}

    @property
    def _output_dtype(self) -> str:
        # Half precision cannot hold small probabilities.
        return "float32" if self.compute_dtype in ("float16", "bfloat16") else self.compute_dtype

    def _tokens(self, inputs: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict]:
        """The embedded, checked inputs, and the tokens that the encoder sees."""
        if self.embedding is not None:
            inputs = self.embedding(inputs)
        check_names(self.name, inputs, age_needed=self.recency != "none")
        mask, age = inputs["history_mask"], inputs.get("history_age")
        return inputs, self.tokenizer(inputs["history"], inputs["target"], age=age, mask=mask)

    def auxiliary_logits(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Click logits [B, N] that the encoder wants trained on the labels as well.

        Empty for an encoder without such; a training loop of your own adds their cross entropy to
        the loss, as ``fit`` does.
        """
        if not getattr(self.encoder, "has_auxiliary_loss", False):
            return []
        inputs, tokens = self._tokens(inputs)
        mask = inputs["history_mask"]
        return list(self.encoder.auxiliary_logits(tokens["target"], tokens["history"], mask))

    def _quantize_kernels(self) -> None:
        # Those of the layers inside; what Keras compiled for them still holds the float ones.
        self.train_function = self.test_function = self.predict_function = None

    def _saved_apart(self) -> list[keras.layers.Layer]:
        return [layer for layer in (self.encoder, self.embedding) if layer is not None]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, for serialisation."""
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "dim": self.dim,
            "recency": self.recency,
            "shared_width": self.tokenizer.shared_width,
            "num_tokens": self.num_tokens,
            "mixer_dim": self.mixer_dim,
            "mixer_blocks": self.mixer_blocks,
            "mixer_expansion": self.mixer_expansion,
            "mixer": self.mixer_kind,
            "dropout": self.dropout,
            "activation": keras.activations.serialize(self.activation),
            "recency_options": self.recency_options,
            "mixer_options": self.mixer_options,
            "num_outputs": self.num_outputs,
            "embedding": (
                None
                if self.embedding is None
                else keras.saving.serialize_keras_object(self.embedding)
            ),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SequenceRanker":
        """Make the model from its configuration."""
        config = dict(config)
        for part in ("encoder", "embedding"):
            if config.get(part) is not None:
                config[part] = keras.saving.deserialize_keras_object(
                    config[part], custom_objects=custom_objects
                )
        return cls(**config)
