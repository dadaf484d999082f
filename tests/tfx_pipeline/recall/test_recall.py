"""The recall model: what it learns, what it answers, how its process fails."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tests.tfx_pipeline.recall.conftest import HISTORY, ITEMS, SPEC, K, fn_args, topic_of
from tfx_pipeline.errors import PipelineError, SettingsError
from tfx_pipeline.recall.catalogue import read_catalogue
from tfx_pipeline.recall.recall_job import RecallJob
from tfx_pipeline.recall.recall_spec import recall_spec
from tfx_pipeline.recall.run_fn import run_fn
from tfx_pipeline.settings.recall_settings import RecallSettings
from tfx_pipeline.settings.section import check, plain
from tfx_pipeline.training.row_lookup import RowLookup


@pytest.fixture(scope="module")
def model(trained):
    return tf.saved_model.load(str(trained / "model"))


def requests(count, seed=5):
    """Raw inputs as a gateway has them, histories longer than what the model reads."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(6, size=count)
    lengths = rng.integers(0, 13, count).astype(np.int32)
    items = topics[:, None] + 6 * rng.integers(0, ITEMS // 6, (count, 12))
    valid = np.arange(12) < lengths[:, None]
    side = np.stack([(topic_of(items) + 1) * valid, np.zeros_like(items)], axis=2)
    return topics, {
        "history_item_id": ((items + 1) * valid).astype(np.int32),
        "history_topics": side.astype(np.int32),
        "history_length": lengths,
        "context_hour": rng.integers(1, 25, count).astype(np.int32),
    }


def test_it_finds_far_more_clicks_than_the_most_clicked_items(trained):
    """Users click the items of one topic, of which there are as many as it answers with."""
    found = json.loads((trained / "run" / "recall.json").read_text())
    assert found["k"] == K and found["items"] == ITEMS and found["trained_clicks"] > 1000
    assert found["recall"] > 0.9 and found["floor"] < 0.3


def test_the_recall_that_is_kept_is_the_one_of_the_saved_model(trained, model):
    """Counted again, Example by Example, without any code of the recall model."""
    records = tf.data.TFRecordDataset(str(trained / "eval-0.gz"), "GZIP").as_numpy_iterator()
    clicks = hits = 0
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        values = {name: np.array(each.int64_list.value) for name, each in features.items()}
        answer = model.signatures["serving_default"](
            history_item_id=tf.constant([values["history_item_id"]], tf.int32),
            history_topics=tf.constant([values["history_topics"].reshape(-1, 2)], tf.int32),
            history_length=tf.constant(values["history_length"], tf.int32),
            context_hour=tf.constant(values["context_hour"], tf.int32),
        )
        clicked = values["candidate_item_id"][values["label_click"] == 1] - 1
        clicks += len(clicked)
        hits += int(np.isin(clicked, answer["item_id"][0]).sum())
    found = json.loads((trained / "run" / "recall.json").read_text())
    assert found["clicks"] == clicks and found["recall"] == pytest.approx(hits / clicks)


def test_an_answer_is_the_k_items_of_the_highest_dot_products(trained, model):
    """Both towers again in NumPy, over the whole catalogue; also for an empty history."""
    weights = {each.name.removesuffix(":0"): each.numpy() for each in model.weights}
    tables = {name: weights[f"tables/{name}/embeddings"] for name in ("item", "topic", "hour")}

    def embed(name, rows):
        return tables[name][rows] * (rows > 0)[..., None]

    def tower(values, first, second):
        hidden = np.maximum(values @ weights[f"{first}/kernel"] + weights[f"{first}/bias"], 0)
        return hidden @ weights[f"{second}/kernel"] + weights[f"{second}/bias"]

    _, raw = requests(40)
    assert (raw["history_length"] == 0).any() and (raw["history_length"] > HISTORY).any()
    lengths = np.minimum(raw["history_length"], HISTORY)
    valid = (np.arange(HISTORY) < lengths[:, None])[..., None]
    topics = embed("topic", raw["history_topics"][:, :HISTORY, 0])
    events = np.concatenate([embed("item", raw["history_item_id"][:, :HISTORY]), topics], axis=2)
    mean = (events * valid).sum(axis=1) / np.maximum(lengths, 1)[:, None]
    users = tower(
        np.concatenate([mean, embed("hour", raw["context_hour"])], axis=1), "dense", "dense_1"
    )
    ids = pq.read_table(trained / "items.parquet")["item_id"].to_numpy()
    items = tower(
        np.concatenate([embed("item", ids + 1), embed("topic", topic_of(ids) + 1)], axis=1),
        "dense_2",
        "dense_3",
    )
    scores = users @ items.T
    best = np.argsort(-scores, axis=1)[:, :K]

    inputs = {name: tf.constant(value) for name, value in raw.items()}
    answer = model.signatures["serving_default"](**inputs)
    assert answer["item_id"].dtype == tf.int64
    np.testing.assert_allclose(answer["score"], np.take_along_axis(scores, best, 1), rtol=1e-4)
    by_id = dict(zip(ids.tolist(), range(ITEMS), strict=True))
    columns = np.vectorize(by_id.get)(answer["item_id"].numpy())
    np.testing.assert_allclose(
        np.take_along_axis(scores, columns, 1), answer["score"], rtol=1e-4
    )  # the score that stands beside an id is that item's
    assert all(len(set(row)) == K for row in columns)


def test_padding_changes_nothing(model):
    _, raw = requests(10)
    inputs = {name: tf.constant(value) for name, value in raw.items()}
    answer = model.signatures["serving_default"](**inputs)
    beyond = np.arange(12) >= raw["history_length"][:, None]
    inputs["history_item_id"] = tf.constant(np.where(beyond, 7, raw["history_item_id"]))
    again = model.signatures["serving_default"](**inputs)
    np.testing.assert_array_equal(answer["item_id"], again["item_id"])
    np.testing.assert_array_equal(answer["score"], again["score"])


def test_a_failure_of_the_child_is_one_line(trained, tmp_path):
    """Its Examples are no TFRecords: TensorFlow says so in many lines."""
    broken = tmp_path / "train-0.gz"
    broken.write_bytes(b"no Examples at all")
    arguments = fn_args(trained)
    arguments.train_files = [str(broken)]
    arguments.model_run_dir = str(tmp_path / "run")
    with pytest.raises(PipelineError, match=r"recall model could not be trained: \w+Error: ") as it:
        run_fn(arguments)
    assert "\n" not in str(it.value)
    log = trained / "recall.log"
    assert str(log) in str(it.value) and "Traceback" in log.read_text()


def test_a_bad_setting_is_refused_before_any_work(trained, tmp_path):
    arguments = fn_args(trained, width=0)
    arguments.model_run_dir = str(tmp_path / "run")
    with pytest.raises(SettingsError, match="width is 0"):
        run_fn(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"k": -1}, "k is -1"),
        ({"k": 10, "min_recall": 1.5}, "min_recall is 1.5"),
        ({"k": 10, "batch_size": 1}, "batch_size is 1"),
        ({"epochs": 3}, "epochs is given without k"),
        ({"k": 10, "histroy": 3}, "did you mean 'history'"),
    ],
)
def test_settings_that_do_not_fit(section, message):
    with pytest.raises(SettingsError, match=message):
        check(RecallSettings, section, "section recall")


def test_the_catalogue_holds_what_examples_hold(trained):
    spec = recall_spec(FeatureSpec.from_dict(SPEC), HISTORY)
    catalogue = read_catalogue(spec, trained / "items.parquet")
    ids = pq.read_table(trained / "items.parquet")["item_id"].to_numpy()
    np.testing.assert_array_equal(catalogue["item_id"], ids)
    np.testing.assert_array_equal(catalogue["candidate_item_id"], ids + 1)
    expected = np.stack([topic_of(ids) + 1, 0 * ids], axis=1)
    np.testing.assert_array_equal(catalogue["candidate_topics"], expected)
    assert set(catalogue) == {"item_id", "candidate_item_id", "candidate_topics"}


def test_a_catalogue_without_a_column_is_named(tmp_path, trained):
    spec = recall_spec(FeatureSpec.from_dict(SPEC), HISTORY)
    table = pq.read_table(trained / "items.parquet").drop(["topics"])
    pq.write_table(table, tmp_path / "items.parquet")
    with pytest.raises(PipelineError, match=r"has no column 'topics'.*prepare the dataset again"):
        read_catalogue(spec, tmp_path / "items.parquet")


def test_a_job_comes_back_as_it_was_written(tmp_path):
    settings = RecallSettings(k=3)
    job = RecallJob(["a"], ["b"], SPEC, plain(settings), "model", "result")
    catalogue = {"item_id": np.array([5, 7])}
    lookup = RowLookup({"item": np.array([7, 5])}, {"ms": np.array([0.5], np.float32)})
    job.save(tmp_path / "job", catalogue, lookup)
    again, items, found = RecallJob.load(tmp_path / "job")
    assert again == job and again.settings == settings
    np.testing.assert_array_equal(items["item_id"], catalogue["item_id"])
    assert found.ids("item", tf.constant([5, 7, 6], tf.int64)).numpy().tolist() == [2, 1, 0]
    assert found.buckets("ms", tf.constant([0.1, 0.9])).numpy().tolist() == [1, 2]
