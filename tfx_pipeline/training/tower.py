"""The LASER ranker of a feature spec: which features feed the tower, and the tower itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec, ModelInput
from laser_features.ids import model_values
from laser_keras.models.laser_ranker import LaserRanker
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.training.row_lookup import RowLookup

CONTENT = "content"
"""Name of the frozen table of content vectors."""


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
    """The model inputs embedded into one of the tower's inputs, in the spec's order."""
    return [model_input for model_input in spec.model_inputs() if tower_key(model_input) == key]


def tower_widths(spec: FeatureSpec) -> dict[str, int]:
    """Width of each of the tower's float inputs; those that the spec leaves empty are absent.

    Example:
        >>> spec = FeatureSpec.from_dict({
        ...     "name": "tiny", "history": {"max_length": 3},
        ...     "tables": {"item": {"rows": 10, "width": 4, "ids": "direct"}},
        ...     "event": {"item_id": {"type": "int64", "table": "item"}},
        ...     "label": {"click": {"type": "int8"}}})
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


def content_width(spec: FeatureSpec) -> int:
    """Width of all content vectors of an item together."""
    return sum(field.shape[0] for field in spec.content_fields.values() if field.shape)


def build_ranker(
    spec: FeatureSpec, settings: ModelSettings, seed: int, implementation: str = "auto"
) -> keras.Model:
    """The tower with initial weights that follow from the seed alone; it answers with logits.

    Args:
        spec: The feature spec.
        settings: Sizes and dropout.
        seed: Initial weights follow from it.
        implementation: Of the encoder; all compute the same. ``"absorb"`` is fastest for few
            candidates and with gradients, ``"auto"`` for many.

    Returns:
        A built ``LaserRanker`` that takes what ``tower_inputs`` returns.
    """
    keras.utils.set_random_seed(seed)
    ranker = LaserRanker(
        dim=settings.dim,
        segment_size=settings.segment_size,
        num_layers=settings.num_layers,
        num_recent_segments=settings.num_recent_segments,
        num_tokens=settings.num_tokens,
        mixer_dim=settings.mixer_dim,
        mixer_blocks=settings.mixer_blocks,
        dropout=settings.dropout,
        implementation=implementation,
        activation="linear",
    )
    widths = tower_widths(spec)
    shapes: dict[str, tuple[int | None, ...]] = {
        key: (None, width) if key == "context" else (None, None, width)
        for key, width in widths.items()
    }
    shapes["history_mask"] = shapes["history_age"] = (None, None)
    ranker.build(shapes)
    return ranker


def tower_inputs(
    spec: FeatureSpec, rows: Mapping[str, tf.Tensor], embed: Callable[[str, str], tf.Tensor]
) -> dict[str, tf.Tensor]:
    """From table rows to the tower's inputs.

    Args:
        spec: The feature spec.
        rows: Int32 rows by model input, and ``history_age_seconds`` and ``history_length``.
        embed: ``embed(table, name)`` looks up the rows of one model input in a table (or in the
            frozen table ``CONTENT``, keyed like the item's own table) and adds the width's axis.

    Returns:
        ``history`` [B, L, e_h], ``history_mask`` bool [B, L], ``history_age`` int32 [B, L],
        ``target`` [B, N, e_t] and, where the spec has such fields, ``candidate`` [B, N, e_x] and
        ``context`` [B, e_c].
    """
    inputs: dict[str, tf.Tensor] = {}
    for key in tower_widths(spec):
        parts = [embed(each.table or "", each.name) for each in inputs_of(spec, key)]
        if key in ("history", "target") and content_width(spec):
            side = "history" if key == "history" else "candidate"
            parts.append(embed(CONTENT, f"{side}_item_id"))
        inputs[key] = parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)
    age = rows["history_age_seconds"]
    inputs["history_age"] = age
    inputs["history_mask"] = tf.range(tf.shape(age)[1]) < rows["history_length"][:, None]
    return inputs


def content_vectors(
    spec: FeatureSpec, items: str | Path | None, lookup: RowLookup
) -> NDArray[np.float32] | None:
    """The frozen table of content vectors, one row per row of the item's table.

    Args:
        spec: The feature spec.
        items: Parquet file with ``item_id`` and the content fields.
        lookup: Finds an item's row where the item's table has a vocabulary.

    Returns:
        float32 [rows of the item's table, sum of the fields' widths], zeros for items without a
        vector; None if the spec has no content fields.

    Raises:
        ValueError: The spec has content fields but no items are given, or a vector does not fit.
    """
    if not spec.content_fields:
        return None
    if items is None:
        names = sorted(spec.content_fields)
        raise ValueError(f"the feature spec has the content fields {names}; name the items' file")
    item_id = spec.event_fields["item_id"]
    table = spec.tables[item_id.table or ""]
    columns = pq.read_table(items, columns=["item_id", *spec.content_fields])
    rows = model_values(item_id, table, columns["item_id"].to_numpy())
    if table.ids == "vocabulary":
        rows = lookup.ids(table.name, tf.constant(rows)).numpy()
    vectors = np.zeros((table.rows, content_width(spec)), np.float32)
    vectors[rows] = np.concatenate(list(_content_columns(spec, columns, str(items))), axis=1)
    vectors[0] = 0.0
    return vectors


def _content_columns(spec: FeatureSpec, columns: Any, source: str) -> Iterator[NDArray[np.float32]]:
    for name, field in spec.content_fields.items():
        assert field.shape is not None
        values = columns[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(values) != len(columns) * field.shape[0]:
            raise ValueError(
                f"{source}: column {name!r} holds {len(values)} numbers for {len(columns)} items; "
                f"expected {field.shape[0]} per item"
            )
        yield values.reshape(-1, field.shape[0]).astype(np.float32)
