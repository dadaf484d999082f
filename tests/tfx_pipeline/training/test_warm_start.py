"""A training that begins where another one ended."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from laser_features import FeatureSpec
from tfx_pipeline.errors import OtherModelError, PipelineError
from tfx_pipeline.settings.section import plain
from tfx_pipeline.settings.training_settings import OpenTableSettings
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.example_files import epoch_order
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.run_fn import run_fn
from tfx_pipeline.training.trainer import Trainer
from tfx_pipeline.training.warm_start import LEARNED, WarmStart, warm_start_fingerprint


@pytest.fixture(scope="module")
def constant(settings):
    """A batch depends on nothing but its file: no shuffling, no schedule."""
    return replace(settings, schedule="constant", shuffle_buffer=1, weight_decay=0.0)


@pytest.fixture(scope="module")
def days(plain_spec, write_files, tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("days"), plain_spec, files=2, requests=50)


@pytest.fixture(scope="module")
def first_day(plain_spec, model_settings, constant, days, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("first"))
    trainer = Trainer(plain_spec, model_settings, constant, RowLookup(), directory=folder)
    trainer.train(days[:1])
    WarmStart.of_training(plain_spec, model_settings, constant, RowLookup(), 7).save(folder)
    return folder


def assert_same_state(one, other):
    assert one.numpy_state().keys() == other.numpy_state().keys()
    for name, value in one.numpy_state().items():
        assert value.tobytes() == other.numpy_state()[name].tobytes(), name
    assert one._loop.steps == other._loop.steps
    for mine, theirs in zip(one.state.carried.read(), other.state.carried.read(), strict=True):
        assert mine.numpy().tobytes() == theirs.numpy().tobytes()


def test_two_days_with_a_warm_start_equal_one_training_over_the_same_batches(
    plain_spec, model_settings, constant, days, first_day, tmp_path
):
    second = Trainer(
        plain_spec, model_settings, constant, RowLookup(), directory=str(tmp_path / "second"),
        warm_start=first_day,
    )  # fmt: skip
    second.train(days[1:])
    at_once = Trainer(plain_spec, model_settings, constant, RowLookup())
    at_once.train(_ordered(days, constant.seed))
    assert_same_state(second, at_once)


def _ordered(days, seed):
    """The list whose order in the first epoch is that of the days."""
    shuffled = epoch_order(range(len(days)), seed, 0)
    return [days[shuffled.index(number)] for number in range(len(days))]


def test_a_warm_started_training_that_is_resumed_does_not_begin_again(
    plain_spec, model_settings, constant, days, first_day, tmp_path
):
    def trainer(epochs):
        settings = replace(constant, epochs=epochs)
        return Trainer(
            plain_spec, model_settings, settings, RowLookup(), directory=str(tmp_path),
            warm_start=first_day, report=lines.append,
        )  # fmt: skip

    lines: list[str] = []
    trainer(1).train(days[1:])
    assert sum(line.startswith("begins with the state of") for line in lines) == 1
    resumed = trainer(2)
    resumed.train(days[1:])
    assert sum(line.startswith("begins with the state of") for line in lines) == 1
    assert resumed._loop.steps == 3 * 4  # the first day's, and two epochs: 50 requests in 16s


def test_the_entry_point_leaves_what_the_next_day_begins_with(
    plain_spec, model_settings, constant, days, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Trainer, "export", lambda *_: None)  # tested elsewhere

    def arguments(day, **config):
        return SimpleNamespace(
            train_files=[days[day]], eval_files=[days[1]], transform_graph_path=None,
            serving_model_dir=str(tmp_path / f"model{day}"), model_run_dir=str(tmp_path / f"{day}"),
            custom_config={
                "feature_spec": plain_spec.to_dict(), "model": plain(model_settings),
                "training": plain(constant), **config,
            },
        )  # fmt: skip

    run_fn(arguments(0, trained_until=1_650_000_000_000))
    left = str(tmp_path / "0" / "checkpoints")
    assert WarmStart.load(left).trained_until == 1_650_000_000_000
    run_fn(arguments(1, warm_start=left))
    assert f"begins with the state of {left}/ckpt-1000000, step 4" in capsys.readouterr().out
    other = arguments(1, warm_start=left)
    other.custom_config["model"] = {**plain(model_settings), "dim": 32}
    with pytest.raises(OtherModelError, match=r"another model\.dim \(16, now 32\): "):
        run_fn(other)


def test_another_model_spec_or_labels_are_refused_by_name(spec, model_settings, settings):
    left = WarmStart.of_training(spec, model_settings, settings, RowLookup())
    left.check_fits(spec, replace(model_settings, dropout=0.5), replace(settings, epochs=9))
    with pytest.raises(
        OtherModelError,
        match=r"another feature spec\.tables\.item\.width \(8, now 9\), another model\.dim",
    ):
        left.check_fits(_with(spec, "item", width=9), replace(model_settings, dim=32), settings)
    labels = type(settings)(labels={"click": {"weight": 2.0}})
    with pytest.raises(OtherModelError, match=r"another labels\.click.*--cold-start"):
        left.check_fits(spec, model_settings, labels)
    opened = replace(settings, open_tables={"tag": OpenTableSettings()})
    with pytest.raises(OtherModelError, match=r"another open_tables \(\[\], now \['tag'\]\)"):
        left.check_fits(spec, model_settings, opened)


def _with(spec, table, **entries):
    content = spec.to_dict()
    content["tables"][table].update(entries)
    return FeatureSpec.from_dict(content)


def test_a_table_may_have_more_rows_if_its_rows_keep_their_meaning(
    spec, plain_spec, model_settings, settings
):
    left = WarmStart.of_training(spec, model_settings, settings, RowLookup())
    for table in spec.tables:
        more = _with(spec, table, rows=2 * spec.tables[table].rows)
        left.check_fits(more, model_settings, settings)
    with pytest.raises(
        OtherModelError,
        match=r"tables\.item\.rows \(120, now 100\).*'item' may get more rows, not fewer",
    ):
        left.check_fits(_with(spec, "item", rows=100), model_settings, settings)
    hashed = WarmStart.of_training(plain_spec, model_settings, settings, RowLookup())
    with pytest.raises(
        OtherModelError, match=r"tables\.tag\.rows \(12, now 24\).*table 'tag' is hashed, and with"
    ):
        hashed.check_fits(_with(plain_spec, "tag", rows=24), model_settings, settings)


def test_known_ids_keep_their_rows_and_new_ones_get_the_next(spec, model_settings, settings):
    before = RowLookup({"tag": np.array([70, 50, 60])}, {"duration_ms": np.array([1.0, 2.0])})
    today = RowLookup(
        {"tag": np.array([80, 60, *range(100, 109)])}, {"duration_ms": np.array([5.0, 6.0])}
    )
    lines: list[str] = []
    left = WarmStart.of_training(spec, model_settings, settings, before)
    lookup = left.extended(today, spec, lines.append)
    assert spec.tables["tag"].rows == 12  # row 0 is nobody's
    assert lookup.vocabularies["tag"].tolist() == [70, 50, 60, 80, *range(100, 107)]
    assert lookup.boundaries["duration_ms"].tolist() == [1.0, 2.0]
    (line,) = lines
    assert line.startswith("table 'tag' is full: 2 new ids get no row; raise `rows` of table 'tag'")
    more = left.extended(today, _with(spec, "tag", rows=24), lines.append)
    assert more.vocabularies["tag"].tolist() == [70, 50, 60, 80, *range(100, 109)]
    assert len(lines) == 1


def test_the_ids_of_open_tables_are_not_those_of_transform(spec, model_settings, settings):
    opened = replace(settings, open_tables={"tag": OpenTableSettings()})
    before, today = (RowLookup({"tag": ids}) for ids in (np.array([70]), np.arange(20)))
    left = WarmStart.of_training(spec, model_settings, opened, before)
    lines: list[str] = []
    assert left.extended(today, spec, lines.append).vocabularies["tag"].tolist() == [70]
    assert lines == []


def test_it_is_read_as_it_was_written_and_damage_is_told(spec, model_settings, settings, tmp_path):
    lookup = RowLookup(
        {"tag": np.array([2**60, -5, 3])}, {"duration_ms": np.array([0.1, 7], np.float32)}
    )
    WarmStart.of_training(spec, model_settings, settings, lookup, 12).save(str(tmp_path))
    loaded = WarmStart.load(str(tmp_path))
    loaded.check_fits(spec, model_settings, settings)
    assert loaded.lookup.vocabularies["tag"].tolist() == [2**60, -5, 3]
    assert loaded.lookup.boundaries["duration_ms"].tobytes() == np.float32([0.1, 7]).tobytes()
    assert loaded.trained_until == 12
    whole = (tmp_path / LEARNED).read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / LEARNED).write_bytes(whole[:cut])
        with pytest.raises(PipelineError, match=r"learned\.npz is damaged"):
            WarmStart.load(str(tmp_path))
    os.remove(tmp_path / LEARNED)
    with pytest.raises(PipelineError, match=r"holds no learned\.npz: give the `checkpoints` of"):
        WarmStart.load(str(tmp_path))


def test_the_fingerprint_tells_what_the_state_holds_not_where_it_lies(
    plain_spec, model_settings, constant, tmp_path
):
    state = Trainer(plain_spec, model_settings, constant, RowLookup()).state

    def left_in(name):
        Checkpoints(str(tmp_path / name), state).save(Position(1))
        left = WarmStart.of_training(plain_spec, model_settings, constant, RowLookup(), 7)
        left.save(str(tmp_path / name))
        return warm_start_fingerprint(str(tmp_path / name))

    here, there = left_in("here"), left_in("there")
    state.step.assign_add(1)
    assert here == there != left_in("later")
    assert warm_start_fingerprint("") == ""


def test_a_folder_without_a_checkpoint_is_no_beginning(
    plain_spec, model_settings, constant, days, tmp_path
):
    trainer = Trainer(
        plain_spec, model_settings, constant, RowLookup(), warm_start=str(tmp_path / "none")
    )
    with pytest.raises(ValueError, match="none holds no checkpoint"):
        trainer.train(days[:1])
