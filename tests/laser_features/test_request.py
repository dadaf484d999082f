"""Requests and histories to model inputs, against a plain Python reference."""

import math
from dataclasses import replace

import numpy as np
import pytest

from laser_features import (
    FeatureSpec,
    HistoryLeakError,
    RequestBatch,
    RequestError,
    TimeUnitError,
    build_model_inputs,
    history_fields,
    parse_rank_request,
)
from laser_features.ids import hash_string

NOW = 1_650_000_000_000
SPEC = FeatureSpec.from_dict(
    {
        "name": "example",
        "history": {"max_length": 4},
        "tables": {
            "item": {"rows": 40, "width": 8, "ids": "direct"},
            "author": {"rows": 50, "width": 4, "ids": "hash"},
            "tag": {"rows": 10, "width": 2, "ids": "vocabulary"},
            "duration": {"rows": 10, "width": 2, "ids": "direct"},
            "scenario": {"rows": 5, "width": 2, "ids": "direct"},
            "hour": {"rows": 25, "width": 2, "ids": "direct"},
            "user": {"rows": 30, "width": 4, "ids": "hash"},
        },
        "event": {
            "item_id": {"type": "int64", "table": "item"},
            "scenario": {"type": "int8", "table": "scenario"},
            "note": {"type": "float32"},
        },
        "item": {
            "author_id": {"type": "int64", "table": "author"},
            "tag": {"type": "int64", "table": "tag"},
            "duration_ms": {"type": "int32", "table": "duration", "quantiles": 8},
            "genre": {"type": "string", "table": "author"},
            "content": {"type": "float32", "shape": [2]},
            "made_ms": {"type": "int64"},
        },
        "user": {
            "user_id": {"type": "int64", "table": "user"},
            "age": {"type": "float32", "table": "duration", "boundaries": [18, 30, 50]},
        },
        "context": {
            "scenario": {"type": "int8", "table": "scenario"},
            "hour": {"derive": "hour_of_day", "utc_offset_hours": 8, "table": "hour"},
        },
        "candidate": {
            "position": {"type": "int8", "table": "scenario"},
            "freshness": {
                "derive": "age_minutes",
                "of": "made_ms",
                "table": "duration",
                "boundaries": [60, 1440],
            },
        },
        "label": {"click": {"type": "int8"}},
    }
)


class ItemTable:
    """Side information held in a dict of columns; counts what it is asked."""

    def __init__(self, columns):
        self.columns = columns
        self.asked = []

    def read_items(self, ids, fields=None):
        self.asked.append((list(ids), list(fields)))
        known = self.columns["item_id"].tolist()
        found = np.isin(ids, known)
        rows = [known.index(i) if i in known else 0 for i in ids]
        return ItemAnswer(found, {name: self.columns[name][rows] for name in fields})


class ItemAnswer(dict):
    def __init__(self, found, columns):
        super().__init__(columns)
        self.found = found


class Histories(dict):
    def __init__(self, lengths, **columns):
        super().__init__(columns)
        self.lengths = lengths


def make_items():
    ids = np.arange(30)
    return ItemTable(
        {
            "item_id": ids,
            "author_id": ids * 7,
            "tag": np.where(ids % 5 == 0, -1, ids % 5),
            "duration_ms": np.where(ids % 6 == 0, -1, ids * 1000).astype(np.int32),
            "made_ms": np.where(ids % 7 == 0, 0, NOW - (ids - 3) * 1_700_000),
            "genre": np.array([("", "Comedy", "Drama")[i % 3] for i in ids], object),
        }
    )


def make_case(seed=0, batch=5, stored=4, width=3):
    """Random requests; items 30 to 34 are unknown, padding holds garbage."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, stored + 1, batch)
    lengths[0] = 0
    history = Histories(
        lengths,
        timestamp=NOW - 1 - np.sort(rng.integers(0, 10**9, (batch, stored)), axis=1),
        item_id=rng.integers(0, 35, (batch, stored)),
        scenario=rng.integers(-1, 6, (batch, stored)).astype(np.int8),
    )
    padding = np.arange(stored) >= lengths[:, None]
    history["timestamp"][padding] = 2**62
    history["item_id"][padding] = -(2**62)
    requests = RequestBatch(
        user_id=rng.integers(0, 100, batch),
        time_ms=np.full(batch, NOW) + np.arange(batch),
        candidate_item_id=rng.integers(0, 35, (batch, width)),
        candidate_count=rng.integers(1, width + 1, batch).astype(np.int32),
        fields={
            "scenario": rng.integers(-1, 5, batch).astype(np.int8),
            "age": np.array([17.9, 18, 49, 50, np.nan] * batch, np.float32)[:batch],
        },
        candidate_fields={"position": rng.integers(0, 4, (batch, width)).astype(np.int8)},
    )
    return requests, history, make_items()


def reference(spec, requests, history, items):
    """The same answer, one value at a time."""
    columns = items.columns
    known = {int(i): n for n, i in enumerate(columns["item_id"])}
    inputs = {}

    def hashed(value, rows):
        if value == -1:
            return 0
        mask = 2**64 - 1
        z = (value + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return 1 + (z ^ (z >> 31)) % (rows - 1)

    def convert(field, value):
        table = spec.tables[field.table]
        if field.quantiles is not None:
            return math.nan if value == -1 else float(value)
        if field.boundaries is not None:
            return 0 if math.isnan(value) else 1 + sum(b <= value for b in field.boundaries)
        if field.type == "string":
            value = hash_string(value)
        value = int(value)
        if table.ids == "vocabulary":
            return value
        if table.ids == "hash":
            return hashed(value, table.rows)
        return value + 1 if 0 <= value <= table.rows - 2 else 0

    def item_value(model_input, item):
        if model_input.field.name == "item_id":
            return convert(model_input.field, item)
        if item not in known:
            return model_input.padding
        return convert(model_input.field, columns[model_input.field.name][known[item]])

    batch, width = requests.candidate_item_id.shape
    for model_input in spec.model_inputs():
        field = model_input.field
        rows = []
        for b in range(batch):
            length = min(int(history.lengths[b]), spec.max_history)
            if model_input.name == "history_length":
                rows.append(length)
            elif model_input.kind == "history":
                row = [model_input.padding] * spec.max_history
                for i in range(length):
                    if field is None:
                        row[i] = int(requests.time_ms[b] - history["timestamp"][b, i]) // 1000
                    elif field.section == "item" or field.name == "item_id":
                        row[i] = item_value(model_input, int(history["item_id"][b, i]))
                    else:
                        row[i] = convert(field, history[field.name][b, i])
                rows.append(row)
            elif model_input.kind == "candidate":
                row = [model_input.padding] * width
                for i in range(int(requests.candidate_count[b])):
                    item = int(requests.candidate_item_id[b, i])
                    if field.derive is not None:
                        made = columns["made_ms"][known[item]] if item in known else 0
                        minutes = max((int(requests.time_ms[b]) - int(made)) // 60_000, 0)
                        row[i] = convert(field, minutes) if made > 0 else 0
                    elif field.section == "candidate":
                        row[i] = convert(field, requests.candidate_fields[field.name][b, i])
                    else:
                        row[i] = item_value(model_input, int(requests.candidate_item_id[b, i]))
                rows.append(row)
            elif field.derive is not None:
                hours = (int(requests.time_ms[b]) // 3_600_000 + 8) % 24
                rows.append(hours + 1)
            elif field.name == "user_id":
                rows.append(convert(field, requests.user_id[b]))
            else:
                rows.append(convert(field, requests.fields[field.name][b]))
        inputs[model_input.name] = np.array(rows, model_input.dtype)
    return inputs


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype, name
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.parametrize("stored", [1, 3, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_inputs_equal_the_plain_reference(seed, stored):
    case = make_case(seed, batch=7, stored=stored)
    assert_same(build_model_inputs(SPEC, *case), reference(SPEC, *case))


def test_order_names_and_dtypes_are_the_specs():
    inputs = build_model_inputs(SPEC, *make_case())
    assert list(inputs) == [i.name for i in SPEC.model_inputs()]
    for model_input in SPEC.model_inputs():
        shape = {"history": (5, 4), "candidate": (5, 3), "request": (5,)}[model_input.kind]
        assert inputs[model_input.name].shape == shape
        assert inputs[model_input.name].dtype == model_input.dtype


def test_items_are_read_once_and_each_only_once():
    requests, history, items = make_case(1, batch=6)
    build_model_inputs(SPEC, requests, history, items)
    [(ids, fields)] = items.asked
    assert len(ids) == len(set(ids)) and all(0 <= i < 35 for i in ids)
    assert fields == ["author_id", "tag", "duration_ms", "genre", "made_ms"]


def test_a_batch_equals_its_requests_one_by_one():
    requests, history, items = make_case(2, batch=6)
    together = build_model_inputs(SPEC, requests, history, items)
    for b in range(6):
        one = slice(b, b + 1)
        alone = RequestBatch(
            requests.user_id[one],
            requests.time_ms[one],
            requests.candidate_item_id[one],
            requests.candidate_count[one],
            {name: values[one] for name, values in requests.fields.items()},
            {name: values[one] for name, values in requests.candidate_fields.items()},
        )
        own = Histories(history.lengths[one], **{k: v[one] for k, v in history.items()})
        inputs = build_model_inputs(SPEC, alone, own, items)
        assert_same(inputs, {name: values[one] for name, values in together.items()})


@pytest.mark.parametrize("seed", range(5))
def test_padding_changes_no_byte(seed):
    requests, history, items = make_case(seed, batch=6)
    clean = build_model_inputs(SPEC, requests, history, items)
    rng = np.random.default_rng(seed)
    padding = np.arange(4) >= history.lengths[:, None]
    for name, values in history.items():
        limits = np.iinfo(values.dtype)
        noise = rng.integers(limits.min, limits.max, values.shape, values.dtype, endpoint=True)
        history[name] = np.where(padding, noise, values)
    padding = np.arange(3) >= requests.candidate_count[:, None]
    noise = rng.integers(0, 30, padding.shape)
    noisy = replace(
        requests,
        candidate_item_id=np.where(padding, noise, requests.candidate_item_id),
        candidate_fields={"position": np.where(padding, 3, requests.candidate_fields["position"])},
    )
    assert padding.any()
    for name, values in build_model_inputs(SPEC, noisy, history, items).items():
        assert values.tobytes() == clean[name].tobytes(), name


def test_golden_numbers():
    requests = RequestBatch(
        np.array([1]),
        np.array([NOW]),  # 14 April 2022 05:20 UTC is 13:20 in Beijing
        np.array([[2, 33]]),
        np.array([2]),
        fields={"age": np.array([29.0], np.float32)},
    )
    history = Histories(
        np.array([2]),
        timestamp=np.array([[NOW - 1, NOW - 61_001]]),
        item_id=np.array([[5, 38]]),
        scenario=np.array([[0, 3]], np.int8),
    )
    inputs = build_model_inputs(SPEC, requests, history, make_items())
    assert inputs["history_item_id"].tolist() == [[6, 39, 0, 0]]
    assert inputs["history_scenario"].tolist() == [[1, 4, 0, 0]]
    assert inputs["history_age_seconds"].tolist() == [[0, 61, 0, 0]]
    assert inputs["history_tag"].tolist() == [[-1, -1, -1, -1]]
    assert inputs["history_length"].tolist() == [2]
    assert inputs["candidate_item_id"].tolist() == [[3, 34]]
    assert inputs["candidate_tag"].tolist() == [[2, -1]]
    np.testing.assert_array_equal(inputs["candidate_duration_ms"], [[2000.0, np.nan]])
    assert inputs["candidate_position"].tolist() == [[0, 0]]
    # Item 2 is made 1700 s after the request's time: a clock apart counts as brand new.
    assert inputs["candidate_freshness"].tolist() == [[1, 0]]
    assert inputs["context_hour"].tolist() == [14]
    assert inputs["context_scenario"].tolist() == [0]
    assert inputs["user_age"].tolist() == [2]


@pytest.mark.parametrize("late", [0, 1])
def test_an_event_at_or_after_the_request_is_a_leak(late):
    requests, history, items = make_case(3)
    row = int(np.argmax(history.lengths))
    history["timestamp"][row, 0] = requests.time_ms[row] + late
    with pytest.raises(HistoryLeakError, match=f"user {requests.user_id[row]} .*before=time_ms"):
        build_model_inputs(SPEC, requests, history, items)


def test_a_spec_without_side_information_reads_no_items():
    content = SPEC.to_dict()
    del content["candidate"]["freshness"]
    del content["item"], content["tables"]["tag"], content["tables"]["author"]
    spec = FeatureSpec.from_dict(content)
    requests, history, items = make_case()
    inputs = build_model_inputs(spec, requests, history, items)
    assert items.asked == [] and "history_item_id" in inputs


def test_history_fields_are_what_is_read():
    requests, history, items = make_case()
    assert history_fields(SPEC) == ["timestamp", "item_id", "scenario"]
    asked = set()

    class Recording(Histories):
        def __getitem__(self, name):
            asked.add(name)
            return super().__getitem__(name)

    build_model_inputs(SPEC, requests, Recording(history.lengths, **history), items)
    assert asked == set(history_fields(SPEC))


def test_unknown_fields_are_named():
    requests, history, items = make_case()
    for change, message in [
        ({"fields": {"moon": requests.user_id}}, "unknown context or user field 'moon'"),
        ({"fields": {"hour": requests.user_id}}, "unknown context or user field 'hour'"),
        (
            {"candidate_fields": {"price": requests.candidate_item_id}},
            "unknown candidate field 'price'",
        ),
    ]:
        with pytest.raises(RequestError, match=message):
            build_model_inputs(SPEC, replace(requests, **change), history, items)


def test_wrong_shapes_and_units_are_refused():
    requests, history, items = make_case()
    for change, message in [
        ({"user_id": requests.user_id[:2]}, r"user_id has shape \(2,\); expected \(5,\)"),
        ({"candidate_item_id": requests.user_id}, "candidate_item_id has shape"),
        ({"candidate_count": np.full(5, 4)}, "candidate_count holds 4"),
        ({"fields": {"age": np.zeros(3)}}, "fields"),
        ({"candidate_fields": {"position": np.zeros(5)}}, "candidate_fields"),
    ]:
        with pytest.raises(RequestError, match=message):
            replace(requests, **change)
    with pytest.raises(TimeUnitError, match="seconds"):
        replace(requests, time_ms=requests.time_ms // 1000)
    fewer = Histories(history.lengths[:2], **{k: v[:2] for k, v in history.items()})
    with pytest.raises(RequestError, match="5 requests came with 2 histories"):
        build_model_inputs(SPEC, requests, fewer, items)


def test_parsed_requests_give_the_inputs_of_hand_made_arrays():
    parsed = parse_rank_request(
        SPEC,
        {
            "user_id": 9,
            "time_ms": NOW,
            "candidates": [4, {"item_id": 5, "position": 2}, {"item_id": 6, "position": None}],
            "context": {"scenario": 1},
            "user": {"age": 20},
        },
    )
    by_hand = RequestBatch(
        np.array([9]),
        np.array([NOW]),
        np.array([[4, 5, 6]]),
        np.array([3]),
        {"scenario": np.array([1], np.int8), "age": np.array([20], np.float32)},
        {"position": np.array([[-1, 2, -1]], np.int8)},
    )
    history = Histories(
        np.array([0]),
        timestamp=np.zeros((1, 4)),
        item_id=np.zeros((1, 4)),
        scenario=np.zeros((1, 4)),
    )
    assert_same(
        build_model_inputs(SPEC, parsed, history, make_items()),
        build_model_inputs(SPEC, by_hand, history, make_items()),
    )


GOOD = {"user_id": 9, "time_ms": NOW, "candidates": [4]}


@pytest.mark.parametrize(
    ("request_content", "message"),
    [
        ([], "send a JSON object"),
        ({"candidates": [4]}, "user_id is missing; send an integer"),
        ({**GOOD, "user_id": "9"}, "user_id is '9'; send an integer"),
        ({**GOOD, "user_id": True}, "user_id is True"),
        ({**GOOD, "user_id": 2**63}, "must lie within"),
        ({**GOOD, "time_ms": NOW // 1000}, "looks like seconds"),
        ({**GOOD, "time_ms": 1.5}, "time_ms is 1.5"),
        ({"user_id": 9}, "candidates is missing"),
        ({**GOOD, "candidates": []}, "candidates is empty"),
        ({**GOOD, "candidates": 4}, "candidates is not a list"),
        ({**GOOD, "candidates": [4, "x"]}, r"candidates\[1\] is 'x'"),
        ({**GOOD, "candidates": [{"position": 1}]}, r"candidates\[0\]\.item_id is missing"),
        ({**GOOD, "candidates": [{"item_id": 1, "price": 1}]}, "unknown field 'price'"),
        ({**GOOD, "candidates": [{"item_id": 1, "position": 300}]}, "position is 300"),
        ({**GOOD, "candidates": [{"item_id": 1, "freshness": 3}]}, "unknown field 'freshness'"),
        ({**GOOD, "context": {"moon": 1}}, "context has the unknown field 'moon'"),
        ({**GOOD, "context": {"hour": 1}}, "context has the unknown field 'hour'"),
        ({**GOOD, "context": {"age": 1}}, "context has the unknown field 'age'"),
        ({**GOOD, "context": [1]}, "context is .*; send an object"),
        ({**GOOD, "user": {"age": "old"}}, "user.age is 'old'; send a number"),
        ({**GOOD, "user": {"user_id": 3}}, "user has the unknown field 'user_id'"),
        ({**GOOD, "scenario": 3}, "unknown key 'scenario'"),
    ],
)
def test_bad_rank_requests_say_what_to_send(request_content, message):
    with pytest.raises(RequestError, match=message):
        parse_rank_request(SPEC, request_content)


def test_the_time_of_a_request_defaults_to_now():
    batch = parse_rank_request(SPEC, {"user_id": 9, "candidates": [4]})
    assert batch.time_ms[0] > NOW
