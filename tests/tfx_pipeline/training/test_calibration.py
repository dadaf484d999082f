"""Served probabilities are those of the log: after sampled negatives, and after calibration."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from components.seqvault_example_gen.impressions import ROW, without_some_negatives
from tfx_pipeline.ranking_metrics import calibration, log_loss
from tfx_pipeline.training.calibration import fit_calibration
from tfx_pipeline.training.parsing import parse_examples
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.running_totals import probability_histogram
from tfx_pipeline.training.trainer import Trainer


def overconfident(count=40_000):
    """Clicks of known probability, and what a model that doubles every logit says."""
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1, count)
    clicks = rng.random(count) < 1 / (1 + np.exp(-logit))
    return clicks.astype(np.int64), (1 / (1 + np.exp(-2 * logit - 0.5))).astype(np.float32)


def histogram_of(clicks, said):
    valid = tf.ones([1, len(clicks)], tf.bool)
    return probability_histogram(tf.constant(said[None]), tf.constant(clicks[None]), valid).numpy()


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_known_distortion_is_undone(kind):
    clicks, said = overconfident()
    fitted = fit_calibration(kind, histogram_of(clicks[::2], said[::2]))
    held_out, before = clicks[1::2], said[1::2]
    after = fitted.apply(tf.constant(before)).numpy()
    assert abs(calibration(held_out, after) - 1) < 0.03 < abs(calibration(held_out, before) - 1)
    assert log_loss(held_out, after) < log_loss(held_out, before) - 0.02
    order = np.argsort(before)
    assert (np.diff(after[order]) >= -1e-6).all() and 0 < after.min() < after.max() < 1
    if kind == "platt":
        assert fitted.slope == pytest.approx(0.5, abs=0.03)


def test_no_calibration_and_one_class():
    clicks, said = overconfident(100)
    assert fit_calibration("none", histogram_of(clicks, said)) is None
    with pytest.raises(ValueError, match="needs an eval split with clicks and without; it has 0"):
        fit_calibration("platt", histogram_of(0 * clicks, said))


def test_sampled_negatives_are_corrected_to_the_true_rate():
    rng = np.random.default_rng(1)
    clicks = (rng.random(200_000) < 0.07).astype(np.int8)
    table = pa.table({"click": clicks, ROW: np.arange(len(clicks))})
    kept = without_some_negatives(table, "click", 0.1)
    left = kept["click"].to_numpy()
    assert left.sum() == clicks.sum()
    assert (left == 0).sum() == pytest.approx(0.1 * (clicks == 0).sum(), rel=0.02)
    # In parts, and in another order, the same rows are kept.
    halves = [table.slice(150_000), table.slice(0, 150_000)]
    again = pa.concat_tables([without_some_negatives(half, "click", 0.1) for half in halves])
    assert sorted(again[ROW].to_pylist()) == kept[ROW].to_pylist()
    learned = np.log(left.mean() / (1 - left.mean()))
    assert 1 / (1 + np.exp(-learned - np.log(0.1))) == pytest.approx(clicks.mean(), rel=0.02)
    assert without_some_negatives(table, "click", 1.0) is table


def test_predictions_and_the_saved_model_are_corrected(
    plain_spec, model_settings, settings, write_files, tmp_path
):
    (path,) = write_files(tmp_path, plain_spec, files=1, requests=6)
    records = tf.constant(list(tf.data.TFRecordDataset(path, "GZIP").as_numpy_iterator()))
    batch = parse_examples(records, plain_spec, "click")
    parts = plain_spec, model_settings, settings, RowLookup()
    whole, sampled = Trainer(*parts), Trainer(*parts, negative_rate=0.2)
    expected = whole.step.predict(batch).numpy() + np.log(0.2)
    np.testing.assert_allclose(sampled.step.predict(batch).numpy(), expected, atol=1e-6)
    fitted = fit_calibration("isotonic", histogram_of(*overconfident(2000)))
    sampled.export(str(tmp_path / "model"), fitted)
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_examples"](records)
    calibrated = fitted.apply(tf.sigmoid(tf.constant(expected, tf.float32))).numpy()
    valid = np.arange(expected.shape[1]) < batch["candidate_count"].numpy()[:, None]
    np.testing.assert_allclose(served["probability"].numpy()[valid], calibrated[valid], atol=1e-5)
