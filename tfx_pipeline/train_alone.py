"""The Trainer without the pipeline around it: on the Examples that an earlier run joined."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tfx_pipeline.cluster.exit_codes import EXIT_OTHER_RUN
from tfx_pipeline.cluster.supervisor import train_on_local_cluster
from tfx_pipeline.cluster.training_job import TrainingJob
from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import ClusterError, PipelineError
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts
from tfx_pipeline.fingerprint import combine
from tfx_pipeline.results.past_runs import read_runs
from tfx_pipeline.runners.work_lock import locked
from tfx_pipeline.settings.section import plain
from tfx_pipeline.training.row_frames import check_ops_are_built

MODEL, CLUSTER = "model", "cluster"
_RUN = "run.json"


def train_alone(
    config: PipelineConfig,
    output: Path,
    cluster: str | None = None,
    examples: Path | None = None,
    transform: Path | None = None,
) -> None:
    """Train, evaluate and export; the same call again goes on from the last checkpoint.

    Args:
        config: Model and training; ``work`` is where an earlier run of the pipeline joined.
        output: Gets ``checkpoints``, ``logs``, ``model`` and, of a cluster, ``cluster``.
        cluster: Roles on this machine; None takes the config's, "" trains in this process. A
            TF_CONFIG that names a cluster makes this process its chief, whatever is given here.
        examples: Folder of Examples by split; None takes the newest of the work folder.
        transform: Transform's output; None takes the newest of the work folder.

    Raises:
        SettingsError: Rows are to travel by ops that are not built here.
        PipelineError: There are no Examples and no feature hosts, or another run is going on in
            ``output``.
        ClusterError: ``output`` is of another model or of other data, the cluster failed, or no
            feature host answers.
        KeyboardInterrupt: It was asked to stop, and has saved its state.
    """
    if "zstd" in config.training.transmission:
        check_ops_are_built()
    if config.training.feature_hosts:
        spec = config.load_spec()
        hosts = FeatureHosts(config.training.feature_hosts, spec, config.negative_rate)
        job, data = _job_over_hosts(config, output.resolve(), transform), hosts.data
    else:
        job = training_job(config, output.resolve(), examples, transform)
        files = sorted(Path(job.train_files[0]).parent.glob("*"))
        data = combine(*(f"{file.name} {file.stat().st_size}" for file in files))
    with locked(output):
        _refuse_another_run(config, data, output)
        if os.environ.get("TF_CONFIG"):
            from tfx_pipeline.cluster.chief import run_as_chief

            run_as_chief(job, output / CLUSTER)
            return
        described = config.cluster if cluster is None else cluster
        if described:
            train_on_local_cluster(described, job, output.resolve() / CLUSTER)
            return
        from tfx_pipeline.training.run_fn import run_fn  # loads TensorFlow

        run_fn(job)


def training_job(
    config: PipelineConfig, output: Path, examples: Path | None, transform: Path | None
) -> TrainingJob:
    """The Trainer's job on the Examples of an earlier run.

    Args:
        config: Model and training; ``work`` is where the run was.
        output: Gets what the Trainer makes.
        examples: Folder of Examples by split; None takes the newest of the work folder.
        transform: Transform's output; None takes the newest of the work folder.

    Raises:
        PipelineError: There are no Examples.
    """
    examples = examples or _newest(config, "SeqVaultExampleGen", "examples")
    transform = transform or _newest(config, "Transform", "transform_graph")
    for split in ("train", "eval"):
        if not list(examples.glob(f"Split-{split}/*")):
            raise PipelineError(
                f"{examples} holds no Examples of split {split}; join them with `laser-pipeline "
                "run`, or name their folder with --examples"
            )
    return TrainingJob(
        train_files=[str(examples.resolve() / "Split-train" / "*")],
        eval_files=[str(examples.resolve() / "Split-eval" / "*")],
        transform_graph_path=str(transform.resolve()),
        **_common(config, output),
    )


def _job_over_hosts(config: PipelineConfig, output: Path, transform: Path | None) -> TrainingJob:
    """A job without Examples; Transform's output is needed only where the spec asks for it."""
    if transform is None and any(each.transform for each in config.load_spec().model_inputs()):
        transform = _newest(config, "Transform", "transform_graph")
    common = _common(config, output)
    common["custom_config"]["items"] = str(config.dataset / "items.parquet")
    graph = str(transform.resolve()) if transform else None
    return TrainingJob(train_files=[], eval_files=[], transform_graph_path=graph, **common)


def _common(config: PipelineConfig, output: Path) -> dict[str, Any]:
    return dict(
        serving_model_dir=str(output / MODEL),
        model_run_dir=str(output),
        custom_config={
            "feature_spec": config.load_spec().to_dict(),
            "model": plain(config.model),
            "training": plain(config.training),
            "negative_rate": config.negative_rate,
            "warm_start": config.warm_start,
        },
    )


def _newest(config: PipelineConfig, node: str, output: str) -> Path:
    for run in reversed(read_runs(config.metadata)):
        if node in run.nodes and run.nodes[node].state in ("COMPLETE", "CACHED"):
            return Path(run.nodes[node].output(output)[0])
    raise PipelineError(
        f"no run of {config.work} finished {node}; run the pipeline with `laser-pipeline run`, or "
        "name the folders with --examples and --transform"
    )


def _refuse_another_run(config: PipelineConfig, data: str, output: Path) -> None:
    """Raise if the checkpoints there are of another model or of other Examples."""
    described = {
        "feature spec": config.load_spec().fingerprint(),
        "model": combine(json.dumps(plain(config.model), sort_keys=True)),
        "labels": combine(json.dumps(plain(config.training)["labels"], sort_keys=True)),
        "seed": str(config.training.seed),
        "warm start": config.warm_start,
        "Examples": data,
    }
    path = output / _RUN
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in described.items() if before.get(name, "") != value]
        if changed:
            raise ClusterError(
                f"{output} is of a run with another {' and another '.join(changed)}: give another "
                "--output, or what it was trained with",
                EXIT_OTHER_RUN,
            )
    path.write_text(json.dumps(described), encoding="utf-8")
