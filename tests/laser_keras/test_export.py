"""A ranker as a SavedModel: any batch, any number of candidates, read by plain TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from layer_tools import assert_close, randomise, to_numpy

from laser_keras import (
    SYSTEMS,
    CombinedEncoder,
    HSTUEncoder,
    LaserRanker,
    SequenceRanker,
    SIMEncoder,
    TWINEncoder,
    comparison_ranker,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)

LENGTH = 12
DYNAMIC = ("target", "candidate", "category_match", "candidate_item_id")
"""Inputs whose second axis is the number of candidates."""


def requests(batch: int, candidates: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, LENGTH + 1, (batch, 1))
    return {
        "history": rng.normal(size=(batch, LENGTH, 6)).astype("float32"),
        "history_mask": np.arange(LENGTH) < lengths,
        "history_age": np.sort(rng.integers(0, 10**6, (batch, LENGTH)), axis=1).astype("int32"),
        "target": rng.normal(size=(batch, candidates, 5)).astype("float32"),
        "candidate": rng.normal(size=(batch, candidates, 2)).astype("float32"),
        "context": rng.normal(size=(batch, 3)).astype("float32"),
    }


def extras(names: list[str], batch: int, candidates: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    every = {
        "category_match": rng.random((batch, candidates, LENGTH)) < 0.5,
        "cross": rng.normal(size=(batch, LENGTH, 3, 2)).astype("float32"),
    }
    return {name: every[name] for name in names}


def signature(inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    import tensorflow as tf

    return [
        {
            name: tf.TensorSpec(
                [None, None if name in DYNAMIC else value.shape[1], *value.shape[2:]], value.dtype
            )
            for name, value in inputs.items()
        }
    ]


def make(system: str) -> tuple[SequenceRanker, list[str]]:
    """A small ranker, and the extra inputs that its encoder takes."""
    sizes = {"dim": 8, "num_tokens": 8, "mixer_dim": 16}
    if system == "combined":
        parts = [HSTUEncoder(dialect="dlrm_v3"), TWINEncoder(4), SIMEncoder("hard", 4)]
        return SequenceRanker(CombinedEncoder(parts), **sizes), ["cross", "category_match"]
    small = {
        "laser": {"segment_size": 3, "key_dim": 3, "num_recent_segments": 2},
        "laser_fast": {"segment_size": 3, "key_dim": 3, "num_recent_segments": 2},
        "laser_printed": {"segment_size": 3, "key_dim": 3, "num_recent_segments": 2},
        "hstu": {"read_out": "target_position"},
        "longer": {"merge_size": 2, "num_queries": 3},
        "twin": {"top_k": 4},
        "sim_hard": {"top_k": 4},
        "sim_soft": {"top_k": 4},
        "base": {"recent_events": 5},
    }
    names = {"twin": ["cross"], "sim_hard": ["category_match"]}.get(system, [])
    return comparison_ranker(system, small.get(system), **sizes), names


@pytest.mark.parametrize("system", [*SYSTEMS, "combined"])
def test_scores_of_any_batch_and_any_number_of_candidates(system: str, tmp_path: Path) -> None:
    import tensorflow as tf

    ranker, names = make(system)
    inputs = {**requests(2, 3), **extras(names, 2, 3)}
    ranker(inputs)
    randomise(ranker)
    ranker.export(tmp_path / "model", input_signature=signature(inputs), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    for batch, candidates in ((1, 1), (2, 3), (3, 2), (1, 25)):
        inputs = {**requests(batch, candidates, seed=batch), **extras(names, batch, candidates)}
        scores = loaded.serve({name: tf.constant(value) for name, value in inputs.items()})
        assert tuple(scores.shape) == (batch, candidates)
        assert_close(scores, ranker(inputs), 1e-4)


@pytest.mark.parametrize("system", ["laser", "sim_hard", "twin"])
def test_the_inputs_of_the_first_call_are_the_default_signature(
    system: str, tmp_path: Path
) -> None:
    import tensorflow as tf

    ranker, names = make(system)
    inputs = {**requests(2, 3), **extras(names, 2, 3)}
    with pytest.raises(ValueError, match="Missing"):  # a refused call is not the first one
        ranker({"target": inputs["target"]})
    ranker(inputs)
    ranker.save(tmp_path / "ranker.keras")
    for model in (ranker, keras.saving.load_model(tmp_path / "ranker.keras")):
        model.export(tmp_path / "model", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "model"))
        for batch, candidates in ((1, 1), (3, 7)):
            inputs = {**requests(batch, candidates), **extras(names, batch, candidates)}
            scores = served.serve({name: tf.constant(value) for name, value in inputs.items()})
            assert_close(scores, ranker(inputs), 1e-4)


@keras.saving.register_keras_serializable(package="test_export")
class ItemEmbedding(keras.layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.items = keras.layers.Embedding(50, 6)

    def call(self, inputs: dict) -> dict:
        return {
            "history": self.items(inputs["history_item_id"]),
            "history_mask": inputs["history_item_id"] > 0,
            "history_age": inputs["history_age_seconds"],
            "target": self.items(inputs["candidate_item_id"]),
        }


READER = """
import sys
import numpy as np
import tensorflow as tf

data = np.load(sys.argv[2])
model = tf.saved_model.load(sys.argv[1])
for i in range(3):
    names = ("history_item_id", "history_age_seconds", "candidate_item_id")
    scores = model.serve({name: tf.constant(data[f"{name}_{i}"]) for name in names})
    np.testing.assert_allclose(scores, data[f"scores_{i}"], rtol=1e-4)
assert "laser_keras" not in sys.modules
print("read")
"""


def test_a_process_without_this_package_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def raw(batch: int, candidates: int) -> dict[str, np.ndarray]:
        return {
            "history_item_id": rng.integers(0, 50, (batch, LENGTH)).astype("int32"),
            "history_age_seconds": rng.integers(0, 10**6, (batch, LENGTH)).astype("int32"),
            "candidate_item_id": rng.integers(1, 50, (batch, candidates)).astype("int32"),
        }

    ranker = LaserRanker(
        dim=8,
        key_dim=3,
        segment_size=4,
        num_recent_segments=2,
        num_tokens=8,
        mixer_dim=16,
        embedding=ItemEmbedding(),
    )
    first = raw(2, 3)
    ranker(first)
    randomise(ranker)
    ranker.export(tmp_path / "model", input_signature=signature(first), verbose=False)
    saved = {}
    for i, sizes in enumerate([(1, 1), (4, 2), (2, 40)]):
        inputs = raw(*sizes)
        saved |= {f"{name}_{i}": value for name, value in inputs.items()}
        saved[f"scores_{i}"] = to_numpy(ranker(inputs))
    np.savez(tmp_path / "data.npz", **saved)
    command = [sys.executable, "-c", READER, str(tmp_path / "model"), str(tmp_path / "data.npz")]
    # Away from this folder, so that nothing of the repository is importable by accident.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0 and "read" in done.stdout, done.stderr[-2000:]
