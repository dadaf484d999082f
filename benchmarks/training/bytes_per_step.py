"""Bytes that a training step sends between a parameter server and a worker, by codec.

    laser-pipeline build-ops
    python -m benchmarks.training.bytes_per_step --output FILE

The cluster runs in a network namespace of its own, so that the loopback's counter counts its
traffic and no other (Linux; user namespaces must be allowed). A step looks up the rows of a batch
of histories with Zipf-distributed ids and sends a gradient for each distinct row: what the trainer
does with its tables, without the tower, which sends nothing but its weights. Rows and gradients
are normally distributed. With ``--rates`` the loopback is then held to so many Mbit/s (``tc``),
both ways together, and steps are timed.
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
from pathlib import Path
from typing import Any

from benchmarks.training.provenance import provenance
from tfx_pipeline.cluster.local_cluster import LocalCluster

SEED = 17
WIDTH = 32
VOCABULARIES = [10_000, 1_000_000, 10_000_000]
WARM_UP = 3
IN_NAMESPACE = "LASER_BYTES_NAMESPACE"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--features", type=int, default=1, help="tables, each looked up as often")
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law of the ids")
    parser.add_argument("--rates", type=int, nargs="*", default=[], help="Mbit/s of the link")
    arguments = parser.parse_args()
    if IN_NAMESPACE not in os.environ:
        command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", __spec__.name]
        environment = {**os.environ, IN_NAMESPACE: "1"}
        sys.exit(subprocess.call([*command, *sys.argv[1:]], env=environment))
    bring_up_loopback()
    result = {
        **provenance("bytes_per_step", SEED),
        "batch": arguments.batch,
        "length": arguments.length,
        "features": arguments.features,
        "width": WIDTH,
        "rows": measure(arguments),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


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
    from tfx_pipeline.training.embedding_tables import EmbeddingTable, shards_of
    from tfx_pipeline.training.row_frames import load_ops
    from tfx_pipeline.training.transmission import CODECS

    load_ops()
    strategy = Cluster(addresses, "chief", 0).connect()
    coordinator = tf.distribute.experimental.coordinator.ClusterCoordinator(strategy)
    looked_up = arguments.batch * arguments.length
    # rows one way, gradients the other
    naive = 2 * looked_up * arguments.features * WIDTH * 4
    counted = []
    for vocabulary in arguments.vocabularies:
        tables, distinct = None, None  # those before go first: the largest take gigabytes
        with strategy.scope():
            tables = [
                EmbeddingTable(f"t{vocabulary}_{number}", vocabulary, WIDTH, seed=SEED)
                for number in range(arguments.features)
            ]
            distinct = tf.Variable(0, dtype=tf.int64, trainable=False)
        for table in tables:
            for shard in shards_of(table.values):
                with tf.device(shard.device):
                    shard.assign(tf.random.stateless_normal(shard.shape, [SEED, 0], stddev=0.05))
        for codec in CODECS:
            for table in tables:
                table.transmission = codec

            step = step_of(tables, distinct, looked_up, arguments.exponent)

            def run(first: int, count: int, step=step) -> float:
                began = time.perf_counter()
                for number in range(first, first + count):
                    coordinator.schedule(step, args=(tf.constant(number),))
                    coordinator.join()
                return (time.perf_counter() - began) / count

            run(0, WARM_UP)
            distinct.assign(0)
            sent = loopback_bytes()
            seconds = {"unlimited": run(WARM_UP, arguments.steps)}
            bytes_per_step = (loopback_bytes() - sent) / arguments.steps
            rows = int(distinct.numpy()) // arguments.steps
            for rate in arguments.rates:
                hold_to(rate)
                run(0, 1)
                seconds[f"{rate} Mbit/s"] = run(WARM_UP, arguments.steps)
                hold_to(None)
            counted.append(
                {
                    "vocabulary": vocabulary,
                    "codec": codec,
                    "distinct_rows": rows,
                    "naive_bytes_computed": naive,
                    "bytes_per_step": round(bytes_per_step),
                    "of_naive": round(bytes_per_step / naive, 4),
                    "seconds_per_step": {name: round(each, 3) for name, each in seconds.items()},
                }
            )
            print(counted[-1], flush=True)
    return counted


def step_of(tables: list[Any], distinct: Any, looked_up: int, exponent: float) -> Any:
    """A step on the tables: distinct rows to the worker, a gradient of each back."""
    import tensorflow as tf

    @tf.function
    def step(number: tf.Tensor) -> None:
        for feature, table in enumerate(tables):
            ids, _ = tf.unique(zipf_ids(looked_up, table.rows, exponent, number, feature))
            distinct.assign_add(tf.size(ids, tf.int64))
            noise = tf.random.stateless_normal([tf.size(ids), WIDTH], [SEED, feature])
            table.apply_gradient(ids, 0.1 * table.gather(ids) + 0.01 * noise, 0.01)

    return step


def hold_to(rate: int | None) -> None:
    """Limit the loopback of this namespace to ``rate`` Mbit/s; None lifts it."""
    change = "del dev lo root" if rate is None else f"add dev lo root tbf rate {rate}mbit {BURST}"
    subprocess.run(["tc", "qdisc", *change.split()], check=True)


BURST = "burst 128kb latency 1000ms"


def zipf_ids(count: int, vocabulary: int, exponent: float, step: Any, feature: int) -> Any:
    """Ids from 1 whose frequency falls with their rank, as its power of minus ``exponent``.

    The continuous law: P(rank <= r) is log(1 + r) / log(V), or with another exponent than 1
    ((1 + r)^(1 - s) - 1) / (V^(1 - s) - 1).
    """
    import tensorflow as tf

    uniform = tf.random.stateless_uniform([count], seed=tf.stack([step, SEED + feature]))
    if exponent == 1.0:
        rank = tf.exp(uniform * tf.math.log(float(vocabulary))) - 1.0
    else:
        power = 1.0 - exponent
        rank = (1.0 + uniform * (float(vocabulary) ** power - 1.0)) ** (1.0 / power) - 1.0
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
