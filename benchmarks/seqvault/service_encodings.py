"""Bytes and time of a served read in each encoding, over loopback, and what a dictionary saves.

    python -m benchmarks.seqvault.service_encodings [--users 1500] [--data events.parquet]

Server and client are two processes. Encodings alternate within one loop, so that all see the same
machine. Wall time is of the client's call, from request to padded arrays; CPU time is of client
and server together. ``link_ms`` adds what the bytes take on links of 1 Gbit/s and 100 Mbit/s.

The dictionaries are trained offline on replies of other users, for each shape of its own, which
is the best that a dictionary could do. The raw result goes to ``results/``.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

import seqvault.service.client
from benchmarks.seqvault.timing import provenance
from benchmarks.seqvault.workload import Histories, generate, load
from seqvault import Schema, SeqVault
from seqvault.service import seqvault_pb2 as pb
from seqvault.service.server import Server

SEED = 0
SHAPES = ((1, 20), (1, 200), (1, 1000), (8, 1000), (64, 50), (64, 200), (64, 1000))
ENCODINGS = {"dense": pb.DENSE, "dense_zstd": pb.DENSE_ZSTD, "packed": pb.PACKED}
LINKS = {"1 Gbit/s": 1e9, "100 Mbit/s": 1e8}


def serve(path: str, pipe: Any) -> None:
    """The server's process: tells its port, then its CPU seconds whenever asked."""
    with Server(SeqVault.open(path), merge_seconds=0) as server:
        pipe.send(server.port)
        while pipe.recv():
            pipe.send(time.process_time())


def measure(
    client: Any, pipe: Any, draws: list[np.ndarray], last_n: int
) -> dict[str, dict[str, float]]:
    """Bytes, wall and CPU time of a call in each encoding."""
    taken: dict[str, list[float]] = {name: [] for name in ENCODINGS}
    cpu = dict.fromkeys(ENCODINGS, 0.0)
    sizes = dict.fromkeys(ENCODINGS, 0)
    for number, users in enumerate(draws):
        for name, encoding in ENCODINGS.items():
            client._encoding_for = lambda *_, encoding=encoding: encoding
            pipe.send(True)
            before = pipe.recv() + time.process_time()
            start = time.perf_counter()
            client.read(users, before=None, last_n=last_n)
            wall = time.perf_counter() - start
            pipe.send(True)
            if number >= 3:  # the first calls warm caches
                taken[name].append(wall)
                cpu[name] += pipe.recv() + time.process_time() - before
                sizes[name] += client.reply_bytes
            else:
                pipe.recv()
    rounds = len(draws) - 3
    return {
        name: {
            "bytes": round(sizes[name] / rounds),
            "p50_ms": float(np.percentile(taken[name], 50)) * 1e3,
            "p99_ms": float(np.percentile(taken[name], 99)) * 1e3,
            "cpu_ms": cpu[name] / rounds * 1e3,
            "link_ms": {
                link: float(np.percentile(taken[name], 50)) * 1e3
                + sizes[name] / rounds * 8 / rate * 1e3
                for link, rate in LINKS.items()
            },
        }
        for name in ENCODINGS
    }


def dictionaries(
    vault: SeqVault, training: list[np.ndarray], test: list[np.ndarray], last_n: int
) -> dict[str, Any]:
    """Mean bytes of replies, as one zstd frame each, with and without a trained dictionary."""

    def dense(users: np.ndarray) -> bytes:
        lengths, version, columns = vault.read_ragged(users, None, last_n)
        return b"".join(array.tobytes() for array in (lengths, version, *columns.values()))

    def packed(users: np.ndarray) -> bytes:
        return vault.read_packed(users, None, last_n)

    result: dict[str, Any] = {}
    for name, make in (("dense", dense), ("packed", packed)):
        trained = zstandard.train_dictionary(1 << 15, [make(users) for users in training])
        plain, with_it = zstandard.ZstdCompressor(1), zstandard.ZstdCompressor(1, trained)
        replies = [make(users) for users in test]
        result[name] = {
            "raw": round(np.mean([len(reply) for reply in replies])),
            "zstd": round(np.mean([len(plain.compress(reply)) for reply in replies])),
            "zstd_dictionary": round(np.mean([len(with_it.compress(reply)) for reply in replies])),
        }
    return result


class MeasuredClient(seqvault.service.client.SeqVaultClient):
    """A client that tells how large its last reply was."""

    reply_bytes = 0

    def _call(self, *arguments: Any, **named: Any) -> Any:
        reply = super()._call(*arguments, **named)
        self.reply_bytes = reply.ByteSize()
        return reply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=1500, help="generated (default 1500)")
    parser.add_argument("--data", help="Parquet file of events in place of generated ones")
    parser.add_argument("--fields", default="item_id,scenario,action", help="of the Parquet file")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    histories: Histories = (
        load(arguments.data, arguments.fields.split(","))
        if arguments.data
        else generate(arguments.users, SEED)
    )
    table, users, rng = pa.table(histories.events), histories.users, np.random.default_rng(SEED)
    result: dict[str, Any] = {
        **provenance("service_encodings", SEED),
        "events": len(table),
        "users": len(users),
        "fields": table.num_columns - 1,
        "shapes": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/vault"
        with SeqVault.open(path, schema=Schema.from_arrow(table.schema)) as vault:
            vault.bulk_load(table)
            for count, last_n in SHAPES:
                draws = [rng.choice(users, count) for _ in range(400 if count == 1 else 60)]
                half = len(draws) // 2
                found = dictionaries(vault, draws[:half], draws[half:], last_n)
                result["shapes"].append({"users": count, "last_n": last_n, "dictionary": found})
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(path, theirs))
        process.start()
        with MeasuredClient(f"localhost:{ours.recv()}", timeout=60) as client:
            for shape in result["shapes"]:
                draws = [rng.choice(users, shape["users"]) for _ in range(arguments.rounds + 3)]
                shape["served"] = measure(client, ours, draws, shape["last_n"])
                for name, numbers in shape["served"].items():
                    print(
                        f"{shape['users']:3} users x {shape['last_n']:4} {name:10} "
                        f"{numbers['bytes']:9,} B {numbers['p50_ms']:7.3f} ms "
                        f"cpu {numbers['cpu_ms']:7.3f} ms",
                        flush=True,
                    )
                print(f"    {shape['dictionary']}", flush=True)
        ours.send(False)
        process.join()
    target = Path(__file__).parent / "results" / f"service_encodings-{histories.source}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
