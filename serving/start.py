"""Runs the model server and the gateway as child processes, and stops both together."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from seqvault.end_signals import EndSignals
from serving.healthcheck import healthy
from serving.model_server.versions import list_versions
from serving.ready_file import write_ready_file
from serving.supervisor import Child

_POLL_SECONDS = 0.1
_ANSWERS_SECONDS = 10.0
_STOP_SECONDS = 10.0
_SHOWN = {
    "gateway": "rank requests   http://",
    "grpc": "model over gRPC ",
    "rest": "model over REST http://",
}


def start(arguments: argparse.Namespace) -> int:
    """Start both, print their addresses, wait for SIGINT or SIGTERM; returns the exit code.

    Nothing is started before a model was pushed: only ``model-server`` alone waits for a first one,
    as TensorFlow Serving does. One that ends before both were ready ends the other; later, it is
    started again.

    Raises:
        OSError: A child cannot be started, or the ready file not be written.
    """
    base_path = Path(arguments.model_base_path)
    if not _has_version(base_path):
        print(
            f"laser-serving: no model was pushed to {base_path}: it holds no "
            "<number>/saved_model.pb; push one with `laser-pipeline run`, or give another "
            "--model_base_path",
            file=sys.stderr,
        )
        return 1
    ended = EndSignals()
    with tempfile.TemporaryDirectory(prefix="laser-serving-") as folder:
        known: dict[str, str | None] = {}
        children = _children(arguments, Path(folder), known)
        try:
            for child in children:
                child.start()
            addresses = _wait_until_ready(children, Path(folder), ended)
            if addresses is None:
                return 0 if ended.wait(0) else 1
            known.update(addresses)
            for key, what in _SHOWN.items():
                if addresses.get(key):
                    print(f"{what}{addresses[key]}", flush=True)
            if arguments.ready_file:
                write_ready_file(arguments.ready_file, **addresses)
            while not ended.wait(_POLL_SECONDS):
                for child in children:
                    child.keep_running()
            return 0
        finally:
            # The gateway first: what it still answers needs the model server.
            for child in children:
                child.stop(_STOP_SECONDS + arguments.drain_seconds)


def _children(
    arguments: argparse.Namespace, folder: Path, known: Mapping[str, str | None]
) -> list[Child]:
    """The child commands; ``known`` receives the public addresses, which restarts keep."""
    base_path = Path(arguments.model_base_path).absolute()
    if arguments.in_process:
        model = f"--model_base_path={base_path}"
        return [Child("gateway", lambda: _gateway_command(arguments, folder, model, known))]
    grpc_port = arguments.grpc_port or _free_port(arguments.host)
    model = f"--model_server={arguments.host}:{grpc_port}"
    return [
        Child("gateway", lambda: _gateway_command(arguments, folder, model, known)),
        Child("model-server", lambda: _model_server_command(arguments, folder, grpc_port, known)),
    ]


def _gateway_command(
    arguments: argparse.Namespace, folder: Path, model: str, known: Mapping[str, str | None]
) -> list[str]:
    return [
        "gateway",
        f"--store={arguments.store}",
        f"--features={arguments.features}",
        model,
        f"--model_name={arguments.model_name}",
        f"--host={arguments.host}",
        f"--port={_port(known.get('gateway'), arguments.port)}",
        *_given(arguments, _GATEWAY_FLAGS),
        f"--ready_file={folder}/gateway.json",
        *_access_flags(arguments),
    ]


def _model_server_command(
    arguments: argparse.Namespace, folder: Path, grpc_port: int, known: Mapping[str, str | None]
) -> list[str]:
    return [
        "model-server",
        f"--host={arguments.host}",
        f"--port={grpc_port}",
        f"--rest_api_port={_port(known.get('rest'), arguments.rest_api_port)}",
        f"--model_name={arguments.model_name}",
        f"--model_base_path={Path(arguments.model_base_path).absolute()}",
        f"--ready_file={folder}/model-server.json",
    ]


_GATEWAY_FLAGS = (
    "deadline_ms",
    "threads",
    "max_waiting",
    "max_candidates",
    "max_events",
    "max_ahead_seconds",
    "unknown_candidates",
    "degrade",
    "drain_seconds",
    "impression_log",
)


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    values = {name: getattr(arguments, name) for name in names}
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def _port(known: str | None, asked: int | None) -> str:
    """The port that clients know, or the flag of a first start."""
    if known:
        return known.rsplit(":", 1)[1]
    return "auto" if asked is None else str(asked)


def _wait_until_ready(
    children: list[Child], folder: Path, ended: EndSignals
) -> dict[str, str | None] | None:
    """Wait for both addresses; None if a child ended or a stop was requested."""
    addresses: dict[str, str | None] = {}
    for child in children:
        ready = folder / f"{child.name}.json"
        while not ready.exists():
            if ended.wait(_POLL_SECONDS):
                return None
            for other in children:
                if other.ended is not None:
                    print(
                        f"laser-serving: {other.name} ended with code {other.ended}",
                        file=sys.stderr,
                    )
                    return None
        content = json.loads(ready.read_text(encoding="utf-8"))
        addresses |= {key: content[key] for key in _SHOWN if key in content}
    # The gateway listens before its channel has found the model server: it may still wait out the
    # back-off of a first attempt, and a caller that comes now would be refused.
    until = time.monotonic() + _ANSWERS_SECONDS
    while not healthy(f"http://{addresses['gateway']}/readyz") and time.monotonic() < until:
        if ended.wait(_POLL_SECONDS):
            return None
    return addresses


def _has_version(base_path: Path) -> bool:
    return base_path.is_dir() and bool(list_versions(base_path))


def _access_flags(arguments: argparse.Namespace) -> list[str]:
    """The gateway's flags for a SeqVault server, as given."""
    given = {name: value for name, value in vars(arguments).items() if name.startswith("seqvault_")}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None
    ]


def _free_port(host: str) -> int:
    """A port that is free now, so that the gateway can be told before the server binds it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
