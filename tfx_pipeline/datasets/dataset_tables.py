"""The output of a dataset adapter."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from laser_features import FeatureSpec


@dataclass(frozen=True)
class DatasetTables:
    """Three tables, their feature spec and the splits, not yet checked or written.

    Attributes:
        spec: The feature spec.
        events: Columns of ``spec.event_schema()``, any order of rows.
        items: Columns of ``spec.item_schema()``.
        impressions: Columns of ``spec.impression_schema()``, maybe with ``request_id``.
        splits: Name to ``(from_ms, to_ms)``, the end excluded.
        source: Where the data comes from, for people.
        facts: Anything else worth keeping in ``dataset.json``.
    """

    spec: FeatureSpec
    events: pa.Table
    items: pa.Table
    impressions: pa.Table
    splits: dict[str, tuple[int, int]]
    source: str
    facts: dict[str, object] = field(default_factory=dict)
