"""Evaluation while training: the best state is kept, and a run that stands still ends."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tfx_pipeline.errors import SettingsError
from tfx_pipeline.settings.section import check
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.checkpoint import Position
from tfx_pipeline.training.diverged import EXIT_DIVERGED, DivergedError
from tfx_pipeline.training.evaluation_log import Evaluation, EvaluationLog
from tfx_pipeline.training.evaluations import Evaluations
from tfx_pipeline.training.metrics_log import MetricsLog, textfile
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.running_totals import BINS, Totals
from tfx_pipeline.training.trainer import Trainer


def totals(auc):
    """Two impressions of which the click has the higher score, or not."""
    histogram = np.zeros([2, BINS], np.int64)
    histogram[0, 10] = 100
    histogram[1, 20], histogram[1, 5] = round(100 * auc), round(100 * (1 - auc))
    return Totals(histogram, 1.0)


def made(*aucs):
    log = EvaluationLog(None)
    for number, auc in enumerate(aucs):
        log.add(Evaluation(10 * (number + 1), 0, number + 1, auc, 1.0))
    return log


def test_the_best_is_the_first_of_the_highest():
    log = made(0.6, 0.7, 0.7, 0.65)
    assert (log.best.step, log.since_best, log.last_step) == (20, 2, 40)
    assert (made().best, made().since_best, made().last_step) == (None, 0, 0)


def test_a_run_ends_after_its_patience_and_not_before():
    settings = TrainingSettings(evaluate_steps=10, patience=2)
    for aucs, is_over in [((), False), ((0.7, 0.6), False), ((0.7, 0.6, 0.7), True)]:
        assert Evaluations(settings, ["a"], made(*aucs), None).is_over == is_over
    assert not Evaluations(replace(settings, patience=0), ["a"], made(0.7, 0.6, 0.5), None).is_over


def test_evaluations_are_due_by_steps_and_once_more_at_the_end():
    each = Evaluations(TrainingSettings(evaluate_steps=10), ["a", "b"], made(0.5), None)
    assert [each.is_due(steps) for steps in (10, 19, 20)] == [False, False, True]
    assert [each.is_due(steps, is_last=True) for steps in (10, 11)] == [False, True]
    some = TrainingSettings(evaluate_steps=10, evaluate_files=1)
    assert each.files == ["a", "b"] and Evaluations(some, ["a", "b"], made(), None).files == ["a"]


def test_the_log_goes_on_where_the_run_does(tmp_path):
    path = str(tmp_path / "best" / "evaluations.jsonl")
    log = EvaluationLog(path)
    evaluations = Evaluations(TrainingSettings(evaluate_steps=1), ["a"], log, None)
    for number, auc in enumerate((0.6, 0.9)):
        evaluations.add(number + 1, Position(0, number + 1), totals(auc))
    again = EvaluationLog(path)
    assert again.best.auc == pytest.approx(0.9) and len(again) == 2
    again.forget_after(Position(0, 1))
    assert again.best.auc == pytest.approx(0.6) and again.last_step == 1


def test_patience_without_evaluations_is_refused():
    with pytest.raises(SettingsError, match="set evaluate_steps"):
        check(TrainingSettings, {"patience": 2}, "training")


def test_metrics_are_written_for_people_and_machines(tmp_path):
    log = MetricsLog(str(tmp_path))
    log.write("eval", 7, {"auc": 0.75, "loss": float("nan")})
    log.write("train", 9, {"auc": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"], line["auc"]) for line in lines] == [
        ("eval", 7, 0.75),
        ("train", 9, 0.5),
    ]
    assert "loss" not in lines[0]
    prometheus = (tmp_path / "metrics.prom").read_text()
    assert "laser_training_eval_auc 0.75\n" in prometheus
    assert "laser_training_step 9\n" in prometheus
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "laser_training_eval_like_auc 1.0" in textfile({"eval/like_auc": 1.0})


@pytest.fixture(scope="module")
def train(plain_spec, model_settings, settings, write_files, tmp_path_factory):
    """Makes a trainer of a plain run that evaluates on its own training files."""
    files = write_files(tmp_path_factory.mktemp("examples"), plain_spec, files=3, requests=32)

    def make(directory, said=None, **changes):
        report = print if said is None else said.append
        return files, Trainer(
            plain_spec,
            model_settings,
            replace(settings, **changes),
            RowLookup(),
            directory=None if directory is None else str(directory / "checkpoints"),
            log_dir=None if directory is None else str(directory / "logs"),
            report=report,
            eval_files=files[:2],
        )

    return make


def test_the_best_state_is_what_is_left_after_training(train, tmp_path):
    """With rates this high the state gets worse sooner or later; the best one is exported."""
    said: list[str] = []
    wild = {
        "epochs": 40,
        "evaluate_steps": 4,
        "patience": 3,
        "dense_learning_rate": 0.3,
        "final_rate": 1.0,
        "keep_checkpoints": 3,
    }
    files, trainer = train(tmp_path, said, **wild)
    trainer.train(files)
    log = EvaluationLog(str(tmp_path / "checkpoints" / "best" / "evaluations.jsonl"))
    assert log.since_best == 3 and any("ends early" in line for line in said)
    assert trainer.evaluate(files[:2]).auc == pytest.approx(log.best.auc, abs=1e-9)
    assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 3
    best = trainer.numpy_state()
    # The same command again has nothing left to do, and ends with the same state.
    files, again = train(tmp_path, said, **wild)
    again.train(files)
    for name, value in again.numpy_state().items():
        assert value.tobytes() == best[name].tobytes(), name
    lines = (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} >= {"eval_part", "eval"}


def test_nan_is_named_where_it_began_and_the_last_checkpoint_is_good(train, tmp_path):
    files, trainer = train(tmp_path, epochs=1, checkpoint_files=1)
    table = trainer.state.tables["item"].values
    trainer.train(files, iter([False, False, False]).__next__)
    spoilt = np.full(table.shape, np.nan, np.float32)
    spoilt[0] = 0.0
    table.assign(spoilt)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    before = trainer.numpy_state()["table_tag"].tobytes()
    with pytest.raises(DivergedError, match="table 'item' is not finite") as raised:
        trainer._loop.train(files)
    assert raised.value.exit_code == EXIT_DIVERGED and "ckpt-" in str(raised.value)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
    assert trainer.numpy_state()["table_tag"].tobytes() == before
