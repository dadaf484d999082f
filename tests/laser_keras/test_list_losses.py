"""Losses and gAUC over the candidates of a request, against sums by hand."""

import math
from typing import Any

import keras
import numpy as np
import pytest
from layer_tools import BACKEND, assert_close, gradients, to_numpy

from laser_keras import GroupAUC, LaserRanker, ListwiseSoftmaxLoss, PairwiseLogisticLoss

LABELS = np.array([[1, 0, 0, -1], [0, 0, 0, 0], [2, 1, -1, -1]], "float32")
SCORES = np.array([[0.5, -1.0, 2.0, 50.0], [1, 2, 3, 4], [0.0, 1.0, -9.0, np.nan]], "float32")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_pairs_by_hand() -> None:
    rows = [(softplus(-1.5) + softplus(1.5)) / 2, 0.0, softplus(1.0)]
    loss = PairwiseLogisticLoss(reduction="none")
    assert_close(loss(LABELS, SCORES), np.array(rows, "float32"))
    assert float(PairwiseLogisticLoss()(LABELS, SCORES)) == pytest.approx(sum(rows) / 3, rel=1e-6)
    weighted = loss(LABELS, SCORES, sample_weight=np.array([2.0, 1.0, 0.5], "float32"))
    assert_close(weighted, np.array([2 * rows[0], 0, rows[2] / 2], "float32"))


def test_softmax_by_hand() -> None:
    def log_sum(*scores: float) -> float:
        return math.log(sum(math.exp(s) for s in scores))

    rows = [log_sum(0.5, -1.0, 2.0) - 0.5, 0.0, log_sum(0.0, 1.0) - (2 * 0.0 + 1 * 1.0) / 3]
    loss = ListwiseSoftmaxLoss(reduction="none")
    assert_close(loss(LABELS, SCORES), np.array(rows, "float32"))
    shifted = to_numpy(loss(LABELS, SCORES + np.float32(700)))  # no overflow
    assert np.allclose(shifted, rows, atol=1e-3)


@pytest.mark.parametrize("kind", [PairwiseLogisticLoss, ListwiseSoftmaxLoss])
def test_probabilities_are_the_same_as_their_logits(kind: type) -> None:
    scores = np.where(np.isnan(SCORES), 0, np.clip(SCORES, -3, 3)).astype("float32")
    expected = to_numpy(kind()(LABELS, scores))
    revived = kind.from_config(kind(from_logits=False).get_config())
    found = to_numpy(revived(LABELS, 1 / (1 + np.exp(-scores))))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [PairwiseLogisticLoss, ListwiseSoftmaxLoss])
def test_padded_candidates_have_no_gradient(kind: type) -> None:
    dense = keras.layers.Dense(1)
    (found,) = gradients(dense, lambda s: kind()(LABELS, s), [SCORES])
    assert np.isfinite(found).all() and not found[LABELS < 0].any()
    assert found[0, :3].any() and not found[1].any() and found[2, :2].any()


@pytest.mark.parametrize("kind", [PairwiseLogisticLoss, ListwiseSoftmaxLoss])
def test_weights_per_candidate_are_refused(kind: type) -> None:
    with pytest.raises(ValueError, match=r"`sample_weight` must have shape .*one weight per req"):
        kind()(LABELS, SCORES, sample_weight=np.ones((3, 4), "float32"))


def naive_auc(labels: Any, scores: Any, weights: Any) -> tuple[float, float] | None:
    """AUC and weight of one group, pair by pair."""
    won = pairs = 0.0
    for i, j in np.ndindex(len(labels), len(labels)):
        if labels[i] > 0.5 and 0 <= labels[j] <= 0.5:
            tie = 0.5 * (scores[i] == scores[j])
            won += weights[i] * weights[j] * ((scores[i] > scores[j]) + tie)
            pairs += weights[i] * weights[j]
    return (
        (won / pairs, float(sum(w for w, y in zip(weights, labels) if y >= 0))) if pairs else None
    )


def test_gauc_by_hand_with_ties_one_class_and_padding() -> None:
    labels = np.array([[1, 0, 0, -1], [1, 1, 1, 1], [0, 0, -1, -1], [1, 0, -1, -1]], "float32")
    scores = np.array([[2, 2, 1, 9], [1, 2, 3, 4], [1, 2, 9, 9], [0, 1, 5, 5]], "float32")
    metric = GroupAUC()
    metric.update_state(labels, scores)
    # Groups of 3 (one tie, one win: 0.75) and of 2 (lost: 0); the others have one class.
    assert float(metric.result()) == pytest.approx((3 * 0.75 + 2 * 0) / 5)
    uniform = GroupAUC("uniform")
    uniform.update_state(labels, scores)
    assert float(uniform.result()) == pytest.approx(0.375)
    metric.reset_state()
    assert float(metric.result()) == 0.0
    assert GroupAUC.from_config(uniform.get_config()).weighting == "uniform"


def test_gauc_equals_a_loop_with_weights_and_over_batches() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, (20, 7)).astype("float32")
    scores = rng.integers(0, 4, (20, 7)).astype("float32")
    weights = rng.uniform(0.5, 2, (20, 7)).astype("float32")
    metric = GroupAUC()
    for part in (slice(0, 8), slice(8, 20)):
        metric.update_state(labels[part], scores[part], sample_weight=weights[part])
    groups = [naive_auc(*rows) for rows in zip(labels, scores, weights)]
    found = [group for group in groups if group]
    expected = sum(auc * weight for auc, weight in found) / sum(weight for _, weight in found)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)


def ranker_data() -> tuple[dict, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = {
        "history": rng.normal(size=(6, 12, 4)).astype("float32"),
        "history_mask": np.ones((6, 12), bool),
        "target": rng.normal(size=(6, 5, 4)).astype("float32"),
    }
    return inputs, rng.integers(0, 2, (6, 5)).astype("float32")


def small_ranker(**kwargs: Any) -> LaserRanker:
    return LaserRanker(
        8,
        segment_size=4,
        num_recent_segments=2,
        num_tokens=8,
        mixer_dim=16,
        recency="none",
        **kwargs,
    )


def test_a_ranker_trains_on_lists_with_padded_candidates() -> None:
    inputs, labels = ranker_data()
    labels[:, 3:] = -1
    ranker = small_ranker(activation="linear")
    ranker.compile(
        "adam", PairwiseLogisticLoss(), metrics=[GroupAUC()], jit_compile=BACKEND == "jax"
    )
    history = ranker.fit(inputs, labels, epochs=3, verbose=0, batch_size=3)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert 0 <= history.history["gauc"][-1] <= 1
    # What a padded candidate is does not matter.
    spoiled = {**inputs, "target": inputs["target"].copy()}
    spoiled["target"][:, 3:] = 7.0
    found, expected = (ranker.evaluate(x, labels, verbose=0) for x in (spoiled, inputs))
    assert found == pytest.approx(expected, rel=1e-5)


def test_weights_per_candidate_train_a_ranker() -> None:
    """Plain Keras averages the candidates before it weights them and fails."""
    inputs, labels = ranker_data()
    weights = np.random.default_rng(1).uniform(0, 2, labels.shape).astype("float32")
    ranker = small_ranker()
    ranker.compile(
        "sgd",
        "binary_crossentropy",
        weighted_metrics=["binary_accuracy", GroupAUC(), "AUC"],
        jit_compile=BACKEND == "jax",
    )
    ranker.fit(inputs, labels, sample_weight=weights, verbose=0)
    found = ranker.evaluate(inputs, labels, sample_weight=weights, verbose=0, return_dict=True)
    p = np.clip(to_numpy(ranker(inputs)), 1e-7, 1 - 1e-7)
    entropy = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert found["loss"] == pytest.approx((weights * entropy).mean(), rel=1e-4)
    right = (p > 0.5) == (labels > 0.5)
    assert found["binary_accuracy"] == pytest.approx((weights * right).sum() / weights.sum(), 1e-4)
    groups = [g for g in (naive_auc(*rows) for rows in zip(labels, p, weights)) if g]
    gauc = sum(a * w for a, w in groups) / sum(w for _, w in groups)
    assert found["gauc"] == pytest.approx(gauc, rel=1e-4)
    ranker.compile("sgd", "binary_crossentropy", jit_compile=BACKEND == "jax")
    with pytest.raises(ValueError, match=r"`sample_weight` must have shape \[B, N\] or \[B\]"):
        ranker.fit(inputs, labels, sample_weight=weights[:, :2], verbose=0)
