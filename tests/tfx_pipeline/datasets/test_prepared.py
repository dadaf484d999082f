"""The prepared dataset as a whole: all or nothing, and one clear line for bad input."""

import errno
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_features import FeatureSpec
from laser_features.ids import direct_rows, hash_rows
from laser_features.testing import tiny_spec
from tfx_pipeline.datasets import DatasetError, PreparedDataset, prepare
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.first_rows import first_rows
from tfx_pipeline.datasets.id_tables import id_table

NOW = 1_650_000_000_000
SPEC = tiny_spec()


def make_tables(**changes):
    tables = DatasetTables(
        spec=SPEC,
        events=pa.table(
            {"user_id": [2, 1, 1], "timestamp": [NOW, NOW + 5, NOW], "item_id": [1, 2, 3]}
        ),
        items=pa.table({"item_id": [1, 2, 3]}),
        impressions=pa.table(
            {
                "user_id": [1, 2],
                "timestamp": [NOW + 9, NOW + 7],
                "item_id": [1, 2],
                "click": [1, 0],
            }
        ),
        splits={"train": (NOW, NOW + 8), "eval": (NOW + 8, NOW + 10)},
        source="a test",
    )
    return replace(tables, **changes)


def changed(table, column, values):
    return table.set_column(table.column_names.index(column), column, pa.array(values))


def test_what_was_written_is_loaded_sorted_and_typed(tmp_path):
    written = PreparedDataset.write(make_tables(), tmp_path / "out")
    loaded = PreparedDataset.load(tmp_path / "out")
    assert loaded == written and loaded.spec == SPEC
    assert loaded.splits == {"train": (NOW, NOW + 8), "eval": (NOW + 8, NOW + 10)}
    assert loaded.counts == {"events": 3, "items": 3, "impressions": 2, "users": 2}
    events = pq.read_table(loaded.events_path)
    assert events.schema == SPEC.event_schema()
    assert events["user_id"].to_pylist() == [1, 1, 2]
    assert events["timestamp"].to_pylist() == [NOW, NOW + 5, NOW]
    assert pq.read_table(loaded.impressions_path)["user_id"].to_pylist() == [2, 1]
    assert pq.read_schema(loaded.impressions_path) == SPEC.impression_schema()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_prepared_folder_is_copied_to_where_it_is_asked_for(tmp_path):
    done = PreparedDataset.write(make_tables(), tmp_path / "done")
    copied = prepare(tmp_path / "done", tmp_path / "out")
    assert copied.path == tmp_path / "out" and copied.counts == done.counts
    assert copied.impressions_path.read_bytes() == done.impressions_path.read_bytes()
    assert prepare(tmp_path / "done", tmp_path / "done").path == tmp_path / "done"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="not a prepared dataset; choose another folder"):
        prepare(tmp_path / "done", mine)


def test_an_older_dataset_is_replaced_and_other_folders_are_not(tmp_path):
    PreparedDataset.write(make_tables(), tmp_path / "out")
    again = PreparedDataset.write(make_tables(source="newer"), tmp_path / "out")
    assert again.source == "newer"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="not a prepared dataset; choose another folder"):
        PreparedDataset.write(make_tables(), mine)
    assert (mine / "thesis.txt").read_text() == "years of work"


EVENTS, ITEMS = make_tables().events, make_tables().items
IMPRESSIONS = make_tables().impressions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"events": EVENTS.slice(0, 0)}, "the events table is empty"),
        ({"items": ITEMS.slice(0, 0)}, "the items table is empty"),
        ({"impressions": IMPRESSIONS.drop(["click"])}, r"lacks the columns \['click'\]"),
        (
            {"impressions": changed(IMPRESSIONS, "user_id", [None, 2])},
            r"impressions\.user_id is null in 1 rows",
        ),
        (
            {"events": changed(EVENTS, "timestamp", [NOW // 1000, NOW, NOW])},
            r"events\.timestamp holds .*looks like seconds.*multiply by 1000",
        ),
        (
            {"impressions": changed(IMPRESSIONS, "click", [1, 300])},
            "not every value fits|is text",
        ),
        (
            {"items": pa.table({"item_id": [1, 2, 2]})},
            "items table has 3 rows for 2 items; keep one per item",
        ),
        (
            {"splits": {"train": (NOW, NOW + 8), "eval": (NOW + 20, NOW + 30)}},
            "split 'eval' .* holds no impression",
        ),
    ],
)
def test_tables_that_do_not_fit_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message) as error:
        PreparedDataset.write(make_tables(**change), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["events.parquet", "impressions.parquet"])
def test_a_full_disk_keeps_the_older_dataset(tmp_path, monkeypatch, file):
    PreparedDataset.write(make_tables(), tmp_path / "out")
    write_table = pq.write_table

    def full(table, path, **options):
        if path.name == file:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_table(table, path, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(DatasetError, match=r"No space left on device.*free some space"):
        PreparedDataset.write(make_tables(source="newer"), tmp_path / "out")
    assert PreparedDataset.load(tmp_path / "out").source == "a test"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PreparedDataset.write(make_tables(), tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["dataset.json", "features.yaml", "events.parquet", "items.parquet", "impressions.parquet"],
)
def test_an_incomplete_folder_is_not_taken_for_a_dataset(tmp_path, name):
    PreparedDataset.write(make_tables(), tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(DatasetError, match=f"{name} is missing; prepare it again"):
        PreparedDataset.load(tmp_path / "out")


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"splits": 3})])
def test_a_damaged_summary_is_reported(tmp_path, text):
    PreparedDataset.write(make_tables(), tmp_path / "out")
    (tmp_path / "out" / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json or features\.yaml is damaged"):
        PreparedDataset.load(tmp_path / "out")


def write_own(folder, spec=None, **changes):
    folder.mkdir()
    tables = {"events": EVENTS, "items": ITEMS, "impressions": IMPRESSIONS, **changes}
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    SPEC.save(folder / "features.yaml")
    if spec is not None:
        (folder / "features.yaml").write_text(spec)
    return folder


def test_own_tables_are_checked_and_split_by_time(tmp_path):
    impressions = pa.table(
        {
            "user_id": [1] * 10,
            "timestamp": [NOW + 10 * row for row in range(10)],
            "item_id": [1] * 10,
            "click": [0, 1] * 5,
            "request_id": list(range(10)),
            "note": ["not in the spec"] * 10,
        }
    )
    dataset = prepare(write_own(tmp_path / "raw", impressions=impressions), tmp_path / "out")
    assert dataset.splits == {"train": (NOW, NOW + 80), "eval": (NOW + 80, NOW + 91)}
    columns = pq.read_schema(dataset.impressions_path).names
    assert columns == [*SPEC.impression_schema().names, "request_id"]
    assert pq.read_table(dataset.events_path)["user_id"].to_pylist() == [1, 1, 2]


def test_nulls_become_the_missing_value_of_their_field(tmp_path):
    spec = FeatureSpec.from_dict(
        {
            **SPEC.to_dict(),
            "item": {
                "kind": {"type": "int8"},
                "price": {"type": "float32"},
                "title": {"type": "string"},
                "content": {"type": "float32", "shape": [2]},
            },
        }
    )
    items = pa.table(
        {
            "item_id": [1, 2],
            "kind": [None, 3],
            "price": [None, 1.5],
            "title": [None, "b"],
            "content": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        }
    )
    dataset = PreparedDataset.write(make_tables(spec=spec, items=items), tmp_path / "out")
    first = pq.read_table(dataset.items_path).slice(0, 1).to_pylist()[0]
    assert np.isnan(first.pop("price"))
    assert first == {"item_id": 1, "kind": -1, "title": "", "content": [1.0, 2.0]}
    vectors = pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))
    items = items.set_column(4, "content", vectors)
    with pytest.raises(DatasetError, match=r"item\.content is null in 1 rows"):
        PreparedDataset.write(make_tables(spec=spec, items=items), tmp_path / "other")


def test_item_times_that_ages_start_from_are_checked(tmp_path):
    content = SPEC.to_dict()
    content["tables"]["age"] = {"rows": 3, "width": 2, "ids": "direct"}
    content["item"] = {"made_ms": {"type": "int64"}}
    age = {"derive": "age_minutes", "of": "made_ms", "table": "age", "boundaries": [60]}
    content["candidate"] = {"age": age}
    spec = FeatureSpec.from_dict(content)
    items = pa.table({"item_id": [1, 2], "made_ms": [None, NOW]})
    dataset = PreparedDataset.write(make_tables(spec=spec, items=items), tmp_path / "good")
    assert pq.read_table(dataset.items_path)["made_ms"].to_pylist() == [-1, NOW]
    items = changed(items, "made_ms", [0, NOW // 1000])
    with pytest.raises(DatasetError, match=r"items\.made_ms holds .*looks like seconds"):
        PreparedDataset.write(make_tables(spec=spec, items=items), tmp_path / "bad")


def test_bad_own_tables_are_reported(tmp_path):
    folder = write_own(tmp_path / "a", impressions=IMPRESSIONS.drop(["click"]))
    with pytest.raises(DatasetError, match=r"impressions\.parquet lacks the columns \['click'\]"):
        prepare(folder, tmp_path / "out")
    seconds = changed(IMPRESSIONS, "timestamp", [NOW // 1000, NOW // 1000])
    folder = write_own(tmp_path / "b", impressions=seconds)
    with pytest.raises(DatasetError, match=r"impressions\.parquet: timestamp .*like seconds"):
        prepare(folder, tmp_path / "out")
    folder = write_own(tmp_path / "c", spec="name: tiny\n")
    with pytest.raises(DatasetError, match=r"features\.yaml: history is missing"):
        prepare(folder, tmp_path / "out")
    folder = write_own(tmp_path / "d")
    (folder / "items.parquet").unlink()
    with pytest.raises(DatasetError, match=r"has no items\.parquet"):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_first_rows_equal_the_plain_form(rows):
    expected = [place for place, row in enumerate(rows) if row not in rows[:place]]
    keys = np.array(rows, np.int64).reshape(-1, 2)
    assert first_rows(keys[:, 0], keys[:, 1]).tolist() == expected


@given(st.lists(st.integers(-1, 10**12), min_size=1, max_size=200))
def test_every_id_of_a_dataset_has_a_row_in_its_table(ids):
    values = np.array(ids)
    entry = id_table(values, width=4)
    map_rows = direct_rows if entry["ids"] == "direct" else hash_rows
    rows = map_rows(values, entry["rows"])
    assert ((rows > 0) == (values >= 0)).all() and rows.max() < entry["rows"]


def test_unknown_folders_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="is not a folder; give one with KuaiRand"):
        prepare(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"no dataset that is known; it has \['notes.txt'\]"):
        prepare(tmp_path / "raw", tmp_path / "out")
    (tmp_path / "raw" / "events.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DatasetError, match=r"events\.parquet cannot be read as Parquet"):
        prepare(tmp_path / "raw", tmp_path / "out")
    pq.write_table(pa.table({"a": np.arange(3)}), tmp_path / "raw" / "events.parquet")
    with pytest.raises(DatasetError, match=r"columns \['a'\], which no adapter knows"):
        prepare(tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()
