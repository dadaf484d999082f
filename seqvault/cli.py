"""The ``seqvault`` command."""

import argparse
import json
import logging
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seqvault.errors import SeqVaultError
from seqvault.events import NO_BOUND
from seqvault.schema import DTYPES, RESERVED, Schema
from seqvault.store import SeqVault


def _schema_of(arguments: argparse.Namespace) -> Schema:
    if arguments.like:
        return Schema.from_arrow(pq.read_schema(arguments.like).remove_metadata())
    entries = []
    for field in arguments.field:
        name, _, kind = field.partition(":")
        entries.append({"name": name, "dtype": kind})
    plain = pa.schema(
        [
            (entry["name"], pa.from_numpy_dtype(entry["dtype"]))
            for entry in entries
            if entry["dtype"] in DTYPES
        ]
    )
    if len(plain) < len(entries):
        return Schema.from_json(entries)  # raises, naming the field
    return Schema.from_arrow(plain)


def _init(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path, schema=_schema_of(arguments)) as vault:
        return {"path": vault.path, "schema": vault.schema.to_json()}


def _load(arguments: argparse.Namespace) -> Any:
    start, loaded = time.perf_counter(), 0
    with SeqVault.open(arguments.path) as vault:
        total = sum(pq.ParquetFile(path).metadata.num_rows for path in arguments.parquet)

        def batches() -> Any:
            done = 0
            wanted = [*RESERVED, *vault.schema.names]
            for path in arguments.parquet:
                file = pq.ParquetFile(path)
                names = [name for name in wanted if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=1 << 18, columns=names):
                    yield batch
                    done += len(batch)
                    if sys.stderr.isatty():
                        print(f"\r{done:,} of {total:,} events", end="", file=sys.stderr)
            if sys.stderr.isatty():
                print(file=sys.stderr)

        loaded = vault.bulk_load(batches())
        if arguments.items:
            vault.put_items(pq.read_table(arguments.items))
        stats = vault.stats()
    return {
        "events": loaded,
        "seconds": round(time.perf_counter() - start, 3),
        "bytes_per_event": round(stats["bytes_per_event"], 2),
        "items": stats["items"],
    }


def _append(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path) as vault:
        stored = 0
        if arguments.parquet:
            for path in arguments.parquet:
                stored += vault.append(pq.read_table(path))
        else:
            rows = [json.loads(line) for line in sys.stdin if line.strip()]
            names = (*RESERVED, *vault.schema.names)
            missing = [name for name in names if any(name not in row for row in rows)]
            if missing:
                raise SeqVaultError(f"an event has no {missing[0]!r}; each needs {list(names)}.")
            stored = vault.append({name: [row[name] for row in rows] for name in names})
    return {"events": stored}


def _get(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path, read_only=True) as vault:
        before = NO_BOUND if arguments.before is None else arguments.before
        batch = vault.read(
            [arguments.user],
            before=before,
            last_n=arguments.last_n,
            scenarios=arguments.scenario,
            actions=arguments.action,
            fields=arguments.fields.split(",") if arguments.fields else None,
        )
    n = int(batch.lengths[0])
    columns = {name: values[0, :n].tolist() for name, values in batch.columns.items()}
    if arguments.json:
        return {"user_id": arguments.user, "length": n, **columns}
    print(f"user {arguments.user}: {n} events, newest first")
    shown = {
        name: [_readable_time(value) for value in values] if name == "timestamp" else values
        for name, values in columns.items()
    }
    widths = {
        name: max([len(name), *(len(str(value)) for value in values)])
        for name, values in shown.items()
    }
    print("  ".join(name.rjust(widths[name]) for name in shown))
    for i in range(n):
        print("  ".join(str(shown[name][i]).rjust(widths[name]) for name in shown))
    return None


def _readable_time(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{milliseconds % 1000:03d}"


def _stats(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path, read_only=True) as vault:
        return vault.stats()


def _verify(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path, read_only=True) as vault:
        return vault.verify()


def _merge(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path) as vault:
        return vault.merge()


def _snapshot(arguments: argparse.Namespace) -> Any:
    with SeqVault.open(arguments.path) as vault:
        vault.snapshot(arguments.target)
    return {"snapshot": arguments.target}


def _warm_up(arguments: argparse.Namespace) -> Any:
    from seqvault.warm_up import warm_up

    start = time.perf_counter()
    warm_up()
    return {"seconds": round(time.perf_counter() - start, 3)}


def _serve(arguments: argparse.Namespace) -> Any:
    from seqvault.service.metrics import serve_metrics
    from seqvault.service.server import Server, Tls

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    tokens = None
    if arguments.tokens:
        tokens = {
            token: tuple(scopes)
            for token, scopes in json.loads(Path(arguments.tokens).read_text()).items()
        }
    tls = None
    if arguments.tls_key:
        tls = Tls(
            Path(arguments.tls_key).read_bytes(),
            Path(arguments.tls_cert).read_bytes(),
            Path(arguments.tls_client_ca).read_bytes() if arguments.tls_client_ca else None,
        )
    vault = SeqVault.open(arguments.path)
    try:
        server = Server(vault, f"{arguments.host}:{arguments.port}", tokens, tls)
    except SeqVaultError:
        vault.close()
        raise
    web = None
    if arguments.metrics_port is not None:
        web = serve_metrics(arguments.host, arguments.metrics_port, server.metrics_text)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    print(f"serving {vault.path} on {arguments.host}:{server.port}", flush=True)
    ended.wait()
    if web is not None:
        web.shutdown()
    server.stop()
    return None


def parser() -> argparse.ArgumentParser:
    """The argument parser, one subcommand per thing to do."""
    whole = argparse.ArgumentParser(
        prog="seqvault", description="A durable store of user behaviour sequences."
    )
    commands = whole.add_subparsers(dest="command", required=True)

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("path", help="directory of the store")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.set_defaults(function=function)
        return sub

    sub = command("init", _init, "Create a store.")
    kind = sub.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--field",
        action="append",
        metavar="NAME:TYPE",
        help="an event field, for instance item_id:int64; repeat for more",
    )
    kind.add_argument("--like", metavar="PARQUET", help="take the fields of a Parquet file")

    sub = command("load", _load, "Load life-cycle history from Parquet files.")
    sub.add_argument("parquet", nargs="+", help="events, best sorted by user_id and timestamp")
    sub.add_argument("--items", metavar="PARQUET", help="side information with item_id")

    sub = command("append", _append, "Append events, durably; JSON lines from standard input.")
    sub.add_argument("--parquet", nargs="+", help="Parquet files instead of standard input")

    sub = command("get", _get, "Print a user's history, newest first.")
    sub.add_argument("user", type=int)
    sub.add_argument("--before", type=int, metavar="MS", help="only events strictly before")
    sub.add_argument("--last-n", type=int, default=20, help="number of events (default 20)")
    sub.add_argument("--scenario", type=int, action="append", help="only this scenario; repeat")
    sub.add_argument("--action", type=int, action="append", help="only this action; repeat")
    sub.add_argument("--fields", help="comma-separated fields (default all)")

    command("stats", _stats, "Print sizes and counts.")
    command("verify", _verify, "Read and check every byte.")
    command("merge", _merge, "Move the log into segments and tidy up.")
    sub = command("snapshot", _snapshot, "Make a complete copy of the store.")
    sub.add_argument("target", help="directory to create")

    sub = commands.add_parser("warm-up", help="Compile the kernels now, not at the first read.")
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.set_defaults(function=_warm_up)

    sub = command("serve", _serve, "Serve the store over gRPC until SIGTERM.")
    sub.add_argument("--host", default="127.0.0.1")
    sub.add_argument("--port", type=int, default=7420, help="0 takes a free one (default 7420)")
    sub.add_argument("--tokens", metavar="JSON", help='file like {"secret": ["read", "write"]}')
    sub.add_argument("--tls-key", metavar="PEM")
    sub.add_argument("--tls-cert", metavar="PEM")
    sub.add_argument("--tls-client-ca", metavar="PEM", help="ask clients for a certificate of it")
    sub.add_argument("--metrics-port", type=int, help="Prometheus metrics at /metrics")
    return whole


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status (2: the request or the store is bad)."""
    arguments = parser().parse_args(argv)
    if getattr(arguments, "tls_key", None) and not arguments.tls_cert:
        parser().error("--tls-key needs --tls-cert")
    try:
        result = arguments.function(arguments)
    except (SeqVaultError, OSError, pa.ArrowInvalid, json.JSONDecodeError) as error:
        print(f"seqvault: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if result is not None:
        if arguments.json:
            print(json.dumps(result))
        else:
            for name, value in result.items():
                print(f"{name:18} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
