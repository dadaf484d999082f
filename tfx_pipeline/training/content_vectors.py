"""The frozen table of content vectors, keyed by the rows of the item's table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from components.seqvault_example_gen.impressions import open_parquet
from laser_features import FeatureSpec
from laser_features.ids import model_values
from tfx_pipeline.training.row_lookup import RowLookup

CONTENT = "content"
"""Name of the frozen table of content vectors."""


def content_width(spec: FeatureSpec) -> int:
    """Width of all content vectors of an item together."""
    return sum(field.shape[0] for field in spec.content_fields.values() if field.shape)


def content_vectors(
    spec: FeatureSpec, items: str | Path | None, lookup: RowLookup
) -> NDArray[np.float32] | None:
    """The frozen table of content vectors, one row per row of the item's table.

    Args:
        spec: The feature spec.
        items: Parquet file with ``item_id`` and the content fields, a path or a URI.
        lookup: Finds an item's row where the item's table has a vocabulary.

    Returns:
        float32 [rows of the item's table, sum of the fields' widths], zeros for items without a
        vector; None if the spec has no content fields.

    Raises:
        ValueError: The spec has content fields but no items are given, or a vector does not fit.
        ImpressionsError: The file cannot be read.
    """
    if not spec.content_fields:
        return None
    if items is None:
        names = sorted(spec.content_fields)
        raise ValueError(f"the feature spec has the content fields {names}; name the items' file")
    item_id = spec.event_fields["item_id"]
    table = spec.tables[item_id.table or ""]
    columns = open_parquet(str(items)).read(["item_id", *spec.content_fields])
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
