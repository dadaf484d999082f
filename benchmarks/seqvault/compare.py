"""SeqVault beside RocksDB, LMDB and Redis: the same events, the same reads, in one run.

    python -m benchmarks.seqvault.compare                          generated events
    python -m benchmarks.seqvault.compare --data FOLDER_OR_FILE    and those of a Parquet file
    python -m benchmarks.seqvault.compare --render RESULT.json     tables of a result, as Markdown
        --into docs/seqvault/benchmarks.md                         put in their place in a page

Every store holds the same histories and answers the same requests: the last 1000 events
of a user, all fields, as arrays padded to [B, 1000], which the run checks to be equal.
Stores take turns within each loop, so that all see the same machine. Wall and CPU time are
of one call, in microseconds. Raw results go to ``results/``, with the table of goals.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.seqvault import appends, goals, index, mixed, reads, render
from benchmarks.seqvault.peers import redis, rocksdb
from benchmarks.seqvault.peers.lmdb import LmdbPeer
from benchmarks.seqvault.peers.peer import Peer
from benchmarks.seqvault.peers.redis import RedisPeer
from benchmarks.seqvault.peers.rocksdb import BlobPeer, EventKeyPeer
from benchmarks.seqvault.peers.seqvault import SeqVaultPeer
from benchmarks.seqvault.timing import provenance
from benchmarks.seqvault.workload import Histories, generate, load
from seqvault.warm_up import warm_up

RESULTS = Path(__file__).parent / "results"


def readers(histories: Histories, root: str) -> list[Peer]:
    """All stores whose reads and sizes are compared, empty."""
    peers: list[Peer] = [SeqVaultPeer(f"{root}/seqvault", histories)]
    for kind in rocksdb.COMPRESSION:
        peers.append(BlobPeer(f"{root}/blob-{kind}", histories, kind))
        peers.append(EventKeyPeer(f"{root}/keys-{kind}", histories, kind))
    for zstd in (False, True):
        peers.append(LmdbPeer(f"{root}/lmdb-{zstd}", histories, zstd))
    if redis.installed():
        for lists in (False, True):
            peers.append(RedisPeer(f"{root}/redis-{lists}", histories, lists))
    return peers


def appenders(histories: Histories, root: str) -> list[Peer]:
    """All stores whose durable appends are compared, empty."""
    kinds: list[Callable[[str, Histories], Peer]] = [SeqVaultPeer, EventKeyPeer, BlobPeer, LmdbPeer]
    peers = [kind(f"{root}-{place}", histories) for place, kind in enumerate(kinds)]
    if redis.installed():
        peers.append(RedisPeer(f"{root}-redis", histories, durable=True))
    return peers


def fill(peers: list[Peer], histories: Histories) -> None:
    """Fills all stores with all histories."""
    for peer in peers:
        say(f"  fill {peer.name}")
        peer.fill(histories)


def measured_reads(histories: Histories, root: str, rounds: int) -> dict[str, Any]:
    """Sizes and reads of all stores."""
    peers = readers(histories, root)
    try:
        fill(peers, histories)
        reading = [peer for peer in peers if not isinstance(peer, EventKeyPeer)]
        on_disk = [peer for peer in reading if not isinstance(peer, RedisPeer)]
        users = histories.users
        reads.check_equal(reading, users)
        say("  read")
        return {
            "bytes_per_event": {
                peer.name: round(peer.bytes_stored() / len(histories), 2) for peer in peers
            },
            "one_user": reads.warm(reading, users, 1, 8 * rounds),
            "batch_of_64": reads.warm(reading, users, 64, 2 * rounds),
            "one_user_alone": reads.alone(reading, users, 1, 4 * rounds),
            "batch_of_64_alone": reads.alone(reading, users, 64, rounds),
            "cold_one_user": reads.cold(on_disk, users, 1, rounds // 2),
            "cold_batch_of_64": reads.cold(on_disk, users, 64, rounds // 4),
            "copy_of_answer_cpu_us": reads.copy_of_answer(histories.width, 64),
        }
    finally:
        close(peers)


def measured_writes(histories: Histories, root: str) -> dict[str, Any]:
    """Durable appends, and reads meanwhile."""
    result: dict[str, Any] = {"durable_append": {}}
    for threads, label in ((1, "1 thread"), (4, "4 threads")):
        say(f"  append, {label}")
        peers = appenders(histories, f"{root}/append-{threads}")
        try:
            result["durable_append"][label] = appends.durable(peers, histories, threads)
        finally:
            close(peers)
    ours = SeqVaultPeer(f"{root}/mixed-seqvault", histories)
    peers = [
        ours,
        BlobPeer(f"{root}/mixed-rocksdb", histories),
        LmdbPeer(f"{root}/mixed-lmdb", histories),
    ]
    try:
        fill(peers, histories)
        say("  read while appending")
        result["reads_under_appends"] = mixed.reads_under_appends(peers, histories)
        say("  read while merging")
        result["reads_during_merges"] = mixed.reads_during_merges(ours, histories)
    finally:
        close(peers)
    return result


def close(peers: list[Peer]) -> None:
    """Ends all stores."""
    for peer in peers:
        peer.close()


def measure(histories: Histories, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison on one set of histories."""
    say(f"{histories.source}: {len(histories.users)} users, {len(histories)} events")
    root = tempfile.mkdtemp(prefix="seqvault-bench-")
    result: dict[str, Any] = {
        **provenance("compare", arguments.seed),
        "source": histories.source,
        "events": len(histories),
        "users": len(histories.users),
        "fields": len(histories.names),
        "raw_bytes_per_event": histories.width,
        "left_out": {} if redis.installed() else {"redis": "not installed"},
    }
    try:
        result |= measured_reads(histories, root, arguments.rounds)
        result |= measured_writes(histories, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    result["index"] = index.measure(arguments.index_users)
    result["goals"] = goals.table(result, Path(arguments.out))
    return result


def tables(path: Path, page: str | None) -> None:
    """Prints the tables of a result, or puts them into a page; goals are worked out anew."""
    result = json.loads(path.read_text())
    result["goals"] = goals.table(result, path.parent)
    if page:
        Path(page).write_text(render.put_into(Path(page).read_text(), result))
    else:
        print(render.markdown(result))


def say(line: str) -> None:
    """Progress."""
    print(line, flush=True)


def main() -> None:
    """Command line of the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=4000, help="generated users")
    parser.add_argument("--index-users", type=int, default=10_000_000, help="of the index alone")
    parser.add_argument("--rounds", type=int, default=200, help="of reads of each kind, scaled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="events.parquet, or a folder that has one")
    parser.add_argument("--fields", default="item_id,scenario,action", help="fields of --data")
    parser.add_argument("--out", default=str(RESULTS), help="folder of results")
    parser.add_argument("--render", metavar="RESULT", help="print tables of a result, and end")
    parser.add_argument("--into", metavar="PAGE", help="with --render: put them into a page")
    arguments = parser.parse_args()
    if arguments.render:
        tables(Path(arguments.render), arguments.into)
        return
    warm_up()
    sources = [lambda: generate(arguments.users, arguments.seed)]
    if arguments.data:
        sources.append(lambda: load(arguments.data, arguments.fields.split(",")))
    for source in sources:
        result = measure(source(), arguments)
        path = Path(arguments.out) / f"compare-{result['source']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(render.markdown(result))
        say(f"written to {path}")


if __name__ == "__main__":
    main()
