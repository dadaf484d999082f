"""Tiny models and stores, and processes that serve them."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import tensorflow as tf

from laser_features import FeatureSpec
from seqvault import Schema, SeqVault
from serving.gateway.gateway import Gateway
from serving.gateway.model_client import ModelClient
from serving.gateway.options import Rules
from serving.runtime.http_server import HttpServer
from serving.runtime.loop_thread import LoopThread

REPOSITORY = Path(__file__).resolve().parents[2]
SPEC = {
    "name": "tiny",
    "history": {"max_length": 4},
    "tables": {
        "item": {"rows": 100, "width": 4, "ids": "direct"},
        "author": {"rows": 50, "width": 4, "ids": "direct"},
        "scenario": {"rows": 8, "width": 2, "ids": "direct"},
        "tag": {"rows": 16, "width": 2, "ids": "vocabulary"},
        "length": {"rows": 6, "width": 2, "ids": "direct"},
        "position": {"rows": 20, "width": 2, "ids": "direct"},
    },
    "event": {
        "item_id": {"type": "int64", "table": "item"},
        "scenario": {"type": "int8", "table": "scenario"},
    },
    "item": {
        "author_id": {"type": "int64", "table": "author"},
        "tag": {"type": "int64", "table": "tag"},
        "length_ms": {"type": "int32", "table": "length", "quantiles": 4},
    },
    "user": {"user_id": {"type": "int64", "table": "item"}},
    "context": {"scenario": {"type": "int8", "table": "scenario"}},
    "candidate": {"position": {"type": "int8", "table": "position"}},
    "label": {"click": {"type": "int8"}},
}
T0 = 1_700_000_000_000


class Basic(tf.Module):
    """One input, one output; 2 in, 3 out."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.ones([2, 3]) * scale)

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def one(self, x):
        return {"y": tf.matmul(x, self.kernel)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.float32, name="a"),
            tf.TensorSpec([None], tf.int64, name="b"),
        ]
    )
    def two(self, a, b):
        return {"sum": tf.reduce_sum(a, 1) + tf.cast(b, tf.float32), "twice": 2 * b}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
    def free(self, x):
        return {"y": tf.identity(x)}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.string, name="s")])
    def text(self, s):
        return {"plain": tf.identity(s), "raw_bytes": tf.identity(s)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def shapes(self, x):
        return {"scalar": tf.reduce_sum(x), "row": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def uneven(self, x):
        return {"short": x[:1], "row": x}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def slow(self, x):
        return {
            "y": tf.while_loop(
                lambda i, v: i < 1_000_000_000, lambda i, v: (i + 1, v * 0.5), [0, x]
            )[1]
        }


DTYPES = {
    "float": tf.float32, "double": tf.float64, "int8": tf.int8, "int16": tf.int16,
    "int32": tf.int32, "int64": tf.int64, "uint8": tf.uint8, "uint32": tf.uint32,
    "uint64": tf.uint64, "bool": tf.bool, "half": tf.float16, "bfloat16": tf.bfloat16,
    "uint16": tf.uint16, "complex64": tf.complex64,
}  # fmt: skip


def save_basic(path: Path, scale: float = 1.0) -> Path:
    """Write a version directory by rename, as a careful publisher does."""
    module = Basic(scale)
    signatures = {
        "serving_default": module.one, "two": module.two, "free": module.free,
        "text": module.text, "shapes": module.shapes, "uneven": module.uneven,
        "slow": module.slow,
    }  # fmt: skip
    for name, dtype in DTYPES.items():
        identity = tf.function(
            lambda x: {"y": tf.identity(x)},
            input_signature=[tf.TensorSpec(None, dtype, name="x")],
        )
        setattr(module, f"as_{name}", identity)
        signatures[f"as_{name}"] = identity
    temporary = path.with_name(f".{path.name}.writing")
    tf.saved_model.save(module, str(temporary), signatures=signatures)
    temporary.rename(path)
    return path


class TinyRanker(tf.Module):
    """Scores a candidate by how often its item is in the history."""

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        shapes = {
            "history": [None, spec.max_history],
            "candidate": [None, None],
            "request": [None],
        }
        names = {
            model_input.name: tf.TensorSpec(
                shapes[model_input.kind], model_input.dtype, name=model_input.name
            )
            for model_input in spec.model_inputs()
        }

        def score(**inputs):
            candidates = inputs["candidate_item_id"]
            same = candidates[:, :, None] == inputs["history_item_id"][:, None, :]
            valid = tf.sequence_mask(inputs["history_length"], spec.max_history)[:, None]
            matches = tf.reduce_sum(tf.cast(same & valid, tf.float32), -1)
            return {
                "probability": tf.sigmoid(
                    matches - 1 + 0.01 * tf.cast(inputs["candidate_position"], tf.float32)
                )
            }

        self.score = tf.function(score).get_concrete_function(**names)


def save_ranker(path: Path, spec: FeatureSpec) -> Path:
    """Write a version directory of ``TinyRanker``."""
    module = TinyRanker(spec)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.score})
    return path


def make_store(path: Path, spec: FeatureSpec) -> Path:
    """A store with items 0 to 19, without events."""

    vault = SeqVault.open(str(path), schema=Schema.from_arrow(spec.event_schema()))
    items = np.arange(20)
    vault.put_items(
        {
            "item_id": items,
            "author_id": items % 5,
            "tag": items % 3,
            "length_ms": (items * 1000).astype(np.int32),
        }
    )
    vault.close()
    return path


class Client:
    """A gateway's HTTP client."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body=None, headers=None) -> tuple[int, dict]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        json_type = response.getheader("Content-Type", "").startswith("application/json")
        return response.status, json.loads(content) if json_type else content.decode()

    def rank(self, **content) -> tuple[int, dict]:
        return self.call("POST", "/v1/rank", content)

    def append(self, *events) -> tuple[int, dict]:
        return self.call("POST", "/v1/events", {"events": events})


def run_gateway(
    spec,
    store,
    address,
    deadline_seconds=20.0,
    model_name="ranker",
    merge=None,
    impressions=None,
    **rules,
):
    """Serve a gateway from a thread; yields its client."""
    model = address if hasattr(address, "predict") else ModelClient(address, model_name)
    loop = LoopThread("gateway")
    loop.start()
    made = Rules(deadline_seconds=deadline_seconds, **{"threads": 2, **rules})

    async def start():
        gateway = Gateway(spec, store, model, made, merge, impressions)
        http = HttpServer(
            gateway.answer,
            "127.0.0.1",
            0,
            body_seconds=made.body_seconds,
            parking=gateway.parking(),
        )
        gateway.watch(http)
        port = await http.start()
        gateway.start()
        return gateway, http, port

    gateway, http, port = loop.run(start())
    client = Client(port)
    client.gateway, client.http, client.loop = gateway, http, loop
    yield client
    loop.run(http.stop(5.0))
    gateway.close()
    loop.stop()
    model.close()


@contextlib.contextmanager
def running(command: list[str], ready: Path, seconds: float = 90) -> Iterator[tuple[dict, object]]:
    """Start ``python -m serving.cli``, wait for its ready file, stop it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.cli", *command, f"--ready_file={ready}"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: ready.exists() or process.poll() is not None, seconds)
        assert process.poll() is None, process.stdout.read()
        yield json.loads(ready.read_text()), process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Poll until the condition holds; fails after the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
