"""The generated dataset: what it plants is there, and equal seeds give equal tables."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.datasets import DatasetError, GeneratorSettings, prepare
from tfx_pipeline.datasets.demo_log import LONG_LAG_EVENTS
from tfx_pipeline.datasets.generated_pages import END_MS, SCENARIOS
from tfx_pipeline.datasets.generator import REQUEST_DAYS, generate
from tfx_pipeline.ranking_metrics import auc

SMALL = GeneratorSettings(
    users=120, items=2000, min_events=50, max_events=2000, requests=1500, max_history=300, seed=3
)


@pytest.fixture(scope="module")
def tables():
    return generate(SMALL)


def columns(table):
    return {name: table[name].to_numpy() for name in table.column_names if name != "content"}


def test_equal_settings_give_equal_tables_and_another_seed_does_not(tables):
    again = generate(SMALL)
    assert again.events.equals(tables.events) and again.impressions.equals(tables.impressions)
    assert again.items.equals(tables.items) and again.facts == tables.facts
    other = generate(GeneratorSettings(**{**SMALL.__dict__, "seed": 4}))
    assert not other.events.equals(tables.events)


def test_sizes_are_what_was_asked_for(tables):
    events, impressions = columns(tables.events), columns(tables.impressions)
    counts = np.bincount(events["user_id"])
    assert len(counts) == SMALL.users
    assert counts.min() >= SMALL.min_events
    assert SMALL.max_events / 2 < counts.max() <= SMALL.max_events + SMALL.candidates
    assert np.unique(events["scenario"]).tolist() == list(range(len(SCENARIOS)))
    assert len(impressions["click"]) == SMALL.requests * SMALL.candidates
    assert impressions["timestamp"].min() >= END_MS - REQUEST_DAYS * 86_400_000
    assert max(events["timestamp"].max(), impressions["timestamp"].max()) < END_MS


def test_popularity_is_skewed_and_content_is_of_unit_length(tables):
    counts = np.sort(np.bincount(columns(tables.events)["item_id"]))[::-1]
    assert counts[: len(counts) // 20].sum() > 0.2 * counts.sum()
    content = np.stack(tables.items["content"].to_numpy())
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), 1, rtol=1e-5)


def test_an_impression_is_an_event_only_after_its_request(tables):
    events, impressions = columns(tables.events), columns(tables.impressions)
    shown = {}
    for user, time, item in zip(
        events["user_id"], events["timestamp"], events["item_id"], strict=True
    ):
        shown.setdefault((user, item), []).append(time)
    for user, time, item in zip(
        impressions["user_id"][:500],
        impressions["timestamp"][:500],
        impressions["item_id"][:500],
        strict=True,
    ):
        assert any(time < moment <= time + 60_000 for moment in shown[user, item])
    order = np.lexsort((events["timestamp"], events["user_id"]))
    same_user = np.diff(events["user_id"][order]) == 0
    assert (np.diff(events["timestamp"][order])[same_user] > 0).all()


def test_the_planted_parts_each_tell_something(tables):
    facts = tables.facts
    truth, recent, none = (
        facts["eval_auc_of_truth"],
        facts["eval_auc_without_long_history"],
        facts["eval_auc_without_history"],
    )
    assert truth > recent + 0.03 > none + 0.06


def test_clicks_far_back_tell_what_the_last_hundred_events_do_not(tables):
    """Measured on the tables alone: among candidates whose author was not clicked within the last
    events, those clicked long ago are clicked more."""
    events, impressions = columns(tables.events), columns(tables.impressions)
    author = tables.items["author_id"].to_numpy()
    order = np.lexsort((events["timestamp"], events["user_id"]))
    events = {name: values[order] for name, values in events.items()}
    first = np.searchsorted(events["user_id"], np.arange(SMALL.users + 1))
    far, clicks = [], []
    for row in range(0, len(impressions["click"]), 7):
        user, time = impressions["user_id"][row], impressions["timestamp"][row]
        begin = first[user]
        end = begin + np.searchsorted(events["timestamp"][begin : first[user + 1]], time)
        wanted = author[impressions["item_id"][row]]
        same = (author[events["item_id"][begin:end]] == wanted) & (events["action"][begin:end] > 0)
        if not same[-LONG_LAG_EVENTS:].any():
            far.append(same[:-LONG_LAG_EVENTS].sum())
            clicks.append(impressions["click"][row])
    assert auc(clicks, far) > 0.55


def test_the_demo_dataset_is_written_with_its_facts(tmp_path):
    seen = []
    dataset = prepare(None, tmp_path / "out", lambda *step: seen.append(step), generator=SMALL)
    assert dataset.facts["eval_auc_of_truth"] > 0.7
    assert dataset.spec.max_history == 300 and list(dataset.spec.content_fields) == ["content"]
    assert pq.read_metadata(dataset.impressions_path).num_rows == dataset.counts["impressions"]
    stages = {stage for stage, _, _ in seen}
    assert stages == {"generate", "write tables"}
    for stage in stages:
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert steps[-1][0] == steps[-1][1] == len(steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": 0}, "users is 0; give at least 1"),
        ({"max_events": 10}, "max_events is 10, below min_events 50"),
        ({"items": 10}, "items is 10; give at least 1000"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(DatasetError, match=message):
        GeneratorSettings(**change)
