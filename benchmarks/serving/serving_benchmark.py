"""Measures serving: start-up, transports, and the gateway's latency split.

    python benchmarks/serving/serving_benchmark.py [--output benchmarks/serving/results.json]

The model is a small dot-product ranker, so that what is measured is serving and not the model:
history of 200 events with 4 fields, 1 to 500 candidates. Everything runs on loopback, model server
and gateway as processes of their own, one client that waits for each answer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from laser_features import FeatureSpec, build_model_inputs, history_fields, parse_rank_request
from seqvault import Schema, SeqVault

SEED = 1
T0 = 1_700_000_000_000
USERS, EVENTS, ITEMS = 200, 400, 5000
CANDIDATES = (1, 10, 100, 500)
SPEC = {
    "name": "bench",
    "history": {"max_length": 200},
    "tables": {
        "item": {"rows": ITEMS + 1, "width": 16, "ids": "direct"},
        "author": {"rows": 4096, "width": 8, "ids": "hash"},
        "scenario": {"rows": 16, "width": 4, "ids": "direct"},
        "duration": {"rows": 34, "width": 4, "ids": "direct"},
    },
    "event": {
        "item_id": {"type": "int64", "table": "item"},
        "scenario": {"type": "int8", "table": "scenario"},
    },
    "item": {
        "author_id": {"type": "int64", "table": "author"},
        "duration_ms": {"type": "int32", "table": "duration", "boundaries": [1000, 5000, 20000]},
    },
    "context": {"scenario": {"type": "int8", "table": "scenario"}},
    "label": {"click": {"type": "int8"}},
}


def main() -> int:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="benchmarks/serving/results.json")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["start", "transport", "gateway"],
        help="measure these, and keep the rest of the output as it is",
    )
    arguments = parser.parse_args()
    spec = FeatureSpec.from_dict(SPEC)
    output = Path(arguments.output)
    results: dict[str, Any] = {}
    if arguments.only and output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    wanted = arguments.only or ["start", "transport", "gateway"]
    results |= {"machine": describe_machine(), "seed": SEED, "command": " ".join(sys.argv)}
    if "start" in wanted:
        results["start"] = with_load(measure_imports)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"transport", "gateway"} & set(wanted):
            prepare(folder, spec)
        if "transport" in wanted:
            results["transport"] = with_load(measure_transports, folder, spec, arguments.repeats)
        if "gateway" in wanted:
            results["gateway"] = with_load(measure_gateway, folder, arguments.repeats)
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))
    return 0


def with_load(measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The measurement, with the machine's load before and after it."""
    before = os.getloadavg()[0]
    measured = measure(*arguments)
    return {"load_average": [round(before, 2), round(os.getloadavg()[0], 2)], **measured}


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    packages = ("tensorflow", "grpcio", "aiohttp", "protobuf", "numpy")
    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
        **{name: version(name) for name in packages},
    }


def measure_imports() -> dict[str, Any]:
    """Seconds and memory of a process that has what the gateway needs, and with TensorFlow."""
    code = (
        "import time, resource; t = time.perf_counter(); {imports}; "
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    measured = {}
    for name, imports in (
        ("gateway", "import serving.gateway.gateway"),
        (
            "gateway_with_tensorflow_serving_api",
            "import serving.gateway.gateway; import tensorflow_serving.apis.predict_pb2",
        ),
    ):
        runs = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", code.format(imports=imports)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds, kilobytes = done.stdout.split()
            runs.append((float(seconds), int(kilobytes)))
        measured[name] = {
            "import_seconds": round(sorted(runs)[1][0], 2),
            "memory_mib": round(sorted(runs)[1][1] / 1024),
        }
    return measured


def prepare(folder: Path, spec: FeatureSpec) -> None:
    """A store with histories and items, a SavedModel, and the feature spec's file."""
    import tensorflow as tf

    random = np.random.default_rng(SEED)
    store = SeqVault.open(str(folder / "store"), schema=Schema.from_arrow(spec.event_schema()))
    items = np.arange(ITEMS)
    store.put_items(
        {
            "item_id": items,
            "author_id": random.integers(0, 10**6, ITEMS),
            "duration_ms": random.integers(0, 60_000, ITEMS).astype(np.int32),
        }
    )
    store.append(
        {
            "user_id": np.repeat(np.arange(USERS), EVENTS),
            "timestamp": np.tile(T0 + 1000 * np.arange(EVENTS), USERS),
            "item_id": random.integers(0, ITEMS, USERS * EVENTS),
            "scenario": random.integers(0, 3, USERS * EVENTS).astype(np.int8),
        }
    )
    store.close()
    spec.save(folder / "features.yaml")
    table = tf.Variable(tf.random.stateless_normal([ITEMS + 1, 16], [SEED, 0], 0, 0.1))
    shapes = {"history": [None, spec.max_history], "candidate": [None, None], "request": [None]}
    signature = {
        entry.name: tf.TensorSpec(shapes[entry.kind], entry.dtype, name=entry.name)
        for entry in spec.model_inputs()
    }

    def score(**inputs: Any) -> dict[str, Any]:
        valid = tf.sequence_mask(inputs["history_length"], spec.max_history, tf.float32)
        history = tf.gather(table, inputs["history_item_id"]) * valid[..., None]
        candidates = tf.gather(table, inputs["candidate_item_id"])
        return {"probability": tf.sigmoid(tf.einsum("bld,bnd->bn", history, candidates))}

    module = tf.Module()
    module.table = table
    module.score = tf.function(score).get_concrete_function(**signature)
    tf.saved_model.save(
        module, str(folder / "ranker" / "1"), signatures={"serving_default": module.score}
    )


def start_server(folder: Path, command: list[str]) -> tuple[subprocess.Popen[bytes], dict]:
    """Start ``laser-serving`` and wait until it is ready."""
    ready = folder / f"{command[0]}.json"
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "serving.cli",
            *command,
            f"--ready_file={ready}",
            *_end_with_stdin(),
        ],
        stdin=subprocess.PIPE,  # a benchmark that is killed leaves no server behind
        stderr=subprocess.DEVNULL,
    )
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended with code {process.returncode}")
        time.sleep(0.05)
    return process, json.loads(ready.read_text())


def _end_with_stdin() -> list[str]:
    """The flag, where the code under test has it: an older checkout may not."""
    code = Path("serving/cli.py")
    lacks = code.exists() and "end_with_stdin" not in code.read_text(encoding="utf-8")
    return [] if lacks else ["--end_with_stdin"]


def start_model_server(folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], dict]:
    """The embedded model server on free ports."""
    return start_server(
        folder,
        [
            "model-server",
            "--port=auto",
            "--rest_api_port=auto",
            "--model_name=ranker",
            f"--model_base_path={folder / 'ranker'}",
            *flags,
        ],
    )


def start_gateway(
    folder: Path, model_server: str, features: Path
) -> tuple[subprocess.Popen[bytes], dict]:
    """The gateway on a free port, over the folder's store."""
    return start_server(
        folder,
        [
            "gateway",
            f"--store={folder / 'store'}",
            f"--features={features}",
            f"--model_server={model_server}",
            "--port=auto",
            "--deadline_ms=10000",
        ],
    )


def measure_transports(folder: Path, spec: FeatureSpec, repeats: int) -> dict[str, Any]:
    """One prediction over gRPC and over REST, the same arrays, in the same run."""
    from serving.gateway.model_client import ModelClient
    from serving.gateway.predict_messages import PredictRequest, add_tensor
    from serving.runtime.call import Call

    server, addresses = start_model_server(folder)
    store = SeqVault.open(str(folder / "store"), read_only=True)
    client = ModelClient(addresses["grpc"], "ranker")
    rest = HTTPConnection(*addresses["rest"].split(":"))
    measured: dict[str, Any] = {}
    try:
        for count in CANDIDATES:
            batch = parse_rank_request(spec, rank_request(0, count))
            history = store.read(
                batch.user_id, batch.time_ms, spec.max_history, fields=history_fields(spec)
            )
            inputs = build_model_inputs(spec, batch, history, store)
            message = PredictRequest()
            for name, array in inputs.items():
                add_tensor(message, name, array)
            body = json.dumps({"inputs": {name: a.tolist() for name, a in inputs.items()}})

            def over_rest(inputs: Any = inputs) -> None:
                body = json.dumps({"inputs": {name: a.tolist() for name, a in inputs.items()}})
                rest.request("POST", "/v1/models/ranker:predict", body)
                json.loads(rest.getresponse().read())

            def over_grpc(inputs: Any = inputs) -> None:
                client.predict(inputs, "probability", Call(10.0))

            times = interleave({"grpc": over_grpc, "rest": over_rest}, repeats)
            measured[f"candidates_{count}"] = {
                "rest_to_grpc_p50": round(times["rest"]["p50_ms"] / times["grpc"]["p50_ms"], 2),
                "grpc": {"request_bytes": message.ByteSize(), **times["grpc"]},
                "rest": {"request_bytes": len(body), **times["rest"]},
            }
    finally:
        client.close()
        store.close()
        server.terminate()
        server.wait()
    return measured


def measure_gateway(folder: Path, repeats: int) -> dict[str, Any]:
    """Rank requests over HTTP: what the client sees, and the gateway's own split."""
    server, addresses = start_model_server(folder)
    gateway, ready = start_gateway(folder, addresses["grpc"], folder / "features.yaml")
    connection = HTTPConnection(*ready["gateway"].split(":"))
    measured: dict[str, Any] = {}
    try:
        for count in CANDIDATES:
            splits: list[dict[str, float]] = []
            users = iter(range(10**9))

            def rank(count: int = count, splits: Any = splits, users: Any = users) -> None:
                body = json.dumps(rank_request(next(users) % USERS, count))
                connection.request("POST", "/v1/rank", body)
                answer = json.loads(connection.getresponse().read())
                if "latency" not in answer:
                    raise RuntimeError(f"the gateway answered {answer}")
                splits.append(answer["latency"])

            processes = {"gateway": gateway, "model_server": server}
            before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
            client = interleave({"client": rank}, repeats)["client"]
            cpu = {
                f"{name}_cpu_ms": round(
                    1e3 * (cpu_seconds(process.pid) - before[name]) / (repeats + 20), 3
                )
                for name, process in processes.items()
            }
            timed = splits[-repeats:]
            measured[f"candidates_{count}"] = {
                "client": client,
                "gateway_p50": {
                    name: round(float(np.median([split[name] for split in timed])), 3)
                    for name in timed[0]
                },
                "gateway_adds_p50_ms": round(
                    float(np.median([split["total_ms"] - split["model_ms"] for split in timed])), 3
                ),
                **cpu,
                "gateway_share_of_cpu": round(cpu["gateway_cpu_ms"] / sum(cpu.values()), 3),
            }
    finally:
        for process in (gateway, server):
            process.terminate()
            process.wait()
    return measured


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rank_request(user: int, count: int) -> dict[str, Any]:
    """A request of the gateway's API; the same user gets the same candidates."""
    items = np.random.default_rng([SEED, user]).integers(0, ITEMS, count)
    return {
        "user_id": user,
        "time_ms": T0 + 1000 * EVENTS,
        "candidates": items.tolist(),
        "context": {"scenario": 1},
    }


def interleave(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each call, taken in turns, after 20 that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 20):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - started))
    return {
        name: {
            "p50_ms": round(float(np.percentile(taken[20:], 50)), 3),
            "p99_ms": round(float(np.percentile(taken[20:], 99)), 3),
        }
        for name, taken in times.items()
    }


if __name__ == "__main__":
    sys.exit(main())
