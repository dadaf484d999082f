"""The requests of a log by split and shard, as the join of the pipeline would write them."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache

import numpy as np
import pyarrow as pa

from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.impressions import (
    Requests,
    check_columns,
    check_rows,
    group_requests,
    open_parquet,
    without_some_negatives,
)
from components.seqvault_example_gen.shards import TRAIN_SPLIT, number_of_shards, shard_of_users
from laser_features import FeatureSpec
from tfx_pipeline.config import PipelineConfig

_CACHED_SHARDS = 8


class RequestShards:
    """Reads and checks the impressions of all splits once; groups a shard when it is asked for.

    A shard holds the requests that a file of Examples would, in the same order: the same config
    and log give the same shards, whoever reads them. Impressions stay in memory.

    Args:
        config: Dataset, splits, rows per file and share of negatives.
        spec: The dataset's feature spec.

    Attributes:
        negative_rate: Share of the train split's negatives that were kept.
        malformed: Impressions that were left out, by reason.

    Raises:
        ImpressionsError: The log cannot be read, too many of its rows are malformed, or a split
            is empty.
    """

    def __init__(self, config: PipelineConfig, spec: FeatureSpec) -> None:
        self._spec = spec
        self.negative_rate = config.negative_rate
        self.malformed: Counter[str] = Counter()
        path = os.path.join(config.dataset, "impressions.parquet")
        log = open_parquet(path)
        check_columns(log.schema_arrow, spec, path)
        shards = number_of_shards(log.metadata.num_rows, config.rows_per_file)
        kept: dict[str, list[pa.Table]] = {name: [] for name in config.splits}
        first_row = 0
        for group in range(log.num_row_groups):
            table = log.read_row_group(group)
            checked = check_rows(table, first_row, spec)
            first_row += table.num_rows
            self.malformed.update(checked.reasons)
            times = checked.good.column("timestamp").to_numpy()
            for name, part in config.splits.items():
                rows = checked.good.filter(pa.array((times >= part.start) & (times < part.end)))
                if name == TRAIN_SPLIT:
                    label = next(iter(spec.labels))
                    rows = without_some_negatives(rows, label, config.negative_rate)
                kept[name].append(rows)
        self._refuse_malformed(path, first_row, config.max_bad_fraction)
        self._rows: dict[str, pa.Table] = {}
        self._starts: dict[str, np.ndarray] = {}
        for name, tables in kept.items():
            rows = pa.concat_tables(tables)
            if not rows.num_rows:
                raise ImpressionsError(
                    f"{path}: split {name} ({config.splits[name]}) holds no impressions: give "
                    "time ranges that the log covers"
                )
            shard = shard_of_users(rows.column("user_id").to_numpy(), shards).astype(np.int64)
            order = np.argsort(shard, kind="stable")
            self._rows[name] = rows.take(pa.array(order))
            self._starts[name] = np.searchsorted(shard[order], np.arange(shards + 1))
        self.requests = lru_cache(_CACHED_SHARDS)(self._requests)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._rows)

    def numbers(self, split: str) -> list[int]:
        """Numbers of the shards of a split that hold requests; the join writes no others."""
        return np.flatnonzero(np.diff(self._starts[split])).tolist()

    def impressions(self, split: str) -> int:
        """Impressions of a split."""
        return int(self._rows[split].num_rows)

    def _requests(self, split: str, shard: int) -> Requests:
        """The requests of a shard, in the order of time."""
        first, last = self._starts[split][shard : shard + 2]
        return group_requests(self._rows[split].slice(first, last - first), self._spec)

    def _refuse_malformed(self, path: str, rows: int, bound: float) -> None:
        total = sum(self.malformed.values())
        if total > bound * rows:
            reasons = ", ".join(f"{count} x {why}" for why, count in self.malformed.most_common())
            raise ImpressionsError(
                f"{path}: {total} of {rows} impressions ({total / rows:.1%}) are malformed, above "
                f"the bound of {bound:.1%}: {reasons}. Correct the log, or raise max_bad_fraction "
                "to go on without these rows."
            )
