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

DEFAULT_IMAGE = "laser-ranking:latest"


def compile_kubeflow(config: PipelineConfig, output: Path, image: str = DEFAULT_IMAGE) -> Path:
    """Write a Kubeflow pipeline file (YAML, schema 2.1).

    The baseline of the evaluation is ``config.baseline_model``: Kubeflow has no ML Metadata of
    past runs for a resolver to look through.

    Args:
        config: What to run; its folders must be reachable from the cluster's pods.
        output: File to write, ``.yaml``.
        image: Container image that holds this package and its pipeline dependencies.
    """
    runner = KubeflowV2DagRunner(
        config=KubeflowV2DagRunnerConfig(
            default_image=image,
            default_commands=["python", "-m", _RUN_EXECUTOR],
            use_pipeline_spec_2_1=True,
        )
    )
    job = runner.run(create_pipeline(config, resolve_baseline=False), write_out=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    # The job around it is Vertex AI's; Kubeflow takes the pipeline's spec itself.
    output.write_text(yaml.safe_dump(job["pipelineSpec"]), encoding="utf-8")
    return output


_RUN_EXECUTOR = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
