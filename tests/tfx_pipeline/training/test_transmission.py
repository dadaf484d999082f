"""What codecs do to rows and gradients, in one process as over a cluster."""

import numpy as np
import pytest
import tensorflow as tf

from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.embedding_tables import EmbeddingTable
from tfx_pipeline.training.traffic import Moved, Traffic
from tfx_pipeline.training.transmission import CODECS, encoded

IDS = tf.constant([1, 4])


def rounded(values):
    return tf.cast(tf.cast(values, tf.bfloat16), tf.float32).numpy()


def table(codec):
    return EmbeddingTable("item", 6, 3, seed=1, transmission=codec)


def test_every_codec_is_a_setting():
    (kinds,) = {TrainingSettings.__annotations__["transmission"]}
    assert all(codec in str(kinds) for codec in CODECS)


def test_none_changes_no_bit_and_bf16_rounds_what_travels():
    plain, half = table("none"), table("bf16")
    assert plain.values.numpy().tobytes() == half.values.numpy().tobytes()
    stored = tf.gather(plain.values, IDS)
    np.testing.assert_array_equal(plain.gather(IDS), stored)
    np.testing.assert_array_equal(half.gather(IDS), rounded(stored))
    assert (half.gather(IDS).numpy() != stored.numpy()).any()


@pytest.mark.parametrize("plain, packed", [("none", "zstd"), ("bf16", "bf16+zstd")])
def test_zstd_changes_no_bit(ops, plain, packed):
    def trained(codec):
        each = table(codec)
        for step in range(20):
            ids = tf.constant([0, step % 5 + 1, (step + 2) % 5 + 1])
            each.apply_gradient(ids, 0.3 * each.gather(ids) + 0.017, 0.1)
        return each.values.numpy().tobytes(), each.accumulators.numpy().tobytes()

    assert trained(packed) == trained(plain)


@pytest.mark.parametrize("codec", CODECS)
def test_tables_and_accumulators_stay_float32(codec, request):
    if "zstd" in codec:
        request.getfixturevalue("ops")
    gradient = tf.constant([[0.1001, -0.2003, 0.3], [1e-3, 3.003, -7.7]])
    sent = rounded(gradient) if codec.startswith("bf16") else gradient
    each, expected = table(codec), table("none")
    each.apply_gradient(IDS, gradient, 0.05)
    expected.apply_gradient(IDS, sent, 0.05)
    assert each.values.numpy().tobytes() == expected.values.numpy().tobytes()
    assert each.accumulators.numpy().tobytes() == expected.accumulators.numpy().tobytes()


def test_bf16_keeps_the_range_of_float32_and_nan():
    each = table("bf16")
    each.values.assign(tf.fill([6, 3], 3e38))
    assert np.isfinite(each.gather(IDS)).all()
    each.values.assign(tf.fill([6, 3], float("nan")))
    assert np.isnan(each.gather(IDS)).all()


def test_what_travels_is_counted_by_direction():
    for codec, width in (("none", 4), ("bf16", 2)):
        each, traffic = table(codec), Traffic()
        for _ in range(2):
            received, sent = [], []
            rows = each.gather(IDS, received)
            each.apply_gradient(IDS, rows, 0.1, sent)
            traffic.add(received, sent)
        assert traffic.read() == Moved(2 * 2 * 3 * width, 2 * 2 * 3 * width)


def test_a_frame_counts_as_long_as_it_is(ops):
    each, sizes = table("zstd"), []
    each.gather(IDS, sizes)
    assert int(sizes[0]) == len(encoded(tf.gather(each.values, IDS), "zstd").numpy())
