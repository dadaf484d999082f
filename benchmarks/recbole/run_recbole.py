"""Train RecBole's DIN on its bundled ml-100k, and keep the split that it made.

Runs in an environment of its own, with
``pip install recbole==1.2.0 kmeans-pytorch "numpy<2" "pandas<2.2" "scipy<1.13"``:

    python run_recbole.py --split SPLIT.npz --output results/recbole.json --seeds 1 2 3

Without ``--output`` it keeps the split and trains nothing.
"""

import argparse
import json
import os
import platform
import time
from datetime import datetime, timezone
from typing import Any

import numpy as np

SETTINGS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    "threshold": {"rating": 4},
    "MAX_ITEM_LIST_LENGTH": 50,
    "train_neg_sample_args": None,
    # The last tenth of each user's ratings for test, the tenth before it for validation.
    "eval_args": {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "group_by": "user",
        "order": "TO",
        "mode": "labeled",
    },
    "metrics": ["AUC", "LogLoss"],
    "valid_metric": "AUC",
    "epochs": 20,
    # Widths of our DIN; RecBole's own, three layers of 256, take 20 times as long.
    "embedding_size": 16,
    "mlp_hidden_size": [64, 32],
    "stopping_step": 3,
    "use_gpu": False,
    "show_progress": False,
    "state": "WARNING",
    "checkpoint_dir": "saved",
}
_OWN = ("state", "checkpoint_dir")  # say nothing about the result
FIELDS = ("user_id", "item_id", "item_id_list", "item_length", "label")


def main() -> None:
    """Train with each seed; write the test metrics and, once, the split."""
    # Here, because the environment of everything else does not have it.
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", required=True)
    parser.add_argument("--output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    runs = []
    for number, seed in enumerate(arguments.seeds):
        began = time.monotonic()
        config = Config(model="DIN", dataset="ml-100k", config_dict={**SETTINGS, "seed": seed})
        init_seed(seed, True)
        dataset = create_dataset(config)
        parts = data_preparation(config, dataset)
        if number == 0:
            arrays = {
                f"{name}_{field}": loader.dataset.inter_feat[field].numpy()
                for name, loader in zip(("train", "valid", "test"), parts, strict=True)
                for field in FIELDS
            }
            np.savez_compressed(arguments.split, **arrays)
        if arguments.output is None:
            return
        model = get_model("DIN")(config, parts[0].dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "DIN")(config, model)
        valid, _ = trainer.fit(parts[0], parts[1], saved=True, show_progress=False)
        test = trainer.evaluate(parts[2], load_best_model=True, show_progress=False)
        run = {name: float(value) for name, value in test.items()}
        seconds = round(time.monotonic() - began, 1)
        run = {"seed": seed, "valid_auc": float(valid), "seconds": seconds, **run}
        print(run, flush=True)
        runs.append(run)
    auc = [run["auc"] for run in runs]
    result = {
        "command": "python run_recbole.py --split SPLIT --output results/recbole.json",
        "recbole": recbole.__version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "settings": {key: SETTINGS[key] for key in SETTINGS if key not in _OWN},
        "auc_mean": float(np.mean(auc)),
        "auc_sd": float(np.std(auc, ddof=1)) if len(auc) > 1 else None,
        "runs": runs,
    }
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")


def machine() -> dict[str, Any]:
    """Processor, cores, load and Python; this package's own is not in RecBole's environment."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
