"""A supervised cluster whose roles are killed again and again ends by itself, with every epoch.

    python -m benchmarks.training.soak --minutes 30 --output FILE

A worker is killed every two minutes and a server every ten (or as the arguments say). The run ends
when its epochs are done; the result holds the AUC beside that of an undisturbed run in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training.provenance import provenance
from laser_features import FeatureSpec
from tfx_pipeline.cluster.training_job import TrainingJob

SEED = 17
SPEC: dict[str, Any] = {
    "name": "soak",
    "history": {"max_length": 50},
    "tables": {
        "item": {"rows": 2000, "width": 16, "ids": "direct"},
        "tag": {"rows": 50, "width": 8, "ids": "direct"},
    },
    "event": {"item_id": {"type": "int64", "table": "item"}},
    "item": {"tag": {"type": "int64", "table": "tag"}},
    "label": {"click": {"type": "int8"}},
}
FILES = 34
SUPERVISE = (
    "import sys; from pathlib import Path; "
    "from tfx_pipeline.cluster.supervisor import train_on_local_cluster as train; "
    "from tfx_pipeline.cluster.training_job import TrainingJob; "
    "train(sys.argv[1], TrainingJob.load(Path(sys.argv[2])), Path(sys.argv[3]))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30, help="stop killing after this")
    parser.add_argument("--requests", type=int, default=4000, help="of each of 34 files")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--worker-seconds", type=float, default=120)
    parser.add_argument("--server-seconds", type=float, default=600)
    parser.add_argument("--cluster", default="local:ps=2,workers=2,restarts=20")
    arguments = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_examples(folder, FILES, arguments.requests)
        disturbed = run(files, folder / "disturbed", arguments, arguments.cluster)
        alone = run(files, folder / "alone", arguments, "")
    result = {
        **provenance("soak", SEED),
        "disturbed": disturbed,
        "one_process": alone,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def run(files: list[str], folder: Path, arguments: argparse.Namespace, cluster: str) -> dict:
    """Train in a process of its own, kill its roles if it has any, and read what it logged."""
    job = TrainingJob(
        train_files=files[:-2],
        eval_files=files[-2:],
        transform_graph_path=None,
        serving_model_dir=str(folder / "model"),
        model_run_dir=str(folder),
        custom_config={
            "feature_spec": SPEC,
            "model": {"dim": 16, "num_tokens": 8, "mixer_dim": 16},
            "training": {
                "epochs": arguments.epochs,
                "batch_size": 64,
                "seed": SEED,
                "checkpoint_files": 8,
                "dense_learning_rate": 0.0005,
                "table_learning_rate": 0.01,
            },
        },
    )
    path = job.save(folder / "job.json")
    began = time.monotonic()
    if cluster:
        command = [sys.executable, "-c", SUPERVISE, cluster, str(path), str(folder / "cluster")]
    else:
        script = (
            "import sys; from pathlib import Path; "
            "from tfx_pipeline.cluster.training_job import TrainingJob; "
            "from tfx_pipeline.training.run_fn import run_fn; "
            "run_fn(TrainingJob.load(Path(sys.argv[1])))"
        )
        command = [sys.executable, "-c", script, str(path)]
    process = subprocess.Popen(command)
    killed = {"worker": 0, "ps": 0}
    if cluster:
        kill_roles(process, folder / "cluster" / "cluster.json", arguments, killed)
    code = process.wait()
    if code:
        raise SystemExit(f"training ended with exit code {code}; its reason is above")
    lines = (folder / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line) for line in lines]
    epochs = [each for each in logged if each["split"] == "train"]
    counted = [each["impressions"] for each in epochs]
    evaluations = [each for each in logged if each["split"] == "eval"]
    return {
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "killed": killed,
        "epochs_logged": len(epochs),
        "impressions_by_epoch": [min(counted), max(counted)],
        "steps": evaluations[-1]["step"] if evaluations else None,
        "eval_auc": round(evaluations[-1]["auc"], 4) if evaluations else None,
    }


def kill_roles(
    process: subprocess.Popen, view: Path, arguments: argparse.Namespace, killed: dict[str, int]
) -> None:
    """End roles with SIGKILL, in turn, until the time is up or the run has ended."""
    began = time.monotonic()
    due = {"worker": arguments.worker_seconds, "ps": arguments.server_seconds}
    every = dict(due)
    while process.poll() is None and time.monotonic() - began < 60 * arguments.minutes:
        time.sleep(1.0)
        for job, at in due.items():
            if time.monotonic() - began < at:
                continue
            due[job] += every[job]
            roles = [each for each in json.loads(view.read_text()) if each["role"].startswith(job)]
            chosen = roles[killed[job] % len(roles)]
            if chosen["state"] == "running":
                os.kill(chosen["pid"], signal.SIGKILL)
                killed[job] += 1


def write_examples(folder: Path, files: int, requests: int) -> list[str]:
    """Requests whose click depends on whether the candidate's tag is in the history."""
    import tensorflow as tf

    spec, rng = FeatureSpec.from_dict(SPEC), np.random.default_rng(SEED)
    paths = []
    for number in range(files):
        paths.append(str(folder / f"data-{number}.gz"))
        with tf.io.TFRecordWriter(paths[-1], "GZIP") as writer:
            for _ in range(requests):
                writer.write(_example(tf, spec, rng))
    return paths


def _example(tf: Any, spec: FeatureSpec, rng: np.random.Generator) -> bytes:
    length, count = int(rng.integers(1, 51)), int(rng.integers(1, 4))
    sizes = {"history": length, "candidate": count, "request": 1}
    values: dict[str, Any] = {}
    for each in spec.model_inputs():
        if each.table is None:
            values[each.name] = np.sort(rng.integers(1, 10**6, sizes[each.kind]))
        else:
            values[each.name] = rng.integers(1, spec.tables[each.table].rows, sizes[each.kind])
    for side in ("history", "candidate"):
        values[f"{side}_tag"] = 1 + values[f"{side}_item_id"] % 49
    values["history_length"], values["candidate_count"] = [length], [count]
    values["request_user_id"], values["request_time_ms"] = [1], [1_700_000_000_000]
    seen = set(values["history_tag"])
    chance = np.where([tag in seen for tag in values["candidate_tag"]], 0.7, 0.2)
    values["label_click"] = (rng.random(count) < chance).astype(int)
    example = tf.train.Example()
    for name, numbers in values.items():
        example.features.feature[name].int64_list.value.extend(int(each) for each in numbers)
    return example.SerializeToString()


if __name__ == "__main__":
    main()
