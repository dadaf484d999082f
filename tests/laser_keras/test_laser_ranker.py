"""``LaserRanker``: contract, padding, saving, plug-in embedding."""

from pathlib import Path

import keras
import numpy as np
import pytest
from layer_tools import assert_close, randomise, to_numpy

from laser_keras import SYSTEMS, LaserRanker, SequenceRanker, comparison_ranker

SMALL = {"dim": 8, "key_dim": 4, "segment_size": 4, "num_recent_segments": 2, "num_tokens": 8}
SMALL |= {"mixer_dim": 16}


def tower_inputs(batch: int = 3, candidates: int = 2, length: int = 10) -> dict:
    rng = np.random.default_rng(0)
    lengths = np.array([length, 3, 0])[:batch]
    return {
        "history": rng.normal(size=(batch, length, 6)).astype("float32"),
        "history_mask": np.arange(length) < lengths[:, None],
        "history_age": rng.integers(0, 10**7, (batch, length)).astype("int32"),
        "target": rng.normal(size=(batch, candidates, 5)).astype("float32"),
        "candidate": rng.normal(size=(batch, candidates, 2)).astype("float32"),
        "context": rng.normal(size=(batch, 3)).astype("float32"),
    }


def make(**kwargs: object) -> LaserRanker:
    return LaserRanker(**{**SMALL, **kwargs})


def built(**kwargs: object) -> LaserRanker:
    ranker = make(**kwargs)
    ranker(tower_inputs())
    randomise(ranker)
    return ranker


def test_returns_probabilities_or_logits() -> None:
    inputs = tower_inputs()
    probabilities = to_numpy(built()(inputs))
    logits = to_numpy(built(activation="linear")(inputs))
    assert probabilities.shape == (3, 2) and probabilities.dtype == np.float32
    assert_close(probabilities, 1 / (1 + np.exp(-logits)))
    assert np.unique(logits).size == logits.size


def test_optional_inputs_and_single_target() -> None:
    inputs = tower_inputs()
    del inputs["candidate"], inputs["context"]
    ranker = make()
    together = to_numpy(ranker(inputs))
    single = {**inputs, "target": inputs["target"][:, 1]}
    assert_close(ranker(single), together[:, 1])


def test_one_set_of_weights_for_every_length_and_number_of_candidates() -> None:
    ranker = built()
    inputs = tower_inputs()
    together = to_numpy(ranker(inputs))
    one = {
        **inputs,
        "target": inputs["target"][:, :1],
        "candidate": inputs["candidate"][:, :1],
        "history": np.concatenate([inputs["history"], np.full((3, 7, 6), np.nan)], axis=1),
        "history_mask": np.concatenate([inputs["history_mask"], np.zeros((3, 7), bool)], axis=1),
        "history_age": np.concatenate([inputs["history_age"], np.full((3, 7), -3)], axis=1),
    }
    assert_close(ranker(one)[:, 0], together[:, 0])


def test_save_and_load(tmp_path: Path) -> None:
    ranker = built(dropout=0.1, implementation="project")
    path = tmp_path / "ranker.keras"
    ranker.save(path)
    revived = keras.saving.load_model(path)
    assert revived.get_config() == ranker.get_config()
    assert_close(revived(tower_inputs()), ranker(tower_inputs()), relative=1e-7)


@keras.saving.register_keras_serializable(package="test_laser_ranker")
class RawEmbedding(keras.layers.Layer):
    """A plug-in with nothing but ``call``: item ids to the tower's inputs."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.items = keras.layers.Embedding(50, 6)

    def call(self, inputs: dict) -> dict:
        return {
            "history": self.items(inputs["history_item_id"]),
            "history_mask": inputs["history_item_id"] > 0,
            "history_age": inputs["history_age_seconds"],
            "target": self.items(inputs["candidate_item_id"]),
        }


def test_embedding_plug_in(tmp_path: Path) -> None:
    raw = {
        "history_item_id": np.array([[3, 4, 5, 0, 0, 0, 0, 0]], "int32"),
        "history_age_seconds": np.array([[60, 70, 80, 0, 0, 0, 0, 0]], "int32"),
        "candidate_item_id": np.array([[3, 9, 11]], "int32"),
    }
    ranker = make(embedding=RawEmbedding())
    outputs = ranker(raw)
    assert tuple(outputs.shape) == (1, 3)
    path = tmp_path / "ranker.keras"
    ranker.save(path)
    assert_close(keras.saving.load_model(path)(raw), outputs, relative=1e-7)
    inputs = {name: keras.Input(value.shape[1:], dtype="int32") for name, value in raw.items()}
    keras.Model(inputs, ranker(inputs)).save(path)  # as a part of a larger model
    assert_close(keras.saving.load_model(path)(raw), outputs, relative=1e-7)


def test_a_part_of_a_larger_model_is_saved_for_any_batch_and_length(tmp_path: Path) -> None:
    inputs = tower_inputs()
    free = {"context": inputs["context"].shape[1:]}  # the others have a second axis of any size
    symbolic = {
        name: keras.Input(free.get(name, (None, *value.shape[2:])), dtype=value.dtype.name)
        for name, value in inputs.items()
    }
    ranker = make()
    model = keras.Model(symbolic, ranker(symbolic))
    shapes = {name: shape for name, (shape, _) in ranker.get_build_config()["raw_inputs"].items()}
    assert shapes == {name: list(value.shape) for name, value in symbolic.items()}
    assert shapes["history"] == [None, None, 6]
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    for length in (10, 23):
        inputs = tower_inputs(length=length)
        assert_close(revived(inputs), ranker(inputs), relative=1e-7)


def test_trains() -> None:
    ranker = make()
    ranker.compile("adam", "binary_crossentropy")
    inputs = tower_inputs()
    labels = np.array([[0, 1]] * 3, "float32")
    history = ranker.fit(inputs, labels, epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


def test_any_encoder_fits() -> None:
    from laser_keras import LaserEncoder

    ranker = SequenceRanker(LaserEncoder(2, 4, 4, num_recent_segments=0), dim=8, num_tokens=4)
    assert tuple(ranker(tower_inputs()).shape) == (3, 2)
    revived = SequenceRanker.from_config(ranker.get_config())
    assert revived.get_config() == ranker.get_config()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("mixer", ["rankmixer", "mlp"])
def test_a_ranker_per_comparison_system(system: str, mixer: str, tmp_path: Path) -> None:
    inputs = tower_inputs()
    options = {"segment_size": 2, "key_dim": 2} if system.startswith("laser") else {}
    if system == "sim_hard":
        inputs["category_match"] = np.random.default_rng(0).random((3, 2, 10)) < 0.5
    sizes = {"dim": 8, "num_tokens": 8, "mixer_dim": 16}
    ranker = comparison_ranker(system, options, mixer=mixer, dropout=0.1, **sizes)
    scores = to_numpy(ranker(inputs))
    assert scores.shape == (3, 2) and np.isfinite(scores).all()
    ranker.save(tmp_path / "ranker.keras")
    revived = keras.saving.load_model(tmp_path / "ranker.keras")
    assert_close(revived(inputs), scores, relative=1e-7)


def test_unknown_system() -> None:
    with pytest.raises(ValueError, match="`system` must be one of"):
        comparison_ranker("gru4rec")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": None}, "Missing: \\['history'\\]"),
        ({"extra": np.ones((3, 2))}, "Unexpected: \\['extra'\\]"),
        ({"history_mask": np.ones((3, 10), "float32")}, "must be boolean"),
        ({"history_mask": np.ones((3, 9), bool)}, "must have shape \\[B, L\\]"),
        ({"history_age": np.ones((3, 10), "float32")}, "`age` must be an integer"),
        ({"history_age": np.ones((3, 1), "int32")}, "`age` must have shape"),
        ({"target": np.ones((3, 2, 5, 1), "float32")}, "`target` must have shape"),
        ({"candidate": np.ones((3, 2, 2), "int32")}, "`candidate` must be a float tensor"),
        ({"context": np.ones((3, 3), "int64")}, "`context` must be a float tensor"),
        ({"context": np.ones((1, 3), "float32")}, "`context` must have shape"),
        ({"candidate": np.ones((3, 1, 2), "float32")}, "`candidate` must have shape"),
    ],
)
def test_bad_inputs_are_named(change: dict, message: str) -> None:
    inputs = {k: v for k, v in {**tower_inputs(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        make()(inputs)


@pytest.mark.parametrize("name", ["candidate", "context"])
def test_integer_features_are_refused_when_a_larger_model_is_made(name: str) -> None:
    inputs = {
        key: keras.Input(value.shape[1:], dtype="int32" if key == name else value.dtype.name)
        for key, value in tower_inputs().items()
    }
    with pytest.raises(ValueError, match=f"`{name}` must be a float tensor"):
        make()(inputs)


def test_num_tokens_must_leave_room() -> None:
    with pytest.raises(ValueError, match="`num_tokens` must be larger"):
        make(num_tokens=4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.function is TensorFlow's")
@pytest.mark.parametrize("jit", [False, True])
def test_stateless_call_inside_tf_function(jit: bool) -> None:
    import tensorflow as tf

    ranker = built(activation="linear")
    inputs = tower_inputs()
    signature = {
        name: tf.TensorSpec(
            [None, *[None if n < 2 else s for n, s in enumerate(v.shape[1:], 1)]], v.dtype
        )
        for name, v in inputs.items()
    }
    signature["context"] = tf.TensorSpec([None, 3])

    @tf.function(input_signature=[signature], jit_compile=jit)
    def logits_and_gradients(tensors):
        weights = [tf.identity(v.value) for v in ranker.trainable_variables]
        fixed = [v.value for v in ranker.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, _ = ranker.stateless_call(weights, fixed, tensors, training=True)
            loss = tf.reduce_sum(logits)
        return logits, tape.gradient(loss, weights)

    tensors = {name: tf.constant(v) for name, v in inputs.items()}
    logits, found = logits_and_gradients(tensors)
    assert_close(logits, ranker(inputs))
    assert all(g is not None and np.isfinite(tf.convert_to_tensor(g).numpy()).all() for g in found)


def test_options_of_recency_and_mixer_reach_their_layers_and_survive_saving(tmp_path: Path) -> None:
    ranker = comparison_ranker(
        "din",
        dim=8,
        num_tokens=4,
        mixer_dim=16,
        recency_options={"num_buckets": 50},
        mixer_options={"num_experts": 3, "norm": "pre"},
    )
    inputs = tower_inputs()
    expected = to_numpy(ranker(inputs))
    assert ranker.mixer.num_experts == 3
    assert ranker.tokenizer._recency_embedding.embeddings.shape[0] == 50
    ranker.save(tmp_path / "ranker.keras")
    loaded = keras.saving.load_model(tmp_path / "ranker.keras")
    assert_close(loaded(inputs), expected, relative=1e-7)


def test_an_unknown_option_of_a_system_is_named() -> None:
    with pytest.raises(ValueError, match=r"top_k.*Received: 'topk'; did you mean 'top_k'"):
        comparison_ranker("twin", {"topk": 3})
    with pytest.raises(ValueError, match="did you mean 'laser'"):
        comparison_ranker("lasr")
    with pytest.raises(ValueError, match="Received: 'search'"):
        comparison_ranker("sim_soft", {"search": "hard"})
