"""Whole runs in one process: learning, determinism, resuming, export, TFX's entry point."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tensorflow.python.autograph.core.ag_ctx import Status, control_status_ctx

from tfx_pipeline.settings.section import plain
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.content_vectors import content_vectors
from tfx_pipeline.training.parsing import parse_examples
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.run_fn import run_fn
from tfx_pipeline.training.running_totals import RunningTotals
from tfx_pipeline.training.stop_request import TrainingStopped, stop_request
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.tower_inputs import tower_widths
from tfx_pipeline.training.trainer import Trainer

PREDICT = """
import sys
import numpy as np, tensorflow as tf
assert not any(name.split(".")[0] in ("laser_keras", "tfx_pipeline") for name in sys.modules)
model = tf.saved_model.load(sys.argv[1])
inputs = {name: tf.constant(value) for name, value in np.load(sys.argv[2]).items()}
examples = tf.constant([bytes.fromhex(line) for line in open(sys.argv[3]).read().split()])
by_tensors = model.signatures["serving_default"](**inputs)["probability"]
by_examples = model.signatures["serving_examples"](examples)["probability"]
np.savez(sys.argv[4], tensors=by_tensors.numpy(), examples=by_examples.numpy())
"""


@pytest.fixture(scope="module")
def lookup():
    return RowLookup(
        {"tag": np.arange(11, 0, -1)}, {"duration_ms": np.array([-0.7, 0, 0.7], np.float32)}
    )


@pytest.fixture(scope="module")
def content(spec):
    vectors = np.random.default_rng(1).normal(size=(spec.tables["item"].rows, 3))
    return vectors.astype(np.float32)


@pytest.fixture(scope="module")
def files(spec, write_files, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("examples"), spec, files=3, requests=60)


@pytest.fixture(scope="module")
def records(files):
    return list(tf.data.TFRecordDataset(files[0], "GZIP").take(12).as_numpy_iterator())


@pytest.fixture(scope="module")
def trained(spec, model_settings, settings, lookup, content, files, tmp_path_factory):
    """A run of two epochs with checkpoints, and the folder of these."""
    folder = str(tmp_path_factory.mktemp("run"))
    two_epochs = replace(settings, epochs=2, checkpoint_files=2)
    trainer = Trainer(spec, model_settings, two_epochs, lookup, content, directory=folder)
    trainer.train(files)
    return trainer


def assert_same_state(one, other):
    one, other = one.numpy_state(), other.numpy_state()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def test_training_learns(spec, laser_settings, settings, lookup, content, files):
    long = replace(settings, epochs=12, dense_learning_rate=0.005, weight_decay=0.0)
    model_settings = replace(laser_settings, dropout=0.0)
    lines = []
    trainer = Trainer(spec, model_settings, long, lookup, content, report=lines.append)
    before = trainer.evaluate(files)
    assert before.impressions == sum(
        len(tf.train.Example.FromString(record).features.feature["label_click"].int64_list.value)
        for path in files
        for record in tf.data.TFRecordDataset(path, "GZIP").as_numpy_iterator()
    )
    trainer.train(files)
    after = trainer.evaluate(files)
    assert after.auc > 0.9 > before.auc
    assert after.loss < 0.5 * before.loss
    assert sum(line.startswith("train: ") for line in lines) == 12


def test_diverged_training_is_an_error(
    spec, model_settings, settings, lookup, content, files, tmp_path
):
    wild = replace(settings, dense_learning_rate=1e30, table_learning_rate=1e30)
    trainer = Trainer(spec, model_settings, wild, lookup, content, directory=str(tmp_path))
    with pytest.raises(ValueError, match="diverged"):
        trainer.train(files)
    assert not list(tmp_path.iterdir())


def test_equal_runs_give_equal_bits_and_another_seed_does_not(
    trained, spec, lookup, content, files
):
    again = Trainer(spec, trained.model_settings, trained.settings, lookup, content)
    again.train(files)
    assert_same_state(trained, again)
    other = Trainer(
        spec, trained.model_settings, replace(trained.settings, seed=4), lookup, content
    )
    assert not np.allclose(
        other.state.dense.read(),
        Trainer(spec, trained.model_settings, trained.settings, lookup, content).state.dense.read(),
    )


def test_resumed_run_equals_an_uninterrupted_one(
    trained, spec, lookup, content, files, tmp_path, monkeypatch
):
    class Killed(Exception):
        pass

    save = Checkpoints.save

    def save_then_die(self, position):
        save(self, position)
        if position == Position(1, 2):
            raise Killed

    first = Trainer(
        spec, trained.model_settings, trained.settings, lookup, content, directory=str(tmp_path)
    )
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, "save", save_then_die)
        first.train(files)
    resumed = Trainer(
        spec, trained.model_settings, trained.settings, lookup, content, directory=str(tmp_path)
    )
    resumed.train(files)
    assert_same_state(trained, resumed)
    nothing_left = Trainer(
        spec, trained.model_settings, trained.settings, lookup, content, directory=str(tmp_path)
    )
    nothing_left.train(files)
    assert_same_state(trained, nothing_left)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    trained, spec, model_settings, settings, tmp_path, damage, kind
):
    folder = Path(shutil.copytree(trained._directory, tmp_path / "checkpoints"))
    other = Trainer(spec, model_settings, settings, trained.lookup, trained._content)
    lines = []
    checkpoints = Checkpoints(str(folder), other.state, report=lines.append, totals=RunningTotals())
    before, newest = sorted(folder.glob("*.index"))
    damage(newest.with_suffix(f".{kind}"))
    (folder / "checkpoint").write_bytes(b"\0" * 64)  # what a power cut leaves of the list
    assert checkpoints.restore() == Position(1, 2)
    assert checkpoints.damaged == [str(newest.with_suffix(""))]
    assert "ckpt-2000000 is damaged" in lines[0] and "damaged checkpoints: 1" in lines[1]
    assert "epoch 1, 2 files done" in lines[1]
    damage(before.with_suffix(f".{kind}"))
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: remove this folder"):
        checkpoints.restore()
    assert len(checkpoints.damaged) == 2


def test_a_stopped_run_saves_and_goes_on_as_if_it_had_not_been(
    trained, spec, lookup, content, files, tmp_path
):
    def trainer():
        return Trainer(
            spec, trained.model_settings, trained.settings, lookup, content, directory=str(tmp_path)
        )

    answers = iter([False, False, False, False, True])
    with pytest.raises(TrainingStopped, match="after 1 files of epoch 2"):
        trainer().train(files, lambda: next(answers))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(TrainingStopped):
        trainer().train(files, lambda: True)
    assert sorted(tmp_path.iterdir()) == before
    resumed = trainer()
    counted = resumed.train(files)
    assert_same_state(trained, resumed)
    assert counted.impressions == resumed.evaluate(files).impressions  # the epoch's, not the rest's


def test_a_signal_asks_to_stop_and_a_second_one_ends():
    said, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_request(said.append) as should_stop:
        assert not should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert should_stop() and len(said) == 1
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_no_code_of_the_tower_is_converted_by_autograph(
    spec, model_settings, settings, lookup, content, files, tmp_path, monkeypatch
):
    """To convert it took two thirds of the time until the first step."""
    tower, seen = Tower.__call__, []

    def noted(self, *arguments):
        seen.append(control_status_ctx().status)
        return tower(self, *arguments)

    monkeypatch.setattr(Tower, "__call__", noted)
    one_epoch = replace(settings, epochs=1)
    trainer = Trainer(spec, model_settings, one_epoch, lookup, content)
    trainer.train(files[:1])
    trainer.evaluate(files[:1])
    trainer.export(str(tmp_path))
    assert len(seen) >= 4  # train, evaluate, two signatures
    assert set(seen) == {Status.DISABLED}


def test_rows_outside_the_batch_keep_their_bits(
    spec, model_settings, settings, lookup, content, records
):
    trainer = Trainer(spec, model_settings, settings, lookup, content)
    batch = parse_examples(tf.constant(records[:2]), spec, "click")
    rows = lookup.table_rows(spec, batch)
    before = trainer.numpy_state()
    trainer.step.train(batch)
    after = trainer.numpy_state()
    assert after["dense"].tobytes() != before["dense"].tobytes()
    for table in spec.tables:
        used = {
            int(row)
            for each in spec.model_inputs()
            if each.table == table
            for row in rows[each.name].numpy().ravel()
        } - {0}
        unused = sorted(set(range(spec.tables[table].rows)) - used)
        for name in (f"table_{table}", f"accumulators_{table}"):
            assert after[name][unused].tobytes() == before[name][unused].tobytes(), name
        name, trained_rows = f"table_{table}", sorted(used)
        assert (after[name][trained_rows] != before[name][trained_rows]).any(), name


def test_the_penalty_shrinks_touched_rows_and_no_others(
    spec, model_settings, settings, lookup, content, records
):
    batch = parse_examples(tf.constant(records[:2]), spec, "click")
    states = []
    for penalty in (0.0, 100.0):
        changed = replace(settings, table_l2=penalty, table_initial_accumulator=1e6)
        trainer = Trainer(spec, model_settings, changed, lookup, content)
        before = trainer.numpy_state()["table_item"]
        trainer.step.train(batch)
        states.append(trainer.numpy_state()["table_item"])
    plain, penalised = states
    touched = (penalised != before).any(axis=1)
    assert touched.any() and not touched.all()
    assert np.abs(penalised[touched]).sum() < np.abs(plain[touched]).sum()
    assert plain[~touched].tobytes() == before[~touched].tobytes()


def test_padding_changes_no_prediction(trained, spec, records):
    batch = parse_examples(tf.constant(records), spec, "click")
    wider = dict(batch)
    for each in spec.model_inputs():
        extra = {"history": [[0, 0], [0, 7]], "candidate": [[0, 0], [0, 2]], "request": [[0, 0]]}
        value = batch[each.name]
        filler = tf.constant(each.padding, value.dtype)
        wider[each.name] = tf.pad(value, extra[each.kind], constant_values=filler)
    plain, padded = trained.step.predict(batch).numpy(), trained.step.predict(wider).numpy()
    assert padded.shape[1] == plain.shape[1] + 2
    for row, count in enumerate(batch["candidate_count"].numpy()):
        np.testing.assert_allclose(padded[row, :count], plain[row, :count], atol=1e-5)


def test_export_answers_what_the_trainer_predicts_without_our_code(
    trained, spec, records, tmp_path
):
    batch = parse_examples(tf.constant(records), spec)
    expected = tf.sigmoid(trained.step.predict(batch)).numpy()
    trained.export(str(tmp_path / "model"))
    inputs = {each.name: batch[each.name].numpy() for each in spec.model_inputs()}
    np.savez(tmp_path / "inputs.npz", **inputs)
    (tmp_path / "examples").write_text("\n".join(record.hex() for record in records))
    paths = [str(tmp_path / name) for name in ("model", "inputs.npz", "examples", "out.npz")]
    subprocess.run([sys.executable, "-c", PREDICT, *paths], check=True, cwd=tmp_path)
    answers = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(answers["tensors"], expected, atol=1e-6)
    np.testing.assert_allclose(answers["examples"], expected, atol=1e-6)

    signature = tf.saved_model.load(paths[0]).signatures["serving_default"]
    together = answers["tensors"]
    candidates = [each.name for each in spec.model_inputs() if each.kind == "candidate"]
    for number in range(together.shape[1]):
        one = {name: tf.constant(value) for name, value in inputs.items()}
        for name in candidates:
            one[name] = one[name][:, number : number + 1]
        alone = signature(**one)["probability"].numpy()[:, 0]
        np.testing.assert_allclose(alone, together[:, number], atol=1e-6)


def test_checkpoint_of_another_model_is_refused(trained, spec, model_settings, settings):
    other = Trainer(spec, replace(model_settings, dim=32), settings, trained.lookup)
    with pytest.raises(ValueError, match="of another model"):
        Checkpoints(trained._directory, other.state).restore()


def test_content_vectors_lie_at_their_items_rows(spec, tmp_path):
    ids = [5, 0, 200]
    vectors = np.arange(9, dtype=np.float32).reshape(3, 3)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
    table = pa.table({"item_id": ids, "vector": column})
    pq.write_table(table, tmp_path / "items.parquet")
    found = content_vectors(spec, tmp_path / "items.parquet", RowLookup())
    assert found is not None and found.shape == (120, 3)
    np.testing.assert_array_equal(found[6], vectors[0])
    np.testing.assert_array_equal(found[1], vectors[1])
    # Item 200 has no row of its own: the missing row stays zero.
    assert not np.delete(found, [1, 6], axis=0).any()
    with pytest.raises(ValueError, match="vector"):
        content_vectors(spec, None, RowLookup())


def test_tower_widths(spec):
    assert tower_widths(spec) == {
        "history": 8 + 4 + 4 + 4 + 3,
        "target": 8 + 4 + 4 + 3,
        "candidate": 4,
        "context": 4,
    }


def test_run_fn_trains_evaluates_and_exports(
    plain_spec, model_settings, settings, write_files, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    write_files(tmp_path, plain_spec, files=2, requests=20)
    fn_args = SimpleNamespace(
        train_files=[str(tmp_path / "data-*")],
        eval_files=[str(tmp_path / "data-1*")],
        transform_graph_path=None,
        serving_model_dir=str(tmp_path / "Format-Serving"),
        model_run_dir=str(tmp_path / "run"),
        custom_config={
            "feature_spec": json.loads(json.dumps(plain_spec.to_dict())),
            "model": plain(model_settings),
            "training": plain(settings),
            "fingerprint": "abc",
        },
    )
    run_fn(fn_args)
    assert "eval: " in capsys.readouterr().out
    assert (tmp_path / "Format-Serving" / "saved_model.pb").is_file()
    assert list((tmp_path / "run" / "logs").glob("events*"))
    for wrong, message in (
        ({"training": {"epoch": 3}}, "unknown entry 'epoch'.* did you mean 'epochs'"),
        ({"model": {"dropout": 1}}, "dropout"),
        ({"feature_spec": None}, "feature_spec"),
        ({"trainin": {}}, "'trainin'"),
    ):
        config = {**fn_args.custom_config, **wrong}
        with pytest.raises(ValueError, match=message):
            run_fn(SimpleNamespace(**{**vars(fn_args), "custom_config": config}))
    with pytest.raises(ValueError, match="no file of Examples"):
        run_fn(SimpleNamespace(**{**vars(fn_args), "train_files": [str(tmp_path / "none*")]}))
