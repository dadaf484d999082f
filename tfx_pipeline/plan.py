"""Estimates of a run before it starts: rows per split, steps, memory and time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.seqvault_example_gen.time_range import format_ms
from laser_features import FeatureSpec
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import PipelineError

# Measured on two cores with the demo and with KuaiRand (their raw results are in benchmarks/):
# good for the order of magnitude on another machine, no more.
_JOIN_SECONDS_PER_REQUEST = 8e-4
_TRAIN_SECONDS_PER_REQUEST = 2.5e-4
_TRAIN_SECONDS_PER_EVENT_AND_WIDTH = 1.6e-7
_MEASURED_CORES = 2
_OTHER_SECONDS = 90.0
_LIBRARIES_BYTES = 1.5 * 2**30
# Of each event in a batch training keeps about this many float32 vectors of width ``dim``.
_VECTORS_PER_EVENT = 12


@dataclass(frozen=True)
class SplitPlan:
    """The contents of one split's time range."""

    impressions: int = 0
    requests: int = 0

    def __add__(self, other: SplitPlan) -> SplitPlan:
        return SplitPlan(self.impressions + other.impressions, self.requests + other.requests)


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        splits: By name, what lies in it; requests are counted as if the log were in the order of
            time, as prepared datasets are.
        outside: Impressions outside every split; nothing reads them.
        steps: Training steps of all epochs, about.
        table_bytes: Of the embedding tables with what Adagrad keeps.
        peak_bytes: Of the training process, about.
        seconds: Of a run that finds nothing in the cache, about.
    """

    splits: dict[str, SplitPlan]
    outside: int
    steps: int
    table_bytes: int
    peak_bytes: int
    seconds: float

    def lines(self) -> list[str]:
        """The plan for people."""
        rows = [
            f"{name}: {split.impressions:,} impressions in about {split.requests:,} requests"
            for name, split in self.splits.items()
        ]
        if self.outside:
            rows.append(f"outside every split: {self.outside:,} impressions")
        return [
            *rows,
            f"training steps: about {self.steps:,}",
            f"embedding tables: {_bytes(self.table_bytes)} with their optimiser's state",
            f"memory of the Trainer: about {_bytes(self.peak_bytes)}",
            f"time: about {_time(self.seconds)} on {os.cpu_count()} cores, if nothing is cached "
            "(a rough estimate)",
        ]


def make_plan(config: PipelineConfig) -> Plan:
    """Read the log's times and estimate a run of this config.

    Raises:
        PipelineError: A split holds no impression, or the log cannot be read.
    """
    spec, training, dim = config.load_spec(), config.training, config.model.dim
    splits, outside = _count(config)
    for name, split in splits.items():
        if not split.impressions:
            raise _empty(config, name)
    requests = sum(split.requests for split in splits.values())
    trained = splits["train"].requests
    steps = training.epochs * max(1, -(-trained // training.batch_size))
    history = spec.max_history
    tables = sum(table.rows * table.width for table in spec.tables.values()) * 4 * 2
    at_once = training.batch_size / training.micro_batches
    batch = at_once * history * dim * 4 * _VECTORS_PER_EVENT
    buffer = training.shuffle_buffer * _example_bytes(spec)
    train_seconds = (
        training.epochs
        * trained
        * (_TRAIN_SECONDS_PER_REQUEST + history * dim * _TRAIN_SECONDS_PER_EVENT_AND_WIDTH)
    )
    scale = _MEASURED_CORES / (os.cpu_count() or 1)
    return Plan(
        splits=splits,
        outside=outside,
        steps=steps,
        table_bytes=tables,
        # The tables lie there a second time while the model is exported.
        peak_bytes=round(_LIBRARIES_BYTES + 1.5 * tables + batch + buffer),
        seconds=_OTHER_SECONDS + requests * _JOIN_SECONDS_PER_REQUEST + train_seconds * scale,
    )


def check_splits(config: PipelineConfig) -> None:
    """Raise if a split lies outside the log; reads the log's statistics alone.

    Raises:
        PipelineError: Names the split, its range and the log's.
    """
    first, last = _log_range(config.dataset / "impressions.parquet")
    for name, split in config.splits.items():
        if split.end <= first or split.start > last:
            raise _empty(config, name)


def _empty(config: PipelineConfig, name: str) -> PipelineError:
    first, last = _log_range(config.dataset / "impressions.parquet")
    return PipelineError(
        f"split {name} ({config.splits[name]}) holds no impression: the log lies within "
        f"{format_ms(first)} and {format_ms(last)}; give time ranges that it covers"
    )


def _log_range(path: Path) -> tuple[int, int]:
    log = _open(path)
    column = log.schema_arrow.get_field_index("timestamp")
    if column < 0:
        raise PipelineError(f"{path} lacks the column timestamp: prepare the dataset again")
    groups = [log.metadata.row_group(group) for group in range(log.num_row_groups)]
    found = [group.column(column).statistics for group in groups if group.num_rows]
    if not found:
        raise PipelineError(f"{path} holds no impressions: prepare the dataset again")
    if all(each is not None and each.has_min_max for each in found):
        return int(min(each.min for each in found)), int(max(each.max for each in found))
    times = pa.concat_arrays([batch.column(0) for batch in log.iter_batches(columns=["timestamp"])])
    return int(times.drop_null().to_numpy().min()), int(times.drop_null().to_numpy().max())


def _count(config: PipelineConfig) -> tuple[dict[str, SplitPlan], int]:
    splits = dict.fromkeys(config.splits, SplitPlan())
    rows = outside = 0
    for times, is_new in _requests(config.dataset / "impressions.parquet"):
        rows += len(times)
        within_any = np.zeros(len(times), bool)
        for name, split in config.splits.items():
            within = (times >= split.start) & (times < split.end)
            within_any |= within
            splits[name] += SplitPlan(int(within.sum()), int((within & is_new).sum()))
        outside += int((~within_any).sum())
    return splits, outside


def _requests(path: Path) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Times of the impressions, and which of them begin a request."""
    log = _open(path)
    names = ["timestamp", "user_id", "request_id"]
    columns = [name for name in names if name in log.schema_arrow.names]
    before = None
    try:
        for batch in log.iter_batches(columns=columns):
            keys = np.stack(
                [
                    batch.column(name).cast(pa.int64(), safe=False).fill_null(-1).to_numpy()
                    for name in columns
                ]
            )
            previous = keys[:, :1] if before is None else before
            is_new = (np.diff(keys, axis=1, prepend=previous) != 0).any(axis=0)
            is_new[:1] |= before is None
            before = keys[:, -1:]
            yield keys[0], is_new
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(f"{path} cannot be read ({error}): prepare it again") from error


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(
            f"{path} cannot be read as Parquet ({reason}): prepare the dataset again"
        ) from error


def _example_bytes(spec: FeatureSpec) -> int:
    history = sum(entry.kind == "history" for entry in spec.model_inputs())
    return 3 * history * spec.max_history


def _bytes(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
