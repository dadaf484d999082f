"""A small spec with every kind of input, and Examples of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.row_frames import build_ops, load_if_built

SPEC: dict[str, Any] = {
    "name": "small",
    "history": {"max_length": 25},
    "tables": {
        "item": {"rows": 120, "width": 8, "ids": "direct"},
        "tag": {"rows": 12, "width": 4, "ids": "vocabulary"},
        "duration": {"rows": 6, "width": 4, "ids": "direct"},
        "scene": {"rows": 5, "width": 4, "ids": "direct"},
        "position": {"rows": 8, "width": 4, "ids": "direct"},
    },
    "event": {
        "item_id": {"type": "int64", "table": "item"},
        "scene": {"type": "int8", "table": "scene"},
    },
    "item": {
        "tag": {"type": "int64", "table": "tag"},
        "duration_ms": {"type": "int32", "table": "duration", "quantiles": 4},
        "vector": {"type": "float32", "shape": [3]},
    },
    "context": {"scene": {"type": "int8", "table": "scene"}},
    "candidate": {"position": {"type": "int8", "table": "position"}},
    "label": {"click": {"type": "int8"}},
}


@pytest.fixture(scope="session")
def ops() -> str:
    """The ops of the zstd codecs, built once; a second of processor time."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        pytest.skip("no C++ compiler to build the ops with")
    build_ops()
    return load_if_built()


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    return FeatureSpec.from_dict(SPEC)


@pytest.fixture(scope="session")
def plain_spec() -> FeatureSpec:
    """Without vocabularies, quantiles and content vectors."""
    item = {"tag": {"type": "int64", "table": "tag"}}
    tables: dict[str, Any] = {**SPEC["tables"], "tag": {"rows": 12, "width": 4, "ids": "hash"}}
    del tables["duration"]
    return FeatureSpec.from_dict({**SPEC, "tables": tables, "item": item})


@pytest.fixture(scope="session")
def open_spec() -> FeatureSpec:
    """With one vocabulary, of tags, whose rows may be given as training meets them."""
    item = {"tag": {"type": "int64", "table": "tag"}}
    tables = {name: each for name, each in SPEC["tables"].items() if name != "duration"}
    return FeatureSpec.from_dict({**SPEC, "tables": tables, "item": item})


@pytest.fixture(scope="session")
def laser_settings() -> ModelSettings:
    return ModelSettings(
        dim=16,
        encoder={"segment_size": 5, "num_recent_segments": 2},
        num_tokens=8,
        mixer_dim=32,
        mixer_blocks=1,
        dropout=0.1,
    )


@pytest.fixture(scope="session")
def model_settings(laser_settings: ModelSettings) -> ModelSettings:
    """Traced in half of LASER's time, for what holds of every system; test_systems has them all."""
    return replace(laser_settings, system="din", encoder={}, mixer="mlp")


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    return TrainingSettings(
        batch_size=16,
        weight_decay=0.01,
        final_rate=0.5,
        seed=3,
        shuffle_buffer=64,
    )


@pytest.fixture(scope="session")
def make_example() -> Callable[[FeatureSpec, np.random.Generator], bytes]:
    """A random Example of either spec; the click depends on the item and on the history."""

    def make(spec: FeatureSpec, rng: np.random.Generator) -> bytes:
        length, count = int(rng.integers(0, spec.max_history + 1)), int(rng.integers(1, 4))
        features: dict[str, Any] = {}
        sizes = {"history": length, "candidate": count, "request": 1}
        for each in spec.model_inputs():
            size = sizes[each.kind]
            if each.transform == "quantiles":
                features[each.name] = rng.normal(size=size).astype(np.float32)
            elif each.table is None:
                features[each.name] = np.sort(rng.integers(1, 10**6, size))
            else:
                features[each.name] = rng.integers(1, spec.tables[each.table].rows, size)
        features["history_length"] = [length]
        features["candidate_count"] = [count]
        features["request_user_id"] = [int(rng.integers(50))]
        features["request_time_ms"] = [1_700_000_000_000]
        seen = set(features["history_tag"])
        odd = features["candidate_item_id"] % 2 == 1
        features["label_click"] = [
            int(is_odd or tag in seen)
            for is_odd, tag in zip(odd, features["candidate_tag"], strict=True)
        ]
        example = tf.train.Example()
        for name, values in features.items():
            feature = example.features.feature[name]
            if np.asarray(values).dtype == np.float32:
                feature.float_list.value.extend(values)
            else:
                feature.int64_list.value.extend(int(value) for value in values)
        return example.SerializeToString()

    return make


@pytest.fixture(scope="session")
def write_files(
    make_example: Callable[[FeatureSpec, np.random.Generator], bytes],
) -> Callable[..., list[str]]:
    """Writes GZIP TFRecord files of random Examples."""

    def write(folder: Path, spec: FeatureSpec, files: int = 3, requests: int = 40) -> list[str]:
        rng = np.random.default_rng(5)
        paths = []
        for number in range(files):
            paths.append(str(folder / f"data-{number}.gz"))
            options = tf.io.TFRecordOptions(compression_type="GZIP")
            with tf.io.TFRecordWriter(paths[-1], options) as writer:
                for _ in range(requests):
                    writer.write(make_example(spec, rng))
        return paths

    return write
