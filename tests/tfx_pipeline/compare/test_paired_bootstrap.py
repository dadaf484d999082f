"""Weighted AUC and gAUC equal the plain ones on repeated rows; intervals cover what they should."""

import numpy as np
import pytest

from tfx_pipeline.compare.paired_bootstrap import ScoredRun, paired_difference
from tfx_pipeline.ranking_metrics import auc, group_auc

RNG = np.random.default_rng(0)
USERS = RNG.integers(0, 30, 600)
LABELS = RNG.integers(0, 2, 600)
SCORES = np.round(RNG.normal(size=600) + LABELS, 1)  # with ties


def test_equal_weights_give_the_plain_metrics():
    run = ScoredRun(USERS, LABELS, SCORES)
    assert run.auc(np.ones(30)) == pytest.approx(auc(LABELS, SCORES), abs=1e-12)
    assert run.gauc(np.ones(30)) == pytest.approx(group_auc(USERS, LABELS, SCORES), abs=1e-12)


def test_a_user_drawn_twice_counts_twice():
    weights = RNG.integers(0, 3, 30)
    run = ScoredRun(USERS, LABELS, SCORES)
    rows = np.repeat(np.arange(600), weights[USERS])
    assert run.auc(weights) == pytest.approx(auc(LABELS[rows], SCORES[rows]), abs=1e-12)
    own = [np.flatnonzero(np.equal(USERS, user)) for user in range(30)]
    each = np.array([group_auc(USERS[rows], LABELS[rows], SCORES[rows]) for rows in own])
    count = np.bincount(USERS, minlength=30) * weights
    assert run.gauc(weights) == pytest.approx(np.average(each, weights=count), abs=1e-12)


def test_users_of_one_class_have_no_say_in_gauc():
    run = ScoredRun(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.array([0.1, 0.2, 0.9, 0.3]))
    assert run.gauc(np.ones(2)) == 1.0


def test_a_better_system_is_clear_and_the_same_one_is_not():
    base = [ScoredRun(USERS, LABELS, SCORES + RNG.normal(size=600)) for _ in range(3)]
    better = [ScoredRun(USERS, LABELS, SCORES + LABELS) for _ in range(3)]
    gap = paired_difference(better, base, 30, "auc", 100)
    assert gap.low < gap.mean < gap.high and gap.is_clear and gap.low > 0
    same = paired_difference(base, base, 30, "gauc", 50)
    assert (same.mean, same.low, same.high) == (0, 0, 0) and not same.is_clear
    with pytest.raises(ValueError, match="2 runs against 3"):
        paired_difference(better[:2], base, 30, "auc")
