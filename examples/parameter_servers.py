# %% [markdown]
# # Training over parameter servers, on one machine
#
# Embedding tables of billions of rows do not fit one machine. LASER's trainer splits them by rows
# over parameter servers, which also update them; a step moves the rows of its batch and nothing
# else. The same code trains in one process when there is no cluster, to the same weights.
#
# Here a cluster of processes learns from generated requests: two parameter servers, a worker, and
# this process as the chief. `pip install "laser-ranking[pipeline]"`
#
#     python examples/parameter_servers.py

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.cluster import Cluster
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

# %% [markdown]
# ## What is learnt
#
# The feature spec says which tables there are. `rows` is what the parameter servers share; it
# could be a billion.

# %%
SPEC = FeatureSpec.from_dict(
    {
        "name": "cluster",
        "history": {"max_length": 50},
        "tables": {
            "item": {"rows": 200, "width": 16, "ids": "hash"},
            "action": {"rows": 4, "width": 4, "ids": "direct"},
        },
        "event": {
            "item_id": {"type": "int64", "table": "item"},
            "action": {"type": "int8", "table": "action"},
        },
        "label": {"click": {"type": "int8"}},
    }
)
MODEL = ModelSettings(dim=16, num_tokens=8, mixer_dim=16, mixer_blocks=1)
TRAINING = TrainingSettings(batch_size=16, epochs=3, table_learning_rate=0.1)


# %% [markdown]
# ## Training files
#
# In the pipeline the Beam join writes them: GZIP TFRecords with one `tf.train.Example` per request,
# in the form of `docs/architecture.md`. Here a click is an item with an even row.


# %%
def write_files(folder: Path, files: int = 4, requests: int = 256) -> list[str]:
    """Files of random requests with four candidates each."""
    rng = np.random.default_rng(0)
    paths = [str(folder / f"requests-{number}.gz") for number in range(files)]
    for path in paths:
        with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for _ in range(requests):
                writer.write(_example(rng))
    return paths


def _example(rng: np.random.Generator, candidates: int = 4) -> bytes:
    length = int(rng.integers(0, SPEC.max_history + 1))
    sizes = {"history": length, "candidate": candidates, "request": 1}
    values = {
        entry.name: rng.integers(1, SPEC.tables[entry.table].rows, sizes[entry.kind])
        if entry.table
        else np.sort(rng.integers(1, 10**6, sizes[entry.kind]))
        for entry in SPEC.model_inputs()
    }
    values |= {
        "history_length": [length],
        "candidate_count": [candidates],
        "request_user_id": [int(rng.integers(1000))],
        "request_time_ms": [1_700_000_000_000],
        "label_click": 1 - values["candidate_item_id"] % 2,
    }
    example = tf.train.Example()
    for name, value in values.items():
        example.features.feature[name].int64_list.value.extend(int(v) for v in value)
    return example.SerializeToString()


# %% [markdown]
# ## The cluster
#
# Addresses in `TF_CONFIG`, a process per task. On several machines nothing but the addresses
# differs; a supervisor (Kubernetes, systemd) then starts the processes, and starts them again.


# %%
@contextmanager
def local_cluster(servers: int = 2, workers: int = 1) -> Iterator[dict[str, list[str]]]:
    """Start servers and workers on this machine; yields the addresses, stops them at the end."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(servers + workers + 1)]
    free = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    addresses = {"chief": free[:1], "ps": free[1 : servers + 1], "worker": free[servers + 1 :]}
    processes = []
    for job, hosts in (("ps", addresses["ps"]), ("worker", addresses["worker"])):
        for index in range(len(hosts)):
            task = {"cluster": addresses, "task": {"type": job, "index": index}}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tfx_pipeline.training.cluster"],
                    env={**os.environ, "TF_CONFIG": json.dumps(task), "CUDA_VISIBLE_DEVICES": ""},
                    stderr=subprocess.DEVNULL,
                )
            )
    try:
        yield addresses
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(servers: int = 2) -> dict[str, list[int]]:
    """Train over a cluster; returns how many rows of each table each server holds."""
    with tempfile.TemporaryDirectory() as folder, local_cluster(servers) as addresses:
        files = write_files(Path(folder))
        cluster = Cluster(addresses, job="chief", index=0)  # or Cluster.from_environment()
        trainer = Trainer(SPEC, MODEL, TRAINING, RowLookup(), cluster=cluster)
        trainer.train(files[:-1])
        trainer.evaluate(files[-1:])
        shares = {
            name: [int(shard.shape[0]) for shard in table.values.variables]
            for name, table in trainer.state.tables.items()
        }
    for name, rows in shares.items():
        print(f"table {name}: {' + '.join(f'{n:,}' for n in rows)} rows")
    return shares


# %% [markdown]
# In production the pipeline's Trainer is the chief: run `laser-pipeline run` with `TF_CONFIG` set.
# What happens when a process is lost is in `docs/pipeline.md`.

# %%
if __name__ == "__main__":
    main()
