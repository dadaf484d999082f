"""``FeatureEmbedding``: raw ids to a trained, saved and exported ranker."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from layer_tools import BACKEND, assert_close, to_numpy

from laser_keras import FeatureEmbedding, LaserRanker

RNG = np.random.default_rng(0)


def raw(candidates: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(candidates)
    lengths = np.array([12, 5, 0, 1])[:, None]
    item = np.where(np.arange(12) < lengths, rng.integers(1, 20, (4, 12)), 0)
    return {
        "history_item": item.astype("int32"),
        "history_tags": rng.integers(0, 5, (4, 12, 3)).astype("int32"),
        "history_price": rng.normal(size=(4, 12, 1)).astype("float32"),
        "history_age": np.sort(rng.integers(0, 10**6, (4, 12)), axis=1).astype("int32"),
        "candidate_item": rng.integers(1, 20, (4, candidates)).astype("int32"),
        "candidate_tags": rng.integers(0, 5, (4, candidates, 3)).astype("int32"),
        "candidate_price": rng.normal(size=(4, candidates, 1)).astype("float32"),
        "candidate_slot": rng.integers(1, 7, (4, candidates)).astype("int32"),
        "user": np.array([1, 2, 3, 0], "int32"),
        "hour": rng.normal(size=(4, 2)).astype("float32"),
    }


TABLES = {"item": (20, 4), "tags": 5, "slot": 7, "user": (10, 2)}


def test_every_feature_finds_its_place_and_its_rows() -> None:
    inputs = raw()
    layer = FeatureEmbedding(TABLES, dim=3)
    outputs = {name: to_numpy(value) for name, value in layer(inputs).items()}
    item, tags, slot, user = (to_numpy(layer._tables[n].embeddings) for n in TABLES)

    def mean(ids: np.ndarray) -> np.ndarray:
        kept = ids > 0
        total = np.where(kept[..., None], tags[ids], 0).sum(-2)
        return total / np.maximum(kept.sum(-1), 1)[..., None]

    def rows(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.where(ids[..., None] > 0, table[ids], 0)

    for side, key in (("history", "history"), ("candidate", "target")):
        expected = [
            rows(item, inputs[f"{side}_item"]),
            inputs[f"{side}_price"],
            mean(inputs[f"{side}_tags"]),
        ]
        assert_close(outputs[key], np.concatenate(expected, axis=-1))
    assert_close(outputs["candidate"], rows(slot, inputs["candidate_slot"]))
    assert_close(
        outputs["context"], np.concatenate([inputs["hour"], rows(user, inputs["user"])], -1)
    )
    np.testing.assert_array_equal(outputs["history_mask"], inputs["history_item"] > 0)
    np.testing.assert_array_equal(outputs["history_age"], inputs["history_age"])


def small_ranker(embedding: FeatureEmbedding, **kwargs: Any) -> LaserRanker:
    sizes = {"segment_size": 4, "num_recent_segments": 2, "num_tokens": 8, "mixer_dim": 16}
    return LaserRanker(8, embedding=embedding, **sizes, **kwargs)


def test_ids_train_a_ranker_that_is_saved_with_its_tables(tmp_path: Path) -> None:
    """With an empty list of tags, a history of one event, and one without any."""
    inputs, labels = raw(), RNG.integers(0, 2, (4, 3)).astype("float32")
    inputs["history_tags"][1] = inputs["candidate_tags"][2] = 0
    ranker = small_ranker(FeatureEmbedding(TABLES, dim=3))
    ranker.compile("adam", "binary_crossentropy", jit_compile=BACKEND == "jax")
    history = ranker.fit(inputs, labels, epochs=4, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert history.history["loss"][-1] < history.history["loss"][0]
    scores = to_numpy(ranker(inputs))
    assert np.isfinite(scores).all()
    ranker.save(tmp_path / "ranker.keras")
    assert_close(keras.saving.load_model(tmp_path / "ranker.keras")(inputs), scores, 1e-6)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is TensorFlow's")
def test_an_export_takes_any_number_of_candidates(tmp_path: Path) -> None:
    """Though their second axis has no name that tells: three events, three candidates."""
    import tensorflow as tf

    inputs = {name: value[:, :3] if value.ndim > 1 else value for name, value in raw().items()}
    ranker = small_ranker(FeatureEmbedding(TABLES, dim=3))
    ranker.encoder.segmented_attention.segment_size = 2  # two segments of three events
    ranker(inputs)
    ranker.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    more = raw(8)
    inputs |= {name: value for name, value in more.items() if name.startswith("candidate")}
    found = served.serve({name: tf.constant(value) for name, value in inputs.items()})
    assert_close(found, ranker(inputs), 1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras' lookups run on TensorFlow")
def test_lookups_of_keras_make_row_numbers_of_raw_ids(tmp_path: Path) -> None:
    tables = {
        "item": (keras.layers.StringLookup(vocabulary=["a", "b", "c"], mask_token=""), 4),
        "shop": keras.layers.Hashing(16, mask_value=0),
        "brand": keras.layers.IntegerLookup(vocabulary=[700, 900], mask_token=0),
    }
    import tensorflow as tf

    inputs = {
        "history_item": tf.constant([["a", "c", "", ""] * 2, ["b"] + [""] * 7]),
        "candidate_item": tf.constant([["a", "zzz"], ["c", "b"]]),
        "candidate_shop": np.array([[123456789, 5], [5, 6]]),
        "brand": np.array([700, 4]),
    }
    ranker = small_ranker(FeatureEmbedding(tables), recency="none")
    scores = to_numpy(ranker(inputs))
    mask = to_numpy(ranker.embedding(inputs)["history_mask"])
    assert mask.tolist() == [[True, True, False, False] * 2, [True] + [False] * 7]
    ranker.save(tmp_path / "ranker.keras")
    assert_close(keras.saving.load_model(tmp_path / "ranker.keras")(inputs), scores, 1e-6)
    ranker.compile("adam", "binary_crossentropy", jit_compile=False)
    assert np.isfinite(ranker.fit(inputs, np.ones((2, 2)), verbose=0).history["loss"]).all()
    with pytest.raises(ValueError, match=r"`tables\['item'\]` must have a `mask_token`"):
        FeatureEmbedding({"item": keras.layers.StringLookup(vocabulary=["a"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate_item": None}, "`candidate_x` of the same name"),
        ({"history_brand": np.ones((4, 12), "int32")}, r"must have shape \[..., k\] of floats"),
        ({"zone": np.ones((4, 1), "int32")}, "no table 'zone' in `tables` and must be a float"),
        ({"history_item": np.ones(4, "int32")}, "must have shape ids, or T ids each"),
    ],
)
def test_bad_inputs_are_named(change: dict, message: str) -> None:
    inputs = {"history_item": raw()["history_item"], "candidate_item": raw()["candidate_item"]}
    inputs = {k: v for k, v in {**inputs, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        FeatureEmbedding({"item": 20})(inputs)
