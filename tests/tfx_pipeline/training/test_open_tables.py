"""Tables whose ids nobody listed: admission, eviction, the same rows after a restart and served."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from laser_features import FeatureSpec
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import OpenTableSettings, TrainingSettings
from tfx_pipeline.training.embedding_tables import EmbeddingTable
from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.open_rows import OpenRows, check_open_tables, day_of
from tfx_pipeline.training.parsing import CANDIDATE_COUNT
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.stop_request import TrainingStopped
from tfx_pipeline.training.trainer import Trainer


def note(open_rows, ids, day=0):
    ids = tf.constant(ids, tf.int64)
    open_rows.note(ids, open_rows.lookup(ids), tf.constant(day))


@pytest.mark.parametrize("sightings", [1, 3])
def test_ids_get_rows_once_they_were_met_often_enough(sightings):
    rng = np.random.default_rng(sightings)
    ids = rng.integers(-(2**62), 2**62, 60)
    open_rows = OpenRows("t", 200, OpenTableSettings(sightings=sightings))
    met: Counter[int] = Counter()
    for _ in range(30):
        for _ in range(2):
            chosen = rng.choice(ids, 9, replace=False)
            met.update(chosen.tolist())
            note(open_rows, [*chosen, -1])
        open_rows.refresh()
        known, rows = open_rows.mapping()
        # Two ids may want one place to wait at, so one comes later; none comes early.
        assert all(met[each] >= sightings for each in known.tolist())
        assert len(set(rows.tolist())) == len(rows) and (rows > 0).all()
        np.testing.assert_array_equal(open_rows.lookup(tf.constant(known)), rows)
    often = {each for each, count in met.items() if count >= sightings + 3}
    assert len(often) > 20 and often <= set(known.tolist())
    unknown = tf.constant([-1, 2**63 - 1, *set(ids.tolist()) - set(known.tolist())], tf.int64)
    assert not open_rows.lookup(unknown).numpy().any()


def test_a_row_keeps_its_id_until_it_was_unseen_for_days_and_is_then_new():
    table = EmbeddingTable("t", 6, 3, seed=1)
    open_rows = OpenRows("t", 6, OpenTableSettings(days=2))
    note(open_rows, [10, 20, 30], day=100)
    assert open_rows.refresh().admitted == 3
    rows = open_rows.lookup(tf.constant([10, 20, 30], tf.int64))
    first = table.values.numpy()
    table.apply_gradient(rows, tf.ones([3, 3]), 0.1)
    trained = table.values.numpy()
    note(open_rows, [10, 20], day=101)
    assert not len(open_rows.refresh().evicted)
    note(open_rows, [10, 40, 50, 60], day=102)
    done = open_rows.refresh()
    assert done.evicted.tolist() == [int(rows[2])]
    table.reset(done.evicted)
    lost = int(rows[2])
    expected = trained.copy()
    expected[lost] = first[lost]
    np.testing.assert_array_equal(table.values, expected)
    assert (table.accumulators.numpy()[lost] == np.float32(0.1)).all()
    known = dict(zip(*(each.tolist() for each in open_rows.mapping()), strict=True))
    assert known[10] == int(rows[0]) and known[20] == int(rows[1]) and 30 not in known
    assert lost in known.values()


def test_when_there_is_no_room_the_ids_that_have_rows_keep_them():
    open_rows = OpenRows("t", 3, OpenTableSettings())
    admitted = 0
    for _ in range(8):
        for each in (5, 6, 7, 8):
            note(open_rows, [each])
        admitted += open_rows.refresh().admitted
    before = open_rows.mapping()
    assert admitted == 2
    note(open_rows, [100])
    done = open_rows.refresh()
    assert (done.admitted, done.refused) == (0, 1)
    np.testing.assert_array_equal(open_rows.mapping(), before)


@pytest.fixture(scope="module")
def small(model_settings):
    return replace(model_settings, dropout=0.0)


@pytest.fixture(scope="module")
def open_settings(settings):
    return replace(
        settings, batch_size=8, epochs=2, open_tables={"tag": OpenTableSettings(sightings=2)}
    )


@pytest.fixture(scope="module")
def files(open_spec, write_files, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("examples"), open_spec, files=2, requests=20)


def test_training_goes_on_with_the_same_rows_and_serves_them_and_more(
    open_spec, small, open_settings, files, write_files, tmp_path
):
    """First resumed, then by a training whose table has more rows."""
    said = []

    def trainer(folder, spec=open_spec, **options):
        return Trainer(
            spec,
            small,
            open_settings,
            RowLookup(),
            directory=str(tmp_path / folder),
            report=said.append,
            **options,
        )

    whole = trainer("whole")
    whole.train(files)
    assert any("table tag: " in line and "ids got rows" in line for line in said)
    known, _ = whole.state.open_rows["tag"].mapping()
    assert 5 < len(known) <= 11

    stopped, asked = trainer("stopped"), iter([False, True])
    with pytest.raises(TrainingStopped):
        stopped.train(files, lambda: next(asked))
    again = trainer("stopped")
    again.train(files)
    for name, value in whole.numpy_state().items():
        assert value.tobytes() == again.numpy_state()[name].tobytes(), name

    content = open_spec.to_dict()
    content["tables"]["tag"]["rows"] = content["tables"]["scene"]["rows"] = 40
    larger_spec = FeatureSpec.from_dict(content)
    larger_files = write_files(tmp_path, larger_spec, files=2, requests=20)
    larger = trainer("larger", larger_spec, warm_start=str(tmp_path / "stopped"))
    larger.train(larger_files)
    before, now = (
        dict(zip(*(each.tolist() for each in one.state.open_rows["tag"].mapping()), strict=True))
        for one in (again, larger)
    )
    assert now.items() >= before.items() and len(now) > 11 and max(now.values()) > 11

    larger.export(str(tmp_path / "model"))
    (batch,) = batches_of_file(
        larger_files[0], larger_spec, replace(open_settings, batch_size=20), "click", None
    )
    assert batch["candidate_tag"].numpy().max() > 11
    batch["candidate_tag"] = tf.where(batch["candidate_tag"] == 3, 10**15, batch["candidate_tag"])
    inputs = {each.name: batch[each.name] for each in larger_spec.model_inputs()}
    serve = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    expected = tf.sigmoid(larger.step.predict(batch))
    np.testing.assert_allclose(serve(**inputs)["probability"], expected, atol=1e-6)
    # A later spec may have rows that this model has not: they are missing ones.
    beyond = {**inputs, "history_scene": tf.where(inputs["history_scene"] == 3, 40, 0)}
    without = {**inputs, "history_scene": tf.zeros_like(inputs["history_scene"])}
    np.testing.assert_array_equal(serve(**beyond)["probability"], serve(**without)["probability"])
    assert batch[CANDIDATE_COUNT].shape == [20]


def test_a_table_that_cannot_be_open_is_refused(open_spec, spec):
    def opened(name):
        return TrainingSettings(open_tables={name: OpenTableSettings()})

    check_open_tables(open_spec, opened("tag"))
    with pytest.raises(SettingsError, match=r"names 'item', .* it has \['tag'\]"):
        check_open_tables(open_spec, opened("item"))
    with pytest.raises(SettingsError, match="names 'tags'"):
        check_open_tables(open_spec, opened("tags"))
    with pytest.raises(SettingsError, match="feature_hosts send no times"):
        values = {"open_tables": {"tag": {}}, "feature_hosts": ["localhost:1"]}
        check(TrainingSettings, values, "training")
    content = spec.to_dict()
    content["tables"]["item"]["ids"] = "vocabulary"
    with pytest.raises(SettingsError, match=r"content fields \['vector'\] belong"):
        check_open_tables(FeatureSpec.from_dict(content), opened("item"))


def test_days_are_those_of_the_log():
    assert int(day_of(tf.constant([86_400_000 * 3 - 1, 5], tf.int64))) == 2
