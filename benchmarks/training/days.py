"""KuaiRand day by day against one training: AUC by day.

    python -m benchmarks.training.days --data FOLDER --output FILE

Three models, all with the same settings and the same Examples:

* day by day: each day is learned after it was predicted, to the end of the log;
* stopped: the same, but nothing is learned after the first ten days;
* at once: one training over the first ten days, whose files it mixes.

A day's training here goes on in the same process; one that begins from the last day's checkpoint
gives the same bits (``tests/tfx_pipeline/training/test_warm_start.py``). Limits are those of the
first day; ids new to a vocabulary are appended.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from benchmarks.training.provenance import provenance
from components.seqvault_example_gen.executor import write_records
from components.seqvault_example_gen.impressions import check_rows, group_requests
from components.seqvault_example_gen.join import join_requests
from components.seqvault_example_gen.open_store import open_store
from laser_features import FeatureSpec
from tfx_pipeline.config import load_config, with_training
from tfx_pipeline.datasets.prepare import prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.settings.section import plain
from tfx_pipeline.span import Span, clock_of
from tfx_pipeline.training.parsing import parse_examples
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer
from tfx_pipeline.training.warm_start import WarmStart

FIRST, DAYS, LEARNED = date(2022, 4, 25), 14, 10
REQUESTS_PER_FILE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of KuaiRand-Pure")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--day-epochs", type=int, help="passes over each day (the config's)")
    parser.add_argument(
        "--no-training-at-once", action="store_true", help="leave out what depends on no day"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    entries = {
        **provenance("days", arguments.seed),
        **result,
        "seconds": round(time.monotonic() - began, 1),
    }
    arguments.output.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(entries["by_day"], indent=1))


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Prepare, join, train and predict."""
    dataset = prepare(arguments.data, work / "dataset")
    load_store(dataset.path, work / "store")
    config = load_config("kuairand", dataset.path, work / "store", work / "run")
    config = with_training(config, seed=arguments.seed)
    spec = dataset.spec
    files = write_days(spec, dataset.impressions_path, str(work / "store"), work / "examples")
    days = list(files)
    settings = replace(config.training, shuffle_buffer=REQUESTS_PER_FILE)
    lookup = found_in(spec, files[days[0]])
    left = WarmStart.of_training(spec, config.model, settings, lookup)
    everything = [path for day in days[:LEARNED] for path in files[day]]
    lookup = left.extended(found_in(spec, everything), spec)

    by_day: dict[str, dict[str, Any]] = {day: {} for day in days[1:]}
    of_a_day = replace(settings, epochs=arguments.day_epochs or settings.epochs)
    rolling = Trainer(spec, config.model, of_a_day, lookup)
    for number, day in enumerate(days[1:], start=1):
        rolling.train(files[days[number - 1]])
        totals = rolling.evaluate(files[day])
        by_day[day] |= {"impressions": totals.impressions, "day_by_day": round(totals.auc, 4)}
        print(day, by_day[day], flush=True)
        if number == LEARNED:
            for later in days[LEARNED:]:
                by_day[later]["stopped"] = round(rolling.evaluate(files[later]).auc, 4)
    if not arguments.no_training_at_once:
        at_once = Trainer(spec, config.model, settings, lookup)
        at_once.train(everything)
        for day in days[LEARNED:]:
            by_day[day]["at_once"] = round(at_once.evaluate(files[day]).auc, 4)
    return {
        "model": plain(config.model),
        "training": plain(settings),
        "day_epochs": of_a_day.epochs,
        "learned_days": LEARNED,
        "by_day": by_day,
    }


def write_days(spec: FeatureSpec, log: Path, store: str, folder: Path) -> dict[str, list[str]]:
    """Join the log day by day; files of Examples by day."""
    table = check_rows(pq.read_table(log), 0, spec).good
    times = table["timestamp"].to_numpy()
    files: dict[str, list[str]] = {}
    with open_store(store) as vault:
        for number in range(DAYS):
            span = Span(FIRST + timedelta(days=number), clock_of(spec))
            within = (times >= span.train.start) & (times < span.train.end)
            requests = group_requests(table.filter(pa.array(within)), spec)
            examples = [each for part, _ in join_requests(requests, vault, spec) for each in part]
            (folder / str(span)).mkdir(parents=True)
            files[str(span)] = []
            for first in range(0, len(examples), REQUESTS_PER_FILE):
                path = str(folder / str(span) / f"data-{first:06d}.gz")
                write_records(path, examples[first : first + REQUESTS_PER_FILE])
                files[str(span)].append(path)
    return files


def found_in(spec: FeatureSpec, files: list[str]) -> RowLookup:
    """Vocabularies and limits of some Examples, as Transform finds them in a full pass."""
    asked = [each for each in spec.model_inputs() if each.transform is not None]
    values: dict[str, list[NDArray]] = {each.name: [] for each in asked}
    for batch in tf.data.TFRecordDataset(files, "GZIP").batch(1024):
        parsed = parse_examples(batch, spec)
        for each in asked:
            values[each.name].append(parsed[each.name].numpy().ravel())
    vocabularies, boundaries = {}, {}
    for each in asked:
        assert each.field is not None
        same = [other.name for other in asked if other.field == each.field]
        found = np.concatenate([part for name in same for part in values[name]])
        if each.transform == "vocabulary":
            ids, counts = np.unique(found[found != -1], return_counts=True)
            rows = spec.tables[str(each.table)].rows
            vocabularies[str(each.table)] = ids[np.lexsort((ids, -counts))][: rows - 1]
        else:
            assert each.field.quantiles is not None
            shares = np.arange(1, each.field.quantiles) / each.field.quantiles
            limits = np.quantile(found[~np.isnan(found)], shares)
            boundaries[each.field.name] = limits.astype(np.float32)
    return RowLookup(vocabularies, boundaries)


if __name__ == "__main__":
    main()
