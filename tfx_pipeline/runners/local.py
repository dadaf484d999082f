"""Runs a pipeline in this process, and says whether a model was pushed."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import absl.logging
from ml_metadata import ListOptions, OrderByField
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.orchestration.portable import launcher, runtime_parameter_utils

from components.heartbeat import heartbeat
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.definition.fingerprints import PREPROCESSING_FN, RUN_FN
from tfx_pipeline.definition.pipeline import create_pipeline
from tfx_pipeline.errors import NotPushedError
from tfx_pipeline.results.past_runs import read_runs
from tfx_pipeline.results.report import make_report, write_report
from tfx_pipeline.runners.old_trainings import remove_old_trainings
from tfx_pipeline.runners.unfinished import INTERRUPTED, KILLED, name_reason, publish_unfinished
from tfx_pipeline.runners.work_lock import locked


def run_local(
    config: PipelineConfig,
    say: Callable[[str], None] = print,
    preprocessing_fn: str = PREPROCESSING_FN,
    run_fn: str = RUN_FN,
    resolve_baseline: bool = True,
) -> dict[str, Any]:
    """Run every component whose result is not cached.

    A run that pushes no model is an error here, unlike in TFX. An interrupted run is resumed:
    finished components come from the cache, training from its last checkpoint.

    Args:
        config: What to run.
        say: Receives a line when a component begins and one when it is done.
        preprocessing_fn: As in ``create_pipeline``.
        run_fn: As in ``create_pipeline``.
        resolve_baseline: As in ``create_pipeline``.

    Returns:
        The run's report (see ``tfx_pipeline.results.report``), also written to ``config.work``.

    Raises:
        PipelineError: Another run is going on in ``config.work``.
        NotPushedError: No model was pushed; the message says why.
        Exception: Whatever a component raised.
    """
    with locked(config.work):
        pipeline = create_pipeline(config, preprocessing_fn, run_fn, resolve_baseline)
        return _run_locked(config, pipeline, say)


def _run_locked(
    config: PipelineConfig, pipeline: Pipeline, say: Callable[[str], None]
) -> dict[str, Any]:
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    absl.logging.set_verbosity(absl.logging.ERROR)
    with metadata.Metadata(_connection(config)) as handle:
        if publish_unfinished(handle.store, KILLED):
            say("an earlier run did not finish: this one goes on from what it left")
    run_id = datetime.now().isoformat()
    try:
        _ProgressRunner(say, run_id, _past_seconds(config)).run(pipeline)
    except BaseException as error:
        _record_failure(config, run_id, _reason(error))
        raise
    run = next(run for run in read_runs(config.metadata) if run.run_id == run_id)
    report = make_report(run, config)
    write_report(report, config.work)
    remove_old_trainings(config.work / "training", say)
    if run.problems:
        auc = report.get("evaluation", {}).get("", {})
        found = ", ".join(f"{name} {value:.4f}" for name, value in auc.items() if "auc" in name)
        if run.pushed is not None:
            problems = "; ".join(run.problems)
            raise NotPushedError(f"the ranker was pushed to {run.pushed}, but {problems}")
        raise NotPushedError(
            f"no model was pushed to {config.serving}: {'; '.join(run.problems)} (eval {found}; "
            f"asked are AUC above {config.min_auc} and no more than {config.max_auc_drop} below "
            "the last blessed model)"
        )
    return report


def _record_failure(config: PipelineConfig, run_id: str, reason: str) -> None:
    """Publish unfinished executions as failed, without hiding the original error."""
    with contextlib.suppress(Exception):
        with metadata.Metadata(_connection(config)) as handle:
            publish_unfinished(handle.store, reason)
            name_reason(handle.store, run_id, reason)
        # What lies there is of an earlier run, and whoever reads it would take it for this one's.
        write_report({"run_id": run_id, "pushed": None, "problems": [reason]}, config.work)


def _connection(config: PipelineConfig) -> metadata_store_pb2.ConnectionConfig:
    return metadata.sqlite_metadata_connection_config(str(config.metadata))


class _ProgressRunner(LocalDagRunner):
    """``LocalDagRunner`` that tells what it is doing: its own loop only logs, with much else."""

    def __init__(
        self, say: Callable[[str], None], run_id: str, past_seconds: Mapping[str, float]
    ) -> None:
        super().__init__()
        self._say, self._run_id, self._past_seconds = say, run_id, past_seconds

    def run_with_ir(self, pipeline: object, run_options: object = None) -> None:
        """Launch the nodes one by one, in topological order."""
        runtime_parameter_utils.substitute_runtime_parameter(
            pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: self._run_id}
        )
        deployment = runner_utils.extract_local_deployment_config(pipeline)
        kind = deployment.metadata_connection_config.WhichOneof("connection_config")
        connection = getattr(deployment.metadata_connection_config, kind)
        nodes = [node.pipeline_node for node in pipeline.nodes]  # type: ignore[attr-defined]
        for number, node in enumerate(nodes, start=1):
            name = node.node_info.id
            started = time.monotonic()
            place = f"[{number:2d}/{len(nodes)}] {name}"
            self._say(f"{place} ...")
            with self._told(name, place):
                launcher.Launcher(
                    pipeline_node=node,
                    mlmd_connection=metadata.Metadata(connection),
                    pipeline_info=pipeline.pipeline_info,  # type: ignore[attr-defined]
                    pipeline_runtime_spec=pipeline.runtime_spec,  # type: ignore[attr-defined]
                    executor_spec=runner_utils.extract_executor_spec(deployment, name),
                    custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
                ).launch()
            took = f"{time.monotonic() - started:.1f} s"
            if _last_state(connection) == metadata_store_pb2.Execution.CACHED:
                took = "cached"
            self._say(f"{place}: {took}")

    def _told(self, name: str, place: str) -> contextlib.AbstractContextManager[None]:
        """Lines while a component runs that says nothing itself."""
        if name in _SPEAK_THEMSELVES:
            return contextlib.nullcontext()
        return heartbeat(place, self._say, expected=self._past_seconds.get(name))


_SPEAK_THEMSELVES = ("SeqVaultExampleGen",)


def _past_seconds(config: PipelineConfig) -> dict[str, float]:
    """How long each component took when it last ran here."""
    return {
        name: node.seconds
        for run in read_runs(config.metadata)
        for name, node in run.nodes.items()
        if node.state == "COMPLETE"
    }


def _reason(error: BaseException) -> str:
    """Why a run ended, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _last_state(connection: object) -> int:
    newest = ListOptions(limit=1, order_by=OrderByField.ID, is_asc=False)
    with metadata.Metadata(connection) as handle:
        (execution,) = handle.store.get_executions(list_options=newest)
        return int(execution.last_known_state)
