"""Item fields that hold several values: from lists of any length to rows in an Example."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from laser_features import FeatureSpec, FeatureSpecError, RequestBatch, build_model_inputs
from laser_features.testing import tiny_content
from tfx_pipeline.datasets import DatasetError, prepare

SPEC = tiny_content(
    tables={"tag": {"rows": 20, "width": 2, "ids": "direct"}},
    item={"tags": {"type": "int16", "table": "tag", "values": 2, "pool": "max"}},
)


def tags(**change):
    return {"type": "int8", "table": "tag", "values": 2, "pool": "mean", **change}


MONDAY = 1_750_000_000_000
LISTS = [[4], None, [7, 8, 9], [], [None, 3]]


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "features.yaml").write_text(yaml.safe_dump(SPEC))
    times = {"user_id": [1, 1], "timestamp": [MONDAY, MONDAY + 1], "item_id": [0, 2]}
    pq.write_table(pa.table(times), folder / "events.parquet")
    items = pa.table({"item_id": range(5), "tags": pa.array(LISTS, pa.list_(pa.int64()))})
    pq.write_table(items, folder / "items.parquet")
    later = [MONDAY + 9_000, MONDAY + 60_000]
    impressions = {"user_id": [1, 1], "timestamp": later, "item_id": [3, 4], "click": [0, 1]}
    pq.write_table(pa.table(impressions), folder / "impressions.parquet")
    return folder


class Rows:
    found = np.array([True] * 5 + [False])

    def __getitem__(self, name):
        return np.array([[4, -1], [-1, -1], [7, 8], [-1, -1], [-1, 3], [0, 0]], np.int16)


class Items:
    def read_items(self, ids, fields=None):
        assert list(fields) == ["tags"]
        rows = Rows()
        place = np.asarray(ids)
        return type(
            "Part", (), {"found": rows.found[place], "__getitem__": lambda s, n: rows[n][place]}
        )()


class History(dict):
    lengths = np.array([2])


def test_lists_of_any_length_become_ones_of_the_same(raw, tmp_path):
    dataset = prepare(raw, tmp_path / "out")
    stored = pq.read_table(dataset.items_path)["tags"].to_pylist()
    assert stored == [[4, -1], [-1, -1], [7, 8], [-1, -1], [-1, 3]]


def test_a_plain_number_where_a_list_belongs_is_refused(raw, tmp_path):
    pq.write_table(pa.table({"item_id": [0, 1], "tags": [1, 2]}), raw / "items.parquet")
    with pytest.raises(DatasetError, match=r"items.tags is int64; give a list of int16"):
        prepare(raw, tmp_path / "out")


def test_model_inputs_have_an_axis_of_values():
    spec = FeatureSpec.from_dict(SPEC)
    requests = RequestBatch(
        np.array([1]), np.array([MONDAY + 9]), np.array([[3, 4, 5]]), np.array([3], np.int32)
    )
    history = History(timestamp=np.array([[MONDAY + 1, MONDAY]]), item_id=np.array([[2, 0]]))
    inputs = build_model_inputs(spec, requests, history, Items())
    # Row = id + 1; missing values, unknown items and padding have row 0.
    assert inputs["history_tags"].tolist() == [[[8, 9], [5, 0], [0, 0]]]
    assert inputs["candidate_tags"].tolist() == [[[0, 0], [0, 4], [0, 0]]]
    assert inputs["history_tags"].dtype == np.int32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event": {**SPEC["event"], "more": tags()}}, "only item fields hold several values"),
        ({"item": {"tags": tags(values=None)}}, "'values' are pooled"),
        ({"item": {"tags": tags(pool="avg")}}, "use one of"),
        ({"item": {"tags": tags(type="float32")}}, "integer ids"),
        ({"interactions": {"similarity": ["tags"]}}, r"is not a content vector.*has none"),
        ({"interactions": {"category": "tags"}}, "'tags', which is not an item field with a table"),
        ({"interactions": {"cross": ["item_id"]}}, "not an event field with a table"),
        ({"interactions": {"crosses": []}}, "unknown key 'crosses'"),
    ],
)  # fmt: skip
def test_what_a_spec_cannot_mean_is_refused(change, message):
    with pytest.raises(FeatureSpecError, match=message):
        FeatureSpec.from_dict({**SPEC, **change})


def test_the_spec_survives_its_file(tmp_path):
    spec = FeatureSpec.from_dict(
        {
            **SPEC,
            "item": {**SPEC["item"], "image": {"type": "float32", "shape": [4]}},
            "interactions": {"similarity": ["image"]},
        }
    )
    spec.save(tmp_path / "features.yaml")
    assert FeatureSpec.load(tmp_path / "features.yaml") == spec
