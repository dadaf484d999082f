"""The histogram AUC against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.training.running_totals import (
    BINS,
    RunningTotals,
    auc_of_histogram,
    probability_histogram,
)


def test_histogram_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, (40, 5)).astype(np.float32)
    # Multiples of a bin: no two different scores share one.
    score = (rng.integers(0, 60, (40, 5)) + 40 * label) / BINS + 0.5 / BINS
    valid = rng.random((40, 5)) < 0.8
    histogram = probability_histogram(
        tf.constant(score, tf.float32), tf.constant(label), tf.constant(valid)
    )
    positive, negative = score[valid & (label == 1)], score[valid & (label == 0)]
    order = np.sign(positive[:, None] - negative)
    assert auc_of_histogram(histogram.numpy()) == pytest.approx(((order + 1) / 2).mean())
    assert int(tf.reduce_sum(histogram)) == valid.sum()


def test_scores_of_zero_and_one_are_counted():
    histogram = probability_histogram(
        tf.constant([[0.0, 1.0]]), tf.constant([[0.0, 1.0]]), tf.constant([[True, True]])
    )
    assert histogram.numpy()[0, 0] == 1 and histogram.numpy()[1, BINS - 1] == 1


def test_totals_add_up_and_subtract():
    totals = RunningTotals()
    one = tf.one_hot([3, 5], BINS, dtype=tf.int64)
    totals.add(one, tf.constant(1.5, tf.float64))
    before = totals.read()
    totals.add(one, tf.constant(0.5, tf.float64))
    assert before.loss == pytest.approx(0.75) and before.auc == 1.0
    assert totals.read().impressions == 4
    assert (totals.read() - before).loss == pytest.approx(0.25)
    totals.reset()
    assert totals.read().impressions == 0 and np.isnan(totals.read().auc)
