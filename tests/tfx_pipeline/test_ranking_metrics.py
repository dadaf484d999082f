"""Metrics against scikit-learn and against plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from tfx_pipeline.ranking_metrics import auc, calibration, group_auc, log_loss

# Few distinct scores: ties are where such code goes wrong.
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.5, 0.9])),
    min_size=1,
    max_size=40,
)


def plain_auc(labels, scores):
    """Every pair of a clicked and an unclicked impression."""
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for label, high in zip(labels, scores, strict=True)
        if label
        for other, low in zip(labels, scores, strict=True)
        if not other
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


def plain_group_auc(users, labels, scores):
    total = weight = 0.0
    for user in set(users):
        mine = [at for at, owner in enumerate(users) if owner == user]
        found = plain_auc([labels[at] for at in mine], [scores[at] for at in mine])
        if not math.isnan(found):
            total, weight = total + found * len(mine), weight + len(mine)
    return total / weight if weight else math.nan


@settings(deadline=None)
@given(ROWS)
def test_auc_and_group_auc_equal_plain_loops(rows):
    users, labels, scores = map(list, zip(*rows, strict=True))
    assert auc(labels, scores) == pytest.approx(plain_auc(labels, scores), nan_ok=True)
    expected = plain_group_auc(users, labels, scores)
    assert group_auc(users, labels, scores) == pytest.approx(expected, nan_ok=True)


def test_large_inputs_equal_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.random(5000).astype(np.float32)
    labels = (rng.random(5000) < scores).astype(np.int8)
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert log_loss(labels, scores) == pytest.approx(
        metrics.log_loss(labels, scores.astype(np.float64))
    )


def test_user_ids_beyond_the_precision_of_doubles_stay_apart():
    users = [2**62, 2**62, 2**62 + 1, 2**62 + 1]
    assert group_auc(users, [0, 1, 0, 1], [0.1, 0.2, 0.9, 0.8]) == 0.5


def test_without_both_classes_there_is_no_auc():
    assert math.isnan(auc([1, 1], [0.1, 0.2]))
    assert math.isnan(group_auc([1, 2], [1, 0], [0.1, 0.2]))
    assert math.isnan(calibration([0], [0.3]))
    assert math.isnan(log_loss([], []))


def test_a_certain_and_wrong_prediction_costs_a_finite_loss():
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))
