"""The REST API against the contract's rows: R (routing), S (status, metadata), P (predict)."""

import base64
import gzip
import json
import math
import socket
from http.client import HTTPConnection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.model_server.decimals import format_decimals
from serving.runtime.call import Call

JSON = "application/json"


@pytest.fixture(scope="module")
def call(server):
    """``call(method, path, body, headers)`` -> status, headers, raw body."""
    host, port = server.rest_address.split(":")

    def call(method, path, body=None, headers=None):
        connection = HTTPConnection(host, int(port), timeout=60)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, response.headers, content

    return call


@pytest.fixture(scope="module")
def predict(call):
    """``predict(body, model)`` -> status, parsed reply (Python reads NaN tokens)."""

    def predict(body, model="m", suffix=""):
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        status, headers, content = call("POST", f"/v1/models/{model}{suffix}:predict", data)
        assert headers["Content-Type"] == JSON
        return status, json.loads(content)

    return predict


def error_of(answer, status=400):
    assert answer[0] == status, answer
    assert set(answer[1]) == {"error"}
    return answer[1]["error"]


# R: routing and envelope


@pytest.mark.parametrize("path", ["/", "/v2/models/m", "/v1", "/monitoring/prometheus/metrics"])
def test_r1_other_paths_are_html_404(call, path):
    status, headers, body = call("GET", path)
    assert status == 404
    assert headers["Content-Type"].startswith("text/html")
    assert b"<" in body and b'"error"' not in body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/foo"),
        ("POST", "/v1/models/m"),
        ("POST", "/v1/models/m/metadata"),
        ("GET", "/v1/models/m:predict"),
        ("GET", "/v1/models/m/version/5"),
        ("POST", "/v1/models/m/version/5:predict"),
        ("POST", "/v1/models/m/versions/abc:predict"),
        ("POST", "/v1/models/m/versions/1/labels/x:predict"),
        ("GET", "/v1/models/m/labels/x/versions/1"),
    ],
)
def test_r2_paths_that_name_nothing(call, method, path):
    status, headers, body = call(method, path, b"{}" if method == "POST" else None)
    assert error_of((status, json.loads(body))) == f"Malformed request: {method} {path}"
    assert headers["Content-Type"] == JSON


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/versions/1"])
def test_r3_no_model_name(call, path):
    status, _, body = call("GET", path)
    assert error_of((status, json.loads(body))) == "Missing model name in request."


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_r4_version_beyond_int64_has_an_empty_body(call, method):
    path = "/v1/models/m/versions/9223372036854775808" + (":predict" if method == "POST" else "")
    status, _, body = call(method, path)
    assert (status, body) == (400, b"")
    largest = path.replace("9223372036854775808", "9223372036854775807")
    assert call(method, largest, b"{}")[2] != b""


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH"])
def test_r5_other_methods(call, method):
    status, _, body = call(method, "/v1/models/m")
    assert status == 400
    if method != "HEAD":
        assert json.loads(body)["error"] == f"Malformed request: {method} /v1/models/m"


@pytest.mark.parametrize(("origin", "expected"), [("http://a.example", 200), (None, 400)])
def test_r6_r7_options(call, origin, expected):
    headers = {"Origin": origin} if origin else {}
    status, headers, body = call("OPTIONS", "/v1/models/m:predict", headers=headers)
    assert (status, body) == (expected, b"")
    assert headers["Content-Type"].startswith("text/html")
    assert "Access-Control-Allow-Origin" not in headers


def test_r7_cors_flag(server):
    from serving.model_server.rest_api import RestApi

    api = RestApi(server.manager, cors=True)
    with server.budget.open() as allowance:
        reply = api.answer("GET", "/v1/models/m", {}, b"", Call(None), allowance)
    assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert reply.headers["Access-Control-Allow-Methods"] == "POST, GET"
    assert reply.headers["Access-Control-Allow-Headers"] == "Content-Type"


def test_r8_percent_encoding(call, predict):
    assert call("GET", "/v1/models/a%20b%2Fc")[0] == 200
    assert predict({"instances": [[1, 2]]}, model="a%20b%2fc")[0] == 200
    unknown = predict({"instances": [[1, 2]]}, suffix="/labels/x%2Fy?z")
    assert error_of(unknown) == "Unrecognized servable version label: x/y?z"


def test_r9_query_string_is_part_of_the_path(call):
    for method, path in (("POST", "/v1/models/m:predict?x=1"), ("GET", "/v1/foo?x=1")):
        status, _, body = call(method, path, b"{}" if method == "POST" else None)
        assert error_of((status, json.loads(body))) == f"Malformed request: {method} {path}"


def test_r10_content_type_of_the_request_is_ignored(call):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        status, headers, _ = call(
            "POST",
            "/v1/models/m:predict",
            b'{"instances": [[1, 2]]}',
            {"Content-Type": content_type},
        )
        assert (status, headers["Content-Type"]) == (200, JSON)


def test_r11_errors_are_printed_with_four_spaces(call):
    body = call("GET", "/v1/foo")[2]
    assert body == b'{\n    "error": "Malformed request: GET /v1/foo"\n}'


def test_r12_keywords_match_in_any_case_but_the_verb_counts(call, predict):
    assert call("GET", "/V1/Models/m")[0] == 200
    status, _, body = call("POST", "/v1/MODELS/m:PREDICT", b'{"instances": [[1, 2]]}')
    assert error_of((status, json.loads(body))) == "Malformed request: POST /v1/MODELS/m:PREDICT"


def test_r13_gzip(call):
    body = gzip.compress(b'{"instances": [[1, 2]]}')
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    status, reply, content = call("POST", "/v1/models/m:predict", body, headers)
    assert (status, json.loads(content)) == (200, {"predictions": [[3.0, 3.0, 3.0]]})
    assert "Content-Encoding" not in reply


# S: status and metadata


def test_s1_status(call):
    status, _, body = call("GET", "/v1/models/m")
    assert status == 200
    assert json.loads(body) == {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def test_s3_status_of_one_version(call):
    assert call("GET", "/v1/models/m/versions/123")[2] == call("GET", "/v1/models/m")[2]
    status, _, body = call("GET", "/v1/models/m/versions/5")
    assert error_of((status, json.loads(body)), 404) == "Could not find version 5 of model m"


def test_s4_label_is_ignored(call):
    assert call("GET", "/v1/models/m/labels/any")[2] == call("GET", "/v1/models/m")[2]


def test_s5_unknown_model(call):
    status, _, body = call("GET", "/v1/models/nobody")
    text = error_of((status, json.loads(body)), 404)
    assert text == "Could not find any versions of model nobody"


@pytest.mark.parametrize("path", ["", "/versions/123"])
def test_s6_metadata(call, path):
    status, _, body = call("GET", f"/v1/models/m{path}/metadata")
    assert status == 200
    content = json.loads(body)
    assert content["model_spec"] == {"name": "m", "signature_name": "", "version": "123"}
    assert list(content["metadata"]) == ["signature_def"]
    signatures = content["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    default = signatures["serving_default"]
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["defaults"] == {}
    x = default["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT"
    assert x["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}],
        "unknown_rank": False,
    }
    assert signatures["free"]["inputs"]["x"]["tensor_shape"] == {"dim": [], "unknown_rank": True}


def test_s7_metadata_of_unknown_things(call):
    for path, status, text in (
        ("nobody", 404, "Servable not found for request: Latest(nobody)"),
        ("m/versions/5", 404, "Servable not found for request: Specific(m, 5)"),
        ("m/labels/l", 400, "Unrecognized servable version label: l"),
    ):
        answer = call("GET", f"/v1/models/{path}/metadata")
        assert error_of((answer[0], json.loads(answer[2])), status) == text


# P: predict


def test_p1_rows(predict):
    assert predict({"instances": [[1, 2], [3, 4]]}) == (
        200,
        {"predictions": [[3.0, 3.0, 3.0], [7.0, 7.0, 7.0]]},
    )


def test_p2_columns(predict):
    assert predict({"inputs": [[1, 2], [3, 4]]}) == (
        200,
        {"outputs": [[3.0, 3.0, 3.0], [7.0, 7.0, 7.0]]},
    )


def test_p3_objects_for_a_single_input(predict):
    assert predict({"instances": [{"x": [1, 2]}]})[1] == {"predictions": [[3.0, 3.0, 3.0]]}
    assert predict({"inputs": {"x": [[1, 2]]}})[1] == {"outputs": [[3.0, 3.0, 3.0]]}


TWO = {"signature_name": "two"}


@pytest.mark.parametrize(
    ("instances", "text"),
    [
        ([{"a": [1, 2]}], "keys must be equal to: a,b"),
        ([{"a": [1, 2], "b": 1, "c": 1}], "does not have named input: c"),
        ([[1, 2]], "instances is a plain list, but expecting list of objects"),
        ([{"a": [1, 2], "b": 1}, [1]], "Expecting object but got list at item 1"),
    ],
)
def test_p4_several_inputs_in_rows(predict, instances, text):
    assert text in error_of(predict({**TWO, "instances": instances}))


def test_p4_value_before_object(predict):
    text = error_of(predict({"instances": [[1, 2], {"x": [1, 2]}]}))
    assert text == "Expecting value/list but got object at item 1 of input list"


def test_p5_several_inputs_in_columns(predict):
    inputs = {"a": [[1, 2]], "b": [1]}
    assert predict({**TWO, "inputs": {**inputs, "unknown": 1}})[0] == 200
    text = error_of(predict({**TWO, "inputs": {"a": [[1, 2]]}}))
    assert text == "Missing named input: b in 'inputs' object."
    assert "inputs is a plain value/list" in error_of(predict({**TWO, "inputs": [1]}))


def test_p6_several_outputs(predict):
    rows = predict({**TWO, "instances": [{"a": [1, 2], "b": 5}, {"a": [0, 1], "b": 6}]})
    assert rows[1] == {"predictions": [{"sum": 8.0, "twice": 10}, {"sum": 7.0, "twice": 12}]}
    columns = predict({**TWO, "inputs": {"a": [[1, 2], [0, 1]], "b": [5, 6]}})
    assert columns[1] == {"outputs": {"sum": [8.0, 7.0], "twice": [10, 12]}}


def test_p7_signature_name(predict):
    rows = {"instances": [[1, 2]]}
    assert predict({**rows, "signature_name": ""})[0] == 200
    assert predict({**rows, "signature_name": "serving_default"})[0] == 200
    text = error_of(predict({**rows, "signature_name": 3}))
    assert "'signature_name' key must be a string value." in text
    text = error_of(predict({**rows, "signature_name": "x"}))
    assert text == 'Serving signature name: "x" not found in signature def'


def test_p8_both_keys_or_none(predict):
    text = error_of(predict({"instances": [1], "inputs": [1]}))
    assert "expecting only one of 'inputs' or 'instances'" in text
    assert error_of(predict({})) == "Missing 'inputs' or 'instances' key"


def test_p9_no_list_or_an_empty_one(predict):
    assert "Expecting 'instances' to be an list/array" in error_of(predict({"instances": 3}))
    assert "No values in 'instances' array" in error_of(predict({"instances": []}))
    free = {"signature_name": "free"}
    assert predict({**free, "inputs": []}) == (200, {"outputs": []})
    assert predict({**free, "inputs": 3}) == (200, {"outputs": 3.0})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b'{"instances": [1,]}', "JSON Parse error: Invalid value. at offset: 17"),
        (b'{"instances": [1', "Missing a comma or ] after an array element. at offset: 16"),
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": 1 "b"}', "Missing a comma or } after an object member. at offset: 8"),
        (b"{1: 2}", "Missing a name for object member. at offset: 1"),
        (b"{} x", "The document root must not be followed by other values. at offset: 3"),
        (b'{"a', "Missing a closing quotation mark in string."),
        (b'{"a": "\\q"}', "Invalid escape character in string."),
        (b'{"a": "\\ud800"}', "The surrogate pair in string is invalid."),
        (b'{"a": 1.}', "Miss fraction part in number."),
        (b'{"a": 1e}', "Miss exponent in number."),
        (b"[1]", "Is not object"),
        (b"3", "Is not object"),
    ],
)
def test_p10_what_is_no_json_object(predict, body, text):
    assert text in error_of(predict(body))


def test_p11_unknown_keys_are_ignored(predict):
    assert predict({"instances": [[1, 2]], "unknown": {"a": [1]}})[0] == 200


@pytest.mark.parametrize(
    ("instances", "text"),
    [
        ([[1, 2, 3], [1, 2]], "element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
         "Expecting tensor size: 3 but got: 2"),
        ([[1, 2, 3], [[1, 2, 3]]], "element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
         "Expecting shape [3] but got: [1,3]"),
        ([{"x": [1, 2]}, {"x": [1]}], "Failed to process element: 1 key: x of 'instances' list. "
         "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"),
    ],
)  # fmt: skip
def test_p12_instances_of_different_shapes(predict, instances, text):
    assert text in error_of(predict({"signature_name": "free", "instances": instances}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([[1, 2], [3]], "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ([1, [2]], "Encountered list at unexpected level: 1 expected < 1"),
        ([[1, 2], 3], "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. "
         "Expected at level: 2"),
    ],
)  # fmt: skip
def test_p13_ragged_lists(predict, value, text):
    assert error_of(predict({"signature_name": "free", "inputs": value})) == text
    assert text in error_of(predict({"signature_name": "free", "instances": [value]}))


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [
        ("float", '"a"', 'JSON Value: "a" Type: String is not of expected type: float'),
        ("float", "true", "JSON Value: true Type: True is not of expected type: float"),
        ("float", "null", "JSON Value: null Type: Null is not of expected type: float"),
        ("double", '{"b64": "aa"}', "Type: Object is not of expected type: double"),
        ("int32", "1.0", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", "2147483648", "is not of expected type: int32"),
        ("int8", "128", "is not of expected type: int8"),
        ("int64", "9223372036854775808", "is not of expected type: int64"),
        ("uint8", "-1", "is not of expected type: uint8"),
        ("uint32", "4294967296", "is not of expected type: uint32"),
        ("uint64", "18446744073709551616", "is not of expected type: uint64"),
        ("bool", "1", "JSON Value: 1 Type: Number is not of expected type: bool"),
    ],
)
def test_p14_values_of_the_wrong_type(predict, dtype, value, shown):
    body = f'{{"signature_name": "as_{dtype}", "inputs": {value}}}'
    assert shown in error_of(predict(body))


@pytest.mark.parametrize("dtype", ["float", "double"])
def test_p15_p16_non_finite_values(call, predict, dtype):
    body = f'{{"signature_name": "as_{dtype}", "inputs": [NaN, Infinity, -Infinity, Inf, -Inf]}}'
    status, _, raw = call("POST", "/v1/models/m:predict", body)
    assert status == 200
    assert raw.split(b"[")[1].split(b"]")[0] == b"NaN, Infinity, -Infinity, Infinity, -Infinity"


def test_p17_float_formatting():
    values = np.array([0.2, 1, -3, 5e9, 6.17284e7, 1 / 3, 1e-5, 16777217, -0.0], np.float32)
    assert format_decimals(values) == [
        b"0.2", b"1.0", b"-3.0", b"5e+09", b"6.17284e+07", b"0.333333343", b"1e-05",
        b"16777216.0", b"-0.0",
    ]  # fmt: skip
    doubles = np.array([0.1, 1 / 3, 1e300], np.float64)
    assert format_decimals(doubles) == [b"0.1", b"0.33333333333333331", b"1e+300"]


@given(st.lists(st.floats(width=32), min_size=1), st.lists(st.floats(), min_size=1))
def test_p17_floats_survive(singles, doubles):
    for values, dtype in ((singles, np.float32), (doubles, np.float64)):
        array = np.array(values, dtype)
        texts = format_decimals(array)
        back = np.array([float(text) for text in texts]).astype(dtype)
        np.testing.assert_array_equal(back, array)
        assert all(any(c in text for c in b".enN") or b"Inf" in text for text in texts)


def test_p18_range_of_floats(predict):
    body = '{"signature_name": "as_float", "inputs": [1e39, -1e39, 1e-50]}'
    assert predict(body) == (200, {"outputs": [math.inf, -math.inf, 0.0]})
    for number in ("1e309", "-1e400", "1" * 400):
        text = error_of(predict(f'{{"signature_name": "as_double", "inputs": {number}}}'))
        assert "Number too big to be stored in double." in text


def test_p19_binary(predict):
    text = {"signature_name": "text"}
    value = {"b64": base64.b64encode(b"\x00\xc3\xa91\x00").decode()}
    answer = predict({**text, "inputs": {"s": [value, "cd"]}})[1]
    assert answer["outputs"]["raw_bytes"] == [value, {"b64": "Y2Q="}]
    assert predict({**text, "instances": [{"b64": "YWI"}]})[1]["predictions"][0]["plain"] == "ab"
    assert predict({**text, "instances": [{"s": {"b64": "YWI="}}]})[0] == 200
    assert "Unable to base64 decode" in error_of(predict({**text, "inputs": {"s": {"b64": "*"}}}))
    two_keys = {"b64": "YWI=", "x": 1}
    assert "base64" in error_of(predict({**text, "inputs": {"s": [two_keys]}}))
    assert "not of expected type: float" in error_of(predict({"instances": [{"b64": "YWI="}]}))


def test_p20_strings_in_the_reply(call):
    body = b'{"signature_name": "text", "inputs": "\\u0001\\n\\"\xff\xc3\xa9"}'
    raw = call("POST", "/v1/models/m:predict", body)[2]
    assert b'"plain": "\\u0001\\n\\"\xff\xc3\xa9"' in raw
    b64 = base64.b64encode(b'\x01\n"\xff\xc3\xa9')
    assert b'"raw_bytes": {"b64": "' + b64 + b'"}' in raw


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float", [1.5, -2.0]), ("double", [1e300]), ("int8", [-128, 127]),
        ("int16", [-32768]), ("int32", [-(2**31), 2**31 - 1]), ("int64", [-(2**63), 2**63 - 1]),
        ("uint8", [255]), ("uint32", [2**32 - 1]), ("uint64", [2**64 - 1]), ("bool", [True, False]),
    ],
)  # fmt: skip
def test_p21_types(predict, dtype, values):
    body = {"signature_name": f"as_{dtype}"}
    assert predict({**body, "inputs": values}) == (200, {"outputs": values})
    assert predict({**body, "instances": values}) == (200, {"predictions": values})


@pytest.mark.parametrize("dtype", ["half", "bfloat16", "uint16", "complex64"])
def test_p21_types_that_json_cannot_carry(predict, dtype):
    body = {"signature_name": f"as_{dtype}"}
    inner = f"Conversion of JSON Value: 1.5 to type: {dtype}"
    assert error_of(predict({**body, "inputs": [1.5]}), 501) == inner
    text = error_of(predict({**body, "instances": [1.5]}))
    assert text == (
        f"Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: {inner}"
    )


def test_p22_outputs_that_are_no_rows(predict):
    text = error_of(predict({"signature_name": "shapes", "instances": [1, 2]}))
    assert "Tensor name: scalar has no shape information" in text
    text = error_of(predict({"signature_name": "uneven", "instances": [1, 2]}))
    assert "has inconsistent batch size" in text
    # One instance, three rows: the outputs need only agree with each other.
    answer = predict({"signature_name": "free", "inputs": [1, 2]})
    assert answer == (200, {"outputs": [1.0, 2.0]})


def test_p23_unknown_model_or_version(predict):
    rows = {"instances": [[1, 2]]}
    text = error_of(predict(rows, model="nobody"), 404)
    assert text == "Servable not found for request: Latest(nobody)"
    text = error_of(predict(rows, suffix="/versions/5"), 404)
    assert text == "Servable not found for request: Specific(m, 5)"
    assert predict(rows, suffix="/versions/123")[0] == 200
    assert "JSON Parse error" in error_of(predict(b"{", model="nobody"))
    assert error_of(predict({"instances": 3}, model="nobody"), 404)


def test_p24_unknown_label(predict):
    text = error_of(predict({"instances": [[1, 2]]}, suffix="/labels/l"))
    assert text == "Unrecognized servable version label: l"


def test_p25_shapes_are_checked_by_the_kernels_alone(predict):
    text = error_of(predict({"instances": [[1, 2, 3]]}))
    assert text.startswith("Matrix size-incompatible: In[0]: [1,3], In[1]: [2,3]")


def test_p27_timeout(predict):
    text = error_of(predict({"signature_name": "slow", "inputs": 1.0}), 504)
    assert "Timed out waiting for notification" in text


def test_other_verbs_are_not_served(call):
    for verb in ("classify", "regress"):
        status, _, body = call("POST", f"/v1/models/m:{verb}", b"{}")
        assert "call :predict" in error_of((status, json.loads(body)), 501)


def test_large_bodies_of_clients_that_wait_for_100_continue(server):
    """curl asks before it sends more than a kilobyte."""
    host, port = server.rest_address.split(":")
    body = json.dumps({"instances": [[1, 2]] * 500}).encode()
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    head, content = reply.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert f"Content-Length: {len(content)}".encode() in head
    assert len(json.loads(content)["predictions"]) == 500
