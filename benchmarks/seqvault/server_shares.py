"""Where the CPU of a server goes that answers the read protocol.

    python -m benchmarks.seqvault.server_shares [--users 200] [--seconds 2] [--rounds 3]

Of each call, in microseconds of CPU of the server's process: ``store`` (``SeqVault.read_framed``:
look-up, reading of records, unpacking, frames and checksums), ``send`` (handing answers to the
kernel) and ``loop``, the rest: Python that takes in requests, groups them and counts them, its
system calls, and threads that wait for its interpreter lock. ``loop`` is the most that a loop in C
could save. ``together`` is how many calls one read answered. Callers are those of ``service``. The
raw result goes to ``results/``.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.seqvault.service import CLIENTS, SEED, USERS, asker
from benchmarks.seqvault.timing import MICRO, provenance
from benchmarks.seqvault.workload import LAST_N, generate
from seqvault import Schema, SeqVault
from seqvault.service.read_connection import ReadConnection
from seqvault.service.server import Server


def serve_counted(path: str, pipe: Any) -> None:
    """A process: tells its port, and each time it is asked the CPU seconds of all, of reads and of
    sending, how many reads there were and how many calls they answered."""
    sys.setswitchinterval(0.0005)  # as `seqvault serve` does
    vault = SeqVault.open(path)
    read_framed, flush, spent, lock = vault.read_framed, ReadConnection.flush, np.zeros(4), Lock()

    def counted_read(*arguments: Any, **named: Any) -> Any:
        start = time.thread_time()
        answer = read_framed(*arguments, **named)
        with lock:
            spent[[0, 2, 3]] += [time.thread_time() - start, 1, len(named["numbers"])]
        return answer

    def counted_flush(self: ReadConnection, now: float) -> None:
        start = time.thread_time()
        flush(self, now)
        spent[1] += time.thread_time() - start

    vault.read_framed = counted_read  # type: ignore[method-assign]
    ReadConnection.flush = counted_flush  # type: ignore[method-assign]
    with Server(vault, merge_seconds=0) as server:
        pipe.send(server.read_port)
        while pipe.recv():
            pipe.send([time.process_time(), *spent])


@contextmanager
def server(path: str) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """The port of a server, and a function that tells what it has spent."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    running = context.Process(target=serve_counted, args=(path, theirs))
    running.start()

    def spent() -> np.ndarray:
        ours.send(True)
        return np.array(ours.recv())

    try:
        yield ours.recv(), spent
    finally:
        ours.send(False)
        running.join()


def load(port: int, users: np.ndarray, count: int, clients: int, seconds: float, seed: int) -> int:
    """Has callers ask for ``count`` users, again at once, for so long; how many calls were made."""
    calls = [0] * clients
    end = time.perf_counter() + seconds

    def work(place: int) -> None:
        rng, ask = np.random.default_rng((seed, place)), asker("seqvault", (port,))
        while time.perf_counter() < end:
            ask(rng.choice(users, count))
            calls[place] += 1

    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=200, help="generated (default 200)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    histories = generate(arguments.users, SEED)
    long = histories.users[np.diff(histories.starts) >= LAST_N]
    table = pa.table(histories.events)
    result: dict[str, Any] = {**provenance("server_shares", SEED), "cases": []}
    with tempfile.TemporaryDirectory() as folder:
        with SeqVault.open(f"{folder}/vault", schema=Schema.from_arrow(table.schema)) as vault:
            vault.bulk_load(table)
        with server(f"{folder}/vault") as (port, spent):
            for count in USERS:
                for clients in CLIENTS:
                    found = []
                    for number in range(arguments.rounds + 1):
                        before = spent()
                        calls = load(port, long, count, clients, arguments.seconds, number)
                        cpu, store, send, reads, answered = spent() - before
                        if number:  # the first warms up
                            parts = np.array([cpu, store, send, cpu - store - send])
                            found.append([*parts * MICRO / calls, answered / reads])
                    middle = np.median(found, axis=0).round(1).tolist()
                    names = ("CPU us", "store", "send", "loop", "together")
                    case: dict[str, Any] = dict(zip(names, middle, strict=True))
                    case = {"users": count, "clients": clients, **case}
                    case["load"] = round(os.getloadavg()[0], 2)
                    print(json.dumps(case), flush=True)
                    result["cases"].append(case)
    target = Path(__file__).parent / "results" / "server_shares.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
