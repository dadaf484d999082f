"""Ids outside a direct table are counted where they become missing."""

from __future__ import annotations

import numpy as np

from laser_features import OutsideIds, RequestBatch, build_model_inputs
from laser_features.ids import direct_rows
from laser_features.testing import tiny_spec

NOW = 1_700_000_000_000
SPEC = tiny_spec(
    tables={
        "author": {"rows": 6, "width": 2, "ids": "direct"},
        "city": {"rows": 5, "width": 2, "ids": "hash"},
        "span": {"rows": 4, "width": 2, "ids": "direct"},
    },
    item={"author": {"type": "int64", "table": "author"}},
    context={
        "city": {"type": "int64", "table": "city"},
        "span": {"type": "int64", "table": "span", "boundaries": [10, 20]},
    },
)


class History(dict):
    lengths = np.array([2, 1])


class Items:
    def read_items(self, ids, fields=None):
        class Rows(dict):
            found = np.asarray(ids) != 77

        return Rows(author=np.asarray(ids) % 100)


def count(offset=0):
    history = History(
        timestamp=np.array([[NOW - 1, NOW - 2, 0], [NOW - 3, 0, 0]]),
        item_id=np.array([[3, 77, 999], [8, 999, 999]]) + offset,
    )
    requests = RequestBatch(
        user_id=np.array([1, 2]),
        time_ms=np.array([NOW, NOW]),
        candidate_item_id=np.array([[1, 12], [-1, 999]]) + offset,
        candidate_count=np.array([2, 1]),
        fields={"city": np.array([4000, 2]), "span": np.array([5000, 1])},
    )
    outside = OutsideIds()
    counted = build_model_inputs(SPEC, requests, history, Items(), outside)
    plain = build_model_inputs(SPEC, requests, history, Items())
    assert all(counted[name].tobytes() == plain[name].tobytes() for name in plain)
    return outside


def test_padding_missing_hashed_and_bucketed_values_do_not_count():
    outside = count()
    assert outside.ids["history_item_id"] == 3 and outside.outside["history_item_id"] == 1
    assert outside.ids["candidate_item_id"] == 2 and outside.outside["candidate_item_id"] == 1
    assert outside.examples == {
        "history_item_id": [77], "candidate_item_id": [12],
        # Items 8 and 12 have authors beyond the table; item 77 is not known, item -1 is missing.
        "history_author": [8, 12, 99],
    }  # fmt: skip
    assert not any("city" in name or "span" in name for name in outside.ids)


def test_all_ids_moved_by_a_million_lie_outside():
    outside = count(10**6)
    for name in ("history_item_id", "candidate_item_id"):
        assert outside.outside[name] == outside.ids[name] > 0


def test_the_count_is_that_of_rows_that_become_missing():
    ids = np.array([-(2**63), -2, -1, 0, 7, 8, 9, 2**31, 2**63 - 1])
    outside = OutsideIds()
    outside.count("x", 10, ids)
    missing = (direct_rows(ids, 10) == 0) & (ids != -1)
    assert outside.outside["x"] == missing.sum() == 5
    assert outside.ids["x"] == len(ids) - 1
