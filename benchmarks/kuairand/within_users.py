"""Why DIN is ahead in gAUC on KuaiRand: what gAUC makes of the clicks just seen.

    python -m benchmarks.kuairand.within_users --data FOLDER --work WORK

FOLDER is a prepared dataset of KuaiRand, WORK the folder of a finished
`laser-pipeline compare --config benchmarks/paper/kuairand.yaml`. A user whose four test impressions
hold one click has fewer clicks ahead of him once it has happened, so within a user a score that
rises with the clicks just seen orders worse, however well it predicts. The script shows it on click
rates, then measures for each model how its logit moves with that rate within users, and gAUC once
this linear part is taken out of the logit.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.kuairand.counters import click_rate
from tfx_pipeline.compare.joined_log import JoinedLog
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.ranking_metrics import auc, group_auc


def rates_of_users(dataset: PreparedDataset) -> pd.DataFrame:
    """Test impressions by time: user, click, his click rate before the test and up to each."""
    columns = ["timestamp", "user_id", "click"]
    log = pd.read_parquet(dataset.impressions_path, columns=columns)
    log = log.sort_values("timestamp", kind="stable", ignore_index=True)
    (train_from, train_to), (test_from, test_to) = dataset.splits["train"], dataset.splits["eval"]
    train = log["timestamp"].between(train_from, train_to, inclusive="left")
    test = log["timestamp"].between(test_from, test_to, inclusive="left")
    log["frozen"] = click_rate(log, ["user_id"], train)
    log["running"] = click_rate(log, ["user_id"], train | test)
    return log[test].reset_index(drop=True)


def slope_within(users: NDArray, rise: NDArray, logits: NDArray) -> float:
    """How much the logit moves per unit of the rate, within users (least squares)."""
    rise, logits = _less_mean(users, rise), _less_mean(users, logits)
    return float(rise @ logits / (rise @ rise))


def measure_rates(test: pd.DataFrame) -> dict[str, dict[str, float]]:
    """AUC and gAUC of the click rate itself."""
    return {
        name: {
            "auc": round(auc(test["click"], test[name]), 4),
            "gauc": round(group_auc(test["user_id"], test["click"], test[name]), 4),
        }
        for name in ("frozen", "running")
    }


def measure_run(test: pd.DataFrame, scores: NDArray) -> dict[str, float]:
    """gAUC of one run as it is, its slope, and gAUC without the part that follows the rate."""
    users, rise = test["user_id"].to_numpy(), (test["running"] - test["frozen"]).to_numpy()
    logits = np.log(scores) - np.log1p(-scores)
    slope = slope_within(users, rise, logits)
    return {
        "gauc": round(group_auc(users, test["click"], logits), 4),
        "slope": round(slope, 2),
        "gauc_without": round(group_auc(users, test["click"], logits - slope * rise), 4),
    }


def in_order_of(joined: JoinedLog, test: pd.DataFrame) -> pd.DataFrame:
    """`test` in the order of the scores: that of the joined impressions; a user's stay by time."""
    ordered = pd.DataFrame({"user_id": joined.users_of_impressions("eval")})
    ordered["turn"] = ordered.groupby("user_id").cumcount()
    turns = test.assign(turn=test.groupby("user_id").cumcount())
    found = ordered.merge(turns, on=["user_id", "turn"], how="left")
    if not np.array_equal(found["click"], joined.of_impressions("eval", "label_click")):
        raise SystemExit(f"{joined.folder} was not joined from this dataset: the clicks differ")
    return found


def _less_mean(users: NDArray, values: NDArray) -> NDArray:
    _, user = np.unique(users, return_inverse=True)
    return values - (np.bincount(user, values) / np.bincount(user))[user]


def main() -> None:
    """Print the result and write it beside the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a prepared dataset of KuaiRand")
    parser.add_argument("--work", type=Path, required=True, help="the folder of a finished compare")
    output = Path(__file__).parent / "results" / "within_users.json"
    parser.add_argument("--output", type=Path, default=output)
    arguments = parser.parse_args()
    dataset = PreparedDataset.load(arguments.data)
    test = rates_of_users(dataset)
    joined = in_order_of(JoinedLog(arguments.work / "joined", dataset.spec, ""), test)
    result = {
        "command": "python -m benchmarks.kuairand.within_users --data FOLDER --work WORK",
        "machine": platform.platform(),
        "seed": None,
        "rates": measure_rates(test),
        "runs": {
            path.stem: measure_run(joined, np.load(path).astype(np.float64))
            for path in sorted((arguments.work / "scores").glob("*.npy"))
        },
    }
    text = json.dumps(result, indent=1)
    arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
