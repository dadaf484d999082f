"""``SequenceTokenizer``."""

import keras
import numpy as np
import pytest
from layer_tools import assert_close, gradients, randomise, to_numpy

from laser_keras import SequenceTokenizer


def features(seed: int = 0) -> tuple[dict, dict, np.ndarray]:
    rng = np.random.default_rng(seed)
    history = {
        "item": rng.integers(0, 20, (2, 5)),
        "action": rng.integers(0, 4, (2, 5)),
        "image": rng.normal(size=(2, 5, 3)).astype("float32"),
    }
    target = {
        "item": rng.integers(0, 20, (2, 4)),
        "image": rng.normal(size=(2, 4, 3)).astype("float32"),
    }
    return history, target, rng.integers(0, 10**6, (2, 5)).astype("int32")


def make(**kwargs: object) -> SequenceTokenizer:
    tables = {"item": (20, 4), "action": (4, 2)}
    return SequenceTokenizer(dim=6, tables=tables, similarity=["image"], **kwargs)


def table(tokenizer: SequenceTokenizer, name: str) -> np.ndarray:
    (weight,) = [w for w in tokenizer.weights if f"/{name}/" in w.path]
    return to_numpy(weight)


@pytest.mark.parametrize("recency", ["add", "concat", "none"])
def test_equals_numpy(recency: str) -> None:
    history, target, age = features()
    tokenizer = make(recency=recency)
    outputs = tokenizer(history, target, age=None if recency == "none" else age)
    randomise(tokenizer)
    outputs = tokenizer(history, target, age=None if recency == "none" else age)
    parts = [
        table(tokenizer, "action")[history["action"]],
        history["image"],
        table(tokenizer, "item")[history["item"]],
    ]
    rows = None
    if recency != "none":
        rows = table(tokenizer, "recency_embedding")[
            to_numpy(tokenizer._recency_embedding.rows(age))
        ]
    if recency == "concat":
        parts.append(rows)
    tokens = np.concatenate(parts, -1) @ to_numpy(tokenizer.history_kernel)
    tokens = tokens + to_numpy(tokenizer.history_bias) + (rows if recency == "add" else 0)
    assert_close(outputs["history"], tokens)
    parts = [target["image"], table(tokenizer, "item")[target["item"]]]
    tokens = np.concatenate(parts, -1) @ to_numpy(tokenizer.target_kernel)
    assert_close(outputs["target"], tokens + to_numpy(tokenizer.target_bias))


def test_similarity_is_the_cosine() -> None:
    history, target, age = features()
    history["image"][0, 0] = 0
    found = to_numpy(make()(history, target, age=age)["similarity"])
    assert found.shape == (2, 4, 5, 1)
    for b in range(2):
        for n in range(4):
            for j in range(5):
                h, t = history["image"][b, j], target["image"][b, n]
                norms = np.linalg.norm(h) * np.linalg.norm(t)
                expected = h @ t / norms if norms else 0.0
                np.testing.assert_allclose(found[b, n, j, 0], expected, atol=1e-5)


def test_the_order_of_a_dict_never_matters() -> None:
    history, target, age = features()
    tokenizer = make()
    expected = tokenizer(history, target, age=age)
    found = tokenizer(dict(reversed(list(history.items()))), target, age=age)
    assert_close(found["history"], expected["history"])


def test_one_table_serves_both_sides() -> None:
    tokenizer = make()
    tokenizer(*features()[:2], age=features()[2])
    assert len([w for w in tokenizer.weights if "/item/" in w.path]) == 1


def test_single_targets() -> None:
    history, target, age = features()
    tokenizer = make()
    together = tokenizer(history, target, age=age)
    alone = tokenizer(history, {k: v[:, 2] for k, v in target.items()}, age=age)
    assert_close(alone["target"], together["target"][:, 2])
    assert_close(alone["similarity"], together["similarity"][:, 2])


def test_masked_nan_reaches_neither_tokens_of_others_nor_gradients() -> None:
    rng = np.random.default_rng(0)
    history = rng.normal(size=(2, 5, 3)).astype("float32")
    target = rng.normal(size=(2, 1, 2)).astype("float32")
    mask = np.arange(5) < np.array([[5], [2]])
    spoiled = np.where(mask[..., None], history, np.float32(np.nan))
    tokenizer = SequenceTokenizer(dim=4, recency="none")
    tokenizer(history, target)

    def loss(h):
        return keras.ops.sum(keras.ops.square(tokenizer(h, target, mask=mask)["history"]))

    zeros = np.where(mask[..., None], history, 0)
    for clean, dirty in zip(
        gradients(tokenizer, loss, [zeros]), gradients(tokenizer, loss, [spoiled])
    ):
        assert_close(dirty, clean)


def test_shared_columns_start_with_equal_rows_and_are_trained_apart() -> None:
    tokenizer = SequenceTokenizer(dim=4, recency="none", shared_width=3)
    history, target = np.ones((1, 2, 5), "float32"), np.ones((1, 1, 3), "float32")
    tokenizer(history, target)
    of_history, of_target = to_numpy(tokenizer.history_kernel), to_numpy(tokenizer.target_kernel)
    np.testing.assert_array_equal(of_history[:3], of_target)
    assert np.abs(of_history[3:5] - of_history[:2]).max() > 1e-3
    assert len(tokenizer.trainable_weights) == 4
    assert SequenceTokenizer.from_config(tokenizer.get_config()).shared_width == 3


@pytest.mark.parametrize(
    ("history", "target"),
    [(np.ones((1, 2, 5)), np.ones((1, 1, 2))), ({"a": np.ones((1, 2, 5))}, np.ones((1, 1, 3)))],
)
def test_shared_columns_must_be_there(history, target) -> None:
    with pytest.raises(ValueError, match=r"`shared_width`, `(target|history)` must be a tensor"):
        SequenceTokenizer(dim=4, recency="none", shared_width=3)(history, target)


def test_config_round_trip() -> None:
    tokenizer = make(recency="concat")
    revived = SequenceTokenizer.from_config(tokenizer.get_config())
    assert revived.get_config() == tokenizer.get_config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t, a: (h, t, None), "`age` .* is missing"),
        (lambda h, t, a: (h, t, a.astype("float32")), "must be an integer"),
        (lambda h, t, a: (h, t, a[:, :1]), "`age` must have shape"),
        (
            lambda h, t, a: ({**h, "item": h["image"]}, t, a),
            "`history\\['item'\\]` must have shape",
        ),
        (lambda h, t, a: ({**h, "image": h["item"]}, t, a), "`history\\['image'\\]` must have"),
        (lambda h, t, a: (h, {"item": t["item"]}, a), "feature 'image' named in `similarity`"),
    ],
)
def test_errors_name_the_argument(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        history, target, age = change(*features())
        make()(history, target, age=age)


def test_features_must_stay_those_of_the_build() -> None:
    history, target, age = features()
    tokenizer = make()
    tokenizer(history, target, age=age)
    del history["action"]
    with pytest.raises(ValueError, match="must hold the features the layer was built with"):
        tokenizer(history, target, age=age)


def test_similarity_needs_vectors() -> None:
    with pytest.raises(ValueError, match="must name float-vector features"):
        SequenceTokenizer(tables={"item": (3, 2)}, similarity=["item"])
