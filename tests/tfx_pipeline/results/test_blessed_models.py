"""The last blessed model is the one that knows most of what came before, and nothing later."""

import numpy as np
import pytest

from tfx_pipeline.results import blessed_models
from tfx_pipeline.results.blessed_models import last_blessed_model
from tfx_pipeline.results.past_runs import NodeRun, PipelineRun
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.warm_start import WarmStart


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Add runs: (number, until, blessed)."""
    known = []
    (tmp_path / "metadata.sqlite").touch()
    monkeypatch.setattr(blessed_models, "read_runs", lambda database: known)

    def add(number, until, blessed=1, left=True, trained=None):
        folder = tmp_path / str(trained or number)
        if left:
            lookup = RowLookup({"tag": np.array([1, 2])})
            WarmStart({}, {}, {}, until, lookup).save(str(folder / "checkpoints"))
        trainer = NodeRun("Trainer", "COMPLETE", 1.0, {
            "model": [(f"model {trained or number}", {})], "model_run": [(str(folder), {})],
        })  # fmt: skip
        evaluator = NodeRun(
            "Evaluator", "COMPLETE", 1.0, {"blessing": [("", {"blessed": blessed})]}
        )
        nodes = {"Trainer": trainer, "Evaluator": evaluator}
        known.append(PipelineRun("laser", f"run {number}", nodes))

    def find(until):
        found = last_blessed_model(tmp_path / "metadata.sqlite", until)
        return found and (found.run_id, found.model, found.trained_until)

    add.find, add.known = find, known
    return add


def test_a_model_that_learned_the_day_itself_or_later_is_none(runs):
    runs(1, 100)
    runs(2, 300)
    runs(3, 200)
    assert runs.find(99) is None
    assert runs.find(100) == ("run 1", "model 1", 100)
    assert runs.find(299) == ("run 3", "model 3", 200)
    assert runs.find(10**15) == ("run 2", "model 2", 300)


def test_refused_unfinished_and_older_versions_models_are_passed_over(runs):
    runs(1, 100)
    runs(2, 200, blessed=0)
    runs(3, 200, left=False)
    runs.known.append(PipelineRun("laser", "run 4", {}))
    assert runs.find(500) == ("run 1", "model 1", 100)


def test_of_equals_the_newest_counts_and_of_one_model_the_run_that_made_it(runs):
    runs(1, 100)
    runs(2, 100)
    runs(3, 100, trained=2)  # from the cache
    assert runs.find(500) == ("run 2", "model 2", 100)


def test_without_any_run_there_is_none(tmp_path):
    assert last_blessed_model(tmp_path / "metadata.sqlite", 10**15) is None
