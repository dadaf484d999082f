"""Train FuxiCTR's DIN, with its own trainer, on the split that ``recbole/run_recbole.py`` kept.

Runs in an environment of its own, with ``pip install torch==2.13.0 fuxictr==2.3.10``, in this
folder:

    python run_fuxictr.py --split SPLIT.npz --output results/fuxictr.json

The network is the DIN that the package ships (that of LongCTR), the trainer the package's: the
learning rate falls to a tenth after an epoch without a better validation AUC, and the second such
epoch in a row ends the training; the best epoch's weights are judged once on the test part. Runs
that the output holds already are kept, so that a stopped command goes on.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import numpy as np

# Of the package's template, but for the widths and the batch, which are those of the other systems
# here: the template's are embeddings of 40, layers of 500, 500 and 500, and batches of 10,000.
SETTINGS: dict[str, Any] = {
    "task": "binary_classification",
    "loss": "binary_crossentropy",
    "metrics": ["AUC", "logloss"],
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "embedding_dim": 16,
    "dnn_hidden_units": [64, 32],
    "dnn_activations": "relu",
    "attention_hidden_units": [64],
    "attention_hidden_activations": "Dice",
    "attention_dropout": 0,
    "batch_norm": False,
    "embedding_regularizer": 0,
    "net_regularizer": 0,
    "early_stop_patience": 2,
    "monitor": "AUC",
    "monitor_mode": "max",
}
BATCH = 512
EPOCHS = 100


class Batches:
    """What FuxiCTR's trainer reads: batches of features, of items and of their mask.

    Items are ids [B * (L + 1)]: of each example its history and then the candidate.
    """

    def __init__(self, arrays: Any, part: str, user: bool, shuffle: bool) -> None:
        import torch

        items = arrays[f"{part}_item_id_list"], arrays[f"{part}_item_id"][:, None]
        self.items = torch.from_numpy(np.concatenate(items, axis=1))
        self.features = {"label": torch.from_numpy(arrays[f"{part}_label"])}
        if user:
            self.features["user_id"] = torch.from_numpy(arrays[f"{part}_user_id"])
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self.items) // BATCH)

    def __iter__(self) -> Iterator[Any]:
        import torch

        count = len(self.items)
        order = torch.randperm(count) if self.shuffle else torch.arange(count)
        for rows in order.split(BATCH):
            items = self.items[rows]
            features = {name: values[rows] for name, values in self.features.items()}
            yield features, {"item_id": items.flatten()}, (items[:, :-1] > 0).float()


def feature_map(rows: dict[str, int], user: bool) -> Any:
    """FuxiCTR's description of the inputs; the history's items look up the candidate's table."""
    from fuxictr.features import FeatureMap

    described = FeatureMap("ml-100k", ".")
    described.labels, described.default_emb_dim = ["label"], SETTINGS["embedding_dim"]
    for name, source in (("user_id", "user"), ("item_id", "item")):
        if user or source == "item":
            described.features[name] = {
                "type": "categorical",
                "source": source,
                "vocab_size": rows[name],
                "padding_idx": 0,
            }
    return described


def train(
    user: bool, dropout: float, seed: int, arrays: Any, rows: dict[str, int]
) -> dict[str, Any]:
    """One run: FuxiCTR's ``fit``, which ends with the best epoch's weights."""
    # Here, because the environment of everything else does not have it.
    from fuxictr.pytorch.torch_utils import seed_everything
    from model_zoo.LongCTR.DIN.DIN import DIN

    class Recorded(DIN):
        """Keeps the AUC of every epoch."""

        def checkpoint_and_earlystop(self, logs: dict[str, float], *args: Any) -> None:
            valid.append(logs["AUC"])
            super().checkpoint_and_earlystop(logs, *args)

    valid: list[float] = []
    seed_everything(seed)
    began = time.monotonic()
    described = feature_map(rows, user)
    batches = {
        part: Batches(arrays, part, user, shuffle=part == "train")
        for part in ("train", "valid", "test")
    }
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, described.dataset_id))
        model = Recorded(described, model_root=folder, verbose=0, net_dropout=dropout, **SETTINGS)
        model.fit(batches["train"], epochs=EPOCHS, validation_data=batches["valid"])
        best = model.evaluate(batches["valid"], metrics=["AUC"])["AUC"]
        test = model.evaluate(batches["test"], metrics=["AUC", "logloss"])
    return {
        "user": user,
        "dropout": dropout,
        "seed": seed,
        "epochs": len(valid),
        "valid_aucs": [round(float(each), 4) for each in valid],
        "valid_auc": float(best),
        "auc": float(test["AUC"]),
        "logloss": float(test["logloss"]),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Train every system with every seed and write one result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--users", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0])
    arguments = parser.parse_args()
    arrays = dict(np.load(arguments.split))
    rows = {
        name: 1 + max(int(arrays[f"{part}_{name}"].max()) for part in ("train", "valid", "test"))
        for name in ("item_id", "user_id")
    }
    runs: list[dict[str, Any]] = []
    if os.path.exists(arguments.output):
        with open(arguments.output, encoding="utf-8") as file:
            runs = json.load(file)["runs"]
    done = [tuple(run[key] for key in ("user", "dropout", "seed")) for run in runs]
    for wanted in (
        (user, dropout, seed)
        for dropout in arguments.dropouts
        for seed in arguments.seeds
        for user in (each == "yes" for each in arguments.users)
    ):
        if wanted in done:
            continue
        runs.append(train(*wanted, arrays, rows))
        print(runs[-1], flush=True)
        with open(arguments.output, "w", encoding="utf-8") as file:
            json.dump(_result(runs), file, indent=1)
            file.write("\n")


def _result(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "command": "python run_fuxictr.py --split SPLIT --output results/fuxictr.json",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "settings": {**SETTINGS, "batch": BATCH},
        "runs": runs,
    }


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions; this package's own is not in FuxiCTR's environment."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("fuxictr", "torch", "numpy")},
    }


if __name__ == "__main__":
    main()
