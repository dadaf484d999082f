"""The arguments of every command, and which function runs it.

Functions are named, not imported: ``module:function`` below ``seqvault.cli``.
"""

import argparse
from importlib.metadata import version
from typing import Any

TARGET = "directory of the store, or host:port of a server"


def parser() -> argparse.ArgumentParser:
    """The argument parser, with a subparser per command."""
    whole = argparse.ArgumentParser(
        prog="seqvault",
        description="A durable store of user behaviour sequences.",
        epilog="`seqvault COMMAND --help` shows an example of each. Exit codes: 0 done, 2 bad "
        "request or store, 3 damaged file, 4 try again later, 130 interrupted.",
    )
    whole.add_argument(
        "--version", action="version", version=f"%(prog)s {version('laser-ranking')}"
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_init(commands)
    _add_load(commands)
    _add_append(commands)
    _add_get(commands)
    _add_users(commands)
    _add_care(commands)
    _add_serve(commands)
    _add_ingest(commands)
    _add_bench(commands)
    return whole


def _command(
    commands: Any, name: str, run: str, text: str, example: str, target: str | None = TARGET
) -> argparse.ArgumentParser:
    """Adds a subcommand; if its target may be a server, with the connection flags."""
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if target is not None:
        sub.add_argument("path", help=target, metavar="STORE")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.set_defaults(run=run)
    if target == TARGET:
        group = sub.add_argument_group("reaching a server")
        group.add_argument("--token-file", metavar="FILE", help="file with the bearer token")
        group.add_argument("--ca", metavar="PEM", help="authority of the server's certificate")
        group.add_argument("--client-key", metavar="PEM", help="own key, for mutual TLS")
        group.add_argument("--client-cert", metavar="PEM", help="own certificate")
        group.add_argument(
            "--timeout", type=float, default=10.0, metavar="S", help="of a call (default 10)"
        )
    return sub


def _add_init(commands: Any) -> None:
    sub = _command(
        commands, "init", "store_commands:init", "Create a store.",
        "seqvault init vault --field item_id:int64 --field scenario:int8",
        "directory of the store",
    )  # fmt: skip
    kind = sub.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--field",
        action="append",
        metavar="NAME:TYPE",
        help="an event field, for instance item_id:int64; repeat for more",
    )
    kind.add_argument("--like", metavar="PARQUET", help="take the fields of a Parquet file")


def _add_load(commands: Any) -> None:
    sub = _command(
        commands, "load", "store_commands:load",
        "Load life-cycle history from Parquet files or folders of them.",
        "seqvault load vault history/ --items items.parquet",
    )  # fmt: skip
    sub.add_argument("parquet", nargs="+", help="events, best sorted by user_id and timestamp")
    sub.add_argument("--items", metavar="PARQUET", help="side information with item_id")
    _add_shard(sub)


def _add_shard(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="keep only users of shard I of N, counted from 0, as clients route them",
    )


def shard(text: str) -> tuple[int, int]:
    """``I/N`` as numbers.

    >>> shard("0/3")
    (0, 3)
    """
    place, _, count = text.partition("/")
    if not (place.isdigit() and count.isdigit() and int(place) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1, e.g. 0/3")
    return int(place), int(count)


def _add_append(commands: Any) -> None:
    sub = _command(
        commands, "append", "store_commands:append",
        "Append events, durably; JSON lines from standard input.",
        'echo \'{"user_id": 7, "timestamp": 1700000000000, "item_id": 5, "scenario": 1}\' '
        "| seqvault append vault",
    )  # fmt: skip
    sub.add_argument("--parquet", nargs="+", help="Parquet files instead of standard input")


def _add_get(commands: Any) -> None:
    sub = _command(
        commands, "get", "store_commands:get", "Print a user's history, newest first.",
        "seqvault get vault 7 --last-n 5",
    )  # fmt: skip
    sub.add_argument("user", type=int, metavar="USER")
    sub.add_argument("--before", type=int, metavar="MS", help="only events strictly before")
    sub.add_argument("--last-n", type=int, default=20, help="number of events (default 20)")
    sub.add_argument("--scenario", type=int, action="append", help="only this scenario; repeat")
    sub.add_argument("--action", type=int, action="append", help="only this action; repeat")
    sub.add_argument("--fields", help="comma-separated fields (default all)")


def _add_users(commands: Any) -> None:
    sub = _command(
        commands, "users", "store_commands:users",
        "Print the ids of the users, ascending, one a line.",
        "seqvault users vault --limit 10",
    )  # fmt: skip
    sub.add_argument("--after", type=int, metavar="USER", help="only ids larger than this one")
    sub.add_argument("--limit", type=int, metavar="N", help="at most so many (default: all)")


def _add_care(commands: Any) -> None:
    for name, text in (
        ("stats", "Print sizes and counts."),
        ("verify", "Read and check every byte."),
        ("merge", "Move the log into segments and tidy up."),
    ):
        _command(commands, name, f"store_commands:{name}", text, f"seqvault {name} vault --json")
    sub = _command(
        commands, "snapshot", "store_commands:snapshot", "Make a complete copy of the store.",
        "seqvault snapshot localhost:7420 /backups/vault-monday",
    )  # fmt: skip
    sub.add_argument("target", help="directory to create, of a server: on its machine")
    _command(
        commands, "warm-up", "store_commands:warm_up",
        "Compile the kernels now, not at the first read.", "seqvault warm-up", None,
    )  # fmt: skip


def _add_serve(commands: Any) -> None:
    sub = _command(
        commands, "serve", "serve:serve", "Serve the store over gRPC until SIGTERM.",
        "seqvault serve vault --port 7420 --tokens tokens.json --metrics-port 9420",
        "directory of the store",
    )  # fmt: skip
    sub.add_argument("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1)")
    sub.add_argument("--port", type=int, default=7420, help="0 takes a free one (default 7420)")
    sub.add_argument(
        "--read-port",
        type=int,
        default=0,
        help="of the read protocol, which clients are told; 0 takes a free one (default 0)",
    )
    sub.add_argument(
        "--readers",
        type=int,
        default=0,
        metavar="N",
        help="processes that answer the read protocol, so that reads use more cores and never "
        "wait for a merge (default 0: this process does)",
    )
    sub.add_argument("--tokens", metavar="JSON", help='file like {"secret": ["read", "write"]}')
    sub.add_argument("--tls-key", metavar="PEM")
    sub.add_argument("--tls-cert", metavar="PEM")
    sub.add_argument("--tls-client-ca", metavar="PEM", help="ask clients for a certificate of it")
    sub.add_argument(
        "--mib-in-flight",
        type=int,
        default=1024,
        metavar="MIB",
        help="messages of calls under way; more are refused and may be repeated (default 1024)",
    )
    sub.add_argument(
        "--snapshots",
        metavar="DIRECTORY",
        help="callers may make snapshots below it (default: they may make none)",
    )
    sub.add_argument("--metrics-port", type=int, help="Prometheus metrics at /metrics")
    _add_merge_seconds(sub)


def _add_merge_seconds(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--merge-seconds",
        type=seconds,
        default=60.0,
        metavar="S",
        help="the longest time between merges of the log into segments, 0: never (default 60)",
    )


def seconds(text: str) -> float:
    """A time of at least 0.

    >>> seconds("1.5")
    1.5
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return value


def _add_ingest(commands: Any) -> None:
    sub = _command(
        commands, "ingest", "ingest:ingest", "Append the events of a Kafka topic, each once.",
        "seqvault ingest vault --kafka broker1:9092,broker2:9092 --topic events",
    )  # fmt: skip
    sub.add_argument("--kafka", required=True, metavar="BROKERS", help="host:port, comma-separated")
    sub.add_argument("--topic", required=True)
    sub.add_argument(
        "--group", help="consumer group; those of one group share one store (default: by the store)"
    )
    sub.add_argument(
        "--kafka-config", metavar="FILE", help="lines NAME=VALUE for librdkafka, as SASL and TLS"
    )
    sub.add_argument(
        "--dead-letters",
        metavar="FILE",
        help="malformed messages (default STORE.dead.jsonl, of a server TOPIC.dead.jsonl)",
    )
    sub.add_argument("--once", action="store_true", help="end where the topic ends at the start")
    sub.add_argument(
        "--snapshots",
        metavar="DIRECTORY",
        help="callers may make snapshots below it (default: they may make none)",
    )
    sub.add_argument("--metrics-port", type=int, help="Prometheus metrics at /metrics")
    _add_merge_seconds(sub)
    _add_shard(sub)


def _add_bench(commands: Any) -> None:
    sub = _command(
        commands, "bench", "bench:bench", "Time reads, and on request appends.",
        "seqvault bench localhost:7420 --users 1:20000 --batch 64 --last-n 200",
    )  # fmt: skip
    sub.add_argument("--users", metavar="LOW:HIGH", help="ids to read (default: the directory's)")
    sub.add_argument("--batch", type=int, default=64, help="users of a batch (default 64)")
    sub.add_argument("--last-n", type=int, default=200, help="events per user (default 200)")
    sub.add_argument("--seconds", type=float, default=3.0, help="per line (default 3)")
    sub.add_argument(
        "--append",
        type=int,
        default=0,
        metavar="EVENTS",
        help="also append so many events a call, for users from 2^62 on: they stay in the store",
    )
