"""Trains and evaluates on KuaiRand-Pure with the pipeline; see ``README.md`` in this folder.

python -m benchmarks.kuairand.run --data FOLDER --seed 17
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tfx_pipeline.config import load_config, with_training
from tfx_pipeline.datasets.prepare import prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.results.click_rate_floors import click_rate_floors
from tfx_pipeline.runners.local import run_local
from tfx_pipeline.settings.section import plain

HERE = Path(__file__).parent
# Test AUC of other models on the same split, from the dataset's published floors.
FLOORS = {
    "streaming logistic regression": 0.740,
    "embedding network without history": 0.733,
    "gated sum over the last 50 events": 0.755,
    "boosted trees with history windows": 0.756,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of KuaiRand-Pure")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--config", default="kuairand", help="YAML file, or one of the package")
    parser.add_argument("--output", type=Path, help="JSON file; default results/seed<seed>.json")
    arguments = parser.parse_args()
    output = arguments.output or HERE / "results" / f"seed{arguments.seed}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.data, arguments.config, arguments.seed, Path(folder))
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    whole = result["evaluation"][""]
    print(f"{output}: AUC {whole['auc']:.4f}, gAUC {whole['gauc']:.4f}")


def measure(data: Path, config: str, seed: int, work: Path) -> dict[str, Any]:
    """Prepare, load, run the pipeline once; everything a reader needs to judge the result."""
    started = time.monotonic()
    dataset = prepare(data, work / "dataset")
    load_store(dataset.path, work / "store")
    settings = load_config(config, dataset.path, work / "store", work / "run")
    settings = with_training(settings, seed=seed)
    report = run_local(settings)
    click_rates = click_rate_floors(
        dataset.path / "impressions.parquet", dataset.spec, dataset.splits
    )
    return {
        "command": f"python -m benchmarks.kuairand.run --data FOLDER --seed {seed}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "python": platform.python_version(),
        "dataset": {"counts": dataset.counts, "splits_ms": dataset.splits},
        "model": plain(settings.model),
        "training": plain(settings.training),
        "evaluation": report["evaluation"],
        "train": report["training"],
        "floors": {**FLOORS, **click_rates},
        "seconds": {"all": round(time.monotonic() - started, 1), **report["seconds"]},
    }


if __name__ == "__main__":
    main()
