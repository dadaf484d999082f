"""The tower of a ranker: a Keras model of any system, used as a pure function of its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from laser_features import FeatureSpec
from laser_keras import CombinedEncoder
from laser_keras.encoders.extras import extras_for, gives_gates
from laser_keras.models.comparison import comparison_encoder, encoder_options
from laser_keras.models.sequence_ranker import SequenceRanker
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.training.tower_inputs import (
    INTERACTIONS,
    Embed,
    declared_interactions,
    tower_inputs,
    tower_widths,
)

_ORDER = "newest_first"
"""In which every history comes, of training and of serving."""
_HOW_TO_DECLARE = {
    "similarity": "interactions: {similarity: [a content field]}",
    "category_match": "interactions: {category: an item field}",
    "cross": "interactions: {cross: [an event field]}",
}


@dataclass(frozen=True)
class TowerOutput:
    """What one pass through the tower gives.

    Attributes:
        logits: float32 [B, N] of the first label.
        heads: Those of all labels, in their order; the first is ``logits``.
        auxiliary_logits: Further logits [B, N] to be trained on the labels; empty but in training.
        penalty: Scalar that layers add to the mean loss; zero but in training.
        carried: New values of the state that training carries, in the order of
            ``carried_variables``.
    """

    logits: tf.Tensor
    heads: list[tf.Tensor]
    auxiliary_logits: list[tf.Tensor]
    penalty: tf.Tensor
    carried: list[tf.Tensor]


class Tower:
    """A ranker of a feature spec, with initial weights that follow from the seed alone.

    Args:
        spec: The feature spec.
        settings: System, sizes and options.
        seed: Initial weights and dropout follow from it.
        implementation: Of encoders that compute the same in several orders and were not given
            one: ``"absorb"`` is fastest for few candidates and with gradients, ``"auto"`` for many.
        outputs: Labels, with a head each.
        precision: What it computes in, ``"float32"`` or ``"bfloat16"``; weights are float32.

    Raises:
        SettingsError: A system or an option that does not exist or does not fit, or an input that
            the system needs and the feature spec does not declare.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        settings: ModelSettings,
        seed: int,
        implementation: str = "auto",
        outputs: int = 1,
        precision: str = "float32",
    ) -> None:
        self.spec, self.settings, self.seed = spec, settings, seed
        keras.utils.set_random_seed(seed)
        policy = "mixed_bfloat16" if precision == "bfloat16" else precision
        try:
            encoder = _encoder(settings, implementation, policy)
            self.interactions = _interactions(spec, settings, encoder)
            self.model = _ranker(spec, settings, encoder, self.interactions, outputs, policy)
        except (TypeError, ValueError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"section model, system {settings.system!r}: {error}") from error
        self.fixed_length = _has_fixed_length(encoder)

    @property
    def carried_variables(self) -> list[keras.Variable]:
        """Variables that no optimiser trains and that training changes: moving averages."""
        return [each for each in self.model.non_trainable_variables if not _is_seed(each)]

    def inputs(self, rows: Mapping[str, tf.Tensor], embed: Embed) -> dict[str, tf.Tensor]:
        """The tower's inputs, see ``tower_inputs``."""
        return tower_inputs(self.spec, rows, embed, self.interactions)

    def __call__(
        self,
        weights: Sequence[tf.Tensor],
        carried: Sequence[tf.Tensor],
        inputs: Mapping[str, tf.Tensor],
        step: tf.Tensor | None = None,
    ) -> TowerOutput:
        """One pass with these weights in place of the model's own.

        Args:
            weights: In the order of ``model.trainable_variables``.
            carried: In the order of ``carried_variables``.
            inputs: What ``inputs`` returned.
            step: Number of the training step, which dropout follows from; None predicts.
        """
        training = step is not None
        variables = self.carried_variables
        values = [*zip(self.model.trainable_variables, weights, strict=True)]
        values += [*zip(variables, carried, strict=True), *self._seeds(step)]
        with keras.StatelessScope(state_mapping=values, collect_losses=training) as scope:
            answer = self.model.call(inputs, training=training)
            auxiliary = self.model.auxiliary_logits(inputs) if training else []
        penalty = tf.add_n([tf.zeros([]), *(self._penalties(scope, weights) if training else [])])
        new = [scope.get_current_value(variable) for variable in variables]
        changed = [old if value is None else value for value, old in zip(new, carried, strict=True)]
        heads = [answer] if self.model.num_outputs == 1 else tf.unstack(answer, axis=-1)
        return TowerOutput(heads[0], heads, auxiliary, penalty, changed)

    def _penalties(
        self, scope: keras.StatelessScope, weights: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        """What layers add to the loss, and what their regularisers say of these weights."""
        pairs = zip(self.model.trainable_variables, weights, strict=True)
        of_weights = [v.regularizer(value) for v, value in pairs if v.regularizer is not None]
        return [*scope.losses, *of_weights]

    @property
    def has_gates(self) -> bool:
        """Whether the encoder says how much of each past event it took, see ``gates``."""
        return gives_gates(self.model.encoder)

    def gates(
        self,
        weights: Sequence[tf.Tensor],
        carried: Sequence[tf.Tensor],
        inputs: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        """Gates (of DIN: the softmax's weights) [B, N, heads, L] in a pass with these weights.

        Raises:
            ValueError: The encoder has none, see ``has_gates``.
        """
        values = [
            *zip(self.model.trainable_variables, weights, strict=True),
            *zip(self.carried_variables, carried, strict=True),
            *self._seeds(None),
        ]
        with keras.StatelessScope(state_mapping=values):
            return self.model.call(inputs, training=False, return_gates=True)["gates"]

    def _seeds(self, step: tf.Tensor | None) -> list[tuple[keras.Variable, tf.Tensor]]:
        """States of the seed generators: they follow from the seed and the step alone."""
        counter = tf.zeros([], tf.uint32) if step is None else tf.cast(step, tf.uint32)
        seeds = [each for each in self.model.non_trainable_variables if _is_seed(each)]
        return [
            (variable, tf.stack([tf.constant(self.seed * 1009 + number, tf.uint32), counter]))
            for number, variable in enumerate(seeds)
        ]


def check_model(spec: FeatureSpec, settings: ModelSettings) -> None:
    """Raise unless a ranker with these settings can be built for this spec.

    Raises:
        SettingsError: One line that says what does not fit.
    """
    Tower(spec, settings, seed=0)


def _encoder(settings: ModelSettings, implementation: str, policy: str) -> keras.layers.Layer:
    systems = [(settings.system, settings.encoder, "encoder")]
    if settings.beside is None:
        return _one_encoder(*systems[0], settings.dropout, implementation, policy)
    systems.append((settings.beside, settings.beside_encoder, "beside_encoder"))
    parts = [_one_encoder(*each, settings.dropout, implementation, policy) for each in systems]
    limits = (settings.recent_events, None)
    return CombinedEncoder(parts, recent_events=limits, name="encoders", dtype=policy)


_CONSTRAINTS = {"kernel_constraint", "bias_constraint"}


def _one_encoder(
    system: str,
    options: Mapping[str, Any],
    name: str,
    dropout: float,
    implementation: str,
    policy: str,
) -> keras.layers.Layer:
    field = "beside" if name == "beside_encoder" else "system"
    if options.get("order", _ORDER) != _ORDER:
        raise SettingsError(
            f"section model, {name}: order is {options['order']!r}, and the pipeline's histories "
            "are newest first, which it would read the wrong way round; leave it out"
        )
    for constraint in _CONSTRAINTS & set(options):
        raise SettingsError(
            f"section model, {name}: holds {constraint!r}, which the pipeline's optimisers do not "
            f"apply; use {constraint.replace('constraint', 'regularizer')!r}"
        )
    try:
        known = encoder_options(system)
    except ValueError as error:
        raise SettingsError(f"section model, {field}: {error}") from error
    ours = {"dropout": dropout, "implementation": implementation}
    defaults = {key: value for key, value in ours.items() if key in known}
    try:
        return comparison_encoder(system, {**defaults, **options}, name=name, dtype=policy)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"section model, {name} of {field} {system!r}: {error}") from error


def _parts(encoder: keras.layers.Layer) -> list[keras.layers.Layer]:
    return list(getattr(encoder, "encoders", [encoder]))


def _has_fixed_length(encoder: keras.layers.Layer) -> bool:
    """Whether histories must all have the spec's length: to keep ``top_k`` of a known number."""
    return any(hasattr(part, "top_k") for part in _parts(encoder))


def _interactions(
    spec: FeatureSpec, settings: ModelSettings, encoder: keras.layers.Layer
) -> tuple[str, ...]:
    """Those of ``INTERACTIONS`` that the encoder gets."""
    declared = declared_interactions(spec)
    takes = set(extras_for(encoder, dict.fromkeys(INTERACTIONS, True)))
    # The soft search has the argument of the hard one and refuses it.
    if not any(getattr(part, "search", None) == "hard" for part in _parts(encoder)):
        takes.discard("category_match")
    wanted = settings.interactions
    for name in wanted or ():
        if name not in declared:
            raise SettingsError(
                f"section model: interactions names {name!r}, and feature spec {spec.name!r} "
                f"declares none: add `{_HOW_TO_DECLARE[name]}` to it"
            )
        if name not in takes:
            raise SettingsError(
                f"section model: interactions names {name!r}, which system {settings.system!r} "
                f"has no use for; it takes {sorted(takes)}"
            )
    chosen = tuple(
        name for name in declared if name in takes and (wanted is None or name in wanted)
    )
    if "category_match" in takes and "category_match" not in chosen:
        raise SettingsError(
            f"section model: the search of sim_hard needs a category, and feature spec "
            f"{spec.name!r} gives none: add `{_HOW_TO_DECLARE['category_match']}` to it"
        )
    return chosen


def _ranker(
    spec: FeatureSpec,
    settings: ModelSettings,
    encoder: keras.layers.Layer,
    interactions: Collection[str],
    outputs: int,
    policy: str,
) -> SequenceRanker:
    widths = tower_widths(spec)
    ranker = SequenceRanker(
        encoder,
        dim=settings.dim,
        recency=settings.recency,
        recency_options=_without(settings.recency_options, "recency_options", ("dim",)),
        num_tokens=settings.num_tokens,
        mixer_dim=settings.mixer_dim,
        mixer_blocks=settings.mixer_blocks,
        mixer_expansion=settings.mixer_expansion,
        mixer=settings.mixer,
        mixer_options=_without(
            settings.mixer_options,
            "mixer_options",
            ("dim", "num_blocks", "num_layers", "ffn_expansion", "groups", "num_tokens", "dropout"),
        ),
        dropout=settings.dropout,
        activation="linear",
        num_outputs=outputs,
        shared_width=widths["target"],  # all of it leads the history's columns, too
        name="ranker",
        dtype=policy,
    )
    length = spec.max_history if _has_fixed_length(encoder) else None
    middle = {"context": (), "history": (length,)}
    shapes: dict[str, tuple[int | None, ...]] = {
        key: (None, *middle.get(key, (None,)), width) for key, width in widths.items()
    }
    shapes["history_mask"] = shapes["history_age"] = (None, None)
    declared = declared_interactions(spec)
    shapes.update({name: declared[name] for name in interactions})
    ranker.build(shapes)
    return ranker


def _without(options: Mapping[str, Any], name: str, taken: Collection[str]) -> Mapping[str, Any]:
    """The options, none of which may be a setting that has a name of its own."""
    for key in options:
        if key in taken:
            raise SettingsError(
                f"section model: {name} holds {key!r}, which is a setting of its own there; "
                "write `dim`, `num_tokens`, `mixer_dim`, `mixer_blocks`, `mixer_expansion`, "
                "`dropout`"
            )
    return options


def _is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a Keras seed generator (dropout has one each)."""
    return "seed" in variable.path and tuple(variable.shape) == (2,)
