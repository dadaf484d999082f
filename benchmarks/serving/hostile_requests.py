"""Requests that mean harm, one function a kind; each returns what came back, or raises."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

import grpc

from serving.gateway.predict_messages import PredictRequest

if TYPE_CHECKING:
    from held_connections import HeldConnections

_SECONDS = 15.0
_BOMB = gzip.compress(b"[" + b"1," * 20_000_000 + b"1]", 1)
_WIDE = b'{"candidates": [' + b"[]," * 300_000 + b"[]]}"
_LONG = b'{"candidates": [' + b"1.5," * 250_000 + b"1]}"
_MANY = json.dumps({"user_id": 1, "candidates": [1] * 50_000})
_TOO_LONG = b"x" * (3 * 2**20)
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RANK = '{"user_id": 1, "candidates": [3, 5, 8]}'
Kinds = dict[str, Callable[[random.Random], object]]


class _Caller:
    """Posts to one address; each thread keeps its connection for as long as the server does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._mine = threading.local()

    def post(self, path: str, body: object, headers: dict[str, str]) -> int:
        """The answer's status."""
        kept: HTTPConnection | None = getattr(self._mine, "connection", None)
        if kept is not None and kept.sock is not None:
            try:
                return _post(kept, path, body, headers)
            except (OSError, HTTPException):
                kept.close()  # ended in the meantime, or by this request: a new one tells
        self._mine.connection = HTTPConnection(self._address, timeout=_SECONDS)
        return _post(self._mine.connection, path, body, headers)


def _post(connection: HTTPConnection, path: str, body: object, headers: dict[str, str]) -> int:
    try:
        connection.request("POST", path, body, headers)  # type: ignore[arg-type]
        response = connection.getresponse()
        response.read()
    except (OSError, HTTPException):
        connection.close()
        raise
    return response.status


def http_kinds(address: str, path: str, server: str, held: HeldConnections) -> Kinds:
    """What an HTTP port can be sent.

    Args:
        address: ``host:port``.
        path: Where good requests go.
        server: For the names of connections that are held.
        held: Holds half-open ones.
    """
    caller = _Caller(address)

    def post(body: object, headers: dict[str, str] | None = None, to: str = path) -> int:
        return caller.post(to, body, headers or {})

    def raw(data: bytes, wait: bool = False) -> bytes:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=_SECONDS) as connection:
            connection.sendall(data)
            return connection.recv(4096) if wait else b""

    def hold(name: str, begun: bytes, drip: bytes = b"") -> None:
        held.hold(f"{server}.{name}", address, begun, drip)

    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode()
    half = head + b"Content-Length: 1000\r\n\r\n{"
    zipped = {"Content-Encoding": "gzip"}
    return {
        "not_gzip": lambda r: post(r.randbytes(200), zipped),
        "gzip_bomb": lambda r: post(_BOMB, zipped),
        "half_gzip": lambda r: post(_BOMB[: r.randrange(20, 2000)], zipped),
        "half_body": lambda r: raw(half),
        "half_head": lambda r: raw(head[: r.randrange(1, len(head))]),
        "held_body": lambda r: hold("held_body", half),
        "held_head": lambda r: hold("held_head", head[: r.randrange(1, len(head))]),
        "slow_body": lambda r: hold("slow_body", half, b"1"),
        "slow_head": lambda r: hold("slow_head", head, b"a: b\r\n"),
        "no_http": lambda r: raw(r.randbytes(300) + b"\r\n\r\n", wait=True),
        "huge_length": lambda r: raw(head + b"Content-Length: 999999999999\r\n\r\n", wait=True),
        "hang_up": lambda r: raw(head + f"Content-Length: {len(RANK)}\r\n\r\n{RANK}".encode()),
        "deep_json": lambda r: post("[" * r.randrange(1000, 100_000)),
        "wide_json": lambda r: post(_WIDE),
        "long_json": lambda r: post(_LONG),
        "no_json": lambda r: post(r.randbytes(r.randrange(1, 500))),
        "wrong_types": lambda r: post(json.dumps({"user_id": [], "candidates": {"a": 1}})),
        "too_many": lambda r: post(_MANY),
        "negative": lambda r: post(json.dumps({"user_id": 1, "candidates": [-r.randrange(1, 99)]})),
        "far_time": lambda r: post(
            json.dumps({"user_id": 1, "candidates": [1], "time_ms": 95_617_584_000_000})
        ),
        "no_path": lambda r: post("{}", to=f"/{r.randrange(10**9)}"),
        "too_long": lambda r: post(_TOO_LONG),
    }


def grpc_kinds(
    channel: grpc.Channel, address: str, ordinary: bytes, held: HeldConnections
) -> Kinds:
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

    def half_preface(r: random.Random) -> None:
        held.hold("grpc.half_preface", address, _PREFACE[: r.randrange(1, len(_PREFACE))])

    return {
        "expanding": lambda r: predict(expanding, timeout=_SECONDS),
        "no_message": lambda r: predict(r.randbytes(r.randrange(1, 500)), timeout=_SECONDS),
        "cut": lambda r: predict(cut(r), timeout=_SECONDS),
        "changed": lambda r: predict(changed(r), timeout=_SECONDS),
        "no_time": lambda r: predict(ordinary, timeout=0.0005),
        "abandoned": abandoned,
        "no_method": lambda r: channel.unary_unary("/a.B/C")(b"x", timeout=_SECONDS),
        "large": lambda r: predict(b"\x12" * 2_000_000, timeout=_SECONDS),
        "half_preface": half_preface,
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
