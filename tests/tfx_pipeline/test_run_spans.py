"""The loop over days: what each day's run is told, and what ends the loop."""

import json
from types import SimpleNamespace

import pytest

from tfx_pipeline.config import REPORT, PipelineConfig
from tfx_pipeline.errors import NotPushedError, OtherModelError
from tfx_pipeline.results.blessed_models import BlessedModel
from tfx_pipeline.runners import spans
from tfx_pipeline.runners.spans import run_spans
from tfx_pipeline.span import Span, parse_days

DAYS = parse_days("2022-05-05:2022-05-07")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Runs that only note their config; each blesses its model but those of ``refused`` days."""
    noted = SimpleNamespace(configs=[], lines=[], refused=set(), fails=None, fits=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "features.yaml").write_text(
        """
name: days
history: {max_length: 3}
tables: {item: {rows: 10, width: 4, ids: direct}, hour: {rows: 25, width: 4, ids: direct}}
event: {item_id: {type: int64, table: item}}
context: {hour: {derive: hour_of_day, utc_offset_hours: 8, table: hour}}
label: {click: {type: int8}}
"""
    )
    noted.config = PipelineConfig(
        name="days", dataset=tmp_path / "data", store=str(tmp_path), work=tmp_path, min_auc=0.6
    )
    blessed = []

    def run_local(config, say, resolve_baseline):
        assert resolve_baseline is False
        number = len(noted.configs)
        noted.configs.append(config)
        if number == noted.fails:
            raise RuntimeError("disk on fire")
        is_good = number not in noted.refused
        report = {
            "evaluation": {"": {"auc": 0.7 + number / 100, "impressions": 10.0}},
            "pushed": f"model {number}" if is_good else None,
            "problems": [] if is_good else ["AUC is too low"],
        }
        (tmp_path / REPORT).write_text(json.dumps(report))
        if not is_good:
            raise NotPushedError("no model was pushed: AUC is too low")
        until = config.splits["train"].end
        blessed.append(BlessedModel(f"model {number}", f"state {number}", until, f"run {number}"))
        return report

    def fits(*_):
        if not noted.fits:
            raise OtherModelError("of another model")

    monkeypatch.setattr(spans, "run_local", run_local)
    monkeypatch.setattr(spans, "check_run", lambda config: None)
    monkeypatch.setattr(
        spans,
        "last_blessed_model",
        lambda database, until: max(
            (each for each in blessed if each.trained_until <= until),
            key=lambda each: each.trained_until,
            default=None,
        ),
    )
    monkeypatch.setattr(
        spans, "WarmStart", SimpleNamespace(load=lambda folder: SimpleNamespace(check_fits=fits))
    )
    noted.run = lambda days=DAYS, **more: run_spans(noted.config, days, noted.lines.append, **more)
    return noted


def test_each_day_is_trained_on_the_next_predicted_and_the_last_model_gone_on_with(world):
    results = world.run()
    for day, config in zip(DAYS, world.configs, strict=True):
        span = Span(day, spans.clock_of(config.load_spec()))
        assert config.splits == {"train": span.train, "eval": span.eval}
        assert config.min_auc == 0.6
    told = [(each.warm_start, each.baseline_model) for each in world.configs]
    assert told == [("", ""), ("state 0", "model 0"), ("state 1", "model 1")]
    assert [each.warm_start for each in results] == ["", "run 0", "run 1"]
    assert [each.predicted for each in results] == ["2022-05-06", "2022-05-07", "2022-05-08"]
    assert len((world.config.work / "spans.jsonl").read_text().splitlines()) == 3


def test_a_refused_day_is_said_and_the_next_goes_on_from_the_one_before(world):
    world.refused = {1}
    results = world.run()
    assert [each.pushed for each in results] == ["model 0", None, "model 2"]
    assert results[1].problems == ("AUC is too low",)
    assert world.configs[2].warm_start == "state 0"
    assert "no model was pushed: AUC is too low" in world.lines


def test_the_same_days_again_are_told_the_same(world):
    world.run()
    world.run()
    assert world.configs[:3] == world.configs[3:]


def test_what_fails_ends_the_loop_and_the_days_before_are_kept(world):
    world.fails = 1
    with pytest.raises(RuntimeError, match="disk on fire"):
        world.run()
    assert len(world.configs) == 2
    assert len((world.config.work / "spans.jsonl").read_text().splitlines()) == 1


def test_another_model_is_refused_before_anything_runs_unless_it_begins_anew(world):
    world.run(DAYS[:1])
    world.fits = False
    with pytest.raises(OtherModelError):
        world.run(DAYS[1:])
    assert len(world.configs) == 1
    world.fits = True
    results = world.run(DAYS[1:], cold_start=True)
    cold, warm = world.configs[1:]
    assert (cold.warm_start, cold.baseline_model) == ("", "model 0")
    assert warm.warm_start == "state 1"
    assert [each.warm_start for each in results] == ["", "run 1"]


def test_days_and_flags_of_the_command_line_are_checked(tmp_path, capsys):
    from tfx_pipeline.cli import main

    with pytest.raises(SystemExit):
        main(["run", "--span", "2022-05-05", "--spans", "2022-05-05:2022-05-06"])
    assert "not allowed with" in capsys.readouterr().err
