"""A log of users who click the items of one topic, and a recall model trained on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfx_pipeline.recall.run_fn import run_fn

ITEMS, TOPICS, K, HISTORY = 120, 6, 20, 5
SPEC: dict[str, Any] = {
    "name": "topics",
    "history": {"max_length": 12},
    "tables": {
        "item": {"rows": ITEMS + 1, "width": 8, "ids": "direct"},
        "topic": {"rows": TOPICS + 1, "width": 4, "ids": "direct"},
        "hour": {"rows": 25, "width": 2, "ids": "direct"},
        "position": {"rows": 8, "width": 4, "ids": "direct"},
    },
    "event": {"item_id": {"type": "int64", "table": "item"}},
    "item": {"topics": {"type": "int64", "table": "topic", "values": 2}},
    "context": {"hour": {"type": "int64", "table": "hour"}},
    "candidate": {"position": {"type": "int8", "table": "position"}},
    "label": {"click": {"type": "int8"}},
}


def topic_of(items: Any) -> Any:
    return np.asarray(items) % TOPICS


def write_items(path: Path) -> None:
    """Item, its topic and no second one; in an order that is not that of the ids."""
    ids = np.random.default_rng(3).permutation(ITEMS).astype(np.int64)
    topics = np.stack([topic_of(ids), np.full(ITEMS, -1)], axis=1).ravel()
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(topics, pa.int64()), 2)
    pq.write_table(pa.table({"item_id": ids, "topics": fixed}), path)


def write_examples(path: Path, requests: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
        for _ in range(requests):
            topic = rng.integers(TOPICS)
            liked = np.arange(topic, ITEMS, TOPICS)
            history = rng.choice(liked, rng.integers(1, 13))
            shown = np.concatenate([rng.choice(liked, 2, replace=False), rng.integers(0, ITEMS, 2)])
            features = {
                "history_item_id": history + 1,
                "history_topics": np.stack([topic_of(history) + 1, 0 * history], axis=1).ravel(),
                "history_age_seconds": np.arange(len(history)),
                "history_length": [len(history)],
                "candidate_item_id": shown + 1,
                "candidate_topics": np.stack([topic_of(shown) + 1, 0 * shown], axis=1).ravel(),
                "candidate_position": np.arange(1, 5),
                "candidate_count": [4],
                "context_hour": [rng.integers(1, 25)],
                "label_click": (topic_of(shown) == topic).astype(int),
            }
            example = tf.train.Example()
            for name, values in features.items():
                example.features.feature[name].int64_list.value.extend(int(v) for v in values)
            writer.write(example.SerializeToString())


def fn_args(folder: Path, **recall: Any) -> SimpleNamespace:
    """TFX's arguments of a Trainer, of the files that lie in a folder."""
    return SimpleNamespace(
        train_files=[str(folder / "train*")],
        eval_files=[str(folder / "eval*")],
        transform_graph_path=None,
        serving_model_dir=str(folder / "model"),
        model_run_dir=str(folder / "run"),
        custom_config={
            "feature_spec": SPEC,
            "items": str(folder / "items.parquet"),
            "log": str(folder / "recall.log"),
            "recall": {"k": K, "history": HISTORY, "epochs": 8, "batch_size": 64, **recall},
        },
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Examples, the catalogue, and what ``run_fn`` made of them."""
    folder = tmp_path_factory.mktemp("recall")
    write_items(folder / "items.parquet")
    write_examples(folder / "train-0.gz", 300, 1)
    write_examples(folder / "train-1.gz", 300, 2)
    write_examples(folder / "eval-0.gz", 200, 3)
    run_fn(fn_args(folder))
    return folder
