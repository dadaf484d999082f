"""What click counters that run on through the test days could add to counters frozen before them.

    python -m benchmarks.kuairand.counters --data FOLDER

FOLDER is a prepared dataset of KuaiRand (`laser-pipeline prepare`). For items, users and their
pairs with the scenario, the smoothed click rate up to each impression is scored by its AUC on the
test days, once counting only training days and once everything before the impression.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from tfx_pipeline.datasets import PreparedDataset

_KEYS = (["item_id"], ["item_id", "scenario"], ["user_id"], ["user_id", "scenario"])
_PRIOR = 20.0


def click_rate(log: pd.DataFrame, keys: list[str], counted: pd.Series) -> pd.Series:
    """Smoothed click rate of each row's keys over the counted rows strictly above it."""
    groups = [log[key] for key in keys]
    clicks = (log["click"] * counted).groupby(groups).cumsum() - log["click"] * counted
    shown = counted.astype(float).groupby(groups).cumsum() - counted
    overall = log["click"][counted].mean()
    return (clicks + _PRIOR * overall) / (shown + _PRIOR)


def measure(dataset: PreparedDataset) -> dict[str, dict[str, float]]:
    """AUC on the test days by keys: ``frozen`` before them and ``running`` through them."""
    columns = ["timestamp", "user_id", "item_id", "scenario", "click"]
    log = pd.read_parquet(dataset.impressions_path, columns=columns)
    log = log.sort_values("timestamp", kind="stable", ignore_index=True)
    (train_from, train_to), (test_from, test_to) = dataset.splits["train"], dataset.splits["eval"]
    train = log["timestamp"].between(train_from, train_to, inclusive="left")
    test = log["timestamp"].between(test_from, test_to, inclusive="left")
    found = {}
    for keys in _KEYS:
        rates = {
            "frozen": click_rate(log, keys, train),
            "running": click_rate(log, keys, train | test),
        }
        found[" x ".join(keys)] = {
            name: round(float(roc_auc_score(log["click"][test], np.asarray(rate[test]))), 4)
            for name, rate in rates.items()
        }
    return found


def main() -> None:
    """Print the result and write it beside the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset of KuaiRand")
    output = Path(__file__).parent / "results" / "counters.json"
    parser.add_argument("--output", type=Path, default=output)
    arguments = parser.parse_args()
    result = {
        "command": "python -m benchmarks.kuairand.counters",
        "machine": platform.platform(),
        "seed": None,
        "test_auc": measure(PreparedDataset.load(arguments.data)),
    }
    text = json.dumps(result, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
