"""Overload, swap, drain and start of gateway and model server, run as processes on loopback.

    python benchmarks/serving/load_benchmark.py [--output benchmarks/serving/load_results.json]

* overload: answers in time per second with 4 and with 64 clients who hang up after 0.3 s, and how
  long a lone request takes after the burst;
* swap: new versions while clients rank, with the warm-up requests that the pipeline pushes;
* beside: a second model's versions load again and again while clients rank with the first;
* drain: SIGTERM while clients with kept connections rank;
* start: seconds until both ports are open.

``--code FOLDER`` runs the servers of another checkout, for a comparison side by side; what it does
not have is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from load import Load
from serving_benchmark import (
    SEED,
    SPEC,
    USERS,
    describe_machine,
    prepare,
    rank_request,
    start_model_server,
    start_server,
)

from laser_features import FeatureSpec

_PATIENCE_SECONDS = 0.3
# Far beyond the gateway's own deadline of one second, which must answer first.
_SWAP_PATIENCE_SECONDS = 5.0
_CANDIDATES = 100


def main() -> int:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="benchmarks/serving/load_results.json")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument(
        "--answers",
        type=int,
        default=0,
        help="of the swaps: so many in all, as many before the first as after each",
    )
    parser.add_argument("--code", default="", help="checkout whose servers are run")
    parser.add_argument("--append", action="store_true", help="to the runs in the output")
    parser.add_argument("--only", choices=["overload", "swap", "beside", "drain"], default=None)
    arguments = parser.parse_args()
    output = Path(arguments.output).resolve()
    if arguments.code:
        os.chdir(arguments.code)  # ``python -m`` looks there before anywhere else
    spec = FeatureSpec.from_dict(SPEC)
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "seed": SEED,
        "command": command(),
        "commit": commit_of(arguments.code or "."),
    }
    runs = read_runs(output) if arguments.append else None
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), spec)
        write_warm_up(Path(folder), spec)
        for name, measure in (
            ("overload", measure_overload),
            ("swap", measure_swap),
            ("beside", measure_beside),
            ("drain", measure_drain),
        ):
            if arguments.only in (None, name):
                load_before = round(os.getloadavg()[0], 2)
                measured = measure(Path(folder), arguments)
                result[name] = {"load_average_before": load_before, **measured}
                print(name, json.dumps(result[name]), flush=True)
                whole = result if runs is None else {"runs": [*runs, result]}
                output.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return 0


def command() -> str:
    """How to run this again; folders of this machine are left out."""
    wanted = [a for a in sys.argv[1:] if not a.startswith(("--code=", "--output="))]
    return " ".join(["benchmarks/serving/load_benchmark.py", *wanted])


def commit_of(folder: str) -> str:
    """The commit that is checked out there, ``+`` if files differ from it."""
    git = ["git", "-C", folder, "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Those of an earlier file."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def write_warm_up(folder: Path, spec: FeatureSpec) -> None:
    """Requests that the model server runs first, as the pipeline's ServingCheck writes them."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    from laser_features import build_model_inputs, history_fields, parse_rank_request
    from seqvault import SeqVault

    path = folder / "ranker" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    with (
        SeqVault.open(str(folder / "store"), read_only=True) as store,
        tf.io.TFRecordWriter(str(path)) as writer,
    ):
        for count in (1, 10, _CANDIDATES, 500):
            batch = parse_rank_request(spec, rank_request(0, count))
            history = store.read(
                batch.user_id, batch.time_ms, spec.max_history, fields=history_fields(spec)
            )
            request = predict_pb2.PredictRequest(output_filter=["probability"])
            request.model_spec.name = "ranker"
            for name, array in build_model_inputs(spec, batch, history, store).items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())


class Servers:
    """Both servers, started and timed."""

    def __init__(self, folder: Path, *model_flags: str) -> None:
        started = time.perf_counter()
        self.model_server, addresses = start_model_server(folder, *model_flags)
        self.model_server_seconds = time.perf_counter() - started
        started = time.perf_counter()
        self.gateway, ready = start_server(
            folder,
            ["gateway", f"--store={folder / 'store'}", f"--features={folder / 'features.yaml'}",
             f"--model_server={addresses['grpc']}", "--port=auto"],
        )  # fmt: skip
        self.gateway_seconds = time.perf_counter() - started
        self.address = ready["gateway"]

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.gateway, self.model_server):
            process.terminate()
            process.wait()


def start_load(address: str, clients: int, patience: float) -> Load:
    bodies = [json.dumps(rank_request(user, _CANDIDATES)) for user in range(USERS)]
    return Load(address, clients, patience, bodies)


def measure_overload(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with Servers(folder) as servers:
        ask_once(servers.address)
        measured: dict[str, Any] = {
            "start_seconds": {
                "model_server": round(servers.model_server_seconds, 2),
                "gateway": round(servers.gateway_seconds, 2),
            }
        }
        for clients in (4, 64):
            load = start_load(servers.address, clients, _PATIENCE_SECONDS)
            time.sleep(arguments.seconds)
            load.stop()
            measured[f"clients_{clients}"] = {
                "goodput_per_second": round(load.statuses["200"] / arguments.seconds, 1),
                "statuses": dict(load.statuses),
                **percentiles([taken for _, _, taken in load.answers]),
            }
            lone = [ask_once(servers.address) for _ in range(11)]
            measured[f"lone_request_after_{clients}_ms"] = {
                "first": lone[0],
                "median_of_10_more": float(np.median(lone[1:])),
            }
    calm, storm = (measured[f"clients_{n}"]["goodput_per_second"] for n in (4, 64))
    measured["goodput_ratio_64_to_4"] = round(storm / calm, 3) if calm else None
    return measured


def measure_swap(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with Servers(folder) as servers:
        ask_once(servers.address)
        load = start_load(servers.address, 2, _SWAP_PATIENCE_SECONDS)
        share = -(-arguments.answers // (arguments.swaps + 1))
        wait_for_answers(load, share, arguments.seconds)
        began = time.perf_counter()
        swaps: list[tuple[float, float]] = []
        for version in range(2, 2 + arguments.swaps):
            published = time.perf_counter()
            publish(folder / "ranker", version)
            wait_for_version(servers.address, version)
            swaps.append((published, time.perf_counter()))
            tell = f"version {version} is served, {len(load.answers)} answers"
            print(tell, dict(load.statuses), flush=True)
            wait_for_answers(load, share * version, 0.5)
        load.stop()
    answered = [version for version, _, _ in load.answers]
    within = [
        taken
        for _, at, taken in load.answers
        if any(start <= at + taken and at <= end for start, end in swaps)
    ]
    result = {
        "swaps": arguments.swaps,
        "answers": len(answered),
        "versions_answered": len(set(answered)),
        "statuses": dict(load.statuses),
        "longest_answer_ms": round(1e3 * max(taken for _, _, taken in load.answers), 1),
        "deadline_ms": 1000,
        **before_and_during(load, began),
        "within_swaps": {"answers": len(within), **percentiles(within)},
    }
    result["p99_ratio_within_swaps"] = round(
        result["within_swaps"]["p99_ms"] / result["before"]["p99_ms"], 2
    )
    return result


def wait_for_answers(load: Load, number: int, seconds: float) -> None:
    """Until so many are there in all, but at least so long."""
    time.sleep(seconds)
    while len(load.answers) < number:
        time.sleep(0.05)


def measure_beside(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    shutil.copytree(folder / "ranker", folder / "other")
    models = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}\n'
        for name in ("ranker", "other")
    )
    config = folder / "models.config"
    config.write_text(f"model_config_list {{\n{models}}}\n", encoding="utf-8")
    with Servers(folder, f"--model_config_file={config}") as servers:
        ask_once(servers.address)
        load = start_load(servers.address, 2, 5.0)
        time.sleep(arguments.seconds)
        began = time.perf_counter()
        last = max(int(path.name) for path in (folder / "other").iterdir())
        loads = max(5, arguments.swaps // 2)
        for version in range(last + 1, last + 1 + loads):
            publish(folder / "other", version)
            time.sleep(2.0)  # a second until it is found, and time to load
        load.stop()
    return {"loads": loads, "statuses": dict(load.statuses), **before_and_during(load, began)}


def publish(base: Path, version: int) -> None:
    """The first version again, under another number."""
    hidden = base / f".{version}"
    shutil.copytree(base / "1", hidden)
    hidden.rename(base / str(version))


def wait_for_version(address: str, version: int) -> None:
    """Until the gateway's answers name it."""
    end = time.monotonic() + 120
    while rank_once(address)["model_version"] != version:
        if time.monotonic() > end:
            raise RuntimeError(f"version {version} was not served within two minutes")
        time.sleep(0.1)


def before_and_during(load: Load, began: float) -> dict[str, Any]:
    before = percentiles([taken for _, at, taken in load.answers if at < began])
    during = percentiles([taken for _, at, taken in load.answers if at >= began])
    return {
        "before": before,
        "during": during,
        "p99_ratio": round(during["p99_ms"] / before["p99_ms"], 2),
    }


def measure_drain(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with Servers(folder) as servers:
        ask_once(servers.address)
        load = start_load(servers.address, 4, 5.0)
        time.sleep(2.0)
        before = Counter(load.statuses)
        started = time.perf_counter()
        servers.gateway.terminate()
        servers.gateway.wait()
        seconds = time.perf_counter() - started
        load.stop()
    # Clients come back to a closed port here; behind a balancer they would go elsewhere.
    return {"seconds": round(seconds, 2), "statuses": dict(load.statuses - before)}


def ask_once(address: str) -> float:
    """Milliseconds of one request."""
    started = time.perf_counter()
    rank_once(address)
    return round(1e3 * (time.perf_counter() - started), 1)


def rank_once(address: str) -> dict[str, Any]:
    """The answer to one request."""
    connection = HTTPConnection(address, timeout=60)
    connection.request("POST", "/v1/rank", json.dumps(rank_request(0, _CANDIDATES)))
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"the gateway answered {response.status}: {answer}")
    return answer


def percentiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        f"p{level}_ms": round(1e3 * float(np.percentile(seconds, level)), 2) for level in (50, 99)
    }


if __name__ == "__main__":
    sys.exit(main())
