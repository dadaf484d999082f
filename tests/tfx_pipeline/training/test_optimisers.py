"""Adagrad on tables and Adam on the dense vector against plain NumPy loops."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.dense_weights import DenseWeights
from tfx_pipeline.training.embedding_tables import (
    EmbeddingTable,
    gather_rows,
    initial_embeddings,
    shards_of,
)
from tfx_pipeline.training.learning_rate import rate_of_progress, warm_up
from tfx_pipeline.training.ranking_step import _clipped


def test_adagrad_matches_numpy_and_other_rows_keep_their_bits():
    table = EmbeddingTable("t", 30, 3, seed=1, initial_accumulator=0.2)
    expected = table.values.numpy().astype(np.float64)
    sums = np.full((30, 3), 0.2)
    rng = np.random.default_rng(2)
    before = table.values.numpy(), table.accumulators.numpy()
    touched = set()
    for _ in range(5):
        ids = rng.choice(np.arange(20), 6, replace=False).astype(np.int32)
        gradient = rng.normal(size=(6, 3)).astype(np.float32)
        table.apply_gradient(tf.constant(ids), tf.constant(gradient), 0.3)
        for row, change in zip(ids, gradient.astype(np.float64), strict=True):
            if row > 0:
                touched.add(row)
                sums[row] += change**2
                expected[row] -= 0.3 * change / (np.sqrt(sums[row]) + 1e-7)
    np.testing.assert_allclose(table.values.numpy(), expected, rtol=1e-5, atol=1e-7)
    others = sorted(set(range(30)) - touched)
    assert 0 in others and len(others) > 9
    assert table.values.numpy()[others].tobytes() == before[0][others].tobytes()
    assert table.accumulators.numpy()[others].tobytes() == before[1][others].tobytes()


def test_row_zero_is_zero_and_stays_so():
    table = EmbeddingTable("t", 4, 2, seed=1)
    table.apply_gradient(tf.constant([2, 0]), tf.constant([[1.0, 1.0], [np.nan, 5.0]]), 0.5)
    np.testing.assert_array_equal(table.gather(tf.constant([0])).numpy(), [[0.0, 0.0]])
    assert not np.allclose(table.values.numpy()[2], EmbeddingTable("t", 4, 2, seed=1).values[2])


def test_adam_matches_numpy():
    rng = np.random.default_rng(3)
    shapes = [(3, 2), (), (4,)]
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    dense = DenseWeights(weights)
    expected = np.concatenate([weight.ravel() for weight in weights]).astype(np.float64)
    m, v = np.zeros_like(expected), np.zeros_like(expected)
    for step in range(1, 8):
        gradient = rng.normal(size=expected.shape)
        dense.apply_gradient(
            tf.constant(gradient, tf.float32), tf.constant(step, tf.int64), 0.01, 0.1
        )
        expected -= 0.01 * 0.1 * expected
        m = 0.9 * m + 0.1 * gradient
        v = 0.9999 * v + 0.0001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.9999**step)
        # TensorFlow adds epsilon before the bias correction of v.
        scale = np.sqrt(1 - 0.9999**step)
        expected -= 0.01 * m_hat * scale / (np.sqrt(v_hat) * scale + 1e-7)
    np.testing.assert_allclose(dense.read().numpy(), expected, rtol=2e-4, atol=1e-6)
    assert [tuple(w.shape) for w in dense.unflatten(dense.read())] == shapes


@pytest.mark.parametrize("sizes", [[10], [4, 3, 3], [1, 9]])
def test_initial_rows_and_gathers_do_not_depend_on_sharding(sizes):
    whole = initial_embeddings("t", 0, 10, 2, seed=5, scale=0.1).numpy()
    firsts = np.cumsum([0, *sizes[:-1]])
    shards = [
        tf.Variable(initial_embeddings("t", int(first), size, 2, seed=5, scale=0.1))
        for first, size in zip(firsts, sizes, strict=True)
    ]
    np.testing.assert_array_equal(np.concatenate(shards), whole)
    ids = np.array([9, 0, 3, 4, 8], np.int32)
    np.testing.assert_array_equal(gather_rows(shards, tf.constant(ids)), whole[ids])
    assert shards_of(shards[0]) == [shards[0]]
    np.testing.assert_array_equal(whole[0], [0.0, 0.0])
    assert np.abs(whole[1:]).max() <= 0.1
    assert len(np.unique(whole[1:])) == 18


def test_initial_rows_cross_blocks():
    whole = initial_embeddings("t", 0, 9000, 1, seed=5, scale=1.0).numpy()
    part = initial_embeddings("t", 8000, 500, 1, seed=5, scale=1.0).numpy()
    np.testing.assert_array_equal(part, whole[8000:8500])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1.0, 0.775, 0.55, 0.1]),
        ("cosine", [1.0, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_rates_fall_from_one_to_the_final_rate(schedule, expected):
    settings = TrainingSettings(schedule=schedule, final_rate=0.1)
    found = [rate_of_progress(settings, done) for done in (0.0, 0.25, 0.5, 1.0)]
    np.testing.assert_allclose(found, expected)


def test_rates_rise_over_the_first_steps():
    settings = TrainingSettings(warmup_steps=4)
    found = [float(warm_up(settings, tf.constant(step, tf.int64))) for step in (1, 2, 4, 9)]
    assert found == [0.25, 0.5, 1.0, 1.0]
    assert warm_up(TrainingSettings(), tf.constant(1, tf.int64)) == 1.0


def test_betas_of_adam_are_settings():
    dense = DenseWeights([np.zeros(1, np.float32)])
    one = tf.constant(1, tf.int64), 0.5
    dense.apply_gradient(tf.constant([2.0]), *one, betas=(0.0, 0.0))
    # Without memory the step is the rate times the gradient's sign.
    np.testing.assert_allclose(dense.read().numpy(), [-0.5], rtol=1e-5)


def test_gradients_are_clipped_together_by_their_global_norm():
    dense, by_row = tf.constant([3.0]), {"t": tf.constant([[0.0, 4.0]])}
    clipped, rows = _clipped(dense, by_row, 1.0)
    np.testing.assert_allclose(clipped.numpy(), [0.6], rtol=1e-6)
    np.testing.assert_allclose(rows["t"].numpy(), [[0.0, 0.8]], rtol=1e-6)
    same, rows = _clipped(dense, by_row, 6.0)
    np.testing.assert_allclose([same.numpy()[0], rows["t"].numpy()[0, 1]], [3.0, 4.0], rtol=1e-6)
    assert _clipped(dense, by_row, 0.0)[0] is dense
