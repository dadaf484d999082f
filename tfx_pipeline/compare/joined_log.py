"""The joined log of a comparison, made once and memory-mapped by all runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.seqvault_example_gen.impressions import Requests, check_rows, group_requests
from components.seqvault_example_gen.join import REQUESTS_PER_READ, Store, request_batch
from laser_features import FeatureSpec, ModelInput, build_model_inputs, history_fields
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import PipelineError

SPLITS = ("train", "eval")
_DONE = "joined.json"


@dataclass(frozen=True)
class JoinedLog:
    """Requests of a log with their histories, as rows of embedding tables.

    The join, the features and the bytes are those of the pipeline; only what Transform finds in a
    full pass (vocabularies, quantiles) is found here with NumPy, on the same values.

    Attributes:
        folder: Where the files lie.
        spec: The feature spec, with the history's length that was joined.
        fingerprint: Of the dataset.
    """

    folder: Path
    spec: FeatureSpec
    fingerprint: str

    @classmethod
    def make(
        cls,
        dataset: PreparedDataset,
        store: Store,
        folder: Path,
        length: int,
        fingerprint: str,
        progress: Progress = no_progress,
    ) -> JoinedLog:
        """Join, or use what was joined before with at least this length.

        Raises:
            PipelineError: The log lacks usable impressions, or a label that can be learned.
        """
        spec = with_length(dataset.spec, length)
        found = _kept(folder, fingerprint)
        if found is not None and found >= length:
            return cls(folder, with_length(spec, found), fingerprint)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        table = check_rows(pq.read_table(dataset.impressions_path), 0, spec).good
        times = table["timestamp"].to_numpy()
        for name in SPLITS:
            if name not in dataset.splits:
                raise PipelineError(f"{dataset.path} has no split {name}: prepare it again")
            start, end = dataset.splits[name]
            within = table.filter(pa.array((times >= start) & (times < end)))
            _check_labels(within, spec, name)
            requests = group_requests(within, spec)
            _write_split(requests, store, spec, folder, name, partial(progress, name))
        log = cls(folder, spec, fingerprint)
        log._to_rows()
        text = json.dumps({"fingerprint": fingerprint, "length": length})
        (folder / _DONE).write_text(text, encoding="utf-8")
        return cls(folder, spec, fingerprint)

    def __reduce__(self) -> tuple[type[JoinedLog], tuple[Path, FeatureSpec, str]]:
        # What is mapped stays here: another process maps the files itself.
        return JoinedLog, (self.folder, self.spec, self.fingerprint)

    def requests(self, split: str) -> int:
        """Number of requests of a split."""
        return len(self.of_request(split, "request_user_id"))

    def of_request(self, split: str, name: str) -> NDArray:
        """[R]: one number per request."""
        return self._arrays[split, name]

    def of_impressions(self, split: str, name: str) -> NDArray:
        """[I]: a value per impression, request after request."""
        return self._arrays[split, name]

    def users_of_impressions(self, split: str) -> NDArray[np.int64]:
        """[I]: who saw each impression."""
        counts = self.of_request(split, "candidate_count")
        return np.repeat(self.of_request(split, "request_user_id"), counts)

    def batch(
        self,
        split: str,
        chosen: NDArray,
        length: int,
        fixed: bool = False,
        more_labels: Sequence[str] = (),
    ) -> dict[str, NDArray]:
        """The model inputs of some requests, ``candidate_count`` and ``label``, padded.

        Args:
            split: ``train`` or ``eval``.
            chosen: Indices of requests.
            length: Newest events to keep.
            fixed: Pad histories to ``length``, not to the longest of the batch.
            more_labels: Added as ``label_<name>``.
        """
        counts = self.of_request(split, "candidate_count")[chosen]
        lengths = np.minimum(self.of_request(split, "history_length")[chosen], length)
        widest = length if fixed else max(1, int(lengths.max(initial=1)))
        padded = {
            "history": (self._starts[split, "history_length"][chosen], lengths, widest),
            "candidate": (self._starts[split, "candidate_count"][chosen], counts, counts.max()),
        }
        arrays: dict[str, NDArray] = {}
        for each in self.spec.model_inputs():
            values = self._arrays[split, each.name]
            if each.kind == "request":
                arrays[each.name] = np.asarray(values[chosen])
            else:
                arrays[each.name] = _pad(values, *padded[each.kind], each.values)
        arrays["history_length"] = lengths.astype(np.int32)
        arrays["candidate_count"] = counts.astype(np.int32)
        columns = {"label": f"label_{next(iter(self.spec.labels))}"}
        columns.update({f"label_{name}": f"label_{name}" for name in more_labels})
        for name, column in columns.items():
            values = self._arrays[split, column]
            arrays[name] = _pad(values, *padded["candidate"], None).astype(np.float32)
        return arrays

    @cached_property
    def _arrays(self) -> Mapping[tuple[str, str], NDArray]:
        arrays: dict[tuple[str, str], NDArray] = {}
        for split in SPLITS:
            for path in (self.folder / split).glob("*.bin"):
                name, kind = path.stem.rsplit(".", 1)
                empty = path.stat().st_size == 0
                arrays[split, name] = (
                    np.zeros(0, kind) if empty else np.memmap(path, dtype=kind, mode="r")
                )
        return arrays

    @cached_property
    def _starts(self) -> Mapping[tuple[str, str], NDArray[np.int64]]:
        """Where each request's events and candidates begin."""
        return {
            (split, name): np.cumsum(values, dtype=np.int64) - values
            for (split, name), values in self._arrays.items()
            if name in ("history_length", "candidate_count")
        }

    def _to_rows(self) -> None:
        """Replace raw ids and quantities by rows of their tables, found in the train split."""
        asked = [each for each in self.spec.model_inputs() if each.transform is not None]
        for group in {_group(each): None for each in asked}:
            inputs = [each for each in asked if _group(each) == group]
            values = np.concatenate([self._arrays["train", each.name] for each in inputs])
            to_row = _rows_of(inputs[0], self.spec, values)
            for each in inputs:
                for split in SPLITS:
                    old = next((self.folder / split).glob(f"{each.name}.*.bin"))
                    rows = to_row(np.asarray(self._arrays[split, each.name])).astype(np.int32)
                    rows.tofile(self.folder / split / f"{each.name}.int32.bin")
                    if old.name != f"{each.name}.int32.bin":
                        old.unlink()


def with_length(spec: FeatureSpec, length: int) -> FeatureSpec:
    """The spec with another length of the history."""
    return FeatureSpec.from_dict({**spec.to_dict(), "history": {"max_length": length}})


def _kept(folder: Path, fingerprint: str) -> int | None:
    """The length of a complete join of this dataset in a folder, if there is one."""
    try:
        kept = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return int(kept["length"]) if kept.get("fingerprint") == fingerprint else None


def _check_labels(table: pa.Table, spec: FeatureSpec, split: str) -> None:
    if not table.num_rows:
        raise PipelineError(f"split {split} holds no usable impression: prepare the dataset again")
    label = next(iter(spec.labels))
    values = np.unique(table[label].to_numpy())
    if len(values) < 2:
        raise PipelineError(
            f"label {label!r} is {values[0]} in all {table.num_rows:,} impressions of split "
            f"{split}: there is nothing to tell apart"
        )


def _write_split(
    requests: Requests,
    store: Store,
    spec: FeatureSpec,
    folder: Path,
    split: str,
    progress: Callable[[int, int], None],
) -> None:
    (folder / split).mkdir()
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}

        def write(name: str, values: NDArray) -> None:
            if name not in files:
                path = folder / split / f"{name}.{values.dtype.name}.bin"
                files[name] = stack.enter_context(path.open("wb"))
            np.ascontiguousarray(values).tofile(files[name])

        for first in range(0, len(requests), REQUESTS_PER_READ):
            part = requests.slice(first, min(first + REQUESTS_PER_READ, len(requests)))
            batch = request_batch(part, spec)
            history = store.read(
                batch.user_id,
                before=batch.time_ms,
                last_n=spec.max_history,
                fields=history_fields(spec),
            )
            inputs = build_model_inputs(spec, batch, history, store)
            events = np.arange(spec.max_history) < inputs["history_length"][:, None]
            width = batch.candidate_item_id.shape[1]
            candidates = np.arange(width) < batch.candidate_count[:, None]
            valid = {"history": events, "candidate": candidates}
            for each in spec.model_inputs():
                values = inputs[each.name]
                write(each.name, values if each.kind == "request" else values[valid[each.kind]])
            write("request_user_id", batch.user_id)
            write("candidate_count", batch.candidate_count)
            for name in spec.labels:
                write(f"label_{name}", np.concatenate(part.of_candidate(name)))
            progress(min(first + REQUESTS_PER_READ, len(requests)), len(requests))


def _group(model_input: ModelInput) -> tuple[str, str]:
    assert model_input.field is not None
    if model_input.transform == "vocabulary":
        return "vocabulary", str(model_input.table)
    return "quantiles", model_input.field.name


def _rows_of(
    model_input: ModelInput, spec: FeatureSpec, values: NDArray
) -> Callable[[NDArray], NDArray]:
    """A function from raw values to rows, as Transform and ``RowLookup`` would find them."""
    if model_input.transform == "vocabulary":
        ids, counts = np.unique(values[values != -1], return_counts=True)
        kept = np.lexsort((ids, -counts))[: spec.tables[str(model_input.table)].rows - 1]
        row = np.zeros(len(ids), np.int32)
        row[kept] = np.arange(1, len(kept) + 1)

        def by_id(raw: NDArray) -> NDArray:
            if not len(ids):
                return np.zeros(raw.shape, np.int32)
            place = np.minimum(np.searchsorted(ids, raw), len(ids) - 1)
            return np.where(ids[place] == raw, row[place], 0)

        return by_id
    assert model_input.field is not None and model_input.field.quantiles is not None
    buckets = model_input.field.quantiles
    known = values[~np.isnan(values)]
    shares = np.arange(1, buckets) / buckets
    limits = np.quantile(known, shares) if len(known) else np.zeros(0)

    def by_limit(raw: NDArray) -> NDArray:
        return np.where(np.isnan(raw), 0, 1 + np.searchsorted(limits, raw, side="right"))

    return by_limit


def _pad(
    values: NDArray, starts: NDArray, counts: NDArray, width: int, several: int | None
) -> NDArray:
    """[B, width] (or [B, width, several]): each row's values from its start on, then zeros."""
    place = np.arange(width)
    valid = place < counts[:, None]
    index = (starts[:, None] + place)[valid]
    if several is None:
        padded = np.zeros(valid.shape, values.dtype)
        padded[valid] = values[index]
        return padded
    padded = np.zeros((*valid.shape, several), values.dtype)
    padded[valid] = values.reshape(-1, several)[index]
    return padded
