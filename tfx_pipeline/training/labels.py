"""The labels of a run, their losses and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.training_settings import LabelSettings, TrainingSettings

BINARY, REGRESSION = "binary", "regression"


@dataclass(frozen=True)
class Label:
    """One label with a head of its own.

    Attributes:
        name: Of the spec's label.
        kind: ``binary`` (cross entropy) or ``regression`` (squared error).
        weight: Of its loss in the sum of all.
        weighted_by: Label whose value weighs each impression's loss; None weighs all alike.
    """

    name: str
    kind: str = BINARY
    weight: float = 1.0
    weighted_by: str | None = None

    def losses(self, logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Loss of each impression, float32 [B, N]."""
        if self.kind == REGRESSION:
            return tf.square(logits - label)
        return tf.nn.sigmoid_cross_entropy_with_logits(labels=label, logits=logits)

    def answer(self, logits: tf.Tensor) -> tf.Tensor:
        """What is served: a probability, or the value itself."""
        return logits if self.kind == REGRESSION else tf.sigmoid(logits)

    @property
    def output(self) -> str:
        """Name of the served output of a label that is not the first."""
        return f"{'value' if self.kind == REGRESSION else 'probability'}_{self.name}"


def labels_of(spec: FeatureSpec, settings: TrainingSettings) -> tuple[Label, ...]:
    """The labels to train on; the first is the spec's first, which ranks and blesses.

    Raises:
        SettingsError: A label that the spec does not have, or the first one is left out.
    """
    chosen: Mapping[str, LabelSettings] = settings.labels
    first, *_ = spec.labels
    if not chosen:
        return (Label(first),)
    for name, given in chosen.items():
        for used in filter(None, (name, given.weighted_by)):
            if used not in spec.labels:
                raise SettingsError(
                    f"training.labels names {used!r}, which is not a label of feature spec "
                    f"{spec.name!r}; it has {list(spec.labels)}"
                )
    if first not in chosen or chosen[first].kind != BINARY:
        raise SettingsError(
            f"training.labels must hold {first!r}, the feature spec's first label, as a binary "
            "one: candidates are ranked by it"
        )
    names = [first, *(name for name in chosen if name != first)]
    return tuple(
        Label(name, chosen[name].kind, chosen[name].weight, chosen[name].weighted_by)
        for name in names
    )


def columns_of(labels: Sequence[Label]) -> tuple[str, ...]:
    """Labels to read beside the first: the others, and those that weigh."""
    _, *others = labels
    names = [label.name for label in others]
    names += [label.weighted_by for label in labels if label.weighted_by is not None]
    return tuple(dict.fromkeys(names))


def value_of(label: Label, labels: Sequence[Label], batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """The label's values in a parsed batch, float32 [B, N]."""
    return batch["label"] if label is labels[0] else batch[f"label_{label.name}"]


def loss_weights(
    label: Label, labels: Sequence[Label], batch: Mapping[str, tf.Tensor], valid: tf.Tensor
) -> tf.Tensor:
    """Weight of each impression's loss, float32 [B, N]; zero where there is no candidate."""
    weights = tf.cast(valid, tf.float32)
    if label.weighted_by is None:
        return weights
    name = "label" if label.weighted_by == labels[0].name else f"label_{label.weighted_by}"
    return weights * tf.maximum(batch[name], 0.0)


def total_weight(
    label: Label, labels: Sequence[Label], batch: Mapping[str, tf.Tensor], valid: tf.Tensor
) -> tf.Tensor:
    """What the weighted losses of a batch are divided by; a positive scalar."""
    least = 1.0 if label.weighted_by is None else 1e-6
    return tf.maximum(tf.reduce_sum(loss_weights(label, labels, batch, valid)), least)


def weighted_loss(
    label: Label,
    labels: Sequence[Label],
    batch: Mapping[str, tf.Tensor],
    logits: tf.Tensor,
    valid: tf.Tensor,
    total: tf.Tensor | None = None,
) -> tf.Tensor:
    """Mean loss over the valid candidates, by their weights; scalar.

    Args:
        label: The label.
        labels: All of them; the first has its values in ``batch["label"]``.
        batch: Labels by input name.
        logits: float32 [B, N] of this label.
        valid: bool [B, N].
        total: ``total_weight`` of the whole batch, if this is a part of one.
    """
    if total is None:
        total = total_weight(label, labels, batch, valid)
    losses = tf.where(valid, label.losses(logits, value_of(label, labels, batch)), 0.0)
    return tf.reduce_sum(loss_weights(label, labels, batch, valid) * losses) / total
