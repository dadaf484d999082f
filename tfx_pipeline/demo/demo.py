"""The whole way in one command: events, SeqVault, pipeline, served model, rank answer."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.serving_check.server_process import ServerProcess, free_port
from laser_features import FeatureSpec
from tfx_pipeline.config import CONFIGS, REPORT, PipelineConfig, load_config
from tfx_pipeline.console import Console
from tfx_pipeline.datasets import GeneratorSettings, PreparedDataset, prepare
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.fingerprint import code_fingerprint, combine
from tfx_pipeline.load_store import LoadSummary, load_store
from tfx_pipeline.results.click_rate_floors import click_rate_floors

_CANDIDATES = 10
_MEASURED_REQUESTS = 50
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
    """Run everything, show it, and stop what was started.

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
        with console.stage("2/5 SeqVault: life-cycle history in bulk, the last day appended"):
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
            ranking = _rank_twice(address, dataset)
        _summarise(console, dataset, loaded, report, ranking)
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
    """In a process of its own: its memory is free again when the servers start."""
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
    """What the child said in the end: its error, which may show examples, or its last line.

    Example:
        >>> _last_error("chatter\\nlaser-pipeline: error: 3 of 4 rows are bad:\\n  a row\\n")
        '3 of 4 rows are bad:\\n  a row'
    """
    _, said, message = text.strip().rpartition("laser-pipeline: error: ")
    return message if said else (message.splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def _child(command: list[str], errors: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a group of its own, which is ended with all that it started if we are."""
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


@dataclass(frozen=True)
class Ranking:
    """Rank answers before and right after a live event with ``item``.

    ``latency`` holds the median of each part, in milliseconds, over the requests that follow.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    item: int
    latency: dict[str, float]


def _rank_twice(address: str, dataset: PreparedDataset) -> Ranking:
    """Rank candidates for an active user, click the one ranked last, and rank again."""
    request, event = _live_example(dataset)
    before = _post(f"{address}/v1/rank", request)
    item = before["ranked"][-1]["item_id"]
    _post(f"{address}/v1/events", {"events": [{**event, "item_id": item}]})
    after = _post(f"{address}/v1/rank", request)
    measured = [_post(f"{address}/v1/rank", request)["latency"] for _ in range(_MEASURED_REQUESTS)]
    latency = {part: statistics.median(each[part] for each in measured) for part in measured[0]}
    return Ranking(before, after, item, latency)


def _live_example(dataset: PreparedDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """A rank request a minute after the last impression, and the event that comes before it."""
    impressions = pq.read_table(dataset.impressions_path)
    last = impressions.slice(impressions.num_rows - 1).to_pylist()[0]
    user = last["user_id"]
    events = pq.read_table(dataset.events_path, filters=[("user_id", "==", user)])
    now = max(last["timestamp"], pc.max(events["timestamp"]).as_py() if len(events) else 0)
    spec = dataset.spec
    candidates = _candidates(impressions, spec)
    sections = {
        "context": [name for name in spec.context_fields if name in spec.request_fields],
        "user": [name for name in spec.user_fields if name in spec.request_fields],
    }
    request = {"user_id": user, "time_ms": now + 60_000, "candidates": candidates}
    for section, names in sections.items():
        request[section] = {name: last[name] for name in names if last[name] is not None}
    event = events.slice(len(events) - 1).to_pylist()[0] if len(events) else {"user_id": user}
    return request, {**event, "timestamp": now + 30_000}


def _candidates(impressions: pa.Table, spec: FeatureSpec) -> list[dict[str, Any]]:
    """What was shown last, each item once, with its candidate fields."""
    shown = impressions.select(["item_id", *spec.candidate_fields])
    newest: dict[int, dict[str, Any]] = {}
    for row in reversed(shown.slice(max(0, shown.num_rows - 1000)).to_pylist()):
        newest.setdefault(row["item_id"], row)
    return list(newest.values())[:_CANDIDATES]


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise PipelineError(f"{url} answered {error.code}: {text}") from error


def _summarise(
    console: Console,
    dataset: PreparedDataset,
    loaded: LoadSummary,
    report: dict[str, Any],
    ranking: Ranking,
) -> None:
    say, evaluation = console.say, report["evaluation"]
    join, training = report["join"], report["training"]
    say()
    say("Summary")
    say(
        f"  SeqVault     {loaded.bulk_events + loaded.appended_events:,} events of "
        f"{loaded.users:,} users ({loaded.appended_events:,} through the log), "
        f"{loaded.bytes_per_event:.2f} bytes per event, {loaded.items:,} items"
    )
    say(
        f"  Examples     {join['impressions']:,} impressions in {join['requests']:,} requests: "
        f"{join['requests_train']:,} to train, {join['requests_eval']:,} to evaluate"
    )
    for name, count in join.items():
        if name.startswith(("malformed", "dropped", "unknown", "empty", "truncated")):
            say(f"    {count:,} {name.replace('_', ' ')}")
    for line in report.get("anomalies", []):
        say(f"  Anomaly      {line}")
    overall = evaluation[""]
    say(f"  Training     AUC {training['train/auc']:.4f}, log loss {training['train/loss']:.4f}")
    say(
        f"  Evaluation   AUC {overall['auc']:.4f}, gAUC {overall['gauc']:.4f}, log loss "
        f"{overall['log_loss']:.4f}, calibration {overall['calibration']:.3f}"
    )
    floors = click_rate_floors(dataset.impressions_path, dataset.spec, dataset.splits)
    for name, floor in floors.items():
        say(f"    floor: AUC of the {name} alone {floor:.4f}")
    for name, fact in dataset.facts.items():
        say(f"    planted: {name.replace('_', ' ')} {fact}")
    for name, metrics in evaluation.items():
        if name:
            say(
                f"    {name:24s} AUC {metrics['auc']:.4f}, gAUC {metrics['gauc']:.4f}, "
                f"{metrics['impressions']:,.0f} impressions"
            )
    say(f"    TensorBoard logs: {report['logs']}")
    say(f"  Pushed       {report['pushed']}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    say(f"  Peak memory  {peak:.1f} GiB, of the pipeline's process")
    say(f"  Rank answer  {_shown(ranking.before)}")
    say(f"  after a live event with item {ranking.item}:")
    say(f"               {_shown(ranking.after)}")
    latency = ranking.latency
    say(
        f"  Latency      {latency['total_ms']:.1f} ms: store {latency['store_ms']:.1f}, features "
        f"{latency['features_ms']:.1f}, model {latency['model_ms']:.1f} (median of "
        f"{_MEASURED_REQUESTS} requests)"
    )


def _shown(answer: dict[str, Any]) -> str:
    best = ", ".join(f"{each['item_id']} ({each['score']:.4f})" for each in answer["ranked"][:4])
    return f"{best}, ... from {answer['history_length']} events"
