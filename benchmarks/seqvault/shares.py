"""Where the time of SeqVault goes: shares of a read, an append, a read during merges, an opening.

    python -m benchmarks.seqvault.shares [--users 4000] [--recovered 1000000]

Each share is measured by running that part by itself on the same data, so that shares need
not add up to the whole to the last microsecond. Microseconds, p50; the whole and what it is
made of take turns in one loop. The table of goals quotes the result.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from benchmarks.seqvault.appends import BATCH, batches
from benchmarks.seqvault.peers.seqvault import SeqVaultPeer
from benchmarks.seqvault.recovery import events as recovered_events
from benchmarks.seqvault.timing import MICRO, drop_page_cache, provenance
from benchmarks.seqvault.workload import LAST_N, Histories, generate
from seqvault import Field, Schema, SeqVault
from seqvault.codec.primitives import crc32c
from seqvault.codec.read_kernel import WILL_NEED, advise
from seqvault.disk import wal
from seqvault.disk.files import Files, read_pieces
from seqvault.disk.segment import Segment
from seqvault.memory.index import Index
from seqvault.memory.memtable import Memtable
from seqvault.read.fast_read import DirectReader
from seqvault.read.read_request import ReadRequest
from seqvault.sequence_batch import SequenceBatch
from seqvault.upkeep import recovery
from seqvault.warm_up import warm_up
from seqvault.write.event_columns import to_columns

SEED = 0
RESULT = Path(__file__).parent / "results" / "shares.json"


@njit(nogil=True)
def _checksums(data: np.ndarray, ends: np.ndarray) -> int:
    found, start = np.uint64(0), 0
    for end in ends:
        found ^= crc32c(data, start, end)
        start = end
    return found


def medians(parts: dict[str, Callable[[], Any]], rounds: int, clock: Any) -> dict[str, float]:
    """Microseconds of each, p50; they take turns."""
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, part in parts.items():
            start = clock()
            part()
            samples[name].append((clock() - start) * MICRO)
    return {name: round(float(np.median(own[3:])), 1) for name, own in samples.items()}


def of_reads(store: SeqVaultPeer, histories: Histories, batch: int, rounds: int) -> dict[str, Any]:
    """CPU time of a warm read of ``batch`` users by part."""
    state, direct = store.vault._state, DirectReader(store.vault._state)
    rng = np.random.default_rng([SEED, 3])
    asked = {"users": histories.users[:batch]}
    held: list[Any] = [None] * 8  # more answers than a thread keeps room for
    turn = 0

    def next_users() -> None:
        nonlocal turn
        asked["users"] = rng.choice(histories.users, batch, replace=False)
        turn += 1

    def fresh() -> None:
        held[turn % len(held)] = store.vault.read(asked["users"], None, LAST_N)

    def whole() -> None:
        held[0] = direct.read(ReadRequest.of(state.schema, asked["users"], None, LAST_N))

    found: dict[str, Any] = {}

    def find() -> None:
        request = ReadRequest.of(state.schema, asked["users"], None, LAST_N)
        found["request"] = request
        found["found"], found["layout"], *_ = direct._find(request)

    out = np.ones(batch * LAST_N * histories.width + 64 * 64, np.uint8)

    def fill() -> None:
        layout = found["layout"]
        direct._fill(found["request"], found["found"], layout, batch * LAST_N, False, out)

    def views() -> None:
        columns = found["layout"].shape(batch, LAST_N).columns(out)
        found["batch"] = SequenceBatch(asked["users"], asked["users"], columns, asked["users"])

    buffer = np.empty(1 << 24, np.uint8)

    def pieces() -> tuple[np.ndarray, ...]:
        slots = state.index.users.find(asked["users"])
        _, numbers, offsets, lengths, _ = state.index.extents(slots)
        fds = np.array([state.segments[n].fd for n in numbers.tolist()], np.int64)
        return fds, offsets, lengths, np.cumsum(lengths)

    def prepared() -> None:
        found["pieces"] = pieces()

    def pread() -> None:
        fds, offsets, lengths, ends = found["pieces"]
        read_pieces(fds, offsets, lengths, buffer, ends - lengths)

    def check() -> None:
        _checksums(buffer, found["pieces"][-1])

    source, target = out[: batch * LAST_N * histories.width].copy(), out[: -64 * 64].copy()
    told = medians(
        {
            "next": next_users, "read": whole, "read, all answers held": fresh,
            "look up": find, "fetch, check, unpack and pad": fill, "prepare": prepared,
            "of that pread": pread, "of that checksums": check,
            "views and the batch": views,
            "copy of the answer": lambda: np.copyto(target, source),
            "copy of the answer into fresh memory": source.copy,
        },
        rounds, time.process_time,
    )  # fmt: skip
    del told["next"], told["prepare"]
    parts = ("look up", "fetch, check, unpack and pad", "views and the batch")
    told["rest"] = round(told["read"] - sum(told[part] for part in parts), 1)
    events = float(np.minimum(np.diff(histories.starts), LAST_N).mean()) * batch
    told["values unpacked"] = round(events * len(histories.names))
    return told


def of_fields(store: SeqVaultPeer, histories: Histories, rounds: int) -> dict[str, float]:
    """CPU time of a warm read of 64 users without fields, and what each field adds."""
    rng = np.random.default_rng([SEED, 6])
    held: dict[str, Any] = {}

    def read(name: str) -> Callable[[], None]:
        # others for each: who came second to the same users would find their bytes at hand
        asked = iter([rng.choice(histories.users, 64, replace=False) for _ in range(rounds)])

        def work() -> None:
            held[name] = store.vault.read(next(asked), None, LAST_N, fields=[name] if name else [])

        return work

    names = ["", *histories.names]
    told = medians({name: read(name) for name in names}, rounds, time.process_time)
    none = told.pop("")
    return {"no field": none, **{name: round(us - none, 1) for name, us in told.items()}}


@njit(nogil=True)
def _ask(fds: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
    for i in range(len(fds)):
        advise(fds[i], offsets[i], lengths[i], WILL_NEED)


def of_cold(store: SeqVaultPeer, histories: Histories, rounds: int) -> dict[str, float]:
    """Wall and CPU time of a read of 64 users whose records are not in the page cache, the
    whole, and by itself what only the kernel and the disk do: to be asked, and to deliver."""
    state = store.vault._state
    rng = np.random.default_rng([SEED, 7])
    buffer = np.empty(1 << 24, np.uint8)
    samples: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        samples.setdefault(f"{name}, CPU", []).append((time.process_time() - cpu) * MICRO)
        samples.setdefault(name, []).append((time.perf_counter() - wall) * MICRO)

    for _ in range(rounds):
        users = rng.choice(histories.users, 64, replace=False)
        _, numbers, offsets, lengths, _ = state.index.extents(state.index.users.find(users))
        fds = np.array([state.segments[n].fd for n in numbers.tolist()], np.int64)
        starts = np.cumsum(lengths) - lengths
        drop_page_cache(store.path)
        timed("ask for the records", lambda w=(fds, offsets, lengths): _ask(*w))
        timed("pread", lambda w=(fds, offsets, lengths, buffer, starts): read_pieces(*w))
        drop_page_cache(store.path)
        timed("read", lambda u=users: store.read(u))
    return {name: round(float(np.median(own[3:])), 1) for name, own in samples.items()}


def of_opening(store: SeqVaultPeer, users: np.ndarray) -> dict[str, float]:
    """CPU time of the first and the second read after opening, the page cache full."""
    samples = []
    for _ in range(40):
        store.reopen(cached=True)
        own = []
        for _ in range(2):
            start = time.process_time()
            store.read(users)
            own.append((time.process_time() - start) * MICRO)
        samples.append(own)
    first, second = np.median(np.array(samples), axis=0)
    return {"first": round(float(first), 1), "second": round(float(second), 1)}


def of_appends(histories: Histories, root: str) -> dict[str, float]:
    """Wall time of a durable append of 1000 events by part, and CPU time of the whole."""
    store = SeqVaultPeer(f"{root}/append", histories)
    schema, files = store.vault.schema, Files()
    parts = batches(histories, 200, min(1000, len(histories.users)), seed=SEED)
    columns = [to_columns(part, schema) for part in parts]
    os.makedirs(f"{root}/log/wal")
    writer = wal.WalWriter(files, f"{root}/log", 1)
    index, memtable = Index(), Memtable(schema)
    made: dict[str, Any] = {}
    turns: dict[str, int] = {}

    def following(name: str, values: list[Any]) -> Any:
        turns[name] = turns.get(name, -1) + 1
        return values[turns[name] % len(values)]

    def prepare() -> None:
        made["frame"] = wal.prepare(0, "", -1, BATCH, tuple(following("p", columns).values()))

    def lay_down() -> None:
        own = following("a", columns)
        memtable.stage(index.add_users(own["user_id"]), own, 1)

    def show() -> None:
        memtable.show(memtable.staged - memtable.size, index.arrivals)

    def write() -> None:
        if writer.position + len(made["frame"].frame) > wal.FILE_SIZE:
            writer.position = wal.FIRST
        writer.write(made["frame"])

    work: dict[str, Callable[[], Any]] = {
        "append": lambda: store.append(following("s", parts)),
        "check columns": lambda: to_columns(following("c", parts), schema),
        "lay out and checksum": prepare,
        "look users up, lay down in memory": lay_down,
        "write": write,
        "fdatasync": writer.sync,
        "make visible": show,
    }
    told = medians(work, 400, time.perf_counter)
    cpu = medians(work, 400, time.process_time)
    store.close()
    writer.close()
    return told | {f"{name}, CPU": value for name, value in cpu.items()}


def _waited_for_a_core(fd: int) -> int:
    """Nanoseconds that the thread stood ready while others ran."""
    return int(os.pread(fd, 100, 0).split()[1])


def of_merges(histories: Histories, root: str, seconds: float) -> dict[str, Any]:
    """p50, p99 of single reads, idle and during merges: wall, and wall less waits for a core."""
    store = SeqVaultPeer(f"{root}/merge", histories)
    store.fill(histories)
    path = f"/proc/self/task/{threading.get_native_id()}/schedstat"
    if not os.path.exists(path):
        return {}
    fd = os.open(path, os.O_RDONLY)
    parts = batches(histories, 20, len(histories.users), seed=SEED)
    rng = np.random.default_rng([SEED, 5])
    samples: dict[str, list[tuple[int, int]]] = {"idle": [], "merging": []}

    def reads(name: str) -> None:
        end = time.perf_counter() + seconds
        held = None
        while time.perf_counter() < end:
            one = rng.choice(histories.users, 1)
            before, start = _waited_for_a_core(fd), time.perf_counter_ns()
            held = store.read(one)
            wall = time.perf_counter_ns() - start
            samples[name].append((wall, wall - (_waited_for_a_core(fd) - before)))
        del held

    for _ in range(4):
        reads("idle")
        stop = threading.Event()

        def merge(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                for part in parts:
                    store.append(part)
                store.vault.merge()

        worker = threading.Thread(target=merge)
        worker.start()
        reads("merging")
        stop.set()
        worker.join()
    os.close(fd)
    store.close()
    return {
        name: {
            f"{what} p{p}": round(float(np.percentile(np.array(own)[:, c] / 1000, p)), 1)
            for c, what in enumerate(("wall", "wall less waits for a core"))
            for p in (50, 99)
        }
        for name, own in samples.items()
    }


def of_recovery(users: int, root: str) -> dict[str, float]:
    """Seconds to open a store of so many users and as many logged events, by part."""
    schema = Schema((Field("item_id", "int64", "item"), Field("action", "int8", "action")))
    rng = np.random.default_rng(SEED)
    path = f"{root}/recovery"
    with SeqVault.open(path, schema=schema) as vault:
        vault.bulk_load(recovered_events(rng, np.repeat(np.arange(users), 2)))
        for _ in range(0, users, 50_000):
            vault.append(recovered_events(rng, rng.integers(0, users, 50_000)))
        numbers = list(vault._state.manifest.segments)
    files, told = Files(), {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        told[name] = round(told.get(name, 0.0) + time.perf_counter() - start, 3)
        return result

    timed("open", lambda: SeqVault.open(path, read_only=True).close())
    index, memtable = Index(), Memtable(schema)
    for number in numbers:
        footer = timed("read footers", lambda n=number: Segment(files, path, n).footer())
        records = footer[:-1]
        timed("add records to the index", lambda n=number, r=records: index.add_records(n, *r))
    names = sorted(name for name in os.listdir(f"{path}/wal") if name.endswith(".wal"))
    width = sum(dtype.itemsize for dtype in schema.columns.values())
    sizes = sum(os.path.getsize(f"{path}/wal/{name}") for name in names)
    timed("room for events", lambda: memtable.make_room(sizes // width))
    for name in names:
        number = int(name[:-4])
        data = timed("read the log", lambda n=number: wal.read_file(files, path, n))
        frames = timed(
            "check the log", lambda n=number, d=data: list(wal.scan(d, n, "the log", sealed=False))
        )
        for frame in frames:
            columns = recovery.decode_frame(frame, [schema], "the log")
            slots = timed("look users up", lambda c=columns: index.add_users(c["user_id"]))
            timed("lay events down", lambda c=columns, s=slots: memtable.stage(s, c, 1))
            timed("make events visible", lambda n=frame.count: memtable.show(n, index.arrivals))
    return told


def main() -> None:
    """Command line of the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=4000, help="generated users")
    parser.add_argument("--rounds", type=int, default=400, help="of reads of each kind")
    parser.add_argument("--recovered", type=int, default=1_000_000, help="users, and events")
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of reads during merges, 8 times"
    )
    parser.add_argument("--out", default=str(RESULT))
    arguments = parser.parse_args()
    warm_up()
    root = tempfile.mkdtemp(prefix="seqvault-shares-")
    try:
        histories = generate(arguments.users, SEED)
        store = SeqVaultPeer(f"{root}/reads", histories)
        store.fill(histories)
        result: dict[str, Any] = {**provenance("shares", SEED), "users": arguments.users}
        for batch, rounds in ((1, 4 * arguments.rounds), (64, arguments.rounds)):
            result[f"read of {batch}, CPU us"] = of_reads(store, histories, batch, rounds)
        result["read of 64 by field, CPU us"] = of_fields(store, histories, arguments.rounds)
        result["cold read of 64, us"] = of_cold(store, histories, arguments.rounds // 4)
        opened = of_opening(store, histories.users[:64])
        result["first read after opening, CPU us"] = opened
        store.close()
        result["append of 1000 events, us"] = of_appends(histories, root)
        result["one read during merges, us"] = of_merges(histories, root, arguments.seconds)
        result[f"recovery of {arguments.recovered} users, s"] = of_recovery(
            arguments.recovered, root
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
