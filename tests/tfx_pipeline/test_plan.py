"""What ``laser-pipeline check`` finds out before a run."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.cli import main
from tfx_pipeline.datasets import GeneratorSettings, prepare

SETTINGS = GeneratorSettings(users=20, items=1000, min_events=5, max_events=30, requests=50)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare(None, tmp_path_factory.mktemp("plan") / "data", generator=SETTINGS)


@pytest.fixture
def check(dataset, tmp_path, capsys):
    def run(text, data=dataset.path, store=tmp_path):
        (tmp_path / "config.yaml").write_text(text)
        arguments = ["--config", tmp_path / "config.yaml", "--data", data, "--store", store]
        code = main(["check", *map(str, arguments), "--work", str(tmp_path / "work")])
        captured = capsys.readouterr()
        assert not (tmp_path / "work").exists()
        return captured.out if code == 0 else captured.err.strip()

    return run


def test_the_plan_counts_rows_requests_and_steps(check, dataset):
    said = check("name: a\ntraining: {batch_size: 8, epochs: 3}")
    log = pq.read_table(dataset.impressions_path)
    start, end = dataset.splits["train"]
    train = [row for row in log.to_pylist() if start <= row["timestamp"] < end]
    requests = len({(row["timestamp"], row["user_id"]) for row in train})
    assert f"train: {len(train):,} impressions in about {requests:,} requests" in said
    assert f"training steps: about {3 * -(-requests // 8):,}" in said
    assert "memory of the Trainer: about" in said and "time: about" in said


def test_splits_outside_the_log_are_refused(check):
    days = "{start: 2035-01-01, end: 2035-01-02}, eval: {start: 2035-01-02, end: 2035-01-03}"
    line = check(f"name: a\nsplits: {{train: {days}}}")
    assert "split train (2035-01-01 00:00:00 UTC" in line and "give time ranges" in line


def test_a_slice_that_is_no_context_field_is_refused(check):
    assert "slices by 'age', which is not a context field" in check("name: a\nslices: [age]")


def test_a_recall_model_that_would_answer_with_every_item_is_refused(check):
    line = check("name: a\nrecall: {k: 1000}")
    assert "recall.k is 1000 and the dataset has 1000 items" in line and "give less" in line


def test_a_store_or_a_dataset_that_is_not_there_is_named(check, tmp_path):
    assert "is not a SeqVault: load the dataset" in check("name: a", store=tmp_path / "none")
    assert "dataset.json is missing" in check("name: a", data=tmp_path / "none")


def test_a_log_without_statistics_is_read(check, dataset, tmp_path):
    copy = dataset.copy(tmp_path / "copy")
    log = pq.read_table(copy.impressions_path)
    pq.write_table(log, copy.impressions_path, write_statistics=False)
    assert "training steps" in check("name: a", data=copy.path)
    pq.write_table(pa.table({"a": [1]}), copy.impressions_path)
    assert "lacks the columns" in check("name: a", data=copy.path)


def test_contradictory_options_are_refused(dataset, tmp_path, capsys):
    arguments = ["prepare", "--source", str(dataset.path), "--data", str(tmp_path / "out")]
    assert main([*arguments, "--users", "5"]) == 1
    assert "--users set the size of a generated dataset" in capsys.readouterr().err
    assert main(arguments) == 0
    assert (tmp_path / "out" / "dataset.json").is_file()


@pytest.mark.parametrize("hours", ["-5", "nan", "inf", "many"])
def test_hours_are_a_number_of_at_least_zero(hours, tmp_path, capsys):
    folders = ["--data", str(tmp_path), "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit) as stopped:
        main(["load", *folders, f"--recent-hours={hours}"])
    assert stopped.value.code == 2
    assert "recent-hours" in capsys.readouterr().err


def test_the_settings_are_listed(capsys):
    assert main(["settings"]) == 0
    assert "training.epochs  (integer, at least 1, 1)" in capsys.readouterr().out
    assert main(["settings", "--json-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"
