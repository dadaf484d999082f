"""The demo: events, SeqVault, pipeline, served model and rank request in one command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.heartbeat import heartbeat
from components.serving_check.server_process import ServerProcess, free_port
from tfx_pipeline.config import CONFIGS, REPORT, PipelineConfig, load_config
from tfx_pipeline.console import Console
from tfx_pipeline.datasets import GeneratorSettings, PreparedDataset, prepare
from tfx_pipeline.demo.live_ranking import rank_twice
from tfx_pipeline.demo.summary import summarise
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.fingerprint import code_fingerprint, combine
from tfx_pipeline.load_store import load_store

# On an empty machine, beside the load of the store and the import of TFX: the join needs those that
# read next.
_COMPILE_KERNELS = [sys.executable, "-c", "from seqvault.warm_up import warm_up; warm_up()"]


def run_demo(
    work: Path,
    source: Path | None = None,
    keep: bool = False,
    config: str | None = None,
    generator: GeneratorSettings | None = None,
) -> dict[str, Any]:
    """Run all stages, print their results, and stop the servers.

    Args:
        work: Folder for all that is made; a second demo there uses what did not change.
        source: A dataset's folder; None generates one.
        keep: Leave the servers running at the end.
        config: Pipeline config; None takes the one named as the dataset's feature spec, or
            ``demo``.
        generator: Size and seed of a generated dataset.

    Returns:
        What the summary shows: ``load``, ``report`` and ``ranking``.

    Raises:
        Exception: Whatever stage failed says why.
    """
    console = Console()
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with _child(_COMPILE_KERNELS, errors=None):  # it says why the first time takes long
        with console.stage("1/5 dataset"):
            dataset = _prepare(work, source, generator or GeneratorSettings(), console)
            counts = ", ".join(f"{count:,} {name}" for name, count in dataset.counts.items())
            console.say(f"   {dataset.source}: {counts}")
        store = work / "store"
        title = "2/5 SeqVault: life-cycle history in bulk, the last day appended"
        # On an empty machine the load waits for the store's kernels.
        with console.stage(title), heartbeat("load", console.say_if_silent):
            loaded = load_store(dataset.path, store, replace=True, progress=console.progress)
        config = config or _config_for(dataset)
        settings = load_config(config, dataset.path, store, work / "run")
        with console.stage("3/5 TFX pipeline"):
            report = _run_pipeline(settings, config)
    server, address = _server(settings, work)
    with console.stage("4/5 model server and rank gateway"):
        server.start()
    try:
        with console.stage("5/5 rank, append a live event, rank again"):
            ranking = rank_twice(address, dataset)
        summarise(console, dataset, loaded, report, ranking)
        console.say(f"all in {time.monotonic() - started:.0f} s")
        if keep:
            console.say(f"the gateway goes on at {address}: stop it with `kill {server.pid}`")
            server.detach()
    finally:
        server.stop()
    return {"load": loaded, "report": report, "ranking": ranking}


def _config_for(dataset: PreparedDataset) -> str:
    return dataset.spec.name if (CONFIGS / f"{dataset.spec.name}.yaml").is_file() else "demo"


def _prepare(
    work: Path, source: Path | None, generator: GeneratorSettings, console: Console
) -> PreparedDataset:
    """Prepare the dataset, unless the same one was prepared here before."""
    path, mark = work / "dataset", work / "dataset.made_from"
    made_from = combine(code_fingerprint(["tfx_pipeline.datasets"]), _describe(source, generator))
    if mark.is_file() and mark.read_text() == made_from:
        with contextlib.suppress(Exception):
            return PreparedDataset.load(path)
    mark.unlink(missing_ok=True)
    dataset = prepare(source, path, console.progress, generator)
    mark.write_text(made_from)
    return dataset


def _describe(source: Path | None, generator: GeneratorSettings) -> str:
    if source is None:
        return repr(generator)
    files = sorted(file for file in source.rglob("*") if file.is_file())
    sizes = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return json.dumps([str(source.resolve()), sizes])


def _run_pipeline(settings: PipelineConfig, config: str) -> dict[str, Any]:
    """Run the pipeline in a child process, so that its memory is freed before serving."""
    settings.work.mkdir(parents=True, exist_ok=True)
    log = settings.work / "pipeline.log"
    command = [sys.executable, "-m", "tfx_pipeline.cli", "run", "--config", config]
    command += ["--data", str(settings.dataset), "--store", str(settings.store)]
    command += ["--work", str(settings.work)]
    with log.open("wb") as errors, _child(command, errors) as process:
        if process.wait():
            raise PipelineError(f"{_last_error(log.read_text(errors='replace'))} ({log})")
    return dict(json.loads((settings.work / REPORT).read_text(encoding="utf-8")))


def _last_error(text: str) -> str:
    """The error that a child printed, with its examples, or its last line.

    Example:
        >>> _last_error("chatter\\nlaser-pipeline: error: 3 of 4 rows are bad:\\n  a row\\n")
        '3 of 4 rows are bad:\\n  a row'
    """
    _, said, message = text.strip().rpartition("laser-pipeline: error: ")
    return message if said else (message.splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def _child(command: list[str], errors: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own process group, which is killed as a whole if we exit."""
    process = subprocess.Popen(command, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _server(settings: PipelineConfig, work: Path) -> tuple[ServerProcess, str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "serving.cli", "start"]
    command += [f"--store={settings.store}", f"--features={settings.dataset / 'features.yaml'}"]
    command += [f"--model_base_path={settings.serving}", f"--model_name={settings.name}"]
    command += [f"--port={port}", "--rest_api_port=auto", "--deadline_ms=10000"]
    ready = f"{address}/healthz"
    return ServerProcess(command, ready_url=ready, log=work / "serving.log"), address
