"""Recall@k of the recall model on the demo's log, beside that of the most clicked items.

    python -m benchmarks.recall.demo --work FOLDER --output benchmarks/recall/results/demo.json

The pipeline joins the log once and trains a small ranker, which the recall model has nothing to do
with; each further seed takes both from the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
from importlib import metadata
from pathlib import Path

from benchmarks.training.provenance import provenance
from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import GeneratorSettings, prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.runners.local import run_local

RANKER = {"system": "din", "dim": 8, "mixer": "mlp", "mixer_dim": 8}


def main() -> None:
    """Run the pipeline once per seed and write what each found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    generator = GeneratorSettings()
    dataset = prepare(None, arguments.work / "dataset", generator=generator)
    load_store(dataset.path, arguments.work / "store", replace=True)
    runs = []
    for seed in arguments.seeds:
        overrides = {
            "model": RANKER,
            "training": {"epochs": 1},
            "min_auc": 0.0,
            "max_auc_drop": 1.0,
            "recall": {"k": arguments.k, "seed": seed},
        }
        where = dataset.path, arguments.work / "store", arguments.work / "run"
        report = run_local(load_config("demo", *where, overrides))
        found = {name: value for name, value in report["recall"].items() if name != "pushed"}
        runs.append({"seed": seed, **found, "seconds": report["seconds"]["RecallTrainer"]})
    versions = {name: metadata.version(name) for name in ("tensorflow-recommenders", "tf-keras")}
    described = provenance("demo", generator.seed)
    described["command"] = described["command"].replace("benchmarks.training", "benchmarks.recall")
    result = {
        **described,
        "versions": versions,
        "settings": overrides["recall"],
        "recall": statistics.mean(run["recall"] for run in runs),
        "floor": runs[0]["floor"],
        "runs": runs,
    }
    text = json.dumps(result, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
