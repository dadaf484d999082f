"""CPU that servers spend on a read, over loopback: the store, Redis, and echoes of as many bytes.

    python -m benchmarks.seqvault.service [--users 400] [--calls 2000] [--rounds 3]

Each server is a process of its own; its CPU time is what the system counts for it, callers left
out. Rounds of all systems alternate, so that all see the same machine, and the median round counts.
An answer is the last 1000 events of one or 64 users, 34 bytes an event. Callers are threads of one
process with a connection each, which ask again as soon as they have their answer and take none
apart; what they look at is the number of its bytes.

Systems: ``grpcio_echo`` sends as many bytes by a generic handler of gRPC in Python, and
``framed_echo`` behind a length from a thread per connection; ``redis`` has a packed blob per user
(MGET; left out where no ``redis-server`` is installed; its callers use ``hiredis`` where that is,
``pip install hiredis``, else a few lines of Python); ``seqvault`` reads by the read
protocol, ``seqvault_grpc`` by gRPC. The raw result goes to ``results/``.
"""

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from benchmarks.seqvault.timing import MICRO, provenance
from benchmarks.seqvault.workload import LAST_N, Blobs, Histories, generate
from seqvault import Schema, SeqVault
from seqvault.codec import frames
from seqvault.service import seqvault_pb2 as pb
from seqvault.service.read_messages import DENSE, ReadMessage
from seqvault.service.server import Server
from seqvault.times import NO_BOUND

SEED = 0
CLIENTS, USERS = (1, 8, 64), (1, 64)
SYSTEMS = ("grpcio_echo", "framed_echo", "redis", "seqvault", "seqvault_grpc")
_SIZE = struct.Struct("<I")
_HIREDIS: Any = importlib.import_module("hiredis") if importlib.util.find_spec("hiredis") else None
Ask = Callable[[np.ndarray], int]  # asks for users; bytes of the answer


def serve_store(path: str, pipe: Any) -> None:
    """A process: tells its two ports, and ends when told to."""
    sys.setswitchinterval(0.0005)  # as `seqvault serve` does
    with Server(SeqVault.open(path), merge_seconds=0) as server:
        pipe.send((server.port, server.read_port))
        pipe.recv()


def serve_grpc_echo(width: int, pipe: Any) -> None:
    """A process that answers each request with ``width`` bytes for each 8 of it."""
    answers = {count: bytes(count * width) for count in USERS}
    method = grpc.unary_unary_rpc_method_handler(lambda request, _: answers[len(request) // 8])
    server = grpc.server(ThreadPoolExecutor(8))
    handlers = (grpc.method_handlers_generic_handler("echo", {"Read": method}),)
    server.add_generic_rpc_handlers(handlers)
    pipe.send((server.add_insecure_port("127.0.0.1:0"),))
    server.start()
    pipe.recv()
    server.stop(0)


def serve_framed_echo(width: int, pipe: Any) -> None:
    """The same behind a length, without gRPC."""
    answers = {count: bytes(count * width) for count in USERS}

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while size := self.request.recv(4, socket.MSG_WAITALL):
                request = self.request.recv(_SIZE.unpack(size)[0], socket.MSG_WAITALL)
                answer = answers[len(request) // 8]
                self.request.sendmsg([_SIZE.pack(len(answer)), answer])

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 128

    with Threads(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pipe.send((server.server_address[1],))
        pipe.recv()
        server.shutdown()


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Runs a server; its process and its ports."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    running = context.Process(target=target, args=(*arguments, theirs))
    running.start()
    try:
        assert running.pid is not None
        yield running.pid, ours.recv()
    finally:
        ours.send(None)
        running.join()


@contextmanager
def redis_server(histories: Histories, folder: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Redis with the newest events of each user as a blob; its process and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    running = subprocess.Popen(
        ["redis-server", "--port", str(port), "--dir", folder, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 20
        while True:
            try:
                sock = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < end, "redis-server did not start"
                time.sleep(0.05)
        blobs = Blobs(histories)
        for place, user in enumerate(histories.users.tolist()):
            columns = {name: v[-LAST_N:] for name, v in histories.of_user(place).items()}
            sock.sendall(command(b"SET", b"%d" % user, blobs.pack(columns)))
            assert sock.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"
        sock.close()
        yield running.pid, (port,)
    finally:
        running.terminate()
        running.wait()


def command(*words: bytes) -> bytes:
    """A command as Redis takes it."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += [b"$%d\r\n" % len(word), word, b"\r\n"]
    return b"".join(parts)


class Connection:
    """A socket that takes in answers whole."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._room = bytearray(1 << 22)

    def take(self, size: int) -> memoryview:
        """The next bytes."""
        if size > len(self._room):
            self._room = bytearray(size)
        room = memoryview(self._room)[:size]
        got = self.sock.recv_into(room, size, socket.MSG_WAITALL)
        assert got == size, "the server closed the connection"
        return room

    def line(self) -> bytes:
        """The next line of Redis."""
        found = bytearray()
        while not found.endswith(b"\r\n"):
            found += self.take(1)
        return bytes(found)


def by_hiredis(connection: Connection) -> Ask:
    """A caller of Redis who lets ``hiredis`` write commands and take replies apart."""
    reader, room = _HIREDIS.Reader(), memoryview(bytearray(1 << 16))

    def ask(users: np.ndarray) -> int:
        keys = tuple(b"%d" % user for user in users.tolist())
        connection.sock.sendall(_HIREDIS.pack_command((b"MGET", *keys)))
        while (reply := reader.gets()) is False:
            count = connection.sock.recv_into(room)
            assert count, "the server closed the connection"
            reader.feed(room, 0, count)
        return sum(map(len, reply))

    return ask


def asker(system: str, ports: tuple[int, ...]) -> Ask:
    """A caller's connection."""
    if system in ("grpcio_echo", "seqvault_grpc"):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channel = grpc.insecure_channel(f"127.0.0.1:{ports[0]}", options)
        path = "/echo/Read" if system == "grpcio_echo" else "/seqvault.v1.SeqVault/Read"
        call = channel.unary_unary(path)

        def by_grpc(users: np.ndarray) -> int:
            request = users.tobytes()
            if system == "seqvault_grpc":
                bound = NO_BOUND.to_bytes(8, "little")
                request = pb.ReadRequest(
                    user_ids=request, before=bound, last_n=LAST_N
                ).SerializeToString()
            return len(call(request, timeout=60))

        by_grpc.channel = channel  # type: ignore[attr-defined]  # which lives as long
        return by_grpc
    connection = Connection(ports[-1])
    if system == "redis" and _HIREDIS is not None:
        return by_hiredis(connection)
    if system == "seqvault":
        connection.sock.sendall(frames.frame(frames.HELLO, 0))
        connection.take(frames.header_of(connection.take(frames.HEADER))[3])

    def ask(users: np.ndarray) -> int:
        if system == "framed_echo":
            connection.sock.sendall(_SIZE.pack(8 * len(users)) + users.tobytes())
            return len(connection.take(_SIZE.unpack(connection.take(4))[0]))
        if system == "redis":
            keys = [b"%d" % user for user in users.tolist()]
            connection.sock.sendall(command(b"MGET", *keys))
            size = 0
            for _ in range(int(connection.line()[1:])):
                size += len(connection.take(int(connection.line()[1:]) + 2)) - 2
            return size
        message = ReadMessage(
            0, LAST_N, DENSE, users.tobytes(), NO_BOUND.to_bytes(8, "little"), True
        )
        connection.sock.sendall(frames.frame(frames.READ, 1, *message.parts()))
        _, _, kind, size, _ = frames.header_of(connection.take(frames.HEADER))
        assert kind == frames.ANSWER, bytes(connection.take(size))
        return len(connection.take(size))

    return ask


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, its threads that have ended among it."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3) of Linux


def round_of(
    asks: list[Ask], pid: int, users: np.ndarray, count: int, calls: int, seed: int
) -> dict[str, float]:
    """CPU of the server for a call, and how long callers waited."""
    waits: list[list[float]] = [[] for _ in asks]
    sizes = [0] * len(asks)

    def work(place: int) -> None:
        rng, ask = np.random.default_rng((seed, place)), asks[place]
        for _ in range(max(calls // len(asks), 1)):
            asked = rng.choice(users, count)
            start = time.perf_counter()
            sizes[place] = ask(asked)
            waits[place].append(time.perf_counter() - start)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(asks))]
    cpu, start = cpu_seconds(pid), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall, cpu = time.perf_counter() - start, cpu_seconds(pid) - cpu
    every = np.concatenate(waits) * MICRO
    return {
        "cpu_us": cpu / len(every) * MICRO,
        "p50_us": float(np.percentile(every, 50)),
        "p99_us": float(np.percentile(every, 99)),
        "calls_per_s": len(every) / wall,
        "bytes": max(sizes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=400, help="generated (default 400)")
    parser.add_argument("--calls", type=int, default=2000, help="of one user, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="service", help="of the result (default service)")
    arguments = parser.parse_args()
    histories = generate(arguments.users, SEED)
    long = histories.users[np.diff(histories.starts) >= LAST_N]
    width, table = LAST_N * histories.width, pa.table(histories.events)
    result: dict[str, Any] = {
        **provenance("service", SEED),
        "redis_client": f"hiredis {_HIREDIS.__version__}" if _HIREDIS else "Python",
        "users_drawn": len(long),
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with SeqVault.open(f"{folder}/vault", schema=Schema.from_arrow(table.schema)) as vault:
            vault.bulk_load(table)
        store = stack.enter_context(process(serve_store, f"{folder}/vault"))
        servers = {
            "grpcio_echo": stack.enter_context(process(serve_grpc_echo, width)),
            "framed_echo": stack.enter_context(process(serve_framed_echo, width)),
            "seqvault": store,
            "seqvault_grpc": store,
        }
        if shutil.which("redis-server"):
            servers["redis"] = stack.enter_context(redis_server(histories, folder))
        for count in USERS:
            for clients in CLIENTS:
                case: dict[str, Any] = {"users": count, "clients": clients, "systems": {}}
                rounds: dict[str, list[dict[str, float]]] = {}
                asks = {
                    name: [asker(name, servers[name][1]) for _ in range(clients)]
                    for name in SYSTEMS
                    if name in servers
                }
                calls = max(arguments.calls // count, 2 * clients)
                for number in range(arguments.rounds + 1):
                    for name, those in asks.items():
                        of = round_of(those, servers[name][0], long, count, calls, number)
                        if number:  # the first warms up
                            rounds.setdefault(name, []).append(of)
                for name, those_rounds in rounds.items():
                    case["systems"][name] = {
                        what: round(float(np.median([one[what] for one in those_rounds])), 1)
                        for what in those_rounds[0]
                    }
                    numbers = case["systems"][name]
                    print(
                        f"{count:3} users {clients:3} clients {name:14} "
                        f"cpu {numbers['cpu_us']:9.1f} us p50 {numbers['p50_us']:9.1f} "
                        f"p99 {numbers['p99_us']:9.1f}",
                        flush=True,
                    )
                case["load"] = round(os.getloadavg()[0], 2)
                result["cases"].append(case)
    target = Path(__file__).parent / "results" / f"{arguments.name}.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
