"""What Kubeflow's pods get: resources, retries, environment, secrets, volumes, parameters.

TFX 1.16 compiles none of them, so they are added to the compiled pipeline, as plain data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import SettingsError
from tfx_pipeline.feature_host.silent_streams import FEATURE_HOSTS
from tfx_pipeline.settings.kubeflow_settings import KubeflowSettings, ResourceSettings, gigabytes

Spec = dict[str, Any]
EXAMPLE_GEN, TRAINER = "SeqVaultExampleGen", "Trainer"
_EVERY_OTHER = "default"


def with_pods(spec: Spec, config: PipelineConfig) -> Spec:
    """The compiled pipeline with what section ``kubeflow`` says of its pods.

    Args:
        spec: A pipeline spec of schema 2.1.
        config: What was compiled.

    Raises:
        SettingsError: Resources are given for a component that the pipeline does not have.
    """
    settings = config.kubeflow
    components = spec["components"]
    unknown = sorted(set(settings.resources) - set(components) - {_EVERY_OTHER})
    if unknown:
        raise SettingsError(
            f"kubeflow.resources names {unknown[0]!r}, which is no component; there are "
            f"{sorted(components)} and {_EVERY_OTHER!r}"
        )
    executors = spec["deploymentSpec"]["executors"]
    for name, component in components.items():
        container = executors[component["executorLabel"]].get("container")
        if container is None:  # an importer
            continue
        resources = settings.resources.get(name) or settings.resources.get(_EVERY_OTHER)
        if resources is not None and (given := _resources(resources)):
            container["resources"] = given
        variables = dict(settings.env)
        if name == TRAINER and settings.parameter_servers:
            variables["TF_CONFIG"] = json.dumps(chief_of(config))
        if variables:
            container["env"] = [{"name": key, "value": text} for key, text in variables.items()]
        if settings.retries:
            spec["root"]["dag"]["tasks"][name]["retryPolicy"] = {
                "maxRetryCount": settings.retries,
                "backoffDuration": "30s",
                "backoffFactor": 2.0,
            }
    if settings.pipeline_root:
        spec["defaultPipelineRoot"] = settings.pipeline_root
    return spec


def with_run_time_parameters(spec: Spec, config: PipelineConfig, dataset: str) -> Spec:
    """The compiled pipeline with parameters that a run may set: dataset, store and splits.

    The join alone reads the dataset; what else is needed of it lies beside the Examples.
    """
    splits = {name: [split.start, split.end] for name, split in config.splits.items()}
    defaults = {"dataset": dataset, "store": config.store, "splits": json.dumps(splits)}
    inputs = spec["root"].setdefault("inputDefinitions", {}).setdefault("parameters", {})
    definitions = spec["components"][EXAMPLE_GEN]["inputDefinitions"]["parameters"]
    given = spec["root"]["dag"]["tasks"][EXAMPLE_GEN]["inputs"]["parameters"]
    for name, value in defaults.items():
        inputs[name] = {"parameterType": "STRING", "defaultValue": value, "isOptional": True}
        own = "input_base" if name == "dataset" else name
        definitions.setdefault(own, {"parameterType": "STRING"})
        given[own] = {"componentInputParameter": name}
    return spec


def platform_of(spec: Spec, settings: KubeflowSettings) -> Spec | None:
    """Secrets and volumes, which Kubeflow takes in a document of its own; None without any."""
    pod: Spec = {}
    if settings.secrets:
        pod["secretAsEnv"] = [
            {"secretName": each.secret, "keyToEnv": [{"secretKey": each.key, "envVar": name}]}
            for name, each in settings.secrets.items()
        ]
    if settings.volumes:
        pod["pvcMount"] = [
            {"constant": claim, "mountPath": path} for claim, path in settings.volumes.items()
        ]
    if not pod:
        return None
    executors = {
        label: dict(pod)
        for label, executor in spec["deploymentSpec"]["executors"].items()
        if "container" in executor
    }
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}


def chief_of(config: PipelineConfig) -> dict[str, Any]:
    """TF_CONFIG of the Trainer's pod: the chief of the TFJob's servers and workers."""
    settings, job = config.kubeflow, job_name(config)

    def addresses(kind: str, count: int) -> list[str]:
        return [f"{job}-{kind}-{index}.{settings.namespace}.svc:2222" for index in range(count)]

    cluster = {
        "ps": addresses("ps", settings.parameter_servers),
        "worker": addresses("worker", settings.workers),
    }
    return {"cluster": cluster, "task": {"type": "chief", "index": 0}}


def job_name(config: PipelineConfig) -> str:
    """Name of the TFJob: a pipeline's name as Kubernetes takes names."""
    return "".join(each if each.isalnum() else "-" for each in config.name.lower()).strip("-")


def training_job(config: PipelineConfig, image: str) -> Spec:
    """The TFJob of the Trainer's servers and workers; the operator sets their TF_CONFIG."""
    settings = config.kubeflow
    replicas = {"PS": settings.parameter_servers, "Worker": settings.workers}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": job_name(config), "namespace": settings.namespace},
        "spec": {
            "runPolicy": {"cleanPodPolicy": "Running"},
            "tfReplicaSpecs": {
                kind: {
                    "replicas": count,
                    "restartPolicy": "Always",
                    "template": {"spec": _pod(config, image, kind)},
                }
                for kind, count in replicas.items()
            },
        },
    }


def _pod(config: PipelineConfig, image: str, kind: str) -> Spec:
    """A server's or worker's pod: cards are of use to workers alone."""
    settings, variables = config.kubeflow, dict(config.kubeflow.env)
    if hosts := config.training.feature_hosts:
        variables[FEATURE_HOSTS] = ",".join(hosts)
    resources = settings.resources.get(TRAINER) or settings.resources.get(_EVERY_OTHER)
    container: Spec = {
        "name": "tensorflow",  # the operator looks for this name
        "image": image,
        "command": ["python", "-m", "tfx_pipeline.training.cluster"],
        "ports": [{"name": "tfjob-port", "containerPort": 2222}],
        "env": [
            *({"name": key, "value": text} for key, text in variables.items()),
            *(
                {
                    "name": name,
                    "valueFrom": {"secretKeyRef": {"name": each.secret, "key": each.key}},
                }
                for name, each in settings.secrets.items()
            ),
        ],
        "volumeMounts": [
            {"name": claim, "mountPath": path} for claim, path in settings.volumes.items()
        ],
    }
    if resources is not None:
        container["resources"] = _kubernetes_resources(resources, with_cards=kind == "Worker")
    volumes = [
        {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in settings.volumes
    ]
    return {"containers": [container], "volumes": volumes}


def _resources(given: ResourceSettings) -> Spec:
    numbers: Mapping[str, float | None] = {
        "cpuRequest": given.cpu_request,
        "cpuLimit": given.cpu_limit,
        "memoryRequest": None if given.memory_request is None else gigabytes(given.memory_request),
        "memoryLimit": None if given.memory_limit is None else gigabytes(given.memory_limit),
    }
    found: Spec = {name: number for name, number in numbers.items() if number is not None}
    if given.gpus:
        found["accelerator"] = {"type": given.gpu_type, "count": str(given.gpus)}
    return found


def _kubernetes_resources(given: ResourceSettings, with_cards: bool) -> Spec:
    requests = {"cpu": given.cpu_request, "memory": given.memory_request}
    limits = {"cpu": given.cpu_limit, "memory": given.memory_limit}
    if with_cards and given.gpus:
        limits[given.gpu_type] = given.gpus
    return {
        kind: {name: str(value) for name, value in values.items() if value is not None}
        for kind, values in (("requests", requests), ("limits", limits))
    }
