"""Training examples per second and per CPU second: our trainer beside Keras and the bare loop.

    python -m benchmarks.training.examples_per_second --output FILE

An example is a request with ``--candidates`` candidates and a full history. Each way to train the
same LASER ranker runs in processes of its own, one after another, on the same files; what it does
on the first file (a cluster: in a first pass), graphs and first touches of memory, is not measured.

* ``loop``: forward and backward pass of the tower alone, over and over on one batch in memory;
* ``trainer``: ``Trainer`` in one process, from files of Examples;
* ``devices``: the same, a batch shared by two logical CPU devices;
* ``cluster``: the same with a parameter server and ``--workers`` workers;
* ``keras_fit``: Keras 3's ``fit`` in one process, ``Embedding`` layers and Adagrad for all;
* ``tf_keras_pss``: tf_keras' ``fit`` under ``ParameterServerStrategy`` with the same roles.

CPU seconds are those of all processes of a way, parsing included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")

import numpy as np

from benchmarks.training.provenance import provenance
from tfx_pipeline.cluster.local_cluster import LocalCluster

SEED = 17
WAYS = ("loop", "trainer", "devices", "cluster", "keras_fit", "tf_keras_pss")
ROWS = {"item": (100_000, 32), "author": (10_000, 16), "action": (8, 8)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--length", type=int, default=200, help="L, events of a history")
    parser.add_argument("--dim", type=int, default=64, help="d")
    parser.add_argument("--candidates", type=int, default=10, help="N")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="measured, at least this many")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, folder = arguments.one
        print(json.dumps(measure(way, Path(folder), arguments)), flush=True)
        os._exit(0)  # TensorFlow would first take leave of the roles
    if arguments.output is None:
        parser.error("give --output")
    result = {
        **provenance("examples_per_second", SEED),
        **{name: getattr(arguments, name) for name in ("length", "dim", "candidates", "batch")},
        "tables": {name: list(shape) for name, shape in ROWS.items()},
        "ways": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), arguments)
        for way in arguments.ways:
            result["ways"][way] = run(way, Path(folder), arguments)
            print(way, result["ways"][way], flush=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way in processes of its own."""
    is_cluster = way in ("cluster", "tf_keras_pss")
    roles: list[subprocess.Popen] = []
    environment = dict(os.environ)
    if is_cluster:
        addresses = LocalCluster(1, arguments.workers).addresses()
        for job in ("ps", "worker"):
            for index in range(len(addresses[job])):
                config = {"cluster": addresses, "task": {"type": job, "index": index}}
                command = [sys.executable, "-m", "tfx_pipeline.cluster.role", "--folder"]
                roles.append(
                    subprocess.Popen(
                        [*command, str(folder / way)],
                        env={**environment, "TF_CONFIG": json.dumps(config)},
                        stdout=subprocess.DEVNULL,
                    )
                )
        task = {"type": "chief", "index": 0}
        environment["TF_CONFIG"] = json.dumps({"cluster": addresses, "task": task})
        environment["LASER_BENCHMARK_ROLES"] = ",".join(str(each.pid) for each in roles)
    given = ("length", "dim", "candidates", "batch", "steps", "workers")
    sizes = [text for name in given for text in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, "-m", "benchmarks.training.examples_per_second", *sizes]
    try:
        ended = subprocess.run(
            [*command, "--one", way, str(folder)], env=environment, stdout=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    finally:
        for each in roles:
            each.kill()
            each.wait()
    if ended.returncode:
        return {"failed": f"exit code {ended.returncode}"}
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return {
        **found,
        "examples_per_second": round(found["examples"] / found["seconds"], 2),
        "examples_per_cpu_second": round(found["examples"] / found["cpu_seconds"], 2),
    }


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Within the way's own process."""
    warm, *files = sorted(str(path) for path in folder.glob("data-*.gz"))
    train = {
        "loop": bare_loop,
        "trainer": our_trainer,
        "devices": our_trainer_on_devices,
        "cluster": our_cluster,
        "keras_fit": keras_fit,
        "tf_keras_pss": tf_keras_pss,
    }[way](arguments)
    # Every worker makes its graphs at its first file, and files go to whoever is free.
    train(files if "TF_CONFIG" in os.environ else [warm])
    roles = [int(each) for each in os.environ.get("LASER_BENCHMARK_ROLES", "").split(",") if each]
    cpu, began = cpu_seconds(roles), time.monotonic()
    train(files)
    seconds = time.monotonic() - began
    return {
        "examples": len(files) * per_file(arguments),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds(roles) - cpu, 2),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_seconds(roles: list[int]) -> float:
    """Of this process and of the roles."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    for each in roles:
        fields = Path(f"/proc/{each}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


Train = Callable[[list[str]], None]


def bare_loop(arguments: argparse.Namespace) -> Train:
    import tensorflow as tf

    _, tower, _ = model_of(arguments)
    rng, size = np.random.default_rng(SEED), (arguments.batch, arguments.length)
    widths = {"history": 56, "target": 48}
    shapes = {"history": size, "target": (arguments.batch, arguments.candidates)}
    floats = {
        name: tf.constant(rng.normal(0, 0.05, (*shapes[name], width)), tf.float32)
        for name, width in widths.items()
    }
    fixed = {
        "history_age": tf.constant(np.sort(rng.integers(1, 10**6, size), axis=1), tf.int32),
        "history_mask": tf.ones(size, tf.bool),
    }
    weights = [tf.constant(each.numpy()) for each in tower.model.trainable_variables]
    labels = tf.cast(rng.random((arguments.batch, arguments.candidates)) < 0.3, tf.float32)

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([weights, floats])
            output = tower(weights, [], {**floats, **fixed}, tf.constant(1, tf.int64))
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, output.logits)
            loss = tf.reduce_mean(losses)
        return loss, tape.gradient(loss, (weights, floats))

    def train(files: list[str]) -> None:
        for _ in range(len(files) * per_file(arguments) // arguments.batch):
            step()

    return train


def our_trainer(arguments: argparse.Namespace, cluster: Any = None, devices: int = 1) -> Train:
    from tfx_pipeline.settings.training_settings import TrainingSettings
    from tfx_pipeline.training.row_lookup import RowLookup
    from tfx_pipeline.training.trainer import Trainer

    settings = TrainingSettings(
        batch_size=arguments.batch, epochs=1, seed=SEED, devices=devices, shuffle_buffer=256
    )
    trainer = Trainer(
        spec_of(arguments), model_settings(arguments), settings, RowLookup({}, {}),
        cluster=cluster, report=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    return lambda files: (trainer.train(files), None)[1]


def our_trainer_on_devices(arguments: argparse.Namespace) -> Train:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return our_trainer(arguments, devices=2)


def our_cluster(arguments: argparse.Namespace) -> Train:
    from tfx_pipeline.training.cluster import Cluster

    return our_trainer(arguments, Cluster.from_environment())


def keras_fit(arguments: argparse.Namespace) -> Train:
    import keras
    import tensorflow as tf

    spec, tower, rows_of = model_of(arguments)

    class Ranker(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.tables = {n: keras.layers.Embedding(*shape) for n, shape in ROWS.items()}
            for name, layer in self.tables.items():
                setattr(self, name, layer)
            self.ranker = tower.model

        def call(self, batch: Mapping[str, Any], training: bool = False) -> Any:
            rows = rows_of(batch)
            inputs = tower.inputs(rows, lambda table, name: self.tables[table](rows[name]))
            return self.ranker(inputs, training=training)

    model = Ranker()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adagrad(0.05), loss, jit_compile=False)

    def train(files: list[str]) -> None:
        batches = tf.data.Dataset.from_tensor_slices(files).flat_map(
            lambda path: dataset(path, spec, arguments)
        )
        model.fit(batches, verbose=0)

    return train


def tf_keras_pss(arguments: argparse.Namespace) -> Train:
    import tensorflow as tf
    import tf_keras  # noqa: TID251  # what is compared with

    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    spec, tower, rows_of = model_of(arguments)
    initial = [each.numpy() for each in tower.model.trainable_variables]

    class Ranker(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.tables = {n: tf_keras.layers.Embedding(*shape) for n, shape in ROWS.items()}
            self.dense = [
                self.add_weight(
                    f"w{number}", each.shape, initializer=tf_keras.initializers.Constant(each)
                )
                for number, each in enumerate(initial)
            ]

        def call(self, batch: Mapping[str, Any], training: bool = False) -> Any:
            rows = rows_of(batch)
            inputs = tower.inputs(rows, lambda table, name: self.tables[table](rows[name]))
            weights = [tf.convert_to_tensor(each) for each in self.dense]
            step = tf.constant(1, tf.int64) if training else None
            return tower(weights, [], inputs, step).logits

    with strategy.scope():
        model = Ranker()
        model.compile(
            tf_keras.optimizers.Adagrad(0.05), tf_keras.losses.BinaryCrossentropy(from_logits=True)
        )

    def train(files: list[str]) -> None:
        def batches(_: Any) -> Any:
            paths = tf.data.Dataset.from_tensor_slices(files).repeat()
            return paths.flat_map(lambda path: dataset(path, spec, arguments))

        model.fit(
            tf_keras.utils.experimental.DatasetCreator(batches),
            steps_per_epoch=len(files) * per_file(arguments) // arguments.batch,
            verbose=0,
        )

    return train


def dataset(path: Any, spec: Any, arguments: argparse.Namespace) -> Any:
    """(inputs, label) as ``fit`` takes them, parsed as the trainer does."""
    import tensorflow as tf

    from tfx_pipeline.settings.training_settings import TrainingSettings
    from tfx_pipeline.training.example_files import batches_of_file

    settings = TrainingSettings(batch_size=arguments.batch, shuffle_buffer=256)
    seed = tf.constant(SEED, tf.int64)
    batches = batches_of_file(path, spec, settings, "click", seed, True)
    return batches.map(
        lambda batch: ({k: v for k, v in batch.items() if k != "label"}, batch["label"])
    )


def model_of(arguments: argparse.Namespace) -> tuple[Any, Any, Callable[[Any], Any]]:
    """Spec, tower, and rows of a parsed batch."""
    from tfx_pipeline.training.row_lookup import RowLookup
    from tfx_pipeline.training.tower import Tower

    spec, lookup = spec_of(arguments), RowLookup({}, {})
    tower = Tower(spec, model_settings(arguments), SEED, "absorb")
    return spec, tower, lambda batch: lookup.table_rows(spec, batch)


def model_settings(arguments: argparse.Namespace) -> Any:
    from tfx_pipeline.settings.model_settings import ModelSettings

    return ModelSettings(dim=arguments.dim, mixer_dim=arguments.dim)


def spec_of(arguments: argparse.Namespace) -> Any:
    from laser_features import FeatureSpec

    def field(table: str) -> dict[str, str]:
        return {"type": "int64", "table": table}

    return FeatureSpec.from_dict(
        {
            "name": "speed",
            "history": {"max_length": arguments.length},
            "tables": {
                name: {"rows": rows, "width": width, "ids": "direct"}
                for name, (rows, width) in ROWS.items()
            },
            "event": {"item_id": field("item"), "action": field("action")},
            "item": {"author": field("author")},
            "label": {"click": {"type": "int8"}},
        }
    )


def per_file(arguments: argparse.Namespace) -> int:
    """Requests of a file: four batches."""
    return 4 * int(arguments.batch)


def write_files(folder: Path, arguments: argparse.Namespace) -> None:
    """A file to warm up and as many as the steps need; ids by Zipf's law."""
    import tensorflow as tf

    rng = np.random.default_rng(SEED)
    length, count = arguments.length, arguments.candidates
    weights = 1.0 / np.arange(1, ROWS["item"][0] - 1)
    cumulative = np.cumsum(weights / weights.sum())
    for number in range(1 + -(-arguments.steps // 4)):
        path = folder / f"data-{number:03d}.gz"
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for _ in range(per_file(arguments)):
                items = 1 + np.searchsorted(cumulative, rng.random(length + count))
                authors = 1 + items % (ROWS["author"][0] - 1)
                values = {
                    "history_item_id": items[:length],
                    "history_author": authors[:length],
                    "history_action": rng.integers(1, ROWS["action"][0], length),
                    "history_age_seconds": np.sort(rng.integers(1, 10**6, length)),
                    "history_length": [length],
                    "candidate_item_id": items[length:],
                    "candidate_author": authors[length:],
                    "candidate_count": [count],
                    "request_user_id": [1],
                    "request_time_ms": [1_700_000_000_000],
                    "label_click": rng.integers(0, 2, count),
                }
                example = tf.train.Example()
                for name, numbers in values.items():
                    example.features.feature[name].int64_list.value.extend(map(int, numbers))
                writer.write(example.SerializeToString())


if __name__ == "__main__":
    main()
