"""The same pipeline definition as a Kubeflow pipeline file."""

import kfp
import pytest
import yaml

from laser_features import FeatureSpec
from seqvault import Schema, SeqVault
from tfx_pipeline.config import load_config
from tfx_pipeline.runners.kubeflow import compile_kubeflow

COMPONENTS = {
    "SeqVaultExampleGen",
    "StatisticsGen",
    "ImportSchemaGen",
    "ExampleValidator",
    "Transform",
    "Trainer",
    "Evaluator",
    "ServingCheck",
    "Pusher",
}


@pytest.fixture
def config(tmp_path):
    spec = FeatureSpec.from_dict(
        {
            "name": "tiny",
            "history": {"max_length": 2},
            "tables": {"item": {"rows": 3, "width": 2, "ids": "direct"}},
            "event": {"item_id": {"type": "int64", "table": "item"}},
            "label": {"click": {"type": "int8"}},
        }
    )
    spec.save(tmp_path / "features.yaml")
    for name in ("impressions.parquet", "items.parquet"):
        (tmp_path / name).touch()
    SeqVault.open(tmp_path / "store", schema=Schema.from_arrow(spec.event_schema())).close()
    day = 86_400_000
    splits = {
        name: {"start": 10**12 + at * day, "end": 10**12 + (at + 1) * day}
        for at, name in enumerate(("train", "eval"))
    }

    def load(**overrides):
        overrides = {"splits": splits, **overrides}
        return load_config("default", tmp_path, tmp_path / "store", tmp_path / "work", overrides)

    return load


def test_the_compiled_file_loads_back_with_every_component(config, tmp_path):
    output = compile_kubeflow(config(), tmp_path / "out" / "laser.yaml", image="registry/laser:7")
    loaded = kfp.components.load_component_from_file(str(output))
    tasks = loaded.pipeline_spec.root.dag.tasks
    assert loaded.name == "laser"
    assert set(tasks) == COMPONENTS
    assert set(tasks["Pusher"].dependent_tasks) == {"Trainer", "Evaluator", "ServingCheck"}
    executors = yaml.safe_load(output.read_text())["deploymentSpec"]["executors"].values()
    images = {each["container"]["image"] for each in executors if "container" in each}
    assert images == {"registry/laser:7"}


def test_a_baseline_model_is_imported_and_compared_with(config, tmp_path):
    compiled = config(baseline_model="/models/laser/1700000000")
    output = compile_kubeflow(compiled, tmp_path / "laser.yaml")
    tasks = kfp.components.load_component_from_file(str(output)).pipeline_spec.root.dag.tasks
    assert set(tasks) == COMPONENTS | {"baseline_model"}
    inputs = tasks["Evaluator"].inputs.artifacts["baseline_model"]
    assert inputs.task_output_artifact.producer_task == "baseline_model"
