"""How long reads take while one of two replicas is stopped by SIGSTOP, and whether any fails.

    python -m benchmarks.seqvault.stopped_replica [--calls 400] [--callers 4]

Two servers are processes of their own. The replica that answers is stopped between two reads,
without a word to the callers, and goes on later; reads are timed before, meanwhile and after.
The goal: no read fails, and the 99th percentile stays below twice the hedge delay. The raw
result goes to ``results/``.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import seqvault
from benchmarks.seqvault.timing import provenance
from benchmarks.seqvault.workload import LAST_N, generate
from seqvault import Schema, SeqVault
from seqvault.errors import SeqVaultError
from seqvault.service.sharded_client import ShardedClient

SEED, HEDGE_SECONDS = 0, 0.1


def reads(client: Any, users: np.ndarray, calls: int, callers: int) -> dict[str, Any]:
    """Percentiles of reads of one user by several callers, and how many failed."""
    waits: list[float] = []
    failed: list[str] = []

    def work(place: int) -> None:
        rng = np.random.default_rng((SEED, place))
        for _ in range(calls // callers):
            start = time.perf_counter()
            try:
                client.read(rng.choice(users, 1), before=None, last_n=LAST_N)
            except SeqVaultError as error:
                failed.append(repr(error))
            waits.append(time.perf_counter() - start)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {f"p{p}_ms": round(float(np.percentile(waits, p)) * 1e3, 2) for p in (50, 99, 100)}
    return {"reads": len(waits), "failed": len(failed), **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=400, help="of each phase (default 400)")
    parser.add_argument("--callers", type=int, default=4)
    arguments = parser.parse_args()
    histories = generate(100, SEED)
    table = pa.table(histories.events)
    result: dict[str, Any] = {
        **provenance("stopped_replica", SEED),
        "hedge_ms": HEDGE_SECONDS * 1e3,
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers, targets = [], []
        for name in ("a", "b"):
            path = f"{folder}/{name}"
            with SeqVault.open(path, schema=Schema.from_arrow(table.schema)) as vault:
                vault.bulk_load(table)
            command = [sys.executable, "-m", "seqvault.cli", "serve", path, "--port", "0"]
            server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            stack.callback(server.wait)
            stack.callback(server.terminate)
            stack.callback(server.send_signal, signal.SIGCONT)
            assert server.stdout is not None
            targets.append(f"localhost:{server.stdout.readline().rpartition(':')[2].strip()}")
            servers.append(server)
        client = seqvault.connect("|".join(targets), hedge_seconds=HEDGE_SECONDS)
        assert isinstance(client, ShardedClient)
        stack.callback(client.close)
        for phase, sent in (("before", None), ("stopped", signal.SIGSTOP), ("after", None)):
            if sent is not None:
                servers[client._shards[0]._first].send_signal(sent)
            result[phase] = reads(client, histories.users, arguments.calls, arguments.callers)
            if sent is not None:
                for server in servers:
                    server.send_signal(signal.SIGCONT)
            print(phase, result[phase], flush=True)
    target = Path(__file__).parent / "results" / "stopped_replica.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
