"""A comparison from its YAML file: joined as the pipeline joins, resumed, summed up, checked."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml

from components.seqvault_example_gen.impressions import check_rows, group_requests
from components.seqvault_example_gen.join import join_requests
from tfx_pipeline.compare import gates_of_causes, one_run, oracle_features, summary
from tfx_pipeline.compare import run_compare as module
from tfx_pipeline.compare.compare_settings import CompareSettings, runs_of
from tfx_pipeline.compare.gates_of_causes import gates_auc
from tfx_pipeline.compare.joined_log import JoinedLog
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.datasets.planted_causes import planted_causes
from tfx_pipeline.errors import PipelineError, SettingsError
from tfx_pipeline.settings.section import check
from tfx_pipeline.training.parsing import parse_examples

SMALL = """
name: small
baseline: mean
seeds: [1, 2]
length: 30
bootstrap: 20
model: {dim: 8, num_tokens: 4, mixer_dim: 8, mixer_blocks: 1}
training: {epochs: 1, batch_size: 32}
systems:
  mean:
  last_ten: {model: {system: recent_mean, encoder: {recent_events: 10}}, length: 20}
"""
GATED = """
  laser: {model: {encoder: {segment_size: 5, num_recent_segments: 1}}}
  din:
"""
WILD = "  wild: {model: {system: mean}, training: {dense_learning_rate: 1.0e+30}}\n"


def test_the_joined_log_holds_what_the_pipelines_examples_hold(dataset, store, tmp_path):
    log = JoinedLog.make(dataset, store, tmp_path / "joined", 40, "f")
    start, end = dataset.splits["eval"]
    table = check_rows(pq.read_table(dataset.impressions_path), 0, dataset.spec).good
    times = table["timestamp"].to_numpy()
    requests = group_requests(table.filter((times >= start) & (times < end)), dataset.spec)
    examples = [one for part, _ in join_requests(requests, store, dataset.spec) for one in part]
    batch = parse_examples(tf.constant(examples), dataset.spec, "click")
    found = log.batch("eval", np.arange(len(examples)), 40, fixed=True)
    assert set(found) == set(batch)
    for name, expected in batch.items():
        if not name.endswith("duration_ms"):  # quantities, here already buckets
            np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name)
    raw, rows = batch["candidate_duration_ms"].numpy(), found["candidate_duration_ms"]
    assert rows.min() >= 1 and rows.max() <= 16
    order = np.argsort(raw, axis=None)
    assert (np.diff(rows.ravel()[order]) >= 0).all()
    shorter = log.batch("eval", np.array([3, 1]), 7)
    longest = found["history_item_id"][[3, 1], :7]
    np.testing.assert_array_equal(shorter["history_item_id"], longest)
    sent = pickle.dumps(log)  # to another process: the folder, not what is mapped
    assert len(sent) < 20_000 and pickle.loads(sent).requests("eval") == len(examples)
    again = JoinedLog.make(dataset, None, tmp_path / "joined", 30, "f")  # nothing is read
    assert again.spec.max_history == 40


def test_all_runs_are_taken_resumed_and_summed_up(compare, tmp_path, monkeypatch, capsys):
    rows = compare(SMALL + WILD)
    work = tmp_path / "work"
    lines = [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]
    assert [(line["system"], line["seed"]) for line in lines] == [
        (name, seed) for seed in (1, 2) for name in ("mean", "last_ten", "wild")
    ]
    status = {line["run"]: line["status"] for line in lines}
    assert status["wild-1"] == status["wild-2"] == "diverged" and status["mean-2"] == "ok"
    mean, ten, wild = rows
    assert mean["auc"] == pytest.approx(np.mean([e["auc"] for e in lines if e["system"] == "mean"]))
    assert "difference_auc" not in mean and wild["auc"] is None and len(wild["problems"]) == 2
    gap, low, high = ten["difference_auc"]
    assert gap == pytest.approx(ten["auc"] - mean["auc"]) and low <= gap <= high
    assert ten["macs"]["mixer"] > 0
    for name in ("table.md", "summary.json", "difference.png", "difference.svg", "cost.svg"):
        assert (work / name).stat().st_size > 0
    said = capsys.readouterr().out
    assert "[6/6]" in said and "left" in said and "wild, seed 1: diverged" in said

    # Killed while it wrote the last line: that run alone is taken again.
    content = (work / "results.jsonl").read_bytes()
    (work / "results.jsonl").write_bytes(content[:-30])
    taken = []
    take = module._take
    monkeypatch.setattr(module, "_take", lambda t, c: (taken.append(t.run.key), take(t, c))[1])
    assert compare(SMALL + WILD)[1]["auc"] == ten["auc"]
    assert taken == ["wild-2"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "seeds: [1, 1]", r"seeds is \[1, 1\]; should hold different"),
        ("length: 20", "seeds: [3]", r"'last_ten': seeds is \[3\]; should be some of \[1, 2\]"),
        ("length: 20", "seeds: []", r"'last_ten': seeds is \[\]; should be some of"),
        ("length: 20", "seeds: [1, 1]", r"'last_ten': seeds is \[1, 1\]; should be some of"),
        ("baseline: mean", "baseline: din", "baseline is 'din'; should be one of the systems"),
        ("  mean:\n", "  mean:\n  lasr:\n", "system 'lasr'.*did you mean 'laser'"),
        ("recent_events", "recent", "system 'last_ten'.*'recent'"),
        ("epochs: 1", "epoch: 1", "'epoch'"),
        ("epochs: 1", "seed: 3", "list seeds under `seeds`"),
        ("epochs: 1", "open_tables: {item: }", "rows that are known before"),
        ("epochs: 1", "calibration: platt", "training.calibration is given"),
        ("epochs: 1", "feature_hosts: ['a:1']", "training.feature_hosts is given"),
        ("epochs: 1", "evaluate_steps: 5", "training.evaluate_steps is given"),
        ("  mean:\n", "  mean:\n  oracle_features: {model: {dim: 8}}\n", "model.dim is given"),
        ("  mean:\n", "  mean:\n  a/b: {model: {system: din}}\n", "a system is called 'a/b'"),
        ("  mean:\n", "  mean:\n  .a: {model: {system: din}}\n", "a system is called '.a'"),
        ("  mean:\n", "  mean:\n  sim_hard: {model: {interactions: [cross]}}\n", "sim_hard"),
        ("length: 30", "length: 0", "length is 0"),
    ],
)
def test_a_mistake_is_named_before_any_work(compare, tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(SettingsError, match=message):
        compare(SMALL.replace(old, new))
    assert not (tmp_path / "work").exists()


def test_content_of_items_in_a_vocabulary_is_refused_before_any_work(compare, dataset, tmp_path):
    other = tmp_path / "vocabulary"
    other.mkdir()
    for file in dataset.path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    spec = dataset.spec.to_dict()
    spec["tables"][dataset.spec.event_fields["item_id"].table]["ids"] = "vocabulary"
    (other / "features.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with pytest.raises(SettingsError, match="content vectors of items in a vocabulary table"):
        compare(SMALL, data=other)
    assert not (tmp_path / "work").exists()


def test_a_slow_system_may_train_with_some_of_the_seeds(compare, tmp_path):
    mean, ten = compare(SMALL.replace("length: 20", "length: 20, seeds: [2]"))
    lines = (tmp_path / "work" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["mean-1", "mean-2", "last_ten-2"]
    assert (mean["runs"], ten["runs"]) == (2, 1)
    of_two = json.loads(lines[2])["auc"] - json.loads(lines[1])["auc"]
    assert ten["difference_auc"][0] == pytest.approx(of_two)  # to the same seed of the baseline


def test_results_of_another_dataset_are_refused(compare, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    line = {"run": "mean-1", "dataset": "abc", "settings": "", "status": "ok"}
    (work / "results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(PipelineError, match=r"results of another dataset \(abc"):
        compare(SMALL)
    (work / "results.jsonl").write_text("{}\n")
    with pytest.raises(PipelineError, match="line 1 is not a result"):
        compare(SMALL)


def test_a_label_that_is_constant_is_refused(compare, dataset, tmp_path):
    table = pq.read_table(dataset.impressions_path)
    nothing = np.zeros(table.num_rows, np.int8)
    place = table.column_names.index("click")
    copied = PreparedDataset.load(dataset.path).path
    other = tmp_path / "constant"
    other.mkdir()
    for file in copied.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    changed = table.set_column(place, "click", [nothing])
    pq.write_table(changed, other / "impressions.parquet")
    with pytest.raises(PipelineError, match="label 'click' is 0 in all"):
        compare(SMALL, data=other)


def test_a_list_of_names_and_the_order_of_runs():
    settings = check(
        CompareSettings,
        {"name": "a", "baseline": "din", "systems": ["laser", "din"], "seeds": [3, 1]},
        "file",
    )
    runs = runs_of(settings)
    assert [run.key for run in runs] == ["laser-3", "din-3", "laser-1", "din-1"]
    assert runs[0].training.seed == 3 and runs[1].model.system == "din"


def test_oracle_features_count_the_matches_in_their_windows(dataset, store, tmp_path):
    log = JoinedLog.make(dataset, store, tmp_path / "joined", 40, "f")
    batch = log.batch("eval", np.arange(5), 30)
    features = oracle_features._features(log, "eval", 30)
    row = 0
    for request in range(5):
        for candidate in range(batch["candidate_count"][request]):
            item = batch["candidate_author_id"][request, candidate]
            same = batch["history_author_id"][request] == item
            acted = same & (batch["history_action"][request] >= 2)
            # Fields in order: item, category, author; each all events and then those acted upon.
            found = features[row, 20:30]
            assert found[0] == same[:20].sum() and found[1] == same[20:].sum()
            assert found[5] == acted[:20].sum() and found[6] == acted[20:].sum()
            row += 1
    scores = oracle_features.oracle_scores(log, 30, seed=1)
    assert len(scores) == len(log.of_impressions("eval", "label_click"))
    assert 0 <= scores.min() < scores.max() <= 1


def test_no_click_rate_of_training_knows_the_click_it_is_for(dataset, store, tmp_path):
    """Nor how its own fold clicked: trees learn the label from what leaving it out changes."""
    log = JoinedLog.make(dataset, store, tmp_path / "joined", 40, "f")
    clicks = np.asarray(log.of_impressions("train", "label_click"))
    counts = log.of_request("train", "candidate_count")
    first = np.repeat(np.arange(len(counts)), counts) % 5 == 0
    before = oracle_features._click_rates(log, clicks)
    after = oracle_features._click_rates(log, np.where(first, 1 - clicks, clicks))
    np.testing.assert_array_equal(before["train"][first], after["train"][first])
    assert (before["train"][~first] != after["train"][~first]).any()
    assert (before["eval"] != after["eval"]).any()


def test_gates_are_compared_with_the_planted_causes(dataset, store, tmp_path, monkeypatch):
    log = JoinedLog.make(dataset, store, tmp_path / "joined", 40, "f")
    windows = {"all": [0, 40]}
    per_head = np.array([1.0, -0.5])[None, None, :, None]  # their mean decides

    def from_causes(batch):
        return planted_causes(batch, windows)[:, :, None] * per_head

    monkeypatch.setattr(gates_of_causes, "REQUESTS", 20)
    assert gates_auc(from_causes, log, windows, 30) == 1
    assert gates_auc(lambda batch: -from_causes(batch), log, windows, 30) == 0
    assert gates_auc(lambda batch: 0 * from_causes(batch), log, windows, 30) == 0.5
    assert gates_auc(from_causes, log, {"none": [0, 0]}, 30) is None
    content = np.load(module._content(log, dataset, tmp_path))
    for run in runs_of(
        check(CompareSettings, yaml.safe_load(SMALL.replace("[1, 2]", "[1]") + GATED), "config")
    ):
        entry, _ = one_run.take_run(run, log, content, windows=windows)
        assert ("gates_auc" in entry) == (run.name in ("laser", "din")), run.name
        assert 0 <= entry.get("gates_auc", 0) <= 1


def test_a_run_that_failed_is_shown_and_taken_again(compare, tmp_path, monkeypatch, capsys):
    broken, taken = {"mean-1", "last_ten-1"}, []

    def take(run, log, content, report, windows):
        taken.append(run.key)
        if run.key in broken:
            raise RuntimeError("no memory\nand more")
        scores = np.linspace(0, 1, len(log.of_impressions("eval", "label_click")))
        scores = scores.astype(np.float32)
        return {"status": "ok", "seconds": 1.0, **one_run.metrics(log, scores)}, scores

    monkeypatch.setattr(one_run, "take_run", take)
    monkeypatch.setattr(summary, "draw_plots", lambda *given: [])
    text = SMALL.replace("[1, 2]", "[1]")
    with pytest.raises(PipelineError, match=r"2 of 2 runs failed.*nothing to compare.*no memory$"):
        compare(text)
    work = tmp_path / "work"
    assert "- mean, seed 1: failed (RuntimeError: no memory)" in (work / "table.md").read_text()
    runs = json.loads((work / "summary.json").read_text())["runs"]
    assert [run["problem"] for run in runs] == ["RuntimeError: no memory"] * 2
    broken.remove("last_ten-1")
    with pytest.raises(PipelineError, match="the baseline 'mean' has no result"):
        compare(text)
    broken.clear()
    compare(text)
    assert taken == ["mean-1", "last_ten-1"] * 2 + ["mean-1"]
    # Scores of other settings lie there when a run fails.
    broken.add("last_ten-1")
    for _ in range(2):
        (_, row) = compare(text.replace("length: 20", "length: 15"))
        assert row["problems"] == ["seed 1: failed (RuntimeError: no memory)"]
        assert "1 of 2 runs failed and 0 diverged" in capsys.readouterr().out
    assert taken[-2:] == ["last_ten-1"] * 2
