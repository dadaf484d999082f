"""A tiny generated log, and a store in memory that answers like SeqVault."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from tfx_pipeline.compare import run_compare as module
from tfx_pipeline.datasets import GeneratorSettings, PreparedDataset, prepare


class MemoryStore:
    """Histories and items of a prepared dataset."""

    def __init__(self, dataset: PreparedDataset) -> None:
        events = pq.read_table(dataset.events_path)
        self._events = {name: events[name].to_numpy() for name in events.column_names}
        items = pq.read_table(dataset.items_path)
        self._items = {
            name: items[name].to_numpy() for name in items.column_names if name != "content"
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def read(self, user_ids, *, before, last_n, fields):
        found = []
        for row, user in enumerate(np.asarray(user_ids)):
            of_user = np.flatnonzero(self._events["user_id"] == user)
            if before is not None:
                of_user = of_user[self._events["timestamp"][of_user] < np.asarray(before)[row]]
            found.append(of_user[::-1][:last_n])
        lengths = np.array([len(each) for each in found])
        history = Answer(lengths=lengths)
        for name in fields:
            history[name] = np.zeros((len(found), max(1, lengths.max())), np.int64)
            for row, each in enumerate(found):
                history[name][row, : len(each)] = self._events[name][each]
        return history

    def read_items(self, ids, fields=None):
        place = np.searchsorted(self._items["item_id"], ids)
        rows = Answer(found=np.ones(len(place), bool))
        rows.update({name: self._items[name][place] for name in fields})
        return rows


class Answer(dict):
    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> PreparedDataset:
    sizes = {"users": 12, "items": 1200, "requests": 150, "max_history": 40}
    settings = GeneratorSettings.of_preset("long", min_events=150, max_events=300, **sizes)
    return prepare(None, tmp_path_factory.mktemp("log") / "data", generator=settings)


@pytest.fixture(scope="session")
def store(dataset) -> MemoryStore:
    return MemoryStore(dataset)


@pytest.fixture
def compare(dataset, store, tmp_path, monkeypatch):
    """Runs a comparison of the text of a YAML file; returns its rows."""
    monkeypatch.setattr(module, "open_store", lambda where: store)

    def run(text: str, data=dataset.path, work=tmp_path / "work"):
        (tmp_path / "compare.yaml").write_text(text)
        return module.run_compare(tmp_path / "compare.yaml", data, work, "memory", jobs=1)

    return run
