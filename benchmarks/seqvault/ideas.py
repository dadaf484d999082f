"""What ideas that the store does not follow would gain: measured, so that they can be left.

    python -m benchmarks.seqvault.ideas [--users 4000] [--rounds 300]

* ``widths``: CPU of a warm read of 64 users whose fields are answered in other types, by layouts
  made for this alone (they check no bounds), and how many bytes an event then has.
* ``512 bits``: the same read by kernels that LLVM may build of 512-bit instructions, and by those
  that it builds by itself, each in processes of its own that take turns; only where the processor
  has them.
* ``cold records`` and ``warm records``: how the records of 64 users are fetched from the disk and
  from the page cache: hints and one ``pread`` each (what the store does), ``pread`` alone, one
  io_uring call with all reads, one with all hints. The ring is a few lines of C over system
  calls, built by ``cc`` and called through cffi.
* ``rows``: item ids of an answer looked up in a table, as a model's input needs it: beside the
  look-up, what a kernel would save that does it while it unpacks, which is to write the ids and
  read them again.
* ``call``: a read of no users.

Microseconds, p50; what is compared takes turns in one loop. The raw result goes to ``results/``.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import llvmlite.binding as llvm
import numpy as np

from benchmarks.seqvault.peers.seqvault import SeqVaultPeer
from benchmarks.seqvault.shares import _ask, medians
from benchmarks.seqvault.timing import MICRO, drop_page_cache, provenance
from benchmarks.seqvault.workload import LAST_N, Histories, generate
from seqvault.codec.bundles import bundle
from seqvault.disk.files import read_pieces
from seqvault.memory.field_layout import Layout
from seqvault.memory.key_table import KeyTable
from seqvault.warm_up import warm_up

SEED, BATCH = 0, 64
TYPES = {
    "as stored": {},
    "item_id as int32": {"item_id": "int32"},
    "all as int64": None,
}  # fmt: skip
RING = Path(__file__).with_name("ring.c")


def filled(root: str, users: int) -> tuple[SeqVaultPeer, Histories]:
    """A store with generated histories."""
    histories = generate(users, SEED)
    store = SeqVaultPeer(f"{root}/reads", histories)
    store.fill(histories)
    return store, histories


def retyped(layout: Layout, types: dict[str, str] | None) -> Layout:
    """A layout whose fields are answered in other types; None: all as int64."""
    dtypes = [
        np.dtype("int64" if types is None else types.get(name, dtype.name))
        for name, dtype in zip(layout.names, layout.dtypes, strict=True)
    ]
    sizes = np.array([dtype.itemsize for dtype in dtypes], np.int64)
    words = bundle(
        (layout.columns_of, sizes, layout.defaults, layout.mem_columns, layout.columns_in)
    )
    width = int(sizes.sum())
    return dataclasses.replace(
        layout, dtypes=dtypes, sizes=sizes, words=words, width=width, shapes={}
    )


def of_widths(store: SeqVaultPeer, histories: Histories, rounds: int) -> dict[str, Any]:
    """CPU of reads whose fields have other types."""
    layouts = store.vault._state.version.layouts
    rng = np.random.default_rng([SEED, 1])
    timeless = tuple(name for name in histories.names if name != "timestamp")
    chosen = {
        f"{what}{', without timestamp' if names is timeless else ''}": retyped(
            layouts.of(names), types
        )
        for names in (tuple(histories.names), timeless)
        for what, types in TYPES.items()
    }
    held: dict[str, Any] = {}

    def read(name: str, layout: Layout) -> Callable[[], None]:
        def work() -> None:
            layouts._known[layout.names] = layout
            asked = rng.choice(histories.users, BATCH, replace=False)
            held[name] = store.vault.read(asked, None, LAST_N, fields=layout.names)

        return work

    told = medians(
        {name: read(name, layout) for name, layout in chosen.items()}, rounds, time.process_time
    )
    layouts._known.clear()
    return {name: {"bytes an event": chosen[name].width, "CPU us": us} for name, us in told.items()}


def of_one_build(users: int, rounds: int) -> None:
    """A process: prints the CPU of reads of 64 users with all fields, and with none."""
    root = tempfile.mkdtemp(prefix="seqvault-ideas-")
    try:
        store, histories = filled(root, users)
        rng = np.random.default_rng([SEED, 2])
        held: dict[str, Any] = {}

        def read(name: str, fields: list[str] | None) -> None:
            asked = rng.choice(histories.users, BATCH, replace=False)
            held[name] = store.vault.read(asked, None, LAST_N, fields=fields)

        reads = {"all fields": lambda: read("all", None), "no field": lambda: read("none", [])}
        print(json.dumps(medians(reads, rounds, time.process_time)))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def of_vectors(users: int, rounds: int, turns: int, root: str) -> dict[str, Any]:
    """Reads by kernels built for 256 and for 512 bits."""
    features = llvm.get_host_cpu_features()
    if not turns or not features.get("avx512vl"):
        return {}
    told: dict[str, list[dict[str, float]]] = {"256": [], "512": []}
    for _ in range(turns):
        for bits, more in (("256", ""), ("512", ",-prefer-256-bit")):
            environment = {
                **os.environ,
                "NUMBA_CACHE_DIR": f"{root}/{bits}",
                "NUMBA_CPU_NAME": llvm.get_host_cpu_name(),
                "NUMBA_CPU_FEATURES": features.flatten() + more,
            }
            command = [sys.executable, "-m", "benchmarks.seqvault.ideas", "--build-only"]
            command += ["--users", str(users), "--rounds", str(rounds)]
            one = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            told[bits].append(json.loads(one.stdout.splitlines()[-1]))
    return {
        f"{bits} bits, CPU us": {
            name: round(float(np.median([one[name] for one in ones])), 1) for name in ones[0]
        }
        for bits, ones in told.items()
    }


def of_records(store: SeqVaultPeer, histories: Histories, rounds: int, root: str) -> dict[str, Any]:
    """Wall and CPU of fetching the records of 64 users, cold and warm."""
    ffi = cffi.FFI()
    ffi.cdef(
        "int ring_open(unsigned entries);"
        "long ring_read(const int64_t *fds, const int64_t *offsets, const int64_t *sizes,"
        " char *out, const int64_t *places, long count);"
        "long ring_advise(const int64_t *fds, const int64_t *offsets, const int64_t *sizes,"
        " long count);"
    )
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", f"{root}/ring.so", str(RING)]
    subprocess.run(command, check=True)
    ring: Any = ffi.dlopen(f"{root}/ring.so")
    if ring.ring_open(2 * BATCH) < 0:
        return {"io_uring": "not to be had on this machine"}
    state, rng = store.vault._state, np.random.default_rng([SEED, 3])
    buffer = np.empty(1 << 24, np.uint8)
    out = ffi.from_buffer("char[]", buffer)

    def numbers(values: np.ndarray) -> Any:
        return ffi.from_buffer("int64_t[]", values)

    def by_ring(fds: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, at: np.ndarray) -> None:
        words = [numbers(one) for one in (fds, offsets, sizes)]
        assert ring.ring_read(*words, out, numbers(at), len(fds)) == 0

    def hints_by_ring(
        fds: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, at: np.ndarray
    ) -> None:
        assert ring.ring_advise(*(numbers(one) for one in (fds, offsets, sizes)), len(fds)) == 0
        read_pieces(fds, offsets, sizes, buffer, at)

    def hints(fds: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, at: np.ndarray) -> None:
        _ask(fds, offsets, sizes)
        read_pieces(fds, offsets, sizes, buffer, at)

    ways: dict[str, Callable[..., Any]] = {
        "hints, then pread": hints,
        "pread": lambda fds, offsets, sizes, at: read_pieces(fds, offsets, sizes, buffer, at),
        "reads by io_uring": by_ring,
        "hints by io_uring, then pread": hints_by_ring,
    }
    told: dict[str, Any] = {}
    for cold in (True, False):
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds // 2 if cold else rounds):
            for name, way in ways.items():
                users = rng.choice(histories.users, BATCH, replace=False)
                _, segments, offsets, sizes, _ = state.index.extents(state.index.users.find(users))
                fds = np.array([state.segments[n].fd for n in segments.tolist()], np.int64)
                places = np.cumsum(sizes) - sizes
                if cold:
                    drop_page_cache(store.path)
                wall, cpu = time.perf_counter(), time.process_time()
                way(fds, np.ascontiguousarray(offsets), np.ascontiguousarray(sizes), places)
                samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        told["cold records, us" if cold else "warm records, us"] = {
            name: {
                what: round(float(np.median([one[place] for one in own[3:]])) * MICRO, 1)
                for place, what in enumerate(("wall", "CPU"))
            }
            for name, own in samples.items()
        }
    return told


def of_rows(store: SeqVaultPeer, histories: Histories, rounds: int) -> dict[str, float]:
    """CPU of looking up an answer's items, and of what one kernel for both would not do."""
    rng = np.random.default_rng([SEED, 4])
    table = KeyTable()
    known = np.unique(histories.events["item_id"])
    table = table.with_room(len(known))
    table.add(known)
    asked: dict[str, Any] = {}
    spare = np.empty((BATCH, LAST_N), np.int64)

    def next_answer() -> None:
        users = rng.choice(histories.users, BATCH, replace=False)
        asked["batch"] = store.vault.read(users, None, LAST_N)

    def look_up() -> None:
        asked["rows"] = table.find(asked["batch"]["item_id"].reshape(-1)).astype(np.int32)

    def copy() -> None:
        np.copyto(spare, asked["batch"]["item_id"])

    told = medians(
        {
            "read of 64": next_answer,
            "look its item ids up": look_up,
            "write the ids and read them again": copy,
        },
        rounds, time.process_time,
    )  # fmt: skip
    told["items in the table"] = len(known)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=4000, help="generated (default 4000)")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3, help="processes of each build")
    parser.add_argument("--build-only", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build_only:
        of_one_build(arguments.users, arguments.rounds)
        return
    warm_up()
    result: dict[str, Any] = {**provenance("ideas", SEED), "users": arguments.users}
    root = tempfile.mkdtemp(prefix="seqvault-ideas-")
    try:
        store, histories = filled(root, arguments.users)
        result["widths"] = of_widths(store, histories, arguments.rounds)
        result.update(of_records(store, histories, arguments.rounds, root))
        result["rows, CPU us"] = of_rows(store, histories, arguments.rounds)
        nobody = np.empty(0, np.int64)
        call = {"read of nobody": lambda: store.vault.read(nobody, None, LAST_N)}
        result["call, CPU us"] = medians(call, 4 * arguments.rounds, time.process_time)
        store.close()
        result["512 bits"] = of_vectors(arguments.users, arguments.rounds, arguments.turns, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    result["load at the end"] = [round(one, 2) for one in os.getloadavg()]
    print(json.dumps(result, indent=1))
    target = Path(__file__).parent / "results" / "ideas.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
