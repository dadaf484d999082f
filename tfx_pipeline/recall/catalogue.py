"""The catalogue: every item of the prepared dataset, as the item tower takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.seqvault_example_gen.impressions import open_parquet
from laser_features import FeatureSpec
from laser_features.ids import model_values
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.recall.recall_spec import item_inputs

ITEM_ID = "item_id"


def read_catalogue(spec: FeatureSpec, items: str | Path) -> dict[str, NDArray]:
    """Read all items, one entry each.

    Args:
        spec: What ``recall_spec`` left of the feature spec.
        items: Parquet file with ``item_id`` and the item fields, a path or a URI.

    Returns:
        ``item_id``, int64 [items], and each input of the item tower as an Example would hold it:
        [items], or [items, V] of a field that holds several values.

    Raises:
        PipelineError: A column is missing.
        ImpressionsError: The file cannot be read.
    """
    inputs = item_inputs(spec)
    names = [each.field.name for each in inputs if each.field is not None]
    file = open_parquet(str(items))
    if missing := sorted(set(names) - set(file.schema_arrow.names)):
        raise PipelineError(
            f"{items} has no column {missing[0]!r}, which the feature spec names: prepare the "
            "dataset again"
        )
    columns = file.read(names)
    catalogue = {ITEM_ID: columns[ITEM_ID].to_numpy().astype(np.int64)}
    for each in inputs:
        assert each.field is not None and each.table is not None
        column = columns[each.field.name].combine_chunks()
        raw = column.flatten() if each.values is not None else column
        values = raw.fill_null(each.field.missing).to_numpy(zero_copy_only=False)
        if each.values is not None:
            values = values.reshape(-1, each.values)
        rows = model_values(each.field, spec.tables[each.table], values)
        catalogue[each.name] = rows.astype(each.dtype, copy=False)
    return catalogue
