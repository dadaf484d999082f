"""Rows of ids against plain Python references and golden numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laser_features import Field, Table
from laser_features.ids import (
    boundary_rows,
    direct_rows,
    hash_rows,
    hash_string,
    hash_strings,
    model_values,
    splitmix64,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
MASK = 2**64 - 1
COMEDY = 8315559345618375674


def plain_splitmix64(value: int) -> int:
    mixed = (value + 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def plain_hash_row(value: int, rows: int) -> int:
    return 0 if value == -1 else 1 + plain_splitmix64(value & MASK) % (rows - 1)


def plain_direct_row(value: int, rows: int) -> int:
    return value + 1 if 0 <= value <= rows - 2 else 0


def plain_boundary_row(value: float, boundaries: list[float]) -> int:
    if math.isnan(value):
        return 0
    return 1 + sum(boundary <= value for boundary in boundaries)


def test_splitmix64_gives_the_published_sequence():
    # First outputs of the published generator for seeds 0 and 1234567.
    assert splitmix64([0, 1234567]).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


@given(st.lists(INT64, min_size=1), st.integers(2, 2**31 - 1))
def test_hash_rows_equal_the_plain_form_and_stay_inside_the_table(ids, rows):
    got = hash_rows(np.array(ids, np.int64), rows)
    assert got.dtype == np.int32
    assert got.tolist() == [plain_hash_row(value, rows) for value in ids]
    assert got.min() >= 0 and got.max() < rows


@given(st.lists(INT64, min_size=1), st.integers(2, 2**31 - 1))
def test_direct_rows_equal_the_plain_form(ids, rows):
    got = direct_rows(np.array(ids, np.int64), rows)
    assert got.tolist() == [plain_direct_row(value, rows) for value in ids]


def test_direct_rows_of_narrow_types_do_not_overflow():
    assert direct_rows(np.array([127, -128], np.int8), rows=200).tolist() == [128, 0]


@given(
    st.lists(st.floats(allow_infinity=True), min_size=1),
    st.lists(st.floats(-1e9, 1e9), min_size=1, unique=True).map(sorted),
)
def test_boundary_rows_equal_the_plain_form(values, boundaries):
    got = boundary_rows(np.array(values), boundaries)
    assert got.tolist() == [plain_boundary_row(value, boundaries) for value in values]


def test_a_boundary_belongs_to_the_bucket_above_it():
    assert boundary_rows([999, 1000, 4999, 5000], [1000, 5000]).tolist() == [1, 2, 2, 3]


def test_the_missing_value_of_each_type_is_row_zero():
    assert hash_rows(np.array([-1]), 100).tolist() == [0]
    assert direct_rows(np.array([-1]), 100).tolist() == [0]
    assert boundary_rows(np.array([-1, 0], np.int32), [10]).tolist() == [0, 1]
    assert boundary_rows(np.array([np.nan, -1.0]), [10]).tolist() == [0, 1]
    assert hash_strings(["", None]).tolist() == [-1, -1]


def test_string_ids_are_stable_across_processes_and_versions():
    # blake2b(b"Comedy", digest_size=8) read little-endian, top bit cleared.
    assert hash_string("Comedy") == COMEDY
    assert hash_strings(np.array([["Comedy", ""]], object)).tolist() == [[COMEDY, -1]]


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 1, 4)])
def test_shapes_are_kept(shape):
    ids = np.zeros(shape, np.int64)
    assert hash_rows(ids, 10).shape == direct_rows(ids, 10).shape == shape
    assert boundary_rows(ids, [1]).shape == shape


def test_values_for_transform_stay_raw_with_their_missing_value():
    vocabulary = Table("t", rows=10, width=2, ids="vocabulary")
    direct = Table("d", rows=10, width=2, ids="direct")
    raw = model_values(Field("a", "event", "int8", "t"), vocabulary, np.array([5, -1], np.int8))
    assert raw.dtype == np.int64 and raw.tolist() == [5, -1]
    quantiles = Field("b", "event", "int32", "d", quantiles=4)
    floats = model_values(quantiles, direct, np.array([7, -1], np.int32))
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, np.array([7, np.nan], np.float32))
