"""The same pipeline definition as a Kubeflow pipeline file."""

import json
import os
import re

import kfp
import kfp.local
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from google.protobuf import struct_pb2
from kfp.pipeline_spec.pipeline_spec_pb2 import ComponentInputsSpec
from kubeflow.training import models as operator
from kubernetes.client import models as kubernetes
from tfx.orchestration.kubeflow.v2.container.kubeflow_v2_entrypoint_utils import (
    parse_execution_properties,
)

from components.seqvault_example_gen.executor import settings_of
from components.seqvault_example_gen.time_range import TimeRange
from laser_features import FeatureSpec
from laser_features.testing import tiny_spec
from seqvault import Schema, SeqVault
from tfx_pipeline.config import load_config
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.runners.kubeflow import compile_kubeflow
from tfx_pipeline.training.cluster import Cluster

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
    told = tiny_spec(rows=3, width=64).to_dict()
    told["item"] = {"vector": {"type": "float32", "shape": [2]}}
    spec = FeatureSpec.from_dict(told)
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
    executors = load(output)[0]["deploymentSpec"]["executors"].values()
    images = {each["container"]["image"] for each in executors if "container" in each}
    assert images == {"registry/laser:7"}
    assert not (tmp_path / "out" / "laser.tfjob.yaml").exists()


def test_a_recall_model_is_refused(config, tmp_path):
    """A run may name another dataset; the model's catalogue would be of the one given here."""
    with pytest.raises(SettingsError, match="compile a config without section recall"):
        compile_kubeflow(config(recall={"k": 1}), tmp_path / "laser.yaml")
    assert not (tmp_path / "laser.yaml").exists()


def load(output):
    return list(yaml.safe_load_all(output.read_text()))


PODS = {
    "pipeline_root": "s3://bucket/pipelines",
    "retries": 3,
    "resources": {
        "default": {"cpu_request": 1, "memory_limit": "4Gi"},
        "Trainer": {"gpus": 2, "cpu_limit": 8, "memory_request": "32G"},
    },
    "env": {"AWS_ENDPOINT_URL": "http://minio:9000"},
    "secrets": {"AWS_SECRET_ACCESS_KEY": {"secret": "s3", "key": "secret"}},
    "volumes": {"laser-work": "/work"},
    "parameter_servers": 2,
    "workers": 1,
}


@pytest.fixture
def compiled(config, tmp_path):
    """Both documents of a pipeline with everything that pods can get, and its TFJob."""
    output = compile_kubeflow(config(kubeflow=PODS), tmp_path / "laser.yaml", "registry/laser:7")
    return *load(output), *load(tmp_path / "laser.tfjob.yaml")


def test_pods_get_what_the_config_says(compiled, tmp_path):
    spec, platform, _ = compiled
    assert spec["defaultPipelineRoot"] == "s3://bucket/pipelines"
    tasks = spec["root"]["dag"]["tasks"]
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks.values()} == {3}
    executors = spec["deploymentSpec"]["executors"]
    containers = {
        name: executors[component["executorLabel"]]["container"]
        for name, component in spec["components"].items()
    }
    assert containers["Trainer"]["resources"] == {
        "cpuLimit": 8.0,
        "memoryRequest": 32.0,
        "accelerator": {"type": "nvidia.com/gpu", "count": "2"},
    }
    assert containers["Pusher"]["resources"] == {"cpuRequest": 1.0, "memoryLimit": 4.294967296}
    for container in containers.values():
        assert {"name": "AWS_ENDPOINT_URL", "value": "http://minio:9000"} in container["env"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(pods) == set(executors)
    assert pods["Trainer_executor"] == {
        "secretAsEnv": [
            {
                "secretName": "s3",
                "keyToEnv": [{"secretKey": "secret", "envVar": "AWS_SECRET_ACCESS_KEY"}],
            }
        ],
        "pvcMount": [{"constant": "laser-work", "mountPath": "/work"}],
    }
    # kfp checks both documents against its own messages.
    loaded = kfp.components.load_component_from_file(str(tmp_path / "laser.yaml"))
    assert "kubernetes" in loaded.platform_spec.platforms
    resources = loaded.pipeline_spec.deployment_spec["executors"]["Trainer_executor"]["container"]
    assert resources["resources"]["cpuLimit"] == 8.0


def test_the_trainers_servers_are_a_tfjob_whose_chief_it_is(compiled):
    spec, _, job = compiled
    container = spec["deploymentSpec"]["executors"]["Trainer_executor"]["container"]
    (text,) = [each["value"] for each in container["env"] if each["name"] == "TF_CONFIG"]
    cluster = Cluster.from_environment({"TF_CONFIG": text})
    assert cluster.job == "chief" and cluster.parameter_servers == 2
    replicas = job["spec"]["tfReplicaSpecs"]
    assert {kind: each["replicas"] for kind, each in replicas.items()} == {"PS": 2, "Worker": 1}
    assert job["kind"] == "TFJob" and job["metadata"]["name"] == "laser"
    assert cluster.addresses["worker"] == ["laser-worker-0.kubeflow.svc:2222"]
    (worker,) = replicas["Worker"]["template"]["spec"]["containers"]
    (server,) = replicas["PS"]["template"]["spec"]["containers"]
    assert worker["command"] == ["python", "-m", "tfx_pipeline.training.cluster"]
    assert worker["resources"]["limits"] == {"cpu": "8.0", "nvidia.com/gpu": "2"}
    assert "nvidia.com/gpu" not in server["resources"]["limits"]
    assert worker["volumeMounts"] == [{"name": "laser-work", "mountPath": "/work"}]


PLAIN = {"str": str, "int": int, "bool": bool, "object": object}


def as_published(value, kind):
    """Make the published class of a plain value; unknown, missing and mistyped entries raise."""
    container = re.fullmatch(r"(list|dict)[\[(](?:str, )?(\w+)[\])]", kind)
    if container and container[1] == "list":
        return [as_published(each, container[2]) for each in value]
    if container:
        return {key: as_published(each, container[2]) for key, each in value.items()}
    if kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), (value, kind)
        return value
    model = getattr(operator, kind, None) or getattr(kubernetes, kind)
    names = {key: name for name, key in model.attribute_map.items()}
    arguments = {
        names[key]: as_published(each, model.openapi_types[names[key]])
        for key, each in value.items()
    }
    return model(**arguments)


def test_the_tfjob_is_what_operator_and_kubernetes_publish(compiled):
    _, _, job = compiled
    replicas = as_published(job, "KubeflowOrgV1TFJob").spec.tf_replica_specs
    assert {kind: each.replicas for kind, each in replicas.items()} == {"PS": 2, "Worker": 1}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(replicas=3),
        lambda job: job["spec"].pop("tfReplicaSpecs"),
        lambda job: job["spec"]["tfReplicaSpecs"]["PS"].update(replicas="2"),
        lambda job: job["spec"]["tfReplicaSpecs"]["PS"]["template"]["spec"].pop("containers"),
    ],
)
def test_what_is_not_published_is_refused(compiled, spoil):
    _, _, job = compiled
    spoil(job)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        as_published(job, "KubeflowOrgV1TFJob")


def test_a_run_may_set_dataset_store_and_splits(compiled, config, tmp_path):
    spec, *_ = compiled
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {"dataset", "store", "splits"}
    assert parameters["dataset"]["defaultValue"] == str(tmp_path)
    given = spec["root"]["dag"]["tasks"]["SeqVaultExampleGen"]["inputs"]["parameters"]
    assert given["input_base"] == {"componentInputParameter": "dataset"}
    loaded = kfp.components.load_component_from_file(str(tmp_path / "laser.yaml"))
    assert set(loaded.component_spec.inputs) == {"dataset", "store", "splits"}
    times = {"train": [10**12, 10**12 + 5], "eval": [10**12 + 5, 10**12 + 9]}
    # What a pod's entry point makes of them is what the executor takes.
    properties = parse_execution_properties(
        {
            "custom_config": struct_pb2.Value(string_value=_constant(given["custom_config"])),
            "store": struct_pb2.Value(string_value="vault:7420"),
            "splits": struct_pb2.Value(string_value=json.dumps(times)),
        },
        {},
        ComponentInputsSpec(),
    )
    settings = settings_of(properties)
    assert settings.store == "vault:7420"
    assert settings.splits == {name: TimeRange(*each) for name, each in times.items()}
    uri = compile_kubeflow(config(), tmp_path / "uri.yaml", dataset="s3://bucket/data")
    parameters = load(uri)[0]["root"]["inputDefinitions"]["parameters"]
    assert parameters["dataset"]["defaultValue"] == "s3://bucket/data"


def _constant(parameter):
    return parameter["runtimeValue"]["constant"]


def test_resources_of_an_unknown_component_are_refused(config, tmp_path):
    wrong = config(kubeflow={"resources": {"Trainr": {"gpus": 1}}})
    with pytest.raises(SettingsError, match="names 'Trainr', which is no component; there are"):
        compile_kubeflow(wrong, tmp_path / "laser.yaml")
    assert not (tmp_path / "laser.yaml").exists()


def test_kfps_local_runner_carries_no_containers(compiled, tmp_path):
    """Where this fails, kfp can do more: let it run the compiled file."""
    kfp.local.init(runner=kfp.local.SubprocessRunner(use_venv=False), raise_on_error=True)
    loaded = kfp.components.load_component_from_file(str(tmp_path / "laser.yaml"))
    try:
        with pytest.raises(Exception, match="execution is not currently supported"):
            loaded()
    finally:
        kfp.local.config.LocalExecutionConfig.instance = None


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
