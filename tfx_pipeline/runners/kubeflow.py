"""Compiles the same pipeline definition for Kubeflow Pipelines."""

from __future__ import annotations

from pathlib import Path

import yaml
from tfx.orchestration.kubeflow.v2.kubeflow_v2_dag_runner import (
    KubeflowV2DagRunner,
    KubeflowV2DagRunnerConfig,
)

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.definition.pipeline import create_pipeline
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.runners.pods import (
    platform_of,
    training_job,
    with_pods,
    with_run_time_parameters,
)

DEFAULT_IMAGE = "laser-ranking:latest"


def compile_kubeflow(
    config: PipelineConfig, output: Path, image: str = DEFAULT_IMAGE, dataset: str | None = None
) -> Path:
    """Write a Kubeflow pipeline file (YAML, schema 2.1).

    A run may set the parameters ``dataset``, ``store`` and ``splits``; what their content is was
    fingerprinted here, so compile again when it changes in place. With parameter servers, their
    TFJob is written beside the file, as ``<name>.tfjob.yaml``: apply it before a run.

    The baseline of the evaluation is ``config.baseline_model``: Kubeflow has no ML Metadata of
    past runs for a resolver to look through.

    Args:
        config: What to run; its folders must be reachable from the cluster's pods.
        output: File to write, ``.yaml``.
        image: Container image that holds this package and its pipeline dependencies.
        dataset: Where the pods find the dataset; None takes ``config.dataset``.

    Raises:
        SettingsError: Section ``kubeflow`` names a component that is not there, or a recall model
            is asked for: its catalogue would stay that of ``config.dataset`` whatever dataset a
            run names.
    """
    if config.recall.k:
        raise SettingsError(
            "a recall model is trained by `laser-pipeline run` alone: compile a config without "
            "section recall"
        )
    runner = KubeflowV2DagRunner(
        config=KubeflowV2DagRunnerConfig(
            default_image=image,
            default_commands=["python", "-m", _RUN_EXECUTOR],
            use_pipeline_spec_2_1=True,
        )
    )
    job = runner.run(
        create_pipeline(config, resolve_baseline=False, dataset=dataset), write_out=False
    )
    # The job around it is Vertex AI's; Kubeflow takes the pipeline's spec itself.
    where = dataset or str(config.dataset)
    spec = with_run_time_parameters(with_pods(job["pipelineSpec"], config), config, where)
    output.parent.mkdir(parents=True, exist_ok=True)
    documents = [spec, platform_of(spec, config.kubeflow)]
    text = yaml.safe_dump_all([each for each in documents if each is not None])
    output.write_text(text, encoding="utf-8")
    if config.kubeflow.parameter_servers:
        tfjob = output.with_suffix(".tfjob.yaml")
        tfjob.write_text(yaml.safe_dump(training_job(config, image)), encoding="utf-8")
    return output


_RUN_EXECUTOR = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
