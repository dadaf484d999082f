"""From a prepared dataset to a SeqVault."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_features.testing import tiny_spec
from seqvault import SeqVault
from tfx_pipeline.definition.fingerprints import store_fingerprint
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.load_store import load_store

HOUR = 3_600_000
NEWEST = 1_650_000_000_000
SPEC = tiny_spec(rows=50, item={"author": {"type": "int64", "table": "item"}})


@pytest.fixture
def dataset(tmp_path):
    """30 users with an event every hour for 50 hours."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    users, hours = np.repeat(np.arange(30), 50), np.tile(np.arange(49, -1, -1), 30)
    events = {"user_id": users, "timestamp": NEWEST - hours * HOUR, "item_id": hours % 40}
    pq.write_table(pa.table(events).cast(SPEC.event_schema()), folder / "events.parquet")
    items = {"item_id": np.arange(40), "author": np.arange(40) % 7}
    pq.write_table(pa.table(items).cast(SPEC.item_schema()), folder / "items.parquet")
    SPEC.save(folder / "features.yaml")
    return folder


def test_every_event_is_there_the_last_day_through_the_log(dataset, tmp_path):
    seen = []
    store = tmp_path / "store"
    loaded = load_store(dataset, store, progress=lambda *step: seen.append(step))
    assert (loaded.bulk_events, loaded.appended_events) == (30 * 26, 30 * 24)
    assert (loaded.users, loaded.items) == (30, 40)
    assert seen[-1] == ("append", 720, 720)
    with SeqVault.open(store, read_only=True) as vault:
        history = vault.read(np.arange(30), before=None, last_n=60)
        assert history.lengths.tolist() == [50] * 30
        assert history["item_id"][7, :50].tolist() == [hour % 40 for hour in range(50)]
        assert vault.read_items([13])["author"].tolist() == [6]


def test_a_store_is_replaced_only_when_asked(dataset, tmp_path):
    store = tmp_path / "store"
    load_store(dataset, store)
    first = store_fingerprint(store)
    with pytest.raises(PipelineError, match=r"store exists; .*--replace"):
        load_store(dataset, store)
    load_store(dataset, store, replace=True)
    assert store_fingerprint(store) == first


def test_what_is_no_store_is_never_replaced(dataset, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").touch()
    with pytest.raises(PipelineError, match=r"photos is not a SeqVault and is not replaced"):
        load_store(dataset, folder, replace=True)
    assert (folder / "cat.jpg").exists()


def test_a_store_in_use_is_not_replaced(dataset, tmp_path):
    store = tmp_path / "store"
    load_store(dataset, store)
    with SeqVault.open(store), pytest.raises(Exception, match=r"already open for writing"):
        load_store(dataset, store, replace=True)
    with SeqVault.open(store, read_only=True) as vault:
        assert vault.stats()["events"] == 1500


def test_a_failed_load_leaves_nothing(dataset, tmp_path):
    (dataset / "items.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(PipelineError, match=r"items.parquet cannot be read as Parquet"):
        load_store(dataset, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_the_fingerprint_follows_what_the_store_holds(dataset, tmp_path):
    store = tmp_path / "store"
    load_store(dataset, store)
    before = store_fingerprint(store)
    with SeqVault.open(store) as vault:
        vault.append({"user_id": [3], "timestamp": [NEWEST + 1], "item_id": [4]})
    assert store_fingerprint(store) != before


def test_the_fingerprint_follows_content_not_counts(dataset, tmp_path):
    """As many events of the same users at the same times, with other items."""
    store = tmp_path / "store"
    load_store(dataset, store)
    before = store_fingerprint(store)
    events = pq.read_table(dataset / "events.parquet")
    others = pa.array((events["item_id"].to_numpy() + 1) % 40)
    pq.write_table(events.set_column(2, "item_id", others), dataset / "events.parquet")
    load_store(dataset, store, replace=True)
    changed_events = store_fingerprint(store)
    items = pq.read_table(dataset / "items.parquet")
    pq.write_table(items.set_column(1, "author", others[:40]), dataset / "items.parquet")
    load_store(dataset, store, replace=True)
    assert len({before, changed_events, store_fingerprint(store)}) == 3


def test_a_damaged_store_can_be_replaced(dataset, tmp_path):
    store = tmp_path / "store"
    load_store(dataset, store)
    for segment in (store / "segments").iterdir():
        segment.write_bytes(b"nonsense")
    load_store(dataset, store, replace=True)
    with SeqVault.open(store, read_only=True) as vault:
        assert vault.stats()["events"] == 1500
