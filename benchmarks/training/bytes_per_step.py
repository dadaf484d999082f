"""Bytes that a training step sends between a parameter server and a worker, by codec.

    python -m benchmarks.training.bytes_per_step --output FILE

The cluster runs in a network namespace of its own, so that the loopback's counter counts its
traffic and no other (Linux; user namespaces must be allowed). A step looks up the rows of a batch
of histories with Zipf-distributed ids and sends a gradient for each distinct row: what the trainer
does with its tables, without the tower, which sends nothing but its weights.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tfx_pipeline.cluster.local_cluster import LocalCluster

SEED = 17
WIDTH, FEATURES = 32, 3
WARM_UP = 3
IN_NAMESPACE = "LASER_BYTES_NAMESPACE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[10_000, 1_000_000])
    arguments = parser.parse_args()
    if IN_NAMESPACE not in os.environ:
        command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", __spec__.name]
        environment = {**os.environ, IN_NAMESPACE: "1"}
        sys.exit(subprocess.call([*command, *sys.argv[1:]], env=environment))
    bring_up_loopback()
    result = {
        "command": "python -m benchmarks.training.bytes_per_step "
        + " ".join(f"--{name} {_text(value)}" for name, value in vars(arguments).items()),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "seed": SEED,
        "cores": os.cpu_count(),
        "load": [round(each, 2) for each in os.getloadavg()],
        "batch": arguments.batch,
        "length": arguments.length,
        "features": FEATURES,
        "width": WIDTH,
        "rows": measure(arguments),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Start one server and one worker, and count for every vocabulary and codec."""
    addresses = LocalCluster(ps=1, workers=1).addresses()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with tempfile.TemporaryDirectory() as folder:
        roles = [start_role(addresses, job, folder) for job in ("ps", "worker")]
        try:
            return count_all(addresses, arguments)
        finally:
            for role in roles:
                role.kill()
                role.wait()


def start_role(addresses: dict[str, list[str]], job: str, folder: str) -> subprocess.Popen:
    config = {"cluster": addresses, "task": {"type": job, "index": 0}}
    return subprocess.Popen(
        [sys.executable, "-m", "tfx_pipeline.cluster.role", "--folder", folder],
        env={**os.environ, "TF_CONFIG": json.dumps(config)},
    )


def count_all(
    addresses: dict[str, list[str]], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    import tensorflow as tf

    from tfx_pipeline.training.cluster import Cluster
    from tfx_pipeline.training.embedding_tables import EmbeddingTable
    from tfx_pipeline.training.transmission import CODECS

    strategy = Cluster(addresses, "chief", 0).connect()
    coordinator = tf.distribute.experimental.coordinator.ClusterCoordinator(strategy)
    looked_up = arguments.batch * arguments.length
    naive = looked_up * FEATURES * WIDTH * 4
    rows = []
    for vocabulary in arguments.vocabularies:
        for codec in CODECS:
            with strategy.scope():
                tables = [
                    EmbeddingTable(
                        f"{codec}{number}", vocabulary, WIDTH, seed=SEED, transmission=codec
                    )
                    for number in range(FEATURES)
                ]
                distinct = tf.Variable(0, dtype=tf.int64, trainable=False)

            @tf.function
            def step(number: tf.Tensor, tables=tables, distinct=distinct, size=vocabulary) -> None:
                for feature, table in enumerate(tables):
                    ids, _ = tf.unique(zipf_ids(looked_up, size, number, feature))
                    distinct.assign_add(tf.size(ids, tf.int64))
                    table.apply_gradient(ids, 0.1 * table.gather(ids), 0.01)

            for number in range(WARM_UP):
                coordinator.schedule(step, args=(tf.constant(number),))
            coordinator.join()
            distinct.assign(0)
            sent, began = loopback_bytes(), time.perf_counter()
            for number in range(arguments.steps):
                coordinator.schedule(step, args=(tf.constant(WARM_UP + number),))
            coordinator.join()
            bytes_per_step = (loopback_bytes() - sent) / arguments.steps
            rows.append(
                {
                    "vocabulary": vocabulary,
                    "codec": codec,
                    "distinct_rows": int(distinct.numpy()) // arguments.steps,
                    # rows one way, gradients the other
                    "naive_bytes_computed": 2 * naive,
                    "bytes_per_step": round(bytes_per_step),
                    "of_naive": round(bytes_per_step / (2 * naive), 4),
                    "seconds_per_step": round((time.perf_counter() - began) / arguments.steps, 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


def zipf_ids(count: int, vocabulary: int, step: Any, feature: int) -> Any:
    """Ids from 1 whose frequency falls with their rank: P(rank <= r) = log(1 + r) / log(1 + V)."""
    import tensorflow as tf

    uniform = tf.random.stateless_uniform([count], seed=tf.stack([step, SEED + feature]))
    rank = tf.exp(uniform * tf.math.log(float(vocabulary))) - 1.0
    return 1 + tf.minimum(tf.cast(rank, tf.int32), vocabulary - 2)


def loopback_bytes() -> int:
    """Bytes that the loopback of this namespace has carried."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == "lo:")


def bring_up_loopback() -> None:
    """A new network namespace begins with its loopback down."""
    flags = struct.pack("16sh14x", b"lo", 0x1 | 0x8 | 0x40)  # up, loopback, running
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, flags)  # SIOCSIFFLAGS


if __name__ == "__main__":
    main()
