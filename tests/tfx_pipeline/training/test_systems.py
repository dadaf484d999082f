"""Every system of the comparison from the config's model section: trained, exported, served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from laser_keras import SYSTEMS
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.settings.section import check
from tfx_pipeline.training.parsing import parse_examples, without_padding
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.tower_inputs import tower_inputs, tower_widths
from tfx_pipeline.training.trainer import Trainer

SIZES: dict[str, Any] = {"dim": 8, "num_tokens": 8, "mixer_dim": 16, "mixer_blocks": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "base": {"recent_events": 4},
    "laser": {"segment_size": 3, "num_recent_segments": 2, "key_dim": 4},
    "laser_fast": {"segment_size": 3, "num_recent_segments": 2, "key_dim": 4},
    "laser_printed": {"segment_size": 3, "num_recent_segments": 2, "key_dim": 4},
    "longer": {"num_queries": 3, "num_layers": 1},
    "sim_hard": {"top_k": 4},
    "sim_soft": {"top_k": 4},
    "twin": {"top_k": 4},
}
SPEC: dict[str, Any] = {
    "name": "every input",
    "history": {"max_length": 9},
    "tables": {
        "item": {"rows": 30, "width": 4, "ids": "direct"},
        "category": {"rows": 5, "width": 2, "ids": "direct"},
        "tag": {"rows": 9, "width": 3, "ids": "direct"},
        "action": {"rows": 4, "width": 2, "ids": "direct"},
        "scene": {"rows": 4, "width": 3, "ids": "direct"},
    },
    "event": {
        "item_id": {"type": "int64", "table": "item"},
        "action": {"type": "int8", "table": "action"},
        "scene": {"type": "int8", "table": "scene"},
    },
    "item": {
        "category": {"type": "int64", "table": "category"},
        "tags": {"type": "int64", "table": "tag", "values": 3},
        "image": {"type": "float32", "shape": [3]},
        "text": {"type": "float32", "shape": [2]},
    },
    "context": {"scene": {"type": "int8", "table": "scene"}},
    "label": {"click": {"type": "int8"}},
    "interactions": {
        "similarity": ["text", "image"],
        "category": "category",
        "cross": ["action", "scene"],
    },
}


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    return FeatureSpec.from_dict(SPEC)


@pytest.fixture(scope="module")
def content(spec: FeatureSpec) -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(spec.tables["item"].rows, 5))
    vectors[0] = 0
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def examples(spec: FeatureSpec) -> tf.Tensor:
    rng = np.random.default_rng(2)
    serialized = []
    for length, count in ((9, 2), (4, 3), (0, 1), (7, 3)):
        example = tf.train.Example()
        feature = example.features.feature
        sizes = {"history": length, "candidate": count, "request": 1}
        for each in spec.model_inputs():
            size = sizes[each.kind] * (each.values or 1)
            rows = spec.tables[each.table].rows if each.table else 10**6
            values = rng.integers(0 if each.table else 1, rows, size)
            feature[each.name].int64_list.value.extend(values.tolist())
        feature["history_length"].int64_list.value[:] = [length]
        feature["candidate_count"].int64_list.value[:] = [count]
        feature["label_click"].int64_list.value.extend(rng.integers(0, 2, count).tolist())
        serialized.append(example.SerializeToString())
    return tf.constant(serialized)


def settings_of(system: str, **more: Any) -> ModelSettings:
    return ModelSettings(system=system, encoder=OPTIONS.get(system, {}), **{**SIZES, **more})


def train_export_and_serve(spec, model, training, content, examples, folder) -> Trainer:
    """A few steps lower the loss; the SavedModel answers what the trainer predicts."""
    trainer = Trainer(spec, model, training, RowLookup(), content, report=lambda line: None)
    fixed = trainer.tower.fixed_length
    batch = without_padding(spec, parse_examples(examples, spec, "click"), fixed)
    losses = [float(trainer.step.train(batch)[2]) for _ in range(4)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    trainer.export(str(folder))
    served = tf.saved_model.load(str(folder)).signatures["serving_examples"](examples)
    expected = tf.sigmoid(trainer.step.predict(batch)).numpy()
    found = served["probability"].numpy()
    for row, count in enumerate((2, 3, 1, 3)):
        np.testing.assert_allclose(found[row, :count], expected[row, :count], atol=1e-6)
    return trainer


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_trains_exports_and_serves(system, spec, settings, content, examples, tmp_path):
    train_export_and_serve(spec, settings_of(system), settings, content, examples, tmp_path)


@pytest.mark.parametrize("system", ["laser", "din"])
def test_gates_are_those_of_the_weights_in_training(system, spec, settings, content, examples):
    """The model object keeps its first weights; a step's are another set."""
    trainer = Trainer(
        spec, settings_of(system), settings, RowLookup(), content, report=lambda line: None
    )
    batch = without_padding(spec, parse_examples(examples, spec, "click"), False)
    first = trainer.step.gates(batch).numpy()
    valid = np.arange(9) < batch["history_length"].numpy()[:, None]
    assert first.shape == (4, 3, 2, 9) and (first[~valid.any(1)] == 0).all()
    assert ((first > 0) == valid[:, None, None]).all()
    for _ in range(3):
        trainer.step.train(batch)
    assert (trainer.step.gates(batch).numpy() != first)[:, 0, :, 0].any()
    assert trainer.tower.has_gates


def test_moving_averages_and_the_penalty_of_experts_are_carried(
    spec, settings, content, examples, tmp_path
):
    model = settings_of(
        "din_activation_unit",
        recency="concat",
        mixer_options={"num_experts": 2, "norm": "pre"},
        recency_options={"num_buckets": 40},
        dropout=0.1,
    )
    trainer = train_export_and_serve(spec, model, settings, content, examples, tmp_path)
    names = [variable.path.split("/")[-1] for variable in trainer.tower.carried_variables]
    assert {"moving_mean", "moving_variance", "penalty_weight"} <= set(names)
    before = [variable.numpy() for variable in trainer.tower.carried_variables]
    after = trainer.state.carried.read()
    for name, old, new in zip(names, before, after, strict=True):
        if name != "active_ratio":
            assert not np.allclose(old, new), name


def test_a_regulariser_of_the_encoder_is_a_penalty_in_training_alone(spec):
    encoder = {
        "kernel_initializer": {"class_name": "Constant", "config": {"value": 0.1}},
        "kernel_regularizer": {"class_name": "L2", "config": {"l2": 3.0}},
    }
    model = ModelSettings(system="din", encoder=encoder, **SIZES)
    tower = Tower(spec, model, seed=0)
    widths = tower_widths(spec)
    leading = {"history": (2, 9), "context": (2,)}
    inputs = {name: tf.ones((*leading.get(name, (2, 3)), w)) for name, w in widths.items()}
    inputs |= {"history_mask": tf.ones((2, 9), bool), "history_age": tf.ones((2, 9), tf.int32)}
    weights = [variable.value + 1.0 for variable in tower.model.trainable_variables]
    carried = [variable.value for variable in tower.carried_variables]
    penalty = tower(weights, carried, inputs, step=tf.constant(1)).penalty
    # Three kernels [d, d] of 0.1, as the optimiser has changed them to 1.1.
    np.testing.assert_allclose(penalty, 3.0 * 3 * model.dim**2 * 1.1**2, rtol=1e-5)
    assert float(tower(weights, carried, inputs).penalty) == 0


def test_a_search_beside_another_system_with_an_mlp(spec, settings, content, examples, tmp_path):
    model = settings_of(
        "base",
        beside="sim_hard",
        beside_encoder={"top_k": 4},
        recent_events=3,
        mixer="mlp",
        recency="none",
    )
    trainer = train_export_and_serve(spec, model, settings, content, examples, tmp_path)
    assert trainer.tower.model.encoder.num_output_tokens == 3
    assert trainer.tower.model.encoder.recent_events == [3, None]


def test_recent_events_of_a_system_alone_are_refused():
    with pytest.raises(SettingsError, match="recent_events is given without beside"):
        check(ModelSettings, {"system": "din", "recent_events": 3}, "section model")


def test_interactions_are_what_they_say():
    spec = FeatureSpec.from_dict(SPEC)
    rng = np.random.default_rng(3)
    sizes = {"history": (2, 4), "candidate": (2, 3), "request": (2,)}
    rows = {}
    for each in spec.model_inputs():
        shape = (*sizes[each.kind], *([each.values] if each.values else []))
        high = spec.tables[each.table].rows if each.table else 9
        rows[each.name] = tf.constant(rng.integers(0, high, shape), tf.int32)
    tables = {name: rng.normal(size=(t.rows, t.width)) for name, t in spec.tables.items()}
    tables["content"] = rng.normal(size=(30, 5))
    tables["content"][0] = 0

    def embed(table: str, name: str) -> tf.Tensor:
        return tf.constant(tables[table][rows[name].numpy()])

    inputs = tower_inputs(spec, rows, embed, ("similarity", "category_match", "cross"))
    history, candidate = rows["history_item_id"].numpy(), rows["candidate_item_id"].numpy()
    for n, fields in enumerate((slice(3, 5), slice(0, 3))):  # text, then image: as declared
        for b, i, j in np.ndindex(2, 3, 4):
            one = tables["content"][candidate[b, i], fields]
            other = tables["content"][history[b, j], fields]
            norms = np.linalg.norm(one) * np.linalg.norm(other)
            expected = one @ other / norms if norms else 0.0
            assert abs(float(inputs["similarity"][b, i, j, n]) - expected) < 1e-6
    of_candidate, of_event = rows["candidate_category"].numpy(), rows["history_category"].numpy()
    same = (of_candidate[:, :, None] == of_event[:, None]) & (of_candidate > 0)[:, :, None]
    np.testing.assert_array_equal(inputs["category_match"].numpy(), same)
    cross = inputs["cross"].numpy()
    assert cross.shape == (2, 4, 2, 3) and not cross[:, :, 0, 2].any()
    np.testing.assert_allclose(cross[:, :, 1], embed("scene", "history_scene").numpy())
    tags, used = rows["history_tags"].numpy(), tables["tag"][rows["history_tags"].numpy()]
    count = np.maximum((tags > 0).sum(-1), 1)[..., None]
    mean = (used * (tags > 0)[..., None]).sum(2) / count
    # Item (4 wide), category (2) and tags (3), which the target has too; then action and scene.
    np.testing.assert_allclose(inputs["history"].numpy()[..., 6:9], mean, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"system": "lasr"}, "did you mean 'laser'"),
        ({"system": "mean", "beside": "diin"}, "section model, beside: .*did you mean 'din'"),
        (
            {"system": "mean", "beside": "din", "beside_encoder": {"gama": 1}},
            "section model, beside_encoder of beside 'din': .*did you mean 'gamma'",
        ),
        ({"encoder": {"order": "oldest_first"}}, "section model, encoder: order is 'oldest_first'"),
        (
            {"system": "mean", "beside": "din", "beside_encoder": {"order": "oldest_first"}},
            "beside_encoder: order is 'oldest_first'",
        ),
        ({"system": "twin", "encoder": {"topk": 3}}, "did you mean 'top_k'"),
        ({"encoder": {"kernel_constraint": "non_neg"}}, "use 'kernel_regularizer'"),
        ({"encoder": {"kernel_initializer": "glorott"}}, "glorott"),
        (
            {"system": "mean", "encoder": {"kernel_initializer": "zeros"}},  # it has no kernels
            "must be of .'order', 'recent_events'.*Received: 'kernel_initializer'",
        ),
        ({"system": "twin", "encoder": {"num_heads": 3}}, "num_heads"),
        ({"system": "sim_hard"}, "needs a category"),
        ({"interactions": ["similarity"]}, "declares none: add"),
        ({"system": "din", "beside": "twin", "beside_encoder": {"top_k": 0}}, "top_k"),
        ({"mixer_options": {"num_expert": 3}}, "num_expert"),
        ({"mixer_options": {"dim": 3}}, "setting of its own"),
        ({"encoder": {"num_recent_segments": 14}}, "num_tokens"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_work(plain_spec, values, message):
    model = check(ModelSettings, values, "section model")
    with pytest.raises(SettingsError, match=message) as caught:
        Tower(plain_spec, model, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interactions": ["cross", "cross"]}, "should name each once"),
        ({"mixer_options": {"active_budget": 0.3}}, "give num_experts"),
    ],
)
def test_settings_of_a_model_that_do_not_fit_together_are_refused(values, message):
    with pytest.raises(SettingsError, match=message):
        check(ModelSettings, values, "section model")


def test_an_interaction_that_the_system_has_no_use_for_is_refused(spec):
    with pytest.raises(SettingsError, match="'din' has no use for"):
        Tower(spec, settings_of("din", interactions=("similarity",)), seed=0)
    assert Tower(spec, settings_of("laser"), seed=0).interactions == ("similarity",)
    assert Tower(spec, settings_of("laser", interactions=()), seed=0).interactions == ()
