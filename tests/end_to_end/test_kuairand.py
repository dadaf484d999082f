"""The pipeline on a cut of a real exposure log."""

import os

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import prepare
from tfx_pipeline.load_store import load_store
from tfx_pipeline.runners.local import run_local

ONE_USER_IN = 24

# A busy machine takes minutes for what a quiet one does in one.
pytestmark = pytest.mark.timeout(900)


def cut_users(source, folder):
    """The same files with every 24th user."""
    folder.mkdir()
    for path in source.glob("*.parquet"):
        table = pq.read_table(path)
        if "user_id" in table.column_names:
            number = table["user_id"].combine_chunks().to_numpy(zero_copy_only=False)
            table = table.filter(pc.equal(number % ONE_USER_IN, 0))
        pq.write_table(table, folder / path.name)
    return folder


def test_a_cut_of_the_real_log_is_learned_and_pushed(kuairand, tmp_path, small_config):
    dataset = prepare(cut_users(kuairand, tmp_path / "cut"), tmp_path / "dataset")
    store = tmp_path / "store"
    loaded = load_store(dataset.path, store)
    assert loaded.bulk_events + loaded.appended_events == dataset.counts["events"]
    overrides = {"min_auc": 0.5, "rows_per_file": 4000, "slices": ["scenario"]}
    config = load_config(str(small_config), dataset.path, store, tmp_path / "run", overrides)
    report = run_local(config)
    assert report["join"]["impressions"] > 5_000
    assert report["evaluation"][""]["auc"] > 0.55
    assert os.path.isfile(os.path.join(report["pushed"], "saved_model.pb"))
