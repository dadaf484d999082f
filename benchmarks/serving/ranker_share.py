"""The gateway's share of a request's processor time in front of a LASER ranker.

    python -m benchmarks.serving.ranker_share --output benchmarks/serving/ranker_share_results.json

``serving_benchmark.py`` divides by a dot product, the smallest model there is. Here the model is
the one that ``make demo`` trains, with the demo's feature spec, over histories of 1,000 events; its
weights are those it starts with, which cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from http.client import HTTPConnection
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.serving.serving_benchmark import (
    cpu_seconds,
    describe_machine,
    interleave,
    start_gateway,
    start_model_server,
)

SEED = 1
SIZES = {"users": 100, "min_events": 1500, "max_events": 2000, "requests": 500}
CANDIDATES = (10, 100)


def main() -> int:
    """Prepare, serve, ask, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": "python -m benchmarks.serving.ranker_share " + " ".join(sys.argv[1:]),
        "machine": describe_machine(),
        "seed": SEED,
        "sizes": SIZES,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        users, context = prepare_ranker(folder)
        result["ranks"] = measure(folder, users, context, arguments.repeats)
    Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["ranks"], indent=2))
    return 0


def prepare_ranker(folder: Path) -> tuple[list[int], dict[str, Any]]:
    """Log, store and exported model below a folder; returns users and a request's context."""
    import pyarrow.parquet as pq

    from tfx_pipeline.config import load_config
    from tfx_pipeline.datasets import GeneratorSettings, prepare
    from tfx_pipeline.load_store import load_store
    from tfx_pipeline.training.content_vectors import content_vectors
    from tfx_pipeline.training.row_lookup import RowLookup
    from tfx_pipeline.training.trainer import Trainer

    data, store = folder / "data", folder / "store"
    prepare(None, data, generator=GeneratorSettings(**SIZES, seed=SEED))
    load_store(data, store)
    config = load_config("demo", data, store, folder / "work", {})
    spec = config.load_spec()
    items = pq.read_table(data / "items.parquet")
    limits = {
        each.field.name: np.quantile(
            items[each.field.name].to_numpy(), np.linspace(0, 1, each.field.quantiles + 1)[1:-1]
        ).astype(np.float32)
        for each in spec.model_inputs()
        if each.field is not None and each.transform == "quantiles"
    }
    lookup = RowLookup(boundaries=limits)
    content = content_vectors(spec, data / "items.parquet", lookup)
    trainer = Trainer(spec, config.model, config.training, lookup, content)
    trainer.export(str(folder / "ranker" / "1"))
    impressions = pq.read_table(data / "impressions.parquet")
    given = [name for name in spec.context_fields if name in impressions.column_names]
    context = {name: impressions[name][0].as_py() for name in given}
    return np.unique(impressions["user_id"].to_numpy()).tolist(), context


def measure(
    folder: Path, users: list[int], context: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Rank by number of candidates: the client's latency, and each process's CPU per request."""
    server, addresses = start_model_server(folder)
    gateway, ready = start_gateway(folder, addresses["grpc"], folder / "data" / "features.yaml")
    connection = HTTPConnection(*ready["gateway"].split(":"))
    rng, asked = np.random.default_rng(SEED), cycle(users)
    processes = {"gateway": gateway, "model_server": server}
    measured: dict[str, Any] = {}
    try:
        for count in CANDIDATES:

            def rank(count: int = count) -> None:
                items = rng.integers(0, 20_000, count).tolist()
                request = {"user_id": next(asked), "candidates": items, "context": context}
                connection.request("POST", "/v1/rank", json.dumps(request))
                answer = json.loads(connection.getresponse().read())
                if "latency" not in answer:
                    raise RuntimeError(f"the gateway answered {answer}")

            before = {name: cpu_seconds(process.pid) for name, process in processes.items()}
            client = interleave({"client": rank}, repeats)["client"]
            cpu = {
                name: 1e3 * (cpu_seconds(process.pid) - before[name]) / (repeats + 20)
                for name, process in processes.items()
            }
            measured[f"candidates_{count}"] = {
                "load_average": os.getloadavg()[0],
                "client": client,
                **{f"{name}_cpu_ms": round(each, 2) for name, each in cpu.items()},
                "gateway_share_of_cpu": round(cpu["gateway"] / sum(cpu.values()), 3),
            }
    finally:
        for process in (gateway, server):
            process.terminate()
            process.wait()
    return measured


if __name__ == "__main__":
    raise SystemExit(main())
