"""The adapter for your own data: three tables and a feature spec, from any source.

A folder with ``features.yaml``, ``events.parquet``, ``items.parquet`` and ``impressions.parquet``.
Columns, their types and units are checked against the spec; rows may come in any order. The newest
fifth of the impressions evaluates the model, unless the pipeline's config gives other splits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laser_features import FeatureSpec, FeatureSpecError
from laser_features.arrow_columns import to_type
from laser_features.errors import ColumnTypeError
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.reading import checked_ms, find_file, read_parquet
from tfx_pipeline.errors import DatasetError

TRAIN_SHARE = 0.8


def is_own_tables(folder: Path) -> bool:
    """Whether the folder holds a feature spec or impressions, which no published dataset has."""
    return any((folder / name).is_file() for name in ("features.yaml", "impressions.parquet"))


def read_own_tables(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read the three tables that a feature spec describes.

    Raises:
        DatasetError: A file or column is missing or unreadable, or the spec is not valid.
    """
    try:
        spec = FeatureSpec.load(folder / "features.yaml")
    except FeatureSpecError as error:
        raise DatasetError(str(error)) from error
    schemas = {
        "events": spec.event_schema(),
        "items": spec.item_schema(),
        "impressions": spec.impression_schema(),
    }
    tables: dict[str, pa.Table] = {}
    for done, (name, schema) in enumerate(schemas.items(), start=1):
        optional = ["request_id"] if name == "impressions" else []
        path = find_file(folder, f"{name}.parquet")
        tables[name] = read_parquet(path, schema.names, optional)
        progress("read tables", done, len(schemas))
    times = checked_ms(_times(tables["impressions"]), "impressions.parquet: timestamp")
    return DatasetTables(
        spec=spec,
        events=tables["events"],
        items=tables["items"],
        impressions=tables["impressions"],
        splits=newest_fifth(times),
        source=f"own tables in {folder.name}",
    )


def newest_fifth(times: NDArray[np.int64]) -> dict[str, tuple[int, int]]:
    """Splits of which the newest fifth of the impressions evaluates.

    Example:
        >>> newest_fifth(np.arange(10))
        {'train': (0, 8), 'eval': (8, 10)}
    """
    cut = int(np.sort(times)[int(TRAIN_SHARE * len(times))])
    return {"train": (int(times.min()), cut), "eval": (cut, int(times.max()) + 1)}


def _times(impressions: pa.Table) -> NDArray[np.int64]:
    try:
        times = to_type(impressions["timestamp"], pa.int64(), "impressions.timestamp")
    except ColumnTypeError as error:
        raise DatasetError(str(error)) from error
    return pc.fill_null(times, 0).to_numpy()
