"""Hostile and ordinary load together: peak memory, and whether it stays flat.

    python benchmarks/serving/soak.py --requests 100000     # peak memory, against ordinary load
    python benchmarks/serving/soak.py --minutes 30          # flat memory

Exit code 1 if a bound is missed: a peak of more than 1.2 times that of ordinary load, memory that
grows by more than 5% between the first and the last third, a server that died, a hostile request
that was answered with a fault of the server's own, a half-open connection that was not ended, an
ordinary request that failed in any other way than by being refused by rule, or fewer than half of
them answered (memory of servers that answer nothing shows nothing).

By rule are 503 (too much waits) and 504 not before the deadline: where the machine has no time for
a request, the gateway must say so then. How many there were depends on the machine, so they are
reported and not judged; a 504 before the deadline is a fault.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from held_connections import HeldConnections
from hostile_requests import EXPECTED, Kinds, grpc_kinds, http_kinds
from serving_benchmark import (
    SEED,
    SPEC,
    describe_machine,
    prepare,
    rank_request,
    start_model_server,
    start_server,
)

from laser_features import FeatureSpec, build_model_inputs, history_fields, parse_rank_request
from seqvault import SeqVault
from serving.gateway.predict_messages import PredictRequest, add_tensor

_PEAK_RATIO = 1.2
_GROWTH = 1.05
_SAMPLE_SECONDS = 5.0
_DEADLINE_SECONDS = 5.0
# The kernel tells when a byte came to a few milliseconds.
_CLOCK_SECONDS = 0.05
_LEAST_ANSWERED = 0.5
# What a server says of its own faults.
_FAULTS = ("500", "INTERNAL", "UNKNOWN", "DATA_LOSS", "still open")
_TOLD_EVERY = 5000


def main(argv: list[str] | None = None) -> int:
    """Run one of the two and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=0, help="hostile ones, for peak memory")
    parser.add_argument("--minutes", type=float, default=0.0, help="of mixed load")
    parser.add_argument("--threads", type=int, default=8, help="clients of each load")
    parser.add_argument("--output", default="")
    arguments = parser.parse_args(argv)
    command = " ".join(["benchmarks/serving/soak.py", *(sys.argv[1:] if argv is None else argv)])
    result: dict[str, Any] = {"machine": describe_machine(), "seed": SEED, "command": command}
    result["clients"] = arguments.threads
    with tempfile.TemporaryDirectory() as folder, Servers(Path(folder)) as servers:
        if arguments.requests:
            result["peak"] = measure_peak(servers, arguments.requests, arguments.threads)
        if arguments.minutes:
            result["soak"] = measure_soak(servers, 60 * arguments.minutes, arguments.threads)
    result["load_average_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps(result, indent=2)
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
    print(text)
    missed = [name for part in ("peak", "soak") for name in result.get(part, {}).get("missed", ())]
    print(f"missed: {missed}" if missed else "every bound held")
    return 1 if missed else 0


class Servers:
    """Gateway and model server as processes of their own, and what they can be sent."""

    def __init__(self, folder: Path) -> None:
        spec = FeatureSpec.from_dict(SPEC)
        prepare(folder, spec)
        ordinary = predict_request(folder, spec)
        self.model_server, addresses = start_model_server(folder)
        self.gateway, ready = start_server(
            folder,
            ["gateway", f"--store={folder / 'store'}", f"--features={folder / 'features.yaml'}",
             f"--model_server={addresses['grpc']}", "--port=auto", "--drain_seconds=0",
             f"--deadline_ms={1e3 * _DEADLINE_SECONDS:.0f}"],
        )  # fmt: skip
        self.channel = grpc.insecure_channel(addresses["grpc"])
        self._address, self._addresses, self._ordinary = ready["gateway"], addresses, ordinary

    def hostile(self, held: HeldConnections) -> Kinds:
        """All kinds of hostile requests, by name."""
        rest, rpc = self._addresses["rest"], self._addresses["grpc"]
        predict = "/v1/models/ranker:predict"
        return {
            **named("rank", http_kinds(self._address, "/v1/rank", "rank", held)),
            **named("events", http_kinds(self._address, "/v1/events", "events", held)),
            **named("rest", http_kinds(rest, predict, "rest", held)),
            **named("grpc", grpc_kinds(self.channel, rpc, self._ordinary, held)),
        }

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        for process in (self.gateway, self.model_server):
            process.terminate()
            process.wait()

    def rank(self, user: int) -> str:
        """An ordinary rank request; returns what came of it, as ``failures`` takes it."""
        connection = HTTPConnection(self._address, timeout=30)
        started = time.monotonic()
        connection.request("POST", "/v1/rank", json.dumps(rank_request(user % 200, 100)))
        response = connection.getresponse()
        response.read()
        connection.close()
        waited = time.monotonic() - started
        early = response.status == 504 and waited < _DEADLINE_SECONDS - _CLOCK_SECONDS
        return "504 before the deadline" if early else str(response.status)

    def memory(self, key: str) -> dict[str, int]:
        """``VmHWM`` or ``VmRSS`` of both, in KiB."""
        return {
            name: status_of(process.pid, key)
            for name, process in (("gateway", self.gateway), ("model_server", self.model_server))
        }


def named(prefix: str, kinds: Kinds) -> Kinds:
    return {f"{prefix}.{name}": kind for name, kind in kinds.items()}


def status_of(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has ended")


def predict_request(folder: Path, spec: FeatureSpec) -> bytes:
    """A good request of 100 candidates."""
    batch = parse_rank_request(spec, rank_request(0, 100))
    with SeqVault.open(str(folder / "store"), read_only=True) as store:
        history = store.read(
            batch.user_id, batch.time_ms, spec.max_history, fields=history_fields(spec)
        )
        inputs = build_model_inputs(spec, batch, history, store)
    request = PredictRequest(output_filter=["probability"])
    request.model_spec.name = "ranker"
    for name, array in inputs.items():
        add_tensor(request, name, array)
    return request.SerializeToString()


def measure_peak(servers: Servers, requests: int, threads: int) -> dict[str, Any]:
    """Peak memory after ordinary load, then after as many hostile requests."""
    statuses: Counter[str] = Counter()
    run_threads(threads, max(500, requests // 20), lambda i, r: ask_ordinary(servers, i, statuses))
    ordinary = servers.memory("VmHWM")
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    with HeldConnections() as held:
        kinds = servers.hostile(held)

        def ask(number: int, which: random.Random) -> None:
            if number and number % _TOLD_EVERY == 0:
                tell(f"{number} of {requests} sent, {held.waiting} half-open", began)
            ask_hostile(kinds, which, outcomes)

        run_threads(threads, requests, ask)
    seconds = time.monotonic() - began
    hostile = servers.memory("VmHWM")
    after: Counter[str] = Counter()
    run_threads(threads, 200, lambda i, r: ask_ordinary(servers, i, after))
    ratios = {name: round(hostile[name] / ordinary[name], 3) for name in ordinary}
    missed = [f"peak of {name}" for name, ratio in ratios.items() if ratio > _PEAK_RATIO]
    return {
        "hostile_requests": sum(outcomes.values()),
        "hostile_seconds": round(seconds, 1),
        "kinds": len(kinds),
        "peak_kib_ordinary": ordinary,
        "peak_kib_hostile": hostile,
        "ratio": ratios,
        "ordinary_statuses_before": dict(statuses),
        "ordinary_statuses_after": dict(after),
        "outcomes": by_number(by_server(outcomes)),
        "half_open": by_number(held.ended),
        "missed": missed + failures(after) + faults(outcomes) + faults(held.ended),
    }


def measure_soak(servers: Servers, seconds: float, threads: int) -> dict[str, Any]:
    """Memory over time under both kinds of load."""
    began = time.monotonic()
    ordinary: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    samples: list[dict[str, int]] = []
    with HeldConnections() as held:
        kinds = servers.hostile(held)

        def ask(number: int, which: random.Random) -> None:
            if number % 2:
                ask_hostile(kinds, which, outcomes)
            else:
                ask_ordinary(servers, number, ordinary)

        load = threading.Thread(target=run_threads, args=(threads, None, ask, began + seconds))
        load.start()
        while load.is_alive():
            load.join(_SAMPLE_SECONDS)
            samples.append(servers.memory("VmRSS"))
            if len(samples) % 12 == 0:
                tell(f"{samples[-1]} KiB", began)
    third = max(1, len(samples) // 3)
    growth = {
        name: round(
            max(sample[name] for sample in samples[-third:])
            / max(sample[name] for sample in samples[:third]),
            3,
        )
        for name in samples[0]
    }
    missed = [f"flat memory of {name}" for name, ratio in growth.items() if ratio > _GROWTH]
    return {
        "seconds": seconds,
        "ordinary_statuses": dict(ordinary),
        "hostile_requests": sum(outcomes.values()),
        "kinds": len(kinds),
        "growth": growth,
        "outcomes": by_number(by_server(outcomes)),
        "half_open": by_number(held.ended),
        "rss_kib": samples[:: max(1, len(samples) // 60)],
        "missed": missed + failures(ordinary) + faults(outcomes) + faults(held.ended),
    }


def tell(what: str, began: float) -> None:
    print(f"{time.monotonic() - began:7.0f} s  {what}", file=sys.stderr, flush=True)


def by_number(outcomes: Counter[str]) -> dict[str, int]:
    return dict(outcomes.most_common())


def by_server(outcomes: Counter[str]) -> Counter[str]:
    """``rank.no_json 400`` and its like, as ``rank 400``."""
    summed: Counter[str] = Counter()
    for outcome, number in outcomes.items():
        kind, told = outcome.split(" ")
        summed[f"{kind.split('.')[0]} {told}"] += number
    return summed


def faults(outcomes: Counter[str]) -> list[str]:
    """Outcomes of hostile requests that are the server's fault.

    Example:
        >>> faults(Counter({"rank.no_json 400": 9, "rest.deep_json 500": 2}))
        ['rest.deep_json 500: 2 times']
    """
    return [
        f"{outcome}: {number} times"
        for outcome, number in outcomes.items()
        if outcome.split(" ", 1)[1] in _FAULTS
    ]


def failures(statuses: Counter[str]) -> list[str]:
    """What ordinary requests must not come to.

    Example:
        >>> failures(Counter({"200": 90, "503": 3, "504": 7}))
        []
        >>> failures(Counter({"200": 4, "504": 5, "500": 1}))
        ['ordinary requests: 500', 'ordinary requests: 4 of 10 answered']
    """
    wrong = [status for status in statuses if status not in ("200", "503", "504")]
    missed = [f"ordinary requests: {status}" for status in wrong]
    total = sum(statuses.values())
    if statuses["200"] < _LEAST_ANSWERED * total:
        missed.append(f"ordinary requests: {statuses['200']} of {total} answered")
    return missed


def ask_ordinary(servers: Servers, number: int, statuses: Counter[str]) -> None:
    try:
        statuses[servers.rank(number)] += 1
    except OSError as error:
        statuses[type(error).__name__] += 1


def ask_hostile(kinds: Kinds, which: random.Random, outcomes: Counter[str]) -> None:
    name = which.choice(list(kinds))
    try:
        answer = kinds[name](which)
        told = str(answer) if isinstance(answer, int) else "sent"
    except EXPECTED as error:
        told = error.code().name if isinstance(error, grpc.RpcError) else type(error).__name__
    outcomes[f"{name} {told}"] += 1


def run_threads(
    threads: int,
    count: int | None,
    ask: Callable[[int, random.Random], None],
    end: float = float("inf"),
) -> None:
    """Call ``ask`` with 0, 1, 2, ... from several threads, to a number or to a time."""
    numbers = itertools.count()

    def run(mine: int) -> None:
        which = random.Random(SEED + mine)
        while time.monotonic() < end:
            number = next(numbers)
            if count is not None and number >= count:
                return
            ask(number, which)

    started = [threading.Thread(target=run, args=(mine,)) for mine in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
