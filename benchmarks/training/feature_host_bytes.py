"""Bytes and processor time of batches from a feature host, beside raw arrays and Examples.

    python -m benchmarks.training.feature_host_bytes --data DATASET --store STORE --output FILE

One host serves the first shard of the train split over loopback, as a training would ask for it.
Each batch is compared byte for byte with the one that the Examples of the same requests give.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.training.provenance import provenance
from components.seqvault_example_gen.executor import write_records
from components.seqvault_example_gen.join import join_batch, join_requests
from components.seqvault_example_gen.open_store import open_store
from laser_features import FeatureSpec
from tfx_pipeline.config import load_config
from tfx_pipeline.feature_host.control_server import ControlServer
from tfx_pipeline.feature_host.feature_host import FeatureHost
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.feature_host.ordered_batches import OrderedBatches
from tfx_pipeline.feature_host.request_shards import RequestShards
from tfx_pipeline.feature_host.stream_order import StreamOrder
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.feature_streams import batches_of_stream

SEED = 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", default="default")
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.data, arguments.store, Path())
    spec = config.load_spec()
    shards = RequestShards(config, spec)
    source = provenance("feature_host_bytes", SEED)  # the load before, not of this run
    with open_store(config.store) as store:
        measured = measure(shards, store, spec, arguments.batch)
    result = {
        **source,
        "dataset": spec.name,
        "max_history": spec.max_history,
        "batch": arguments.batch,
        **measured,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def measure(shards: RequestShards, store: Any, spec: FeatureSpec, batch: int) -> dict[str, Any]:
    """Bytes per batch by form, and seconds of the host and of the reader."""
    settings = TrainingSettings(batch_size=batch, seed=SEED)
    order = {"batch_size": batch, "shuffle_buffer": settings.shuffle_buffer, "seed": SEED}
    label = next(iter(spec.labels))
    host = FeatureHost(shards, store, spec, "measured", "127.0.0.1")
    control = ControlServer(host, "127.0.0.1", 0)
    hosts = FeatureHosts([f"127.0.0.1:{control.port}"], spec, shards.negative_rate)
    name = hosts.shards("train")[0]
    number = shards.numbers("train")[0]
    stream = hosts.open(name, order)
    sent: list[int] = []
    host.metrics.sent = lambda counts, size: sent.append(size)  # type: ignore[method-assign]
    counted = hosts.open(name, order)
    numbers = [tf.constant(each, tf.int64) for each in (counted.number, 0, 0)]
    streamed = [
        {name: value.numpy() for name, value in each.items()}
        for each in batches_of_stream(tf.constant(counted.endpoint), *numbers, spec, label)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "examples.gz"
        requests = shards.requests("train", number)
        parts = join_requests(requests, store, spec)
        write_records(str(path), [each for part, _ in parts for each in part])
        examples = path.stat().st_size
        seed = tf.constant(SEED, tf.int64)
        from_file = list(batches_of_file(str(path), spec, settings, label, seed))
        compare(streamed, from_file)
        read_examples = read_seconds(
            lambda: batches_of_file(str(path), spec, settings, label, seed)
        )
    batches = len(streamed)
    raw = sum(4 * each[name].size for each in streamed for name in inputs_of(spec))
    vectors = sum(
        4 * field.shape[0] * (each["history_item_id"].size + each["candidate_item_id"].size)
        for each in streamed
        for field in spec.content_fields.values()
        if field.shape
    )
    # The host and the reader share this process, so each is timed alone.
    made = OrderedBatches(StreamOrder("train", number, **order), shards, store, spec, 1)
    layout = seconds_of(lambda: [made.make(each) for each in range(batches)])
    positions = range(0, len(requests), batch)
    join = seconds_of(
        lambda: [
            join_batch(requests.slice(at, min(at + batch, len(requests))), store, spec)
            for at in positions
        ]
    )
    both = read_seconds(
        lambda: batches_of_stream(tf.constant(counted.endpoint), *numbers, spec, label)
    )
    hosts.close(stream)
    control.close()
    host.close()
    return {
        "requests": len(requests),
        "batches": batches,
        "equal_to_examples": True,
        "bytes_per_batch": {
            "raw_float32": raw // batches,
            "raw_float32_with_vectors": (raw + vectors) // batches,
            "examples_gzip": examples // batches,
            "stream": sum(sent[:batches]) // batches,
        },
        "stream_of_raw_float32": round(sum(sent[:batches]) / raw, 4),
        "stream_of_raw_float32_with_vectors": round(sum(sent[:batches]) / (raw + vectors), 4),
        "stream_of_examples_gzip": round(sum(sent[:batches]) / examples, 4),
        "batches_per_cpu_second": {
            "join_alone": round(batches / join, 2),
            "join_and_layout": round(batches / layout, 2),
            "join_layout_compress_send_read": round(batches / both, 2),
            "read_examples": round(batches / read_examples, 2),
        },
    }


def inputs_of(spec: FeatureSpec) -> list[str]:
    return [each.name for each in spec.model_inputs()]


def compare(streamed: list[dict[str, Any]], from_file: list[dict[str, tf.Tensor]]) -> None:
    assert len(streamed) == len(from_file)
    for one, other in zip(streamed, from_file, strict=True):
        assert set(one) == set(other)
        for name, value in other.items():
            assert one[name].tobytes() == value.numpy().tobytes(), name


def read_seconds(make: Callable[[], tf.data.Dataset]) -> float:
    """Processor seconds of a pass over a dataset, in a graph as a training reads it."""

    @tf.function
    def read() -> tf.Tensor:
        count = tf.zeros([], tf.int64)
        for batch in iter(make()):
            count += tf.cast(tf.shape(batch["label"])[0], tf.int64)
        return count

    read()  # traced, and all files in memory
    return seconds_of(read)


def seconds_of(work: Callable[[], Any]) -> float:
    """Processor seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
