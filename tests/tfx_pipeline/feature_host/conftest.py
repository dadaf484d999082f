"""A small log with every kind of input, its store, and its Examples as the join writes them."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.seqvault_example_gen.executor import write_records
from components.seqvault_example_gen.join import join_requests
from components.seqvault_example_gen.open_store import open_store
from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.feature_host.control_server import ControlServer
from tfx_pipeline.feature_host.feature_host import FeatureHost
from tfx_pipeline.feature_host.request_shards import RequestShards
from tfx_pipeline.load_store import load_store
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

NOW = 1_650_000_000_000
SPEC = {
    "name": "hosted",
    "history": {"max_length": 12},
    "tables": {
        "item": {"rows": 90, "width": 8, "ids": "direct"},
        "author": {"rows": 40, "width": 4, "ids": "hash"},
        "tag": {"rows": 12, "width": 4, "ids": "vocabulary"},
        "duration": {"rows": 6, "width": 4, "ids": "direct"},
        "scene": {"rows": 5, "width": 4, "ids": "direct"},
        "position": {"rows": 8, "width": 4, "ids": "direct"},
        "age": {"rows": 5, "width": 4, "ids": "direct"},
        "user": {"rows": 40, "width": 4, "ids": "direct"},
    },
    "event": {
        "item_id": {"type": "int64", "table": "item"},
        "scene": {"type": "int8", "table": "scene"},
    },
    "item": {
        "author": {"type": "int64", "table": "author"},
        "tags": {"type": "int64", "table": "tag", "values": 2},
        "duration": {"type": "int32", "table": "duration", "quantiles": 4},
        "published": {"type": "int64"},
    },
    "user": {"user_id": {"type": "int64", "table": "user"}},
    "context": {"scene": {"type": "int8", "table": "scene"}},
    "candidate": {
        "position": {"type": "int8", "table": "position"},
        "age": {
            "derive": "age_minutes",
            "of": "published",
            "table": "age",
            "boundaries": [60, 600],
        },
    },
    "label": {"click": {"type": "int8"}, "seconds": {"type": "float32"}},
}
SPLITS = {"train": TimeRange(NOW, NOW + 100_000), "eval": TimeRange(NOW + 100_000, NOW + 150_000)}


@pytest.fixture(scope="session")
def hosted(tmp_path_factory):
    """Its spec, config and open store."""
    folder = tmp_path_factory.mktemp("hosted")
    spec, rng = FeatureSpec.from_dict(SPEC), np.random.default_rng(4)
    events, rows = 400, 1500
    pq.write_table(
        pa.table(
            {
                "user_id": np.sort(rng.integers(0, 30, events)),
                "timestamp": NOW - 50_000 + rng.integers(0, 200_000, events),
                "item_id": rng.integers(1, 70, events),
                "scene": rng.integers(0, 4, events),
            }
        ).cast(spec.event_schema()),
        folder / "events.parquet",
    )
    items = np.arange(1, 60)  # of the others nothing is known
    tags = rng.integers(0, 9, (len(items), 2))
    pq.write_table(
        pa.table(
            {
                "item_id": items,
                "author": rng.integers(0, 500, len(items)),
                "tags": pa.FixedSizeListArray.from_arrays(pa.array(tags.reshape(-1)), 2),
                "duration": rng.integers(0, 90, len(items)),
                "published": NOW - 60_000 * rng.integers(0, 900, len(items)),
            }
        ).cast(spec.item_schema()),
        folder / "items.parquet",
    )
    request = np.sort(rng.integers(0, 600, rows))
    pq.write_table(
        pa.table(
            {
                "user_id": request % 34,
                "timestamp": NOW + 250 * request,
                "item_id": rng.integers(1, 70, rows),
                "scene": request % 4,
                "position": rng.integers(0, 7, rows),
                "click": (rng.random(rows) < 0.3).astype(np.int8),
                "seconds": rng.random(rows).astype(np.float32),
            }
        ).cast(spec.impression_schema()),
        folder / "impressions.parquet",
        row_group_size=400,
    )
    spec.save(folder / "features.yaml")
    load_store(folder, folder / "store")
    config = PipelineConfig(
        name="hosted",
        splits=SPLITS,
        rows_per_file=500,
        negative_rate=0.8,
        dataset=folder,
        store=str(folder / "store"),
        work=folder / "work",
    )
    with open_store(config.store) as store:
        yield SimpleNamespace(
            spec=spec, config=config, store=store, shards=RequestShards(config, spec)
        )


@pytest.fixture(scope="session")
def examples(hosted, tmp_path_factory):
    """Files of Examples by split, in the order of their shards."""
    files = {}
    for split in hosted.shards.splits:
        folder = tmp_path_factory.mktemp(split)
        files[split] = []
        for number in hosted.shards.numbers(split):
            requests = hosted.shards.requests(split, number)
            parts = join_requests(requests, hosted.store, hosted.spec)
            files[split].append(str(folder / f"data-{number:05d}.gz"))
            write_records(files[split][-1], [each for part, _ in parts for each in part])
    return files


def listening(host, port):
    """A host's control; a port that it had before may be a connection's for a moment."""
    for _ in range(50):
        try:
            return ControlServer(host, "127.0.0.1", port)
        except OSError:
            time.sleep(0.2)
    return ControlServer(host, "127.0.0.1", port)


@pytest.fixture
def start_host(hosted):
    """Starts feature hosts within the test's process."""
    started = []

    def start(port=0, data="data", spec=None, shards=None):
        host = FeatureHost(
            shards or hosted.shards, hosted.store, spec or hosted.spec, data, "127.0.0.1"
        )
        control = listening(host, port)
        started.append((host, control))
        return SimpleNamespace(host=host, control=control, address=f"127.0.0.1:{control.port}")

    yield start
    for host, control in started:
        control.close()
        host.close()


@pytest.fixture
def die_after():
    """Have a host end amid a stream, as a killed process does."""

    def arrange(started, batches, then=lambda: None, instead=None):
        sent, left = started.host.metrics.sent, [batches]

        def end():
            started.control.close()
            started.host.close()
            then()

        def count(*what):
            sent(*what)
            left[0] -= 1
            if left[0] == 0:
                (instead or end)()

        started.host.metrics.sent = count

    return arrange


@pytest.fixture
def hang_after():
    """Have a host go silent amid a stream, with all connections left open, until the test ends."""
    released = threading.Event()

    def arrange(started, batches):
        sent, left, host = started.host.metrics.sent, [batches], started.host

        def count(*what):
            sent(*what)
            left[0] -= 1
            if left[0] <= 0:
                released.wait()

        def hanging(call):
            def answer(*arguments):
                if left[0] <= 0:
                    released.wait()
                return call(*arguments)

            return answer

        host.metrics.sent = count
        for name in ("describe", "open", "is_open", "close_stream"):
            setattr(host, name, hanging(getattr(host, name)))

    yield arrange
    released.set()


@pytest.fixture(scope="session")
def training(hosted):
    """A small model, its settings, and trainers of it."""
    model = ModelSettings(
        dim=8,
        encoder={"segment_size": 4, "num_recent_segments": 1},
        num_tokens=4,
        mixer_dim=16,
        mixer_blocks=1,
        dropout=0.1,
    )
    settings = TrainingSettings(batch_size=16, shuffle_buffer=64, seed=5, epochs=2)
    lookup = RowLookup({"tag": np.arange(1, 9)}, {"duration": np.array([20, 40, 60], np.float32)})

    def trainer(**options):
        return Trainer(hosted.spec, model, settings, lookup, **options)

    return SimpleNamespace(model=model, settings=settings, lookup=lookup, trainer=trainer)


@pytest.fixture(scope="session")
def by_files(training, examples):
    """State and metrics of a training from files."""
    trained = training.trainer()
    trained.train(examples["train"])
    return trained.numpy_state(), trained.evaluate(examples["eval"])
