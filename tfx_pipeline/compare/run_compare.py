"""Runs a comparison: checks, joins once, runs (in parallel, resumable) and summarises."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.seqvault_example_gen.open_store import open_store
from tfx_pipeline.compare.compare_settings import CompareSettings, Run, runs_of
from tfx_pipeline.compare.end_with_parent import end_with_parent
from tfx_pipeline.compare.joined_log import JoinedLog, with_length
from tfx_pipeline.compare.results_file import FAILED, ResultsFile
from tfx_pipeline.compare.summary import check_results, summarise, write_summary
from tfx_pipeline.console import Console
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import PipelineError, SettingsError
from tfx_pipeline.fingerprint import combine, file_fingerprint
from tfx_pipeline.load_store import load_store
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.section import check, plain

_FILES = ("events.parquet", "items.parquet", "impressions.parquet")


@dataclass(frozen=True)
class _Task:
    run: Run
    log: JoinedLog
    content: Path | None
    windows: dict[str, list[int]] | None


def run_compare(
    config: Path,
    data: Path,
    work: Path,
    store: str | None = None,
    jobs: int | None = None,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Execute every missing run, and write table and plots of all.

    Args:
        config: YAML file, see ``CompareSettings``.
        data: Folder of a prepared dataset.
        work: Folder of results, table, plots and the joined log; run again there to go on.
        store: The dataset's SeqVault; None loads one within ``work``.
        jobs: Runs side by side; None takes one per two cores.
        console: Where progress is shown.

    Returns:
        The rows of the table, see ``summarise``.

    Raises:
        PipelineError: Something does not fit, before any training; a process was killed; or, when
            all is written, there is no result of any run or of the baseline.
    """
    console = console or Console()
    settings = check(CompareSettings, read_yaml(config), str(config))
    if jobs is not None and jobs < 1:
        raise SettingsError(f"--jobs is {jobs}; give at least 1")
    dataset = PreparedDataset.load(data)
    runs = runs_of(settings)
    longest = max(run.length for run in runs)
    _check_models(dataset, runs)
    fingerprint = combine(
        dataset.spec.fingerprint(), *(file_fingerprint(data / name) for name in _FILES)
    )
    work.mkdir(parents=True, exist_ok=True)
    results = ResultsFile(work, fingerprint)
    with console.stage("joined log"):
        log = _join(dataset, store, work, longest, fingerprint, console)
    content = _content(log, dataset, work)
    windows: Any = dataset.facts.get("planted_windows")
    tasks = {run.key: _Task(run, log, content, windows) for run in runs}
    settings_of = {run.key: _settings_fingerprint(run) for run in runs}
    left = [t for key, t in tasks.items() if results.find(key, settings_of[key]) is None]
    if len(left) < len(runs):
        console.say(f"   {len(runs) - len(left)} of {len(runs)} runs are there already")
    jobs = min(jobs or max(1, (os.cpu_count() or 1) // 2), max(len(left), 1))
    with console.stage(f"{len(left)} runs, {jobs} side by side"):
        _take_all(left, jobs, results, settings_of, len(runs), console)
    found = {run.key: results.latest(run.key, settings_of[run.key]) for run in runs}
    rows = summarise(settings, runs, found, results, log)
    for line in write_summary(settings, rows, work, dataset, found, runs):
        console.say(line)
    if said := check_results(settings, found):
        console.say(said)
    return rows


def _check_models(dataset: PreparedDataset, runs: list[Run]) -> None:
    """Build each system and its labels once, so that misfits are reported before any work."""
    spec = dataset.spec
    if spec.content_fields and spec.tables[spec.event_fields["item_id"].table or ""].ids == (
        "vocabulary"
    ):
        raise SettingsError(
            f"feature spec {spec.name!r}: content vectors of items in a vocabulary table cannot be "
            "compared yet; set the item table's ids to direct or hash"
        )
    from tfx_pipeline.training.labels import labels_of
    from tfx_pipeline.training.tower import check_model

    for name in {run.name: None for run in runs}:
        run = next(run for run in runs if run.name == name)
        if run.model is None:
            continue
        try:
            labels_of(dataset.spec, run.training)
            check_model(with_length(dataset.spec, run.length), run.model)
        except SettingsError as error:
            raise SettingsError(f"system {name!r}: {error}") from error


def _join(
    dataset: PreparedDataset,
    store: str | None,
    work: Path,
    length: int,
    fingerprint: str,
    console: Console,
) -> JoinedLog:
    folder = work / "joined"
    if store is None:
        store = str(work / "store")
        mark = work / "store.of"
        if not mark.is_file() or mark.read_text() != fingerprint:
            load_store(dataset.path, Path(store), replace=True, progress=console.progress)
            mark.write_text(fingerprint)
    with open_store(store) as opened:
        return JoinedLog.make(dataset, opened, folder, length, fingerprint, console.progress)


def _content(log: JoinedLog, dataset: PreparedDataset, work: Path) -> Path | None:
    """The frozen content vectors in a file that every run maps."""
    from tfx_pipeline.training.content_vectors import content_vectors
    from tfx_pipeline.training.row_lookup import RowLookup

    spec = dataset.spec
    if not spec.content_fields:
        return None
    path = work / "joined" / "content.npy"
    vectors = content_vectors(spec, dataset.items_path, RowLookup())
    assert vectors is not None
    np.save(path, vectors)
    return path


def _take_all(
    left: list[_Task],
    jobs: int,
    results: ResultsFile,
    settings_of: dict[str, str],
    total: int,
    console: Console,
) -> None:
    began = time.monotonic()
    for done, (task, entry, scores) in enumerate(_taken(left, jobs, console), start=1):
        run = task.run
        entry = {"system": run.name, "seed": run.seed, **entry, "length": run.length}
        results.add(run.key, settings_of[run.key], entry, scores)
        seconds = (time.monotonic() - began) / done * (len(left) - done)
        console.say(
            f"   [{total - len(left) + done}/{total}] {run.name}, seed {run.seed}: "
            f"{_described(entry)}; {_time(seconds)} left"
        )


def _taken(
    left: list[_Task], jobs: int, console: Console
) -> Iterator[tuple[_Task, dict[str, Any], NDArray | None]]:
    """Results as they come; one job runs here, more in processes of their own."""
    if jobs == 1:
        for task in left:
            yield task, *_take(task, console)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(threads,)
    )
    try:
        waiting = {pool.submit(_take, task): task for task in left}
        for future in as_completed(waiting):
            yield waiting[future], *future.result()
    except BrokenProcessPool as error:
        raise PipelineError(
            "a process of the comparison was killed, maybe for memory: run the same command again "
            "to go on, with a smaller --jobs"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare(threads: int) -> None:
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def _take(task: _Task, console: Console | None = None) -> tuple[dict[str, Any], NDArray | None]:
    from tfx_pipeline.compare.one_run import take_run

    content = None if task.content is None else np.load(task.content)
    say = (lambda line: None) if console is None else (lambda line: console.say(f"      {line}"))
    try:
        return take_run(task.run, task.log, content, say, task.windows)
    except Exception as error:  # one run that fails must not end the others
        text = next(iter(str(error).splitlines()), "")
        return {"status": FAILED, "problem": f"{type(error).__name__}: {text}"}, None


def _settings_fingerprint(run: Run) -> str:
    model = None if run.model is None else plain(run.model)
    content = [model, plain(run.training), run.length]
    return combine(json.dumps(content, sort_keys=True))[:16]


def _described(entry: dict[str, Any]) -> str:
    if "auc" not in entry:
        return f"{entry['status']} ({entry['problem']})"
    return f"AUC {entry['auc']:.4f}, gAUC {entry['gauc']:.4f} in {entry['seconds']:.0f} s"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
