"""Builds the float inputs of the tower from table rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import tensorflow as tf

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.training.content_vectors import CONTENT, content_width

INTERACTIONS = ("similarity", "category_match", "cross")
"""Inputs that a feature spec's section ``interactions`` gives, as encoders name them."""

Embed = Callable[[str, str], tf.Tensor]


def tower_key(model_input: ModelInput) -> str | None:
    """Which of the tower's inputs a model input is embedded into; None for ages and lengths.

    The target holds what a candidate shares with the history (its item and side information);
    ``candidate`` holds the rest.
    """
    if model_input.table is None:
        return None
    if model_input.kind == "history":
        return "history"
    if model_input.kind == "request":
        return "context"
    assert model_input.field is not None
    return "candidate" if model_input.field.section == "candidate" else "target"


def inputs_of(spec: FeatureSpec, key: str) -> list[ModelInput]:
    """The model inputs embedded into one of the tower's inputs.

    In the spec's order, but those of the history that the target has too come first.
    """
    inputs = [each for each in spec.model_inputs() if tower_key(each) == key]
    if key != "history":
        return inputs
    shared = {each.field for each in inputs_of(spec, "target")}
    return sorted(inputs, key=lambda each: each.field not in shared)


def tower_widths(spec: FeatureSpec) -> dict[str, int]:
    """Width of each of the tower's float inputs; those that the spec leaves empty are absent.

    Example:
        >>> from laser_features.testing import tiny_spec
        >>> spec = tiny_spec()
        >>> tower_widths(spec)
        {'history': 4, 'target': 4}
    """
    widths = {}
    for key in ("history", "target", "candidate", "context"):
        width = sum(spec.tables[each.table or ""].width for each in inputs_of(spec, key))
        if key in ("history", "target"):
            width += content_width(spec)
        if width:
            widths[key] = width
    return widths


def declared_interactions(spec: FeatureSpec) -> dict[str, tuple[int | None, ...]]:
    """Shapes of what the spec's section ``interactions`` gives an encoder, by the input's name.

    ``similarity`` is [B, N, L, m], ``category_match`` [B, N, L] and ``cross`` [B, L, J, k].
    """
    declared = spec.interactions
    shapes: dict[str, tuple[int | None, ...]] = {}
    if declared.similarity:
        shapes["similarity"] = (None, None, None, len(declared.similarity))
    if declared.category is not None:
        shapes["category_match"] = (None, None, None)
    if declared.cross:
        shapes["cross"] = (None, None, len(declared.cross), _cross_width(spec))
    return shapes


def tower_inputs(
    spec: FeatureSpec,
    rows: Mapping[str, tf.Tensor],
    embed: Embed,
    interactions: Collection[str] = (),
) -> dict[str, tf.Tensor]:
    """From table rows to the tower's inputs.

    Args:
        spec: The feature spec.
        rows: Int32 rows by model input, and ``history_age_seconds`` and ``history_length``.
        embed: ``embed(table, name)`` looks up the rows of one model input in a table (or in the
            frozen table ``CONTENT``, keyed like the item's own table) and adds the width's axis.
        interactions: Those of ``INTERACTIONS`` to compute; the spec must declare them.

    Returns:
        ``history`` [B, L, e_h], whose first e_t columns are the target's features,
        ``history_mask`` bool [B, L], ``history_age`` int32 [B, L],
        ``target`` [B, N, e_t] and, where the spec has such fields, ``candidate`` [B, N, e_x] and
        ``context`` [B, e_c]; then the ``interactions``.
    """
    vectors = {}
    if content_width(spec):
        vectors = {side: embed(CONTENT, f"{side}_item_id") for side in ("history", "candidate")}
    shared = len(inputs_of(spec, "target"))
    inputs: dict[str, tf.Tensor] = {}
    for key in tower_widths(spec):
        parts = [_embedded(each, rows, embed) for each in inputs_of(spec, key)]
        if vectors and key in ("history", "target"):
            parts.insert(shared, vectors["history" if key == "history" else "candidate"])
        inputs[key] = parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
    age = rows["history_age_seconds"]
    inputs["history_age"] = age
    inputs["history_mask"] = tf.range(tf.shape(age)[1]) < rows["history_length"][:, None]
    if "similarity" in interactions:
        inputs["similarity"] = _similarity(spec, vectors)
    if "category_match" in interactions:
        name = spec.interactions.category
        candidate, history = rows[f"candidate_{name}"], rows[f"history_{name}"]
        same = candidate[:, :, None] == history[:, None, :]
        inputs["category_match"] = same & (candidate > 0)[:, :, None]  # row 0 is not known
    if "cross" in interactions:
        inputs["cross"] = _cross(spec, embed)
    return inputs


def _embedded(each: ModelInput, rows: Mapping[str, tf.Tensor], embed: Embed) -> tf.Tensor:
    """[..., width]; several values of a field are pooled, those that are missing left out."""
    vectors = embed(each.table or "", each.name)
    if each.values is None:
        return vectors
    assert each.field is not None
    present = (rows[each.name] > 0)[..., None]
    if each.field.pool == "max":
        largest = tf.reduce_max(tf.where(present, vectors, vectors.dtype.min), axis=-2)
        return tf.where(tf.reduce_any(present, axis=-2), largest, 0.0)
    total = tf.reduce_sum(tf.where(present, vectors, 0.0), axis=-2)
    if each.field.pool == "sum":
        return total
    return total / tf.maximum(tf.reduce_sum(tf.cast(present, total.dtype), axis=-2), 1.0)


def _similarity(spec: FeatureSpec, vectors: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Cosines [B, N, L, m] of the declared content fields; zero where a vector is."""
    first, scores = 0, {}
    for name, field in spec.content_fields.items():
        assert field.shape is not None
        after = first + field.shape[0]
        if name in spec.interactions.similarity:
            candidate = tf.math.l2_normalize(vectors["candidate"][..., first:after], axis=-1)
            history = tf.math.l2_normalize(vectors["history"][..., first:after], axis=-1)
            scores[name] = tf.matmul(candidate, history, transpose_b=True)
        first = after
    return tf.stack([scores[name] for name in spec.interactions.similarity], axis=-1)


def _cross(spec: FeatureSpec, embed: Embed) -> tf.Tensor:
    """[B, L, J, k]: the cross features' embeddings, narrower ones filled up with zeros."""
    parts, width = [], _cross_width(spec)
    for name in spec.interactions.cross:
        field = spec.event_fields[name]
        vectors = embed(field.table or "", f"history_{name}")
        missing = width - spec.tables[field.table or ""].width
        parts.append(tf.pad(vectors, [[0, 0], [0, 0], [0, missing]]))
    return tf.stack(parts, axis=2)


def _cross_width(spec: FeatureSpec) -> int:
    fields = (spec.event_fields[name] for name in spec.interactions.cross)
    return max(spec.tables[field.table or ""].width for field in fields)
