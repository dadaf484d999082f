"""Several labels over shared parts: their losses, their heads in the SavedModel, their mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from laser_features.testing import tiny_content
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.labels import Label, columns_of, labels_of, weighted_loss
from tfx_pipeline.training.parsing import parse_examples
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

SPEC = tiny_content(
    max_length=4,
    rows=20,
    label={"click": {"type": "int8"}, "like": {"type": "int8"}, "played": {"type": "float32"}},
)
MODEL = ModelSettings(system="mean", dim=4, num_tokens=4, mixer_dim=8, mixer_blocks=1)


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    return FeatureSpec.from_dict(SPEC)


@pytest.fixture(scope="module")
def examples() -> tf.Tensor:
    rng = np.random.default_rng(2)
    serialized = []
    for length, count in ((4, 2), (0, 3), (3, 1), (2, 3)):
        example = tf.train.Example()
        feature = example.features.feature
        items = rng.integers(1, 20, length)
        feature["history_item_id"].int64_list.value.extend(items.tolist())
        feature["history_age_seconds"].int64_list.value.extend(range(length))
        feature["history_length"].int64_list.value[:] = [length]
        candidates = rng.integers(1, 20, count)
        feature["candidate_item_id"].int64_list.value.extend(candidates.tolist())
        feature["candidate_count"].int64_list.value[:] = [count]
        feature["label_click"].int64_list.value.extend((candidates % 2).tolist())
        feature["label_like"].int64_list.value.extend((candidates % 3 == 0).tolist())
        feature["label_played"].float_list.value.extend((candidates / 10).tolist())
        serialized.append(example.SerializeToString())
    return tf.constant(serialized)


def training(**labels: dict[str, Any]) -> TrainingSettings:
    values = {"labels": labels, "dense_learning_rate": 0.02, "table_learning_rate": 0.3}
    return check(TrainingSettings, values, "training")


def test_every_label_is_learned_and_served(spec, examples, tmp_path):
    settings = training(
        played={"kind": "regression", "weight": 0.5}, like={"weighted_by": "played"}, click={}
    )
    trainer = Trainer(spec, MODEL, settings, RowLookup(), report=lambda line: None)
    assert [label.name for label in trainer.labels] == ["click", "played", "like"]
    more = columns_of(trainer.labels)
    assert more == ("played", "like")
    batch = parse_examples(examples, spec, "click", more)
    valid = tf.range(3) < batch["candidate_count"][:, None]

    def losses() -> list[float]:
        heads = trainer.step.predict_heads(batch)
        return [
            float(weighted_loss(label, trainer.labels, batch, head, valid))
            for label, head in zip(trainer.labels, heads, strict=True)
        ]

    before = losses()
    for _ in range(25):
        trainer.step.train(batch)
    assert all(now < 0.8 * then for now, then in zip(losses(), before, strict=True))
    trainer.export(str(tmp_path))
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_examples"](examples)
    assert set(served) == {"probability", "probability_like", "value_played"}
    click, played, like = trainer.step.predict_heads(batch)
    shown = valid.numpy()
    for name, expected in (
        ("probability", tf.sigmoid(click)),
        ("probability_like", tf.sigmoid(like)),
        ("value_played", played),
    ):
        np.testing.assert_allclose(served[name].numpy()[shown], expected.numpy()[shown], atol=1e-5)


def test_the_first_label_alone_is_what_no_labels_mean(spec, examples):
    batch = parse_examples(examples, spec, "click")
    none = Trainer(spec, MODEL, training(), RowLookup())
    one = Trainer(spec, MODEL, training(click={}), RowLookup())
    for trainer in (none, one):
        trainer.step.train(batch)
    np.testing.assert_array_equal(none.step.predict(batch), one.step.predict(batch))


def test_weights_of_impressions_are_those_of_the_label():
    labels = (Label("click", weighted_by="played"), Label("played", "regression"))
    batch = {
        "label": tf.constant([[1.0, 0.0, 1.0]]),
        "label_played": tf.constant([[2.0, 0.0, 9.0]]),
    }
    logits, valid = tf.constant([[0.5, -1.0, 3.0]]), tf.constant([[True, True, False]])
    found = float(weighted_loss(labels[0], labels, batch, logits, valid))
    assert found == pytest.approx(np.log1p(np.exp(-0.5)))  # the second one weighs nothing
    squared = float(weighted_loss(labels[1], labels, batch, logits, valid))
    assert squared == pytest.approx((1.5**2 + 1.0**2) / 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"click": {}, "share": {}}, r"names 'share'.*has \['click', 'like', 'played'\]"),
        ({"click": {"weighted_by": "dwell"}}, "names 'dwell'"),
        ({"like": {}}, "must hold 'click'"),
        ({"click": {"kind": "regression"}}, "as a binary one"),
    ],
)
def test_labels_that_do_not_fit_the_spec_are_refused(spec, labels, message):
    with pytest.raises(SettingsError, match=message):
        labels_of(spec, training(**labels))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": {"click": {"weight": 0}}}, "greater than 0"),
        ({"labels": {"click": {"kind": "ordinal"}}}, "'binary' or 'regression'"),
        ({"labels": {"click": {"wait": 1}}}, "wait"),
        ({"labels": ["click"]}, "should hold entries like"),
    ],
)
def test_a_mistake_in_a_label_is_named(values, message):
    with pytest.raises(SettingsError, match=message):
        check(TrainingSettings, values, "training")


def test_evaluation_tells_each_label(spec, examples, tmp_path):
    path = str(tmp_path / "data.gz")
    with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
        for record in examples.numpy():
            writer.write(record)
    lines: list[str] = []
    labels = training(click={}, like={}, played={"kind": "regression"})
    trainer = Trainer(spec, MODEL, replace(labels, batch_size=2), RowLookup(), report=lines.append)
    trainer.evaluate([path])
    assert lines[0].startswith("eval: 9 impressions") and lines[1].startswith("eval like: 9 ")
    batch = parse_examples(examples, spec, "click", ("like", "played"))
    valid = (tf.range(3) < batch["candidate_count"][:, None]).numpy()
    found = trainer.step.predict_heads(batch)[2].numpy()[valid]
    played = batch["label_played"].numpy()[valid]
    assert lines[2] == (
        f"eval played: 9 impressions, mean squared error {np.mean((found - played) ** 2):.4f}, "
        f"mean label {played.mean():.4f}, mean prediction {found.mean():.4f}"
    )
