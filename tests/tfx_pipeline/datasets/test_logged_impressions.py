"""From what a gateway showed to a prepared dataset: labels, and the arrays that were served."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from components.seqvault_example_gen.impressions import check_rows, group_requests
from components.seqvault_example_gen.join import join_requests
from laser_features import FeatureSpec
from laser_features.testing import tiny_content
from seqvault import Schema, SeqVault
from serving.gateway.impression_log import ImpressionLog
from serving.gateway.ranker import Ranker
from serving.runtime.call import Call
from tfx_pipeline.cli import main
from tfx_pipeline.datasets import DatasetError, PreparedDataset, logged_impressions, prepare

NOW, MINUTE = 1_700_000_000_000, 60_000
TABLE = {"table": "item"}
SPEC = FeatureSpec.from_dict(
    tiny_content(
        max_length=4,
        rows=100,
        event={
            "item_id": {"type": "int64", **TABLE},
            "action": {"type": "int8", **TABLE},
            "dwell_ms": {"type": "int32"},
        },
        item={"author": {"type": "int64", **TABLE}},
        context={"scenario": {"type": "int8", **TABLE}},
        candidate={"position": {"type": "int8", **TABLE}},
        label={"click": {"type": "int8"}, "dwell": {"type": "float32"}},
    )
)
RULES = """
within_minutes: 30
labels:
  click: {where: {action: [1, 2]}}
  dwell: {value: dwell_ms}
"""


class Model:
    """Keeps what it is asked; scores candidates in their order."""

    def __init__(self):
        self.asked = []

    def predict(self, inputs, output, call):
        self.asked.append(inputs)
        count = inputs["candidate_item_id"].shape[1]
        return 5, -np.arange(count, dtype=np.float32)[None]


def events(*rows):
    columns = zip(*rows, strict=True)
    names = ("user_id", "timestamp", "item_id", "action", "dwell_ms")
    return pa.table(dict(zip(names, columns, strict=True))).cast(SPEC.event_schema())


@pytest.fixture
def source(tmp_path):
    """A folder of everything but the log and the events."""
    folder = tmp_path / "raw"
    (folder / "impressions").mkdir(parents=True)
    SPEC.save(folder / "features.yaml")
    (folder / "labels.yaml").write_text(RULES)
    items = pa.table({"item_id": np.arange(20), "author": np.arange(20) % 3})
    pq.write_table(items.cast(SPEC.item_schema()), folder / "items.parquet")
    return folder


def test_a_gateways_log_becomes_what_was_served(source, tmp_path):
    """Ranked, clicked, prepared, joined: training reads the arrays that the model was sent."""
    model, log = Model(), ImpressionLog(source / "impressions")
    store = SeqVault.open(str(tmp_path / "vault"), schema=Schema.from_arrow(SPEC.event_schema()))
    store.put_items(pq.read_table(source / "items.parquet"))
    ranker = Ranker(SPEC, store, model)
    rng = np.random.default_rng(3)
    for number in range(12):
        time = NOW + 5 * MINUTE * number
        candidates = rng.permutation(20)[:4].tolist()
        request = {
            "user_id": int(number % 3),
            "time_ms": time,
            "candidates": [{"item_id": item, "position": item % 7} for item in candidates],
            "context": {"scenario": number % 2},
            "top_k": 3,
        }
        log.add(ranker.rank_and_show(request, Call(None))[1])
        store.append(events((number % 3, time + 1000, candidates[1], 1, 10 * number)))
    log.close()

    folders = {"source": source, "data": tmp_path / "out", "store": tmp_path / "vault"}
    assert main(["prepare", *(f"--{name}={path}" for name, path in folders.items())]) == 0
    dataset = PreparedDataset.load(tmp_path / "out")
    table = pq.read_table(dataset.impressions_path)
    shown = 6  # of twelve; the windows of the others were open when the last event came
    assert dataset.facts == {
        "impressions_not_due": 3 * (12 - shown),
        "impressions_too_old": 0,
        "lines_cut_off": 0,
    }
    assert table["click"].to_pylist() == [0, 1, 0] * shown
    assert table["dwell"].to_pylist() == [each for n in range(shown) for each in (0, 10 * n, 0)]

    requests = group_requests(check_rows(table, 0, SPEC).good, SPEC)
    examples = [each for part, _ in join_requests(requests, store, SPEC) for each in part]
    store.close()
    assert len(examples) == shown
    for serialised, served in zip(examples, model.asked, strict=False):
        features = tf.train.Example.FromString(serialised).features.feature
        length = int(served["history_length"][0])
        kept = {"history": length, "candidate": 3}  # of four, three were shown
        for each in SPEC.model_inputs():
            told = served[each.name][0]
            if each.kind in kept:
                told = told[: kept[each.kind]]
            assert features[each.name].int64_list.value == np.atleast_1d(told).tolist(), each.name


def line(user, minute, items, number, **more):
    content = {
        "request_id": number,
        "user_id": user,
        "time_ms": NOW + minute * MINUTE,
        "fields": {},
        "item_id": items,
        "candidate": {},
    }
    return json.dumps({**content, **more}) + "\n"


def write(source, *rows, made=()):
    (source / "impressions" / "impressions-1.jsonl").write_text("".join(rows))
    late = (99, NOW + 600 * MINUTE, 1, 0, 0)
    pq.write_table(events(*made, late), source / "events.parquet")


def test_an_event_belongs_to_the_newest_impression_within_the_window(source, tmp_path):
    write(
        source,
        line(1, 0, [4, 5], 11),
        line(1, 10, [4, 6], 12),
        line(2, 0, [4], 13, fields={"scenario": 3}, candidate={"position": [None]}),
        made=[
            (1, NOW + 10 * MINUTE, 4, 1, 70),  # the second impression's, in its own millisecond
            (1, NOW + 12 * MINUTE, 4, 2, 90),  # once more: the first one counts
            (1, NOW + 5 * MINUTE, 5, 0, 40),  # no click, but dwell
            (1, NOW + 41 * MINUTE, 6, 1, 50),  # too late
            (1, NOW + 9 * MINUTE, 6, 1, 50),  # before it was shown
            (3, NOW + 1 * MINUTE, 4, 1, 50),  # of somebody else
        ],
    )
    table = pq.read_table(prepare(source, tmp_path / "out").impressions_path).to_pydict()
    rows = sorted(
        zip(*(table[n] for n in ("request_id", "item_id", "click", "dwell")), strict=True)
    )
    assert rows == [(11, 4, 0, 0), (11, 5, 0, 40), (12, 4, 1, 70), (12, 6, 0, 0), (13, 4, 0, 0)]
    assert set(table["scenario"]) == {-1, 3} and set(table["position"]) == {-1}


def test_a_line_that_was_cut_off_is_left_out_and_any_other_is_named(source, tmp_path):
    good = line(1, 0, [4], 11)
    write(source, good, line(1, 1, [4], 12), good[:25])
    assert prepare(source, tmp_path / "out").facts["lines_cut_off"] == 1
    for bad, told in (
        ("{\n", "JSONDecodeError"),
        (line(1, 1, [4], 12, fields={"weather": 1}), r"the spec has no \['weather'\]"),
        (line(1, 1, [4], 12, candidate={"position": [1, 2]}), r"\['position'\] have not one"),
        (line(1, 1, [4], 12, user_id=None), "user_id is None, not an integer"),
        (line(1, 1, [4.5], 12), "item_id is 4.5, not an integer"),
        (line(1, 1, ["4"], 12), "item_id is '4', not an integer"),
        (line(1, 1, [True], 12), "item_id is True, not an integer"),
        (line(1, 1, [4], 12).replace("[4]", "[1e999]"), "item_id is inf, not an integer"),
        (line(1, 1, [4], 12, fields={"scenario": 1.5}), "scenario is 1.5, not an integer"),
        (line(1, 1, [4], 12, fields=[]), "are objects"),
        (line(1, 1, [4], 12, candidate=[]), "are objects"),
    ):
        write(source, good, bad)
        with pytest.raises(DatasetError, match=f"line 2, is no impression of 'tiny' .*{told}"):
            prepare(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_event_after_a_newer_impression_that_is_not_due_is_not_the_olders(source, tmp_path):
    write(source, line(2, -5, [5], 10), line(1, 0, [4], 11), line(1, 580, [4], 12))
    (source / "labels.yaml").write_text(RULES.replace("30", "590"))
    rows = [(1, NOW + 585 * MINUTE, 4, 1, 7), (9, NOW + 600 * MINUTE, 1, 0, 0)]
    pq.write_table(events(*rows), source / "events.parquet")
    dataset = prepare(source, tmp_path / "out")
    assert dataset.facts["impressions_not_due"] == 1
    assert pq.read_table(dataset.impressions_path)["click"].to_pylist() == [0, 0]


@pytest.mark.parametrize("value", [None, -1])
def test_an_event_without_the_value_makes_no_label_of_it(source, tmp_path, value):
    made = [(1, NOW + MINUTE, 4, 1, value), (1, NOW + 2 * MINUTE, 4, 0, 7)]
    write(source, line(2, -5, [5], 10), line(1, 0, [4], 11), made=made)
    table = pq.read_table(prepare(source, tmp_path / "out").impressions_path)
    assert [sorted(table[name].to_pylist()) for name in ("click", "dwell")] == [[0, 1], [0, 7]]


def test_a_value_that_the_label_cannot_hold_is_refused(source, tmp_path):
    content = SPEC.to_dict()
    content["label"]["dwell"]["type"] = "int8"
    FeatureSpec.from_dict(content).save(source / "features.yaml")
    write(source, line(1, 0, [4], 11), made=[(1, NOW + MINUTE, 4, 1, 300)])
    with pytest.raises(DatasetError, match=r"label 'dwell' is int8, and 'dwell_ms' .* is 300"):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["user_id", "item_id", "timestamp"])
def test_an_event_without_id_or_time_is_refused(source, tmp_path, name):
    write(source, line(1, 0, [4], 11))
    table = events((1, NOW + MINUTE, 4, 1, 0), (9, NOW + 600 * MINUTE, 1, 0, 0))
    place = table.column_names.index(name)
    nulls = pa.array([None, table[name][1].as_py()], pa.int64())
    pq.write_table(table.set_column(place, name, nulls), source / "events.parquet")
    with pytest.raises(DatasetError, match=f"events.{name} is null in 1 rows"):
        prepare(source, tmp_path / "out")


def vault(tmp_path, *rows):
    store = SeqVault.open(str(tmp_path / "vault"), schema=Schema.from_arrow(SPEC.event_schema()))
    store.append(events(*rows))
    return store


def test_impressions_older_than_the_events_taken_of_their_user_are_left_out(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(logged_impressions, "_EVENTS_OF_USER", 4)
    clicks = [(1, NOW + minute * MINUTE, 4, 1, 0) for minute in range(1, 8)]
    vault(tmp_path, *clicks, (2, NOW + 600 * MINUTE, 1, 0, 0)).close()
    write(source, line(1, 0, [4], 11), line(1, 5, [4], 12), line(2, 0, [4], 13))
    dataset = prepare(source, tmp_path / "out", store=tmp_path / "vault")
    assert dataset.facts["impressions_too_old"] == 1  # without its click it would be none
    table = pq.read_table(dataset.impressions_path).to_pydict()
    rows = sorted(zip(table["request_id"], table["click"], strict=True))
    assert rows == [(12, 1), (13, 0)]


def test_events_of_one_millisecond_keep_their_order(source, tmp_path):
    clicks = [(1, NOW + MINUTE, item, 1, item) for item in (4, 5, 4, 6)]
    clicks = [(*each[:4], place) for place, each in enumerate(clicks)]
    vault(tmp_path, *clicks, (2, NOW + 600 * MINUTE, 1, 0, 0)).close()
    write(source, line(1, 0, [4], 11), line(2, -5, [4], 12))
    dataset = prepare(source, tmp_path / "out", store=tmp_path / "vault")
    assert pq.read_table(dataset.events_path)["dwell_ms"].to_pylist() == [0, 1, 2, 3, 0]


def test_events_that_come_while_the_store_is_read_make_no_false_label(
    source, tmp_path, monkeypatch
):
    """The click comes after its user was read, and one of a user read later ends its time."""
    monkeypatch.setattr(logged_impressions, "_USERS_A_READ", 1)
    store = vault(tmp_path, (1, NOW - MINUTE, 1, 0, 0), (2, NOW + 33 * MINUTE, 1, 0, 0))

    class Meanwhile:
        close = store.close

        def read(self, users, before, last_n, fields=None):
            read = store.read(users, before, last_n, fields=fields)
            if last_n > 1 and 1 in users:
                late = (1, NOW + 10 * MINUTE, 4, 1, 0), (2, NOW + 60 * MINUTE, 1, 0, 0)
                store.append(events(*late))
            return read

    monkeypatch.setattr(logged_impressions, "open_store", lambda where: Meanwhile())
    write(source, line(1, 5, [4], 11), line(2, 0, [4], 12), line(2, 1, [4], 13))
    dataset = prepare(source, tmp_path / "out", store=tmp_path / "vault")
    assert set(pq.read_table(dataset.impressions_path)["request_id"].to_pylist()) == {12, 13}


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (None, "labels.yaml is missing"),
        (RULES.replace("within_minutes: 30", ""), "within_minutes"),
        (RULES.replace("within_minutes: 30", "within_minutes: 0"), "within_minutes is 0"),
        (RULES.replace("  dwell: {value: dwell_ms}\n", ""), "give each a rule"),
        (RULES.replace("dwell_ms", "dwell_s"), r"names the event fields \['dwell_s'\]"),
        (RULES.replace("30", "700"), "all 1 impressions .* wait, or lower within_minutes"),
    ],
)
def test_rules_that_do_not_fit_are_refused_in_one_line(source, tmp_path, rules, told):
    write(source, line(1, 0, [4], 11))
    (source / "labels.yaml").unlink()
    if rules is not None:
        (source / "labels.yaml").write_text(rules)
    with pytest.raises(DatasetError, match=told):
        prepare(source, tmp_path / "out")


def test_a_store_is_for_logs_alone_and_must_hold_their_users(source, tmp_path):
    write(source, line(1, 0, [4], 11))
    other = tmp_path / "own"
    shutil.copytree(source, other)
    shutil.rmtree(other / "impressions")
    for folder in (other, None):
        with pytest.raises(DatasetError, match="the source has no such log"):
            prepare(folder, tmp_path / "out", store=tmp_path / "vault")
    with pytest.raises(DatasetError, match="vault cannot be read"):
        prepare(source, tmp_path / "out", store=tmp_path / "vault")
    schema = Schema.from_arrow(SPEC.event_schema())
    SeqVault.open(str(tmp_path / "vault"), schema=schema).close()
    with pytest.raises(DatasetError, match="has no event of the 1 users of the log"):
        prepare(source, tmp_path / "out", store=tmp_path / "vault")
    (source / "impressions.parquet").write_text("")
    with pytest.raises(DatasetError, match="keep one of the two"):
        prepare(source, tmp_path / "out")
