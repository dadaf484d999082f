"""AUC of each codec, and of 1, 2 and 4 workers, over several seeds.

    laser-pipeline build-ops
    python -m benchmarks.training.auc --part codecs --output FILE
    python -m benchmarks.training.auc --part workers --output FILE

The log is the one of ``soak``: a click depends on whether the candidate's tag is in the history. A
seed gives the initial weights and the order of the data; differences are paired by it. Codecs are
compared in one process: rows and gradients are packed and unpacked there as between servers and
workers, and with one worker a cluster takes the very same steps (``tests/tfx_pipeline/training``).
Worker counts are compared on clusters of processes, where updates are asynchronous.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

import numpy as np
from scipy import stats

from benchmarks.training.provenance import provenance
from benchmarks.training.soak import SPEC, write_examples
from tfx_pipeline.cluster.local_cluster import LocalCluster

FIRST_SEED = 17
TRAIN_FILES, EVAL_FILES = 12, 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["codecs", "workers"], required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000, help="of each of 16 files")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--chief", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.chief:
        for seed in seeds_of(arguments):
            auc = train(arguments.chief, seed, arguments, through_cluster=True)
            print(json.dumps([seed, auc]), flush=True)
        os._exit(0)  # TensorFlow would first take leave of the roles
    if arguments.output is None:
        parser.error("give --output")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(folder, TRAIN_FILES + EVAL_FILES, arguments.requests)
        part = by_codec if arguments.part == "codecs" else by_workers
        aucs = part(folder, arguments)
    result = {
        **provenance("auc", FIRST_SEED),
        "train_requests": TRAIN_FILES * arguments.requests,
        "epochs": arguments.epochs,
        "auc": {name: [round(each, 6) for each in values] for name, values in aucs.items()},
        "difference_to_first": differences(aucs),
        "seconds": round(time.monotonic() - began, 1),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def seeds_of(arguments: argparse.Namespace) -> range:
    return range(FIRST_SEED, FIRST_SEED + arguments.seeds)


def by_codec(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    from tfx_pipeline.training.row_frames import load_if_built
    from tfx_pipeline.training.transmission import CODECS

    load_if_built()
    found: dict[str, list[float]] = {codec: [] for codec in CODECS}
    for seed in seeds_of(arguments):
        for codec in CODECS:
            found[codec].append(train(folder, seed, arguments, codec))
            print(codec, seed, found[codec][-1], flush=True)
    return found


def by_workers(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    return {
        f"{count} workers": over_cluster(count, folder, arguments) for count in arguments.workers
    }


def over_cluster(workers: int, folder: Path, arguments: argparse.Namespace) -> list[float]:
    """AUC of each seed; one cluster trains them one after another."""
    addresses = LocalCluster(1, workers).addresses()

    def start(job: str, index: int, command: list[str], **options: Any) -> subprocess.Popen:
        config = {"cluster": addresses, "task": {"type": job, "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        return subprocess.Popen([sys.executable, *command], env=environment, **options)

    announced = ["--folder", str(folder / f"roles-{workers}")]
    roles = [
        start(job, index, ["-m", "tfx_pipeline.cluster.role", *announced],
              stdout=subprocess.DEVNULL)
        for job in ("ps", "worker")
        for index in range(len(addresses[job]))
    ]  # fmt: skip
    given = ("seeds", "requests", "epochs")
    sizes = [text for name in given for text in (f"--{name}", str(getattr(arguments, name)))]
    command = ["-m", "benchmarks.training.auc", "--part", "workers", *sizes, "--chief", str(folder)]
    found = []
    try:
        chief = start("chief", 0, command, stdout=subprocess.PIPE, text=True)
        assert chief.stdout is not None
        for line in chief.stdout:
            seed, auc = json.loads(line)
            found.append(float(auc))
            print(workers, "workers", seed, auc, flush=True)
        if chief.wait():
            raise SystemExit(f"the chief ended with exit code {chief.returncode}")
    finally:
        for each in roles:
            each.kill()
            each.wait()
    return found


_strategy: Any = None


def train(
    folder: Path,
    seed: int,
    arguments: argparse.Namespace,
    codec: str = "none",
    through_cluster: bool = False,
) -> float:
    """AUC on the eval files."""
    from laser_features import FeatureSpec
    from tfx_pipeline.settings.model_settings import ModelSettings
    from tfx_pipeline.settings.training_settings import TrainingSettings
    from tfx_pipeline.training.cluster import Cluster
    from tfx_pipeline.training.row_lookup import RowLookup
    from tfx_pipeline.training.trainer import Trainer

    class Connected(Cluster):
        """Connects once, however many trainings there are."""

        def connect(self) -> Any:
            global _strategy
            _strategy = _strategy or super().connect()
            return _strategy

    cluster = None
    if through_cluster:
        found = Cluster.from_environment()
        assert found is not None
        cluster = Connected(found.addresses, found.job, found.index)
    settings = TrainingSettings(
        epochs=arguments.epochs, batch_size=64, seed=seed, transmission=codec,
        dense_learning_rate=0.005, table_learning_rate=0.1,
    )  # fmt: skip
    trainer = Trainer(
        FeatureSpec.from_dict(SPEC), ModelSettings(dim=16, num_tokens=8, mixer_dim=16), settings,
        RowLookup({}, {}), cluster=cluster, report=lambda line: None,
    )  # fmt: skip
    files = [str(folder / f"data-{number}.gz") for number in range(TRAIN_FILES + EVAL_FILES)]
    trainer.train(files[:TRAIN_FILES])
    return float(trainer.evaluate(files[TRAIN_FILES:]).auc)


def differences(aucs: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Mean difference to the first, with Student's 95% interval over seeds."""
    (_, base), *others = aucs.items()
    result = {}
    for name, values in others:
        each = np.subtract(values, base)
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
        mean = float(each.mean())
        result[name] = {
            "mean": round(mean, 6),
            "interval": [round(mean - half, 6), round(mean + half, 6)],
        }
    return result


if __name__ == "__main__":
    main()
