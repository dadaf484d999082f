"""Types of a log's columns: converted by rule or refused."""

from __future__ import annotations

from datetime import date, datetime, timezone

import pyarrow as pa
import pytest

from laser_features.arrow_columns import to_schema, to_type
from laser_features.errors import ColumnTypeError

MOMENT = datetime(2022, 5, 5, 1, 2, 3, 456789, tzinfo=timezone.utc)
MS = 1_651_712_523_456


def column(values, kind):
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "kind", "wanted", "expected"),
    [
        ([1, None], pa.int8(), pa.int64(), [1, None]),
        ([2**63 - 1], pa.uint64(), pa.int64(), [2**63 - 1]),
        ([True, False, None], pa.bool_(), pa.int8(), [1, 0, None]),
        ([5.0, float("nan"), None], pa.float64(), pa.int64(), [5, None, None]),
        ([1 - 2.0**53], pa.float64(), pa.int64(), [1 - 2**53]),
        ([7.0], pa.float32(), pa.int32(), [7]),
        ([MOMENT], pa.timestamp("us", "UTC"), pa.int64(), [MS]),
        ([MOMENT], pa.timestamp("us", "Asia/Shanghai"), pa.int64(), [MS]),
        ([MOMENT.replace(tzinfo=None)], pa.timestamp("ns"), pa.int64(), [MS]),
        ([MOMENT.replace(tzinfo=None, microsecond=0)], pa.timestamp("s"), pa.int64(), [MS - 456]),
        ([date(2022, 5, 5)], pa.date32(), pa.int64(), [1_651_708_800_000]),
        ([1, 2], pa.int64(), pa.float32(), [1.0, 2.0]),
        (["a"], pa.large_string(), pa.string(), ["a"]),
    ],
)  # fmt: skip
def test_what_is_converted_by_rule(values, kind, wanted, expected):
    found = to_type(column(values, kind), wanted, "x")
    assert found.type == wanted and found.to_pylist() == expected


def test_a_dictionary_is_read_as_its_values():
    found = to_type(column(["5"], pa.string()).dictionary_encode(), pa.string(), "x")
    assert found.to_pylist() == ["5"]
    assert to_type(column([5], pa.int32()).dictionary_encode(), pa.int64(), "x").to_pylist() == [5]


@pytest.mark.parametrize(
    ("values", "kind", "wanted", "expected"),
    [
        (
            [2.0**53 + 2],
            pa.float64(),
            pa.int64(),
            "user_id is double and holds 9007199254740994",
        ),
        ([2.0**53], pa.float64(), pa.int64(), "a float is not exact"),
        ([1e300], pa.float64(), pa.int64(), "a float is not exact"),
        ([float("inf")], pa.float64(), pa.int64(), "a float is not exact"),
        ([1.5], pa.float64(), pa.int64(), "holds 1.5, which is not whole"),
        (["123"], pa.string(), pa.int64(), "is text, such as '123'.*never read as a number"),
        ([None], pa.string(), pa.int64(), "is text"),
        (["1.5"], pa.large_string(), pa.float32(), "is text"),
        ([2**63], pa.uint64(), pa.int64(), "uint64 where the feature spec says int64"),
        ([300], pa.int64(), pa.int8(), "not every value fits"),
        ([2**53 + 1], pa.int64(), pa.float64(), "not every value fits"),
        ([MOMENT], pa.timestamp("us", "UTC"), pa.int32(), "times are int64"),
        ([[1]], pa.list_(pa.int64()), pa.int64(), "not every value fits"),
    ],
)
def test_what_cannot_be_told_from_a_mistake_is_refused(values, kind, wanted, expected):
    with pytest.raises(ColumnTypeError, match=expected) as caught:
        to_type(column(values, kind), wanted, "user_id")
    assert "\n" not in str(caught.value)


def test_text_times_are_told_what_to_be():
    with pytest.raises(ColumnTypeError, match=r"2022-05-05.*milliseconds since 1970 UTC, or a col"):
        to_type(column(["2022-05-05T00:00:00Z"], pa.string()), pa.int64(), "events.timestamp")


def test_a_table_takes_the_schemas_columns_and_names_the_one_that_is_wrong():
    schema = pa.schema([("a", pa.int64()), ("b", pa.float32())])
    table = pa.table({"c": ["x"], "b": [1], "a": [2.0]})
    assert to_schema(table, schema, "events").to_pylist() == [{"a": 2, "b": 1.0}]
    with pytest.raises(ColumnTypeError, match=r"events\.a is text"):
        to_schema(pa.table({"a": ["1"], "b": [1.0]}), schema, "events")
