"""Bad datasets on the command line: one line, a non-zero exit, nothing left behind."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.cli import main

SPEC = """\
name: tiny
history: {max_length: 4}
tables:
  item: {rows: 16, width: 4, ids: direct}
  author: {rows: 16, width: 4, ids: direct}
event:
  item_id: {type: int64, table: item}
item:
  author_id: {type: int64, table: author}
label:
  click: {type: int8}
"""
START = 1_767_000_000_000
ROWS = 4000


def _write(path, columns):
    # Several pages of values that do not compress away, so that damage hits data, not the footer.
    pq.write_table(pa.table(columns), path, use_dictionary=False, compression="zstd")


@pytest.fixture
def source(tmp_path):
    """A folder of one's own tables, all of them good."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "features.yaml").write_text(SPEC)
    rows = list(range(ROWS))
    rows_of = {
        "user_id": [row * 7919 % 11 for row in rows],
        "timestamp": [START + row * 60_007 for row in rows],
        "item_id": [row * 6007 % 14 for row in rows],
    }
    _write(folder / "events.parquet", rows_of)
    _write(folder / "impressions.parquet", {**rows_of, "click": [row % 2 for row in rows]})
    _write(folder / "items.parquet", {"item_id": rows, "author_id": [row % 14 for row in rows]})
    return folder


@pytest.fixture
def fails(tmp_path, capsys):
    """Run a command that must fail with one line and leave only what was there."""

    def run(*arguments):
        before = sorted(tmp_path.iterdir())
        assert main([str(argument) for argument in arguments]) == 1
        assert sorted(tmp_path.iterdir()) == before
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "traceback" not in line
        return line

    return run


def _damage(path):
    content = bytearray(path.read_bytes())
    for place in range(64, len(content) // 2, 3):
        content[place] ^= 0x55
    path.write_bytes(content)


def _drop(path, column):
    pq.write_table(pq.read_table(path).drop([column]), path)


def _replace(path, column, change):
    columns = pq.read_table(path).to_pydict()
    _write(path, {**columns, column: [change(value) for value in columns[column]]})


def test_the_good_folder_is_prepared_and_loaded(source, tmp_path, capsys):
    assert main(["prepare", "--source", str(source), "--data", str(tmp_path / "data")]) == 0
    folders = ["--data", str(tmp_path / "data"), "--store", str(tmp_path / "store")]
    assert main(["load", *folders]) == 0
    assert f"{ROWS:,} items" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["features.yaml", "events.parquet", "items.parquet"])
def test_a_file_that_is_missing_is_named(source, tmp_path, fails, name):
    (source / name).unlink()
    assert name in fails("prepare", "--source", source, "--data", tmp_path / "data")
    assert name in fails("load", "--data", source, "--store", tmp_path / "store")


def test_missing_impressions_are_named(source, tmp_path, fails):
    (source / "impressions.parquet").unlink()
    line = fails("prepare", "--source", source, "--data", tmp_path / "data")
    assert "has no impressions.parquet" in line and "add the missing file" in line


@pytest.mark.parametrize("name", ["events.parquet", "items.parquet"])
@pytest.mark.parametrize("damage", [_damage, lambda path: path.write_bytes(b"PAR1")])
def test_an_unreadable_file_is_named(source, tmp_path, fails, name, damage):
    damage(source / name)
    for command in (
        ("prepare", "--source", source, "--data", tmp_path / "data"),
        ("load", "--data", source, "--store", tmp_path / "store"),
    ):
        assert f"{source / name} cannot be read as Parquet" in fails(*command)


@pytest.mark.parametrize(
    ("name", "column"), [("events.parquet", "item_id"), ("items.parquet", "author_id")]
)
def test_a_column_that_is_missing_is_named(source, tmp_path, fails, name, column):
    _drop(source / name, column)
    for command in (
        ("prepare", "--source", source, "--data", tmp_path / "data"),
        ("load", "--data", source, "--store", tmp_path / "store"),
    ):
        assert f"{source / name} lacks the columns [{column!r}]" in fails(*command)


@pytest.mark.parametrize("name", ["events.parquet", "impressions.parquet"])
def test_times_in_seconds_are_refused(source, tmp_path, fails, name):
    _replace(source / name, "timestamp", lambda ms: ms // 1000)
    line = fails("prepare", "--source", source, "--data", tmp_path / "data")
    assert "looks like seconds" in line and "multiply by 1000" in line


def test_an_impression_without_user_is_refused(source, tmp_path, fails):
    _replace(source / "impressions.parquet", "user_id", lambda user: user or None)
    line = fails("prepare", "--source", source, "--data", tmp_path / "data")
    assert "impressions.user_id is null in" in line and "drop these rows" in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("click: {type: int8}", "click: {type: decimal}", "label.click.type is 'decimal'; use"),
        (
            "label:\n",
            "context:\n  click: {type: int8, table: item}\nlabel:\n",
            "a name can be used once: rename it",
        ),
        ("  author: {rows", "  item: {rows", "the name 'item' is used twice; rename one"),
    ],
)
def test_a_bad_feature_spec(source, tmp_path, fails, old, new, expected):
    (source / "features.yaml").write_text(SPEC.replace(old, new))
    assert expected in fails("prepare", "--source", source, "--data", tmp_path / "data")
    assert expected in fails("load", "--data", source, "--store", tmp_path / "store")


@pytest.mark.parametrize("name", ["events", "items", "impressions"])
def test_a_prepared_dataset_that_was_damaged_is_not_used(source, tmp_path, fails, capsys, name):
    folder = tmp_path / "data"
    assert main(["prepare", "--source", str(source), "--data", str(folder)]) == 0
    capsys.readouterr()
    table = folder / f"{name}.parquet"
    _drop(table, "item_id")
    again = ("prepare", "--source", folder, "--data", tmp_path / "other")
    assert f"{table} lacks the columns ['item_id']" in fails(*again)
    table.write_bytes(b"PAR1")
    assert f"{table} cannot be read as Parquet" in fails(*again)
