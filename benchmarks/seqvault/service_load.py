"""How reads scale with reader processes, and how long callers wait at 70 % of what a server can do.

    python -m benchmarks.seqvault.service_load [--users 400] [--seconds 4] [--rounds 3]

Callers are threads of one process with a connection each, over loopback, on the same cores as the
server: with two cores, two readers and their callers share what one reader and its callers had
mostly to themselves, so that ``calls_per_s`` cannot double. ``cpu_us`` is the CPU of server and
readers for a call and ``callers_cpu_us`` that of the callers; ``possible`` is how many times as
many calls all cores allow with two readers as one core allows one reader. What two cores are
worth is measured in the same run: ``alone`` is how many reads one process and two make by
themselves, in a loop without a server or callers. Hyper-threads of one core are not worth two.

For the wait at 70 %, the calls of callers who ask again at once are counted first; then each caller
asks at random moments, by a Poisson process, so that there are 0.7 times as many in all, and its
wait begins at the moment that was drawn, also if it was not free by then. The raw result goes to
``results/``.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.seqvault.service import SEED, asker, cpu_seconds, process
from benchmarks.seqvault.timing import MICRO, provenance
from benchmarks.seqvault.workload import LAST_N, generate
from seqvault import Schema, SeqVault
from seqvault.service.server import Server

CLIENTS, USERS, SHARE = 16, (1, 64), 0.7


def serve_with_readers(path: str, readers: int, pipe: Any) -> None:
    """A process: tells its readers' processes and its port for reads, and ends when told to."""
    sys.setswitchinterval(0.0005)  # as `seqvault serve` does
    vault = SeqVault.open(path, share=readers > 0)
    with Server(vault, merge_seconds=0, readers=readers) as server:
        pipe.send((*server.reader_pids, server.read_port))
        pipe.recv()


def read_alone(path: str, users: np.ndarray, count: int, pipe: Any) -> None:
    """A process: reads in a loop for as many seconds as it is told, and tells how often."""
    rng = np.random.default_rng(SEED)
    with SeqVault.open(path, read_only=True) as vault:
        vault.read_framed(rng.choice(users, count), None, LAST_N)
        pipe.send(())
        while (seconds := pipe.recv()) is not None:
            reads, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                vault.read_framed(rng.choice(users, count), None, LAST_N)
                reads += 1
            pipe.send(reads)


def alone(path: str, users: np.ndarray, seconds: float, rounds: int) -> dict[str, Any]:
    """Reads a second of one process and of two that do nothing else."""
    context = multiprocessing.get_context("spawn")
    told: dict[str, Any] = {}
    for count in USERS:
        pipes = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=read_alone, args=(path, users, count, theirs)).start()
            ours.recv()
            pipes.append(ours)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for many, found in rates.items():
                for pipe in pipes[:many]:
                    pipe.send(seconds)
                found.append(sum(pipe.recv() for pipe in pipes[:many]) / seconds)
        for pipe in pipes:
            pipe.send(None)
        one, two = (float(np.median(found)) for found in rates.values())
        told[f"{count} users a read"] = {
            "one process, reads/s": round(one), "two processes, reads/s": round(two),
            "times as many": round(two / one, 2),
        }  # fmt: skip
    return told


def ask_for(
    port: int,
    pids: list[int],
    users: np.ndarray,
    count: int,
    seconds: float,
    rate: float,
    seed: int,
) -> dict[str, float]:
    """Has callers ask for so long, at once or ``rate`` times a second in all."""
    asks = [asker("seqvault", (port,)) for _ in range(CLIENTS)]
    waits: list[list[float]] = [[] for _ in asks]
    begin = time.perf_counter()
    end = begin + seconds

    def work(place: int) -> None:
        rng, ask = np.random.default_rng((seed, place)), asks[place]
        due = begin
        while True:
            asked = rng.choice(users, count)
            if rate:
                due += rng.exponential(CLIENTS / rate)
                time.sleep(max(0.0, due - time.perf_counter()))
            else:
                due = time.perf_counter()
            if due >= end:
                return
            ask(asked)
            waits[place].append(time.perf_counter() - due)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(asks))]
    mine, theirs = time.process_time(), sum(map(cpu_seconds, pids))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begin
    mine, theirs = time.process_time() - mine, sum(map(cpu_seconds, pids)) - theirs
    every = np.concatenate(waits) * MICRO
    return {
        "calls_per_s": len(every) / wall,
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
        "cpu_us": theirs / len(every) * MICRO,
        "callers_cpu_us": mine / len(every) * MICRO,
    }


def median_of(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Of each number."""
    return {name: round(float(np.median([one[name] for one in rounds])), 1) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=400, help="generated (default 400)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    histories = generate(arguments.users, SEED)
    long = histories.users[np.diff(histories.starts) >= LAST_N]
    table = pa.table(histories.events)
    result: dict[str, Any] = {
        **provenance("service_load", SEED), "users_drawn": len(long), "clients": CLIENTS,
        "cores": os.cpu_count(), "cases": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        for readers in (0, 1, 2):
            path = f"{folder}/{readers}"
            with SeqVault.open(path, schema=Schema.from_arrow(table.schema)) as vault:
                vault.bulk_load(table)
            if not readers:
                result["alone"] = alone(path, long, arguments.seconds, arguments.rounds)
                print(json.dumps(result["alone"]), flush=True)
            pid, told = stack.enter_context(process(serve_with_readers, path, readers))
            servers[readers] = [pid, *told[:-1]], told[-1]
        for count in USERS:
            full: dict[int, list[dict[str, float]]] = {readers: [] for readers in servers}
            partly: dict[int, list[dict[str, float]]] = {readers: [] for readers in servers}
            for number in range(arguments.rounds + 1):
                for readers, (pids, port) in servers.items():
                    length = arguments.seconds if number else 1.0  # the first warms up
                    most = ask_for(port, pids, long, count, length, 0.0, number)
                    if not number:
                        continue
                    rate = SHARE * most["calls_per_s"]
                    full[readers].append(most)
                    partly[readers].append(ask_for(port, pids, long, count, length, rate, number))
            cases: dict[int, dict[str, Any]] = {
                readers: {
                    "users": count, "readers": readers, "full": median_of(full[readers]),
                    "at_70_percent": median_of(partly[readers]),
                }
                for readers in servers
            }  # fmt: skip
            one, two = cases[1]["full"], cases[2]["full"]
            cases[2]["calls_of_one_reader"] = round(two["calls_per_s"] / one["calls_per_s"], 2)
            work = two["cpu_us"] + two["callers_cpu_us"]
            cases[2]["possible"] = round((os.cpu_count() or 1) * one["cpu_us"] / work, 2)
            for case in cases.values():
                case["load"] = round(os.getloadavg()[0], 2)
                print(json.dumps(case), flush=True)
                result["cases"].append(case)
    target = Path(__file__).parent / "results" / "service_load.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
