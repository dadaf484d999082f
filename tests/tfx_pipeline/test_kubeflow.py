"""The same pipeline definition as a Kubeflow pipeline file."""

import os

import kfp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from laser_features.testing import tiny_spec
from seqvault import Schema, SeqVault
from tfx_pipeline.config import load_config
from tfx_pipeline.runners.kubeflow import compile_kubeflow

COMPONENTS = {
    "SeqVaultExampleGen",
    "StatisticsGen",
    "ImportSchemaGen",
    "ExampleValidator",
    "AnomalyGate",
    "Transform",
    "Trainer",
    "Evaluator",
    "ServingCheck",
    "Pusher",
}


DAY = 86_400_000


def write_log(folder, clicks):
    """Two impressions on each of two days; the file's size and time do not depend on labels."""
    columns = {
        "user_id": pa.array([1, 2, 1, 2]),
        "timestamp": pa.array([10**12, 10**12 + 1, 10**12 + DAY, 10**12 + DAY + 1]),
        "item_id": pa.array([0, 1, 0, 1]),
        "click": pa.array(clicks, pa.int8()),
    }
    path = folder / "impressions.parquet"
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False,
                   write_statistics=["timestamp"])  # fmt: skip
    os.utime(path, ns=(10**18, 10**18))
    return path.stat().st_size


@pytest.fixture
def config(tmp_path):
    spec = tiny_spec(rows=3, width=64)
    spec.save(tmp_path / "features.yaml")
    write_log(tmp_path, [0, 1, 0, 1])
    pq.write_table(pa.table({"item_id": [0, 1]}), tmp_path / "items.parquet")
    SeqVault.open(tmp_path / "store", schema=Schema.from_arrow(spec.event_schema())).close()
    splits = {
        name: {"start": 10**12 + at * DAY, "end": 10**12 + (at + 1) * DAY}
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


def test_another_label_another_event_or_another_setting_is_another_pipeline(config, tmp_path):
    """Kubeflow's cache looks at what is compiled, and at nothing else."""

    def compiled(**overrides):
        return compile_kubeflow(config(**overrides), tmp_path / "laser.yaml").read_text()

    size = (tmp_path / "impressions.parquet").stat().st_size
    before = compiled()
    assert compiled() == before
    assert write_log(tmp_path, [1, 0, 0, 1]) == size
    flipped = compiled()
    assert flipped != before
    write_log(tmp_path, [0, 1, 0, 1])
    assert compiled() == before
    assert compiled(training={"seed": 5}) != before
    with SeqVault.open(tmp_path / "store") as vault:
        vault.append({"user_id": [3], "timestamp": [10**12], "item_id": [1]})
    assert compiled() not in (before, flipped)
