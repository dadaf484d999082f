"""The two JSON parsers agree, and so do the fast and the explaining way to tensors."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.model_server.json_parser import StrictParser, is_unusual, parse_json
from serving.model_server.json_tensors import read_request, read_tensor, write_reply
from serving.model_server.status import ServingError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)
DTYPES = ["float", "double", "int8", "int32", "int64", "uint8", "uint64", "bool", "string", "half"]


def same(a, b):
    """Equality with NaN equal to itself, and integers beyond 64 bits equal to their double."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    if type(a) is int and not -(2**63) <= a < 2**64:
        return float(a) == b
    return type(a) is type(b) and a == b


@given(VALUES, st.booleans())
def test_strict_parser_reads_what_json_writes(value, ascii_only):
    # Lone surrogates are no JSON for a strict parser, escaped or not.
    if "\\ud" in json.dumps(value):
        value = json.loads(json.dumps(value).replace("\\ud", "\\u00"))
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert same(value, StrictParser(text.encode()).parse())


@given(st.text(alphabet='[]{}",:\\/.eE+-0123456789truefalsnNaInfity \n\u00e9'))
def test_both_parsers_accept_the_same_documents(text):
    body = text.encode()
    try:
        expected = json.loads(text)
    except ValueError:
        return  # the strict parser decides: it also reads Inf
    parsed = StrictParser(body).parse()
    assert same(expected, parsed)
    if isinstance(expected, dict):
        assert same(expected, parse_json(body))


UNUSUAL = re.compile(rb"[eE]\+?\d{3}|\d{300}|\\u[dD][89a-fA-F]|\A\xef\xbb\xbf")


@given(
    st.lists(
        st.sampled_from(
            [b"e", b"E", b"+", b"-", b"7", b"19", b"0" * 150, b"9" * 150, b"1" * 299, b"\\u",
             b"d", b"D", b"8", b"c", b"\xef\xbb\xbf", b" "]
        ),
        max_size=8,
    )
)  # fmt: skip
def test_unusual_documents_are_found(pieces):
    body = b"".join(pieces)
    assert is_unusual(body) == (UNUSUAL.search(body) is not None)


@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_a_clean_error(body):
    try:
        assert isinstance(parse_json(body), dict)
    except ServingError as error:
        assert error.code == "INVALID_ARGUMENT"


def test_first_of_two_equal_keys_counts():
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 1}
    assert StrictParser(b'{"a": 1, "a": 2}').parse() == {"a": 1}


def test_deep_nesting_is_a_clean_error():
    with pytest.raises(ServingError, match="nested too deeply"):
        parse_json(b'{"a": ' + b"[" * 100_000)


@given(VALUES, st.sampled_from(DTYPES))
def test_a_tensor_is_read_or_the_fault_is_named(value, dtype):
    """No value falls between the fast way and the one that explains."""
    try:
        array = read_tensor(value, dtype)
    except ServingError as error:
        assert error.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED"), error
        return
    expected = np.array(value, object) if dtype == "string" else np.array(value)
    assert array.size == 0 or array.shape == expected.shape


@given(
    st.lists(VALUES, min_size=1, max_size=4),
    st.sampled_from([{"x": "float"}, {"x": "int64", "y": "string"}]),
)
def test_rows_are_read_or_the_fault_is_named(instances, inputs):
    try:
        layout, arrays = read_request({"instances": instances}, inputs)
    except ServingError as error:
        assert error.code == "INVALID_ARGUMENT", error
        return
    assert layout == "row"
    assert set(arrays) == set(inputs)
    assert all(len(array) == len(instances) for array in arrays.values())


@given(st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), min_size=1, max_size=3))
def test_rows_equal_columns(rows):
    """One tensor, sent and answered in either format, is the same tensor."""
    given_rows = read_request({"instances": rows}, {"x": "float"})[1]["x"]
    given_columns = read_request({"inputs": rows}, {"x": "float"})[1]["x"]
    np.testing.assert_array_equal(given_rows, given_columns)
    assert given_rows.dtype == np.float32
    answers = [json.loads(write_reply({"y": given_rows}, layout)) for layout in ("row", "column")]
    assert same(answers[0]["predictions"], answers[1]["outputs"])


def test_empty_dimensions_in_the_reply():
    assert json.loads(write_reply({"y": np.zeros((2, 0))}, "row")) == {"predictions": [[], []]}
    assert json.loads(write_reply({"y": np.zeros((0, 2))}, "column")) == {"outputs": []}
    with pytest.raises(ServingError, match="invalid batch size: 0"):
        write_reply({"y": np.zeros((0, 2))}, "row")
