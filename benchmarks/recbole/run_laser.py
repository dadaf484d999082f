"""Train this package's DIN and LASER on the split that ``run_recbole.py`` kept.

python -m benchmarks.recbole.run_laser --split SPLIT.npz --output results/laser.json

The same rule: the best epoch on the validation part, judged once on the test part. The same
inputs, items and up to 50 earlier ones; RecBole's DIN looks the user's id up and then leaves it out
of its network, so there is one system without it and there are two with it. Runs that the output
holds already are kept, so that a stopped command goes on.
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
from numpy.typing import NDArray

from benchmarks.training.provenance import machine
from laser_keras import DINEncoder, FeatureEmbedding, LaserEncoder, SequenceRanker
from tfx_pipeline.ranking_metrics import auc, log_loss

SYSTEMS: dict[str, Any] = {
    "din_without_user": DINEncoder,
    "din": DINEncoder,
    "laser": lambda: LaserEncoder(num_recent_segments=2),
}
EPOCHS, PATIENCE, BATCH, RATE = 20, 3, 512, 1e-3


def part(arrays: Any, name: str) -> tuple[dict[str, NDArray], NDArray]:
    """Inputs of a ranker, and labels [B, 1]; RecBole keeps the oldest event first."""
    items, lengths = arrays[f"{name}_item_id_list"], arrays[f"{name}_item_length"]
    newest_first = np.zeros_like(items)
    for row, count in enumerate(lengths):
        newest_first[row, :count] = items[row, :count][::-1]
    inputs = {
        "history_item_id": newest_first.astype(np.int32),
        "candidate_item_id": arrays[f"{name}_item_id"].astype(np.int32)[:, None],
        "user_id": arrays[f"{name}_user_id"].astype(np.int32),
    }
    return inputs, arrays[f"{name}_label"].astype(np.float32)[:, None]


def ranker_of(encoder: keras.layers.Layer, rows: dict[str, int], dropout: float) -> SequenceRanker:
    """A small ranker around an encoder, for tables of so many rows."""
    return SequenceRanker(
        encoder,
        dim=32,
        recency="none",
        num_tokens=8,
        mixer_dim=32,
        mixer_blocks=1,
        dropout=dropout,
        embedding=FeatureEmbedding(rows, dim=16),
    )


def table_rows(parts: dict[str, Any]) -> dict[str, int]:
    """Rows of the tables of items and users."""
    return {
        name: 1 + max(int(inputs[key].max()) for inputs, _ in parts.values())
        for name, key in (("item_id", "candidate_item_id"), ("user_id", "user_id"))
    }


def train(system: str, seed: int, parts: dict[str, Any], rows: dict[str, int]) -> dict[str, Any]:
    """One run: fit until the validation AUC stops rising."""
    keras.utils.set_random_seed(seed)
    began = time.monotonic()
    if system == "din_without_user":
        parts = {name: (without_user(inputs), labels) for name, (inputs, labels) in parts.items()}
    ranker = ranker_of(SYSTEMS[system](), rows, dropout=0.2)
    ranker.compile(keras.optimizers.Adam(RATE), "binary_crossentropy", jit_compile=False)
    best, weights, waited, epochs = -1.0, None, 0, 0
    for _ in range(EPOCHS):
        ranker.fit(*parts["train"], batch_size=BATCH, verbose=0)
        epochs += 1
        reached = auc(parts["valid"][1][:, 0], scores(ranker, parts["valid"][0]))
        if reached > best:
            best, weights, waited = reached, ranker.get_weights(), 0
        else:
            waited += 1
        if waited == PATIENCE:
            break
    ranker.set_weights(weights)
    labels, found = parts["test"][1][:, 0], scores(ranker, parts["test"][0])
    return {
        "system": system,
        "seed": seed,
        "epochs": epochs,
        "valid_auc": best,
        "auc": auc(labels, found),
        "logloss": log_loss(labels, found),
        "seconds": round(time.monotonic() - began, 1),
    }


def without_user(inputs: dict[str, NDArray]) -> dict[str, NDArray]:
    """Inputs that do not tell whose they are."""
    return {name: values for name, values in inputs.items() if name != "user_id"}


def scores(ranker: keras.Model, inputs: dict[str, NDArray]) -> NDArray:
    """Probabilities [B]."""
    return np.asarray(ranker.predict(inputs, batch_size=2048, verbose=0))[:, 0]


def main() -> None:
    """Train every system with every seed and write one result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    arguments = parser.parse_args()
    arrays = np.load(arguments.split)
    parts = {name: part(arrays, name) for name in ("train", "valid", "test")}
    rows = table_rows(parts)
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        runs = json.loads(arguments.output.read_text(encoding="utf-8"))["runs"]
    for seed in arguments.seeds:
        for system in arguments.systems:
            if any((run["system"], run["seed"]) == (system, seed) for run in runs):
                continue
            runs.append(train(system, seed, parts, rows))
            print(runs[-1], flush=True)
            text = json.dumps(_result(runs), indent=1) + "\n"
            arguments.output.write_text(text, encoding="utf-8")


def _result(runs: list[dict[str, Any]]) -> dict[str, Any]:
    reached = {name: [run["auc"] for run in runs if run["system"] == name] for name in SYSTEMS}
    reached = {name: each for name, each in reached.items() if each}
    return {
        "command": "python -m benchmarks.recbole.run_laser --split SPLIT --output OUTPUT",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "auc_mean": {name: float(np.mean(each)) for name, each in reached.items()},
        "auc_sd": {
            name: float(np.std(each, ddof=1)) if len(each) > 1 else None
            for name, each in reached.items()
        },
        "runs": runs,
    }


if __name__ == "__main__":
    main()
