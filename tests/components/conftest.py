"""A hand-made log, small enough to check with a pencil."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_features import FeatureSpec
from seqvault import Schema, SeqVault

NOW = 1_650_000_000_000


@pytest.fixture(scope="session")
def now() -> int:
    return NOW


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    return FeatureSpec.from_dict(
        {
            "name": "tiny",
            "history": {"max_length": 3},
            "tables": {
                "item": {"rows": 100, "width": 4, "ids": "direct"},
                "author": {"rows": 10, "width": 4, "ids": "direct"},
                "tag": {"rows": 10, "width": 4, "ids": "vocabulary"},
                "duration": {"rows": 6, "width": 4, "ids": "direct"},
                "scenario": {"rows": 6, "width": 4, "ids": "direct"},
                "position": {"rows": 6, "width": 4, "ids": "direct"},
                "user": {"rows": 100, "width": 4, "ids": "direct"},
            },
            "event": {
                "item_id": {"type": "int64", "table": "item"},
                "scenario": {"type": "int8", "table": "scenario"},
            },
            "item": {
                "author": {"type": "int64", "table": "author"},
                "tag": {"type": "int64", "table": "tag"},
                "duration": {"type": "int32", "table": "duration", "quantiles": 4},
            },
            "user": {"user_id": {"type": "int64", "table": "user"}},
            "context": {"scenario": {"type": "int8", "table": "scenario"}},
            "candidate": {"position": {"type": "int8", "table": "position"}},
            "label": {"click": {"type": "int8"}, "like": {"type": "int8"}},
        }
    )


def impression(user=1, time=NOW, item=10, scenario=0, position=0, click=0, like=0):
    names = ("user_id", "timestamp", "item_id", "scenario", "position", "click", "like")
    return dict(zip(names, (user, time, item, scenario, position, click, like), strict=True))


@pytest.fixture(scope="session")
def row():
    return impression


@pytest.fixture(scope="session")
def table_of(spec):
    """Rows (dicts) to an impressions table; extra keys become columns."""

    def make(rows, **columns):
        schema = spec.impression_schema()
        table = pa.table(
            {name: pa.array([row[name] for row in rows], schema.field(name).type)
             for name in schema.names}
        )  # fmt: skip
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        return table

    return make


@pytest.fixture
def vault(tmp_path, spec):
    """An open store: user 1 has four events before NOW, one at NOW and one after."""
    store = SeqVault.open(tmp_path / "store", schema=Schema.from_arrow(spec.event_schema()))
    ages = [40_000, 30_000, 20_000, 1, 0, -1]
    store.append(
        {
            "user_id": [1] * 6 + [2],
            "timestamp": [NOW - age for age in ages] + [NOW + 5_000],
            "item_id": [10, 11, 12, 13, 14, 15, 16],
            "scenario": [0, 1, 2, 0, 1, 2, 0],
        }
    )
    items = {
        "item_id": list(range(10, 20)),
        "author": list(range(10)),
        "tag": [item % 3 for item in range(10)],
        "duration": [100 * item for item in range(10)],
    }
    store.put_items(pa.table(items).cast(spec.item_schema()))
    yield store
    store.close()


@pytest.fixture
def write_dataset(tmp_path, spec):
    """Write impressions where a prepared dataset has them; returns the folder."""

    def write(table: pa.Table, row_group_size: int = 1000) -> Path:
        folder = tmp_path / "dataset"
        folder.mkdir(exist_ok=True)
        spec.save(folder / "features.yaml")
        pq.write_table(table, folder / "impressions.parquet", row_group_size=row_group_size)
        return folder

    return write
