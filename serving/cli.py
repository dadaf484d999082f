"""``laser-serving``: the embedded model server, the rank gateway, or both together."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

# What a SeqVault server may ask for; named as `seqvault`'s own flags are.
_ACCESS_FLAGS = {
    "token-file": "bearer token for the SeqVault server",
    "ca": "PEM: the authority of its certificate",
    "client-key": "PEM: own key, for mutual TLS",
    "client-cert": "PEM: own certificate",
}

_KIB, _MIB = 2**10, 2**20
# Blocks from this size on are given back at once. TensorFlow's tensors are such blocks, and page
# faults would cost a run more than its arithmetic; a gateway's are bodies.
_GATEWAY_BLOCK, _MODEL_BLOCK = 256 * _KIB, _MIB
_UNKNOWN = "candidates that the store or the item table lacks: score them by their features, or 400"

# Imports of the two servers are inside the commands: the gateway must not wait for TensorFlow.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Example:
        >>> main(["model-server", "--rest_api_port=auto"])
        255
    """
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    if unknown:
        if arguments.run is not _model_server:
            parser.error(f"unknown arguments: {' '.join(unknown)}")
        # As TensorFlow Serving does, so that its command lines can be used unchanged.
        print(f"laser-serving: ignored: {' '.join(unknown)}", file=sys.stderr)
    if arguments.ready_file:
        # One that an earlier run left would be taken for this run's.
        Path(arguments.ready_file).unlink(missing_ok=True)
    if getattr(arguments, "end_with_stdin", False):
        _end_with_stdin()
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="laser-serving", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('laser-ranking')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_model_server(commands)
    _add_gateway(commands)
    _add_start(commands)
    return parser


def _add_model_server(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "model-server",
        help="serve SavedModels over TensorFlow Serving's REST and gRPC predict API",
        description="Takes TensorFlow Serving's own flags; unknown ones are named and ignored.",
        allow_abbrev=False,
    )
    parser.set_defaults(run=_model_server)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    add("--port", type=_port, default=8500, help="gRPC port; 0 = off, auto = a free one")
    add("--rest_api_port", type=_port, default=0, help="REST port; 0 = off, auto = a free one")
    add("--model_name", default="default")
    add("--model_base_path", default="", help="absolute; holds <number>/saved_model.pb")
    add("--model_config_file", default="", help="several models, as text proto")
    add("--file_system_poll_wait_seconds", type=float, default=1.0, help="0 = look once")
    add("--max_num_load_retries", type=int, default=5)
    add("--load_retry_interval_micros", type=int, default=60_000_000)
    add("--rest_api_timeout_in_ms", type=int, default=30_000)
    add("--rest_api_enable_cors_support", type=_boolean, nargs="?", const=True, default=False)
    add("--enable_model_warmup", type=_boolean, nargs="?", const=True, default=True)
    add("--saved_model_tags", default="serve", help="comma-separated")
    add("--tensorflow_intra_op_parallelism", type=int, default=0)
    add("--tensorflow_inter_op_parallelism", type=int, default=0)
    add("--grpc_max_threads", type=_positive, default=4 * (os.cpu_count() or 1))
    add("--max_waiting", type=_positive, default=256, help="calls that may wait for a thread")
    add("--max_request_bytes", type=_positive, default=64 * _MIB, help="of one request, as parsed")
    add("--max_in_flight_bytes", type=_positive, default=80 * _MIB, help="of all under way")
    add("--max_run_seconds", type=_seconds, default=60.0, help="of a call without a deadline")
    add("--ready_file", default="", help="JSON with the addresses, written when ready")
    add("--end_with_stdin", action="store_true", help=argparse.SUPPRESS)


def _add_gateway(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("gateway", help="rank candidates over HTTP", allow_abbrev=False)
    parser.set_defaults(run=_gateway)
    _add_gateway_arguments(parser)
    add = parser.add_argument
    add("--model_server", default="127.0.0.1:8500", help="gRPC host:port")
    add("--model_base_path", type=Path, help="run the model in this process, from this folder")


def _add_gateway_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--store", required=True, help="a SeqVault folder, or host:port of a SeqVault server")
    for flag, text in _ACCESS_FLAGS.items():
        add(f"--seqvault-{flag}", type=Path, metavar="FILE", help=text)
    add("--features", required=True, help="features.yaml")
    add("--model_name", default="ranker")
    add("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    add("--port", type=_port, default=8080, help="HTTP port; auto = a free one")
    add("--deadline_ms", type=int, default=1000, help="of one rank request, from its first byte")
    add("--threads", type=_positive, default=2 * (os.cpu_count() or 1), help="requests at once")
    add("--max_waiting", type=_positive, default=256, help="requests that may wait for a thread")
    add("--max_candidates", type=_positive, default=5000, help="of one request")
    add("--max_events", type=_positive, default=10_000, help="of one call")
    add("--max_ahead_seconds", type=_seconds, default=300.0, help="times may lie so far from now")
    add("--unknown_candidates", choices=["score", "refuse"], default="score", help=_UNKNOWN)
    add("--degrade", choices=["history"], help="answer without it while the store is down")
    add("--impression_log", type=Path, metavar="FOLDER", help="log what is shown, to train on")
    add("--drain_seconds", type=float, default=3.0, help="on SIGTERM, time to be found not ready")
    add("--ready_file", default="", help="JSON with the address, written when ready")
    add("--end_with_stdin", action="store_true", help=argparse.SUPPRESS)


def _add_start(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "start", help="model server and gateway together", allow_abbrev=False
    )
    parser.set_defaults(run=_start)
    _add_gateway_arguments(parser)
    add = parser.add_argument
    add("--model_base_path", required=True, help="holds <number>/saved_model.pb")
    add("--grpc_port", type=_port, default=None, help="of the model server (default: auto)")
    add("--rest_api_port", type=_port, default=0, help="of the model server; 0 = off")
    add("--in_process", action="store_true", help="the model in the gateway's process: no server")


def _port(text: str) -> int | None:
    """A port number; None stands for ``auto``."""
    if text == "auto":
        return None
    port = int(text)
    if not 0 <= port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port; give 0 to 65535 or auto")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() in ("true", "1")


def _bound_port(port: int | None) -> int | None:
    """From a flag (0 = off, None = auto) to a server's option (None = off, 0 = free)."""
    return 0 if port is None else port or None


def _model_server(arguments: argparse.Namespace) -> int:
    # The server reports faults itself; what TensorFlow prints at import is not about them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from seqvault.end_signals import EndSignals
    from serving.model_server.limits import Limits
    from serving.model_server.model_server import ModelServer, ServerOptions
    from serving.model_server.server_config import read_config, single_model
    from serving.model_server.status import ServingError
    from serving.ready_file import write_ready_file
    from serving.runtime.collector import freeze_heap
    from serving.runtime.malloc import return_large_blocks

    return_large_blocks(_MODEL_BLOCK)
    freeze_heap()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if not arguments.model_base_path and not arguments.model_config_file:
        return _fail("give --model_base_path=/path/to/model or --model_config_file", 255)
    try:
        models = (
            read_config(Path(arguments.model_config_file))
            if arguments.model_config_file
            else [single_model(arguments.model_name, arguments.model_base_path)]
        )
        server = ModelServer(
            models,
            ServerOptions(
                host=arguments.host,
                grpc_port=_bound_port(arguments.port),
                rest_port=_bound_port(arguments.rest_api_port),
                poll_seconds=arguments.file_system_poll_wait_seconds,
                max_load_retries=arguments.max_num_load_retries,
                load_retry_seconds=arguments.load_retry_interval_micros / 1e6,
                rest_timeout_seconds=arguments.rest_api_timeout_in_ms / 1e3,
                limits=Limits(
                    request_bytes=arguments.max_request_bytes,
                    in_flight_bytes=arguments.max_in_flight_bytes,
                    threads=arguments.grpc_max_threads,
                    waiting=arguments.max_waiting,
                    run_seconds=arguments.max_run_seconds,
                ),
                cors=arguments.rest_api_enable_cors_support,
                intra_op_threads=arguments.tensorflow_intra_op_parallelism,
                inter_op_threads=arguments.tensorflow_inter_op_parallelism,
                tags=tuple(arguments.saved_model_tags.split(",")),
                warm_up=arguments.enable_model_warmup,
            ),
        )
        server.start()
    except ServingError as error:
        return _fail(f"Failed to start server. Error: {error}", 255)
    except OSError as error:
        return _fail(f"Failed to start server. Error: {_in_use(error, arguments)}", 255)
    if arguments.ready_file:
        write_ready_file(arguments.ready_file, grpc=server.grpc_address, rest=server.rest_address)
    EndSignals().wait()
    server.stop()
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    from serving.gateway.options import GatewayOptions, Rules, StoreAccess
    from serving.gateway.serve import serve
    from serving.runtime.malloc import return_large_blocks

    return_large_blocks(_GATEWAY_BLOCK if arguments.model_base_path is None else _MODEL_BLOCK)
    return serve(
        GatewayOptions(
            store=arguments.store,
            features=Path(arguments.features),
            model_server=arguments.model_server,
            model_base_path=arguments.model_base_path,
            model_name=arguments.model_name,
            host=arguments.host,
            port=arguments.port or 0,
            rules=Rules(
                deadline_seconds=arguments.deadline_ms / 1e3,
                threads=arguments.threads,
                waiting=arguments.max_waiting,
                max_candidates=arguments.max_candidates,
                max_events=arguments.max_events,
                max_ahead_seconds=arguments.max_ahead_seconds,
                refuse_unknown=arguments.unknown_candidates == "refuse",
                degrade_history=arguments.degrade == "history",
            ),
            drain_seconds=arguments.drain_seconds,
            impression_log=arguments.impression_log,
            ready_file=Path(arguments.ready_file) if arguments.ready_file else None,
            access=StoreAccess(
                token_file=arguments.seqvault_token_file,
                ca=arguments.seqvault_ca,
                key=arguments.seqvault_client_key,
                certificate=arguments.seqvault_client_cert,
            ),
        )
    )


def _start(arguments: argparse.Namespace) -> int:
    from serving.start import start

    try:
        return start(arguments)
    except OSError as error:
        return _fail(f"laser-serving start: {error}", 1)


def _end_with_stdin() -> None:
    """Exit as on SIGTERM when the process at the other end of standard input is gone."""

    def wait() -> None:
        with suppress(OSError):  # an error means the other end is gone, too
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def _in_use(error: OSError, arguments: argparse.Namespace) -> str:
    ports = [port for port in (arguments.port, arguments.rest_api_port) if port]
    return (
        f"{error}; host {arguments.host}, ports {ports}: choose others with --port and "
        "--rest_api_port, or stop what listens there"
    )


def _fail(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
