"""Train this package's DIN as ``run_fuxictr.py`` trains FuxiCTR's, on the same split.

python -m benchmarks.fuxictr.run_laser --split SPLIT.npz --output results/laser.json

The same inputs, embeddings and batches, the same optimiser, and the rules of FuxiCTR's trainer:
gradients clipped at a norm of 10, a tenth of the learning rate after an epoch without a better
validation AUC, an end after the second such epoch in a row, and the best epoch's weights judged
once on the test part. Runs that the output holds already are kept, so that a stopped command goes
on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from benchmarks.recbole.run_laser import part, ranker_of, scores, table_rows, without_user
from benchmarks.training.provenance import machine
from laser_keras import DINEncoder
from tfx_pipeline.ranking_metrics import auc, log_loss

UNITS: dict[str, Any] = {
    "target_attention": lambda: DINEncoder(unit="target_attention"),
    # The width of FuxiCTR's template.
    "activation_unit": lambda: DINEncoder(unit="activation_unit", hidden_units=(64,)),
}
EPOCHS, PATIENCE, BATCH = 100, 2, 512
RATE, LEAST_RATE, CLIP, EPSILON = 1e-3, 1e-6, 10.0, 1e-8
_MIN_DELTA = 1e-6


def train(
    unit: str, user: bool, dropout: float, seed: int, parts: dict[str, Any]
) -> dict[str, Any]:
    """One run: fit until the validation AUC has not risen for two epochs."""
    keras.utils.set_random_seed(seed)
    began = time.monotonic()
    rows = table_rows(parts)
    if not user:
        parts = {name: (without_user(inputs), labels) for name, (inputs, labels) in parts.items()}
        del rows["user_id"]
    ranker = ranker_of(UNITS[unit](), rows, dropout)
    optimizer = keras.optimizers.Adam(RATE, epsilon=EPSILON, global_clipnorm=CLIP)
    ranker.compile(optimizer, "binary_crossentropy", jit_compile=False)
    best, weights, waited, valid = -1.0, None, 0, []
    for _ in range(EPOCHS):
        ranker.fit(*parts["train"], batch_size=BATCH, verbose=0)
        valid.append(auc(parts["valid"][1][:, 0], scores(ranker, parts["valid"][0])))
        if valid[-1] >= best + _MIN_DELTA:
            best, weights, waited = valid[-1], ranker.get_weights(), 0
            continue
        waited += 1
        optimizer.learning_rate = max(float(optimizer.learning_rate) * 0.1, LEAST_RATE)
        if waited == PATIENCE:
            break
    ranker.set_weights(weights)
    labels, found = parts["test"][1][:, 0], scores(ranker, parts["test"][0])
    return {
        "unit": unit,
        "user": user,
        "dropout": dropout,
        "seed": seed,
        "epochs": len(valid),
        "valid_aucs": [round(each, 4) for each in valid],
        "valid_auc": best,
        "auc": auc(labels, found),
        "logloss": log_loss(labels, found),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Train every system with every seed and write one result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=list(UNITS))
    parser.add_argument("--users", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0])
    arguments = parser.parse_args()
    arrays = np.load(arguments.split)
    parts = {name: part(arrays, name) for name in ("train", "valid", "test")}
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        runs = json.loads(arguments.output.read_text(encoding="utf-8"))["runs"]
    done = [tuple(run[key] for key in ("unit", "user", "dropout", "seed")) for run in runs]
    for wanted in (
        (unit, user, dropout, seed)
        for dropout in arguments.dropouts
        for seed in arguments.seeds
        for user in (each == "yes" for each in arguments.users)
        for unit in arguments.units
    ):
        if wanted in done:
            continue
        runs.append(train(*wanted, parts))
        print(runs[-1], flush=True)
        text = json.dumps(_result(runs), indent=1) + "\n"
        arguments.output.write_text(text, encoding="utf-8")


def _result(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.fuxictr.run_laser --split SPLIT --output OUTPUT",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "runs": runs,
    }


if __name__ == "__main__":
    main()
