"""Checking and grouping of impressions, against plain Python."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.seqvault_example_gen.errors import ImpressionsError
from components.seqvault_example_gen.impressions import (
    check_columns,
    check_rows,
    group_requests,
    open_parquet,
)

SECONDS = "timestamp looks like seconds, not milliseconds"
MICROSECONDS = "timestamp looks like microseconds or nanoseconds, not milliseconds"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user": None}, "no user"),
        ({"user": -1}, "no user"),
        ({"time": None}, "no timestamp"),
        ({"time": 0}, "no timestamp"),
        ({"time": 1_650_000_000}, SECONDS),
        ({"time": 1_650_000_000_000_000}, MICROSECONDS),
        ({"item": None}, "no item"),
        ({"item": -1}, "no item"),
        ({"click": None}, "label click is neither 0 nor 1"),
        ({"click": 2}, "label click is neither 0 nor 1"),
        ({"like": None}, "label like is missing"),
        ({"user": None, "click": 7}, "no user"),
    ],
)
def test_each_kind_of_malformed_row_gets_its_reason(spec, row, table_of, change, reason):
    table = table_of([row(), row(**change), row(item=11)])
    checked = check_rows(table, 100, spec)
    assert checked.reasons == [reason]
    assert checked.bad["__row__"].to_pylist() == [101]
    assert checked.good["__row__"].to_pylist() == [100, 102]


def test_a_missing_feature_is_not_malformed(spec, row, table_of):
    checked = check_rows(table_of([row(scenario=None, position=None)]), 0, spec)
    assert checked.reasons == []
    assert checked.good["scenario"].to_pylist() == [-1]
    assert checked.good["position"].to_pylist() == [-1]


def test_columns_of_a_wider_type_are_narrowed_and_others_refused(spec, row, table_of):
    table = table_of([row()])
    wide = table.set_column(3, "scenario", pa.array([2], pa.int64()))
    assert check_rows(wide, 0, spec).good["scenario"].type == pa.int8()
    text = table.set_column(3, "scenario", pa.array(["feed"]))
    with pytest.raises(
        ImpressionsError, match=r"column scenario .* is text, such as 'feed'.* says int8"
    ):
        check_rows(text, 0, spec)


def test_a_missing_column_is_named(spec, row, table_of):
    schema = table_of([row()]).drop(["click"]).schema
    with pytest.raises(ImpressionsError, match=r"log.parquet lacks the column\(s\) click"):
        check_columns(schema, spec, "log.parquet")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = tmp_path / "impressions.parquet"
    path.write_bytes(b"no parquet at all")
    with pytest.raises(ImpressionsError, match=r"impressions.parquet cannot be read as Parquet"):
        open_parquet(str(path))


def plain_groups(rows):
    """Requests as a dict, in the order of (time, user, first row)."""
    groups = {}
    for number, each in enumerate(rows):
        key = (each["timestamp"], each["user_id"], each["scenario"])
        groups.setdefault(key, []).append((number, each["item_id"]))
    ordered = sorted(groups.items(), key=lambda entry: (entry[0][0], entry[0][1], entry[1][0]))
    return [(key[1], key[0], [item for _, item in found]) for key, found in ordered]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 50), st.integers(0, 1)),
        max_size=30,
    ),
    seed=st.integers(0, 99),
)
def test_grouping_equals_a_plain_dict_whatever_the_order_of_arrival(
    spec, row, table_of, now, rows, seed
):
    rows = [row(user, now + time, item, scenario) for user, time, item, scenario in rows]
    good = check_rows(table_of(rows), 0, spec).good
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    requests = group_requests(good.take(pa.array(order, pa.int64())), spec)
    got = (
        [
            (user, time, items.tolist())
            for user, time, items in zip(
                requests.of_request("user_id").tolist(),
                requests.of_request("timestamp").tolist(),
                requests.of_candidate("item_id"),
                strict=True,
            )
        ]
        if len(requests)
        else []
    )
    assert got == plain_groups(rows)


def test_a_request_id_splits_what_shares_user_and_time(spec, row, table_of):
    table = table_of([row(item=item) for item in (10, 11, 12)], request_id=[5, 6, 5])
    requests = group_requests(check_rows(table, 0, spec).good, spec)
    assert [items.tolist() for items in requests.of_candidate("item_id")] == [[10, 12], [11]]


def test_a_slice_of_requests_holds_just_these(spec, row, table_of, now):
    rows = [row(time=now + time, item=item) for time, item in ((0, 1), (0, 2), (1, 3), (2, 4))]
    requests = group_requests(check_rows(table_of(rows), 0, spec).good, spec)
    part = requests.slice(1, 3)
    assert part.of_request("timestamp").tolist() == [now + 1, now + 2]
    assert [items.tolist() for items in part.of_candidate("item_id")] == [[3], [4]]
    assert part.starts.tolist() == [0, 1, 2]
    assert np.array_equal(requests.slice(0, 3).starts, requests.starts)
