"""Runs the model server and the gateway as child processes, and stops both together."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from serving.model_server.versions import list_versions
from serving.ready_file import write_ready_file

_POLL_SECONDS = 0.1
_STOP_SECONDS = 10.0


def start(arguments: argparse.Namespace) -> int:
    """Start both, print their addresses, wait for SIGINT or SIGTERM; returns the exit code.

    Nothing is started before a model was pushed: only ``model-server`` alone waits for a first one,
    as TensorFlow Serving does.
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
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="laser-serving-") as folder:
        grpc_port = arguments.grpc_port or _free_port(arguments.host)
        children = {
            "gateway": _spawn(
                "gateway",
                f"--store={arguments.store}",
                f"--features={arguments.features}",
                f"--model_server={arguments.host}:{grpc_port}",
                f"--model_name={arguments.model_name}",
                f"--host={arguments.host}",
                f"--port={_flag(arguments.port)}",
                f"--deadline_ms={arguments.deadline_ms}",
                f"--threads={arguments.threads}",
                f"--ready_file={folder}/gateway.json",
                *_access_flags(arguments),
            ),
            "model-server": _spawn(
                "model-server",
                f"--host={arguments.host}",
                f"--port={grpc_port}",
                f"--rest_api_port={_flag(arguments.rest_api_port)}",
                f"--model_name={arguments.model_name}",
                f"--model_base_path={Path(arguments.model_base_path).absolute()}",
                f"--ready_file={folder}/model-server.json",
            ),
        }
        try:
            addresses: dict[str, str | None] = {}
            for name in children:
                ready = Path(folder, f"{name}.json")
                while not ready.exists():
                    if stop.wait(_POLL_SECONDS):
                        return 0
                    if _report_dead(children):
                        return 1
                content = json.loads(ready.read_text(encoding="utf-8"))
                addresses |= {
                    key: content[key] for key in ("gateway", "grpc", "rest") if key in content
                }
            for key, what in (
                ("gateway", "rank requests   http://"),
                ("grpc", "model over gRPC "),
                ("rest", "model over REST http://"),
            ):
                if addresses.get(key):
                    print(f"{what}{addresses[key]}", flush=True)
            if arguments.ready_file:
                write_ready_file(arguments.ready_file, **addresses)
            while not stop.wait(_POLL_SECONDS):
                if _report_dead(children):
                    return 1
            return 0
        finally:
            _stop(children)


def _has_version(base_path: Path) -> bool:
    return base_path.is_dir() and bool(list_versions(base_path))


def _spawn(*arguments: str) -> subprocess.Popen[bytes]:
    # In this process's group: whoever ends the group, ends all three.
    return subprocess.Popen([sys.executable, "-m", "serving.cli", *arguments])


def _report_dead(children: dict[str, subprocess.Popen[bytes]]) -> bool:
    for name, child in children.items():
        if child.poll() is not None:
            print(f"laser-serving: {name} ended with code {child.returncode}", file=sys.stderr)
            return True
    return False


def _stop(children: dict[str, subprocess.Popen[bytes]]) -> None:
    for child in children.values():
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + _STOP_SECONDS
    for child in children.values():
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _access_flags(arguments: argparse.Namespace) -> list[str]:
    """The gateway's flags for a SeqVault server, as given."""
    given = {name: value for name, value in vars(arguments).items() if name.startswith("seqvault_")}
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None
    ]


def _flag(port: int | None) -> str:
    return "auto" if port is None else str(port)


def _free_port(host: str) -> int:
    """A port that is free now, so that the gateway can be told before the server binds it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
