"""Requests that mean harm, one function a kind; each returns what came back, or raises."""

from __future__ import annotations

import gzip
import json
import random
import socket
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException

import grpc

from serving.gateway.predict_messages import PredictRequest

_SECONDS = 15.0
_BOMB = gzip.compress(b"[" + b"1," * 20_000_000 + b"1]", 1)
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
RANK = '{"user_id": 1, "candidates": [3, 5, 8]}'


def http_kinds(address: str, path: str) -> dict[str, Callable[[random.Random], object]]:
    """What an HTTP port can be sent."""

    def post(body: object, headers: dict[str, str] | None = None, to: str = path) -> int:
        host, port = address.split(":")
        connection = HTTPConnection(host, int(port), timeout=_SECONDS)
        try:
            connection.request("POST", to, body, headers or {})  # type: ignore[arg-type]
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def raw(data: bytes, wait: bool = False) -> bytes:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
            connection.sendall(data)
            return connection.recv(4096) if wait else b""

    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    zipped = {"Content-Encoding": "gzip"}
    return {
        "not_gzip": lambda r: post(r.randbytes(200), zipped),
        "gzip_bomb": lambda r: post(_BOMB, zipped),
        "half_gzip": lambda r: post(_BOMB[: r.randrange(20, 2000)], zipped),
        "half_body": lambda r: raw(head + b"Content-Length: 1000\r\n\r\n{"),
        "half_head": lambda r: raw(head[: r.randrange(1, len(head))]),
        "no_http": lambda r: raw(r.randbytes(300) + b"\r\n\r\n", wait=True),
        "huge_length": lambda r: raw(head + b"Content-Length: 999999999999\r\n\r\n", wait=True),
        "hang_up": lambda r: raw(head + f"Content-Length: {len(RANK)}\r\n\r\n{RANK}".encode()),
        "deep_json": lambda r: post("[" * r.randrange(1000, 100_000)),
        "wide_json": lambda r: post(b'{"candidates": [' + b"[]," * 300_000 + b"[]]}"),
        "long_json": lambda r: post(b'{"candidates": [' + b"1.5," * 250_000 + b"1]}"),
        "no_json": lambda r: post(r.randbytes(r.randrange(1, 500))),
        "wrong_types": lambda r: post(json.dumps({"user_id": [], "candidates": {"a": 1}})),
        "too_many": lambda r: post(json.dumps({"user_id": 1, "candidates": [1] * 50_000})),
        "negative": lambda r: post(json.dumps({"user_id": 1, "candidates": [-r.randrange(1, 99)]})),
        "far_time": lambda r: post(
            json.dumps({"user_id": 1, "candidates": [1], "time_ms": 95_617_584_000_000})
        ),
        "no_path": lambda r: post("{}", to=f"/{r.randrange(10**9)}"),
        "too_long": lambda r: post(b"x" * (3 * 2**20)),
    }


def grpc_kinds(
    channel: grpc.Channel, ordinary: bytes
) -> dict[str, Callable[[random.Random], object]]:
    """What a gRPC port can be sent; ``ordinary`` is a good PredictRequest."""
    predict = channel.unary_unary(_PREDICT)
    expanding = expand(ordinary)

    def cut(r: random.Random) -> bytes:
        return ordinary[: r.randrange(1, len(ordinary))]

    def changed(r: random.Random) -> bytes:
        at = r.randrange(len(ordinary))
        return ordinary[:at] + r.randbytes(1) + ordinary[at + 1 :]

    def abandoned(r: random.Random) -> None:
        call = predict.future(ordinary, timeout=_SECONDS)
        call.cancel()

    return {
        "expanding": lambda r: predict(expanding, timeout=_SECONDS),
        "no_message": lambda r: predict(r.randbytes(r.randrange(1, 500)), timeout=_SECONDS),
        "cut": lambda r: predict(cut(r), timeout=_SECONDS),
        "changed": lambda r: predict(changed(r), timeout=_SECONDS),
        "no_time": lambda r: predict(ordinary, timeout=0.0005),
        "abandoned": abandoned,
        "no_method": lambda r: channel.unary_unary("/a.B/C")(b"x", timeout=_SECONDS),
        "large": lambda r: predict(b"\x12" * 2_000_000, timeout=_SECONDS),
    }


def expand(ordinary: bytes) -> bytes:
    """The request with a tensor of 2^31 elements, in the short form that has one value."""
    request = PredictRequest.FromString(ordinary)
    name = next(iter(sorted(request.inputs)))
    tensor = request.inputs[name]
    tensor.ClearField("tensor_content")
    tensor.ClearField("tensor_shape")
    tensor.tensor_shape.dim.add(size=2**31)
    tensor.int_val.append(1)
    return request.SerializeToString()


EXPECTED = (OSError, HTTPException, grpc.RpcError)
