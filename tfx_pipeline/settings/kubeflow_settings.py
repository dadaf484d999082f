"""Section ``kubeflow``: what the pods of a compiled pipeline get."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from pydantic.dataclasses import dataclass

from tfx_pipeline.settings.section import CONFIG, Integer, Real, empty_is_default

_MEMORY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(|k|M|G|T|Ki|Mi|Gi|Ti)")
_FACTORS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def gigabytes(text: str) -> float:
    """Memory as Kubernetes writes it, in units of 10^9 bytes.

    Example:
        >>> gigabytes("500M"), gigabytes("4Gi")
        (0.5, 4.294967296)
    """
    found = _MEMORY.fullmatch(text)
    if not found or not float(found[1]):
        raise ValueError("should be memory like 500M, 4G or 4Gi")
    return float(found[1]) * _FACTORS[found[2]] / 1e9


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ResourceSettings:
    """What one component's pod asks for, and what it may take."""

    cpu_request: Real | None = Field(default=None, gt=0, description="cores, to be placed by")
    cpu_limit: Real | None = Field(default=None, gt=0, description="cores at most")
    memory_request: str | None = Field(default=None, description="`4G`, to be placed by")
    memory_limit: str | None = Field(default=None, description="`8Gi`, at most")
    gpus: Integer = Field(default=0, ge=0, description="graphics cards")
    gpu_type: str = Field(default="nvidia.com/gpu", description="resource name of the cards")

    @field_validator("memory_request", "memory_limit")
    @classmethod
    def _is_memory(cls, text: str | None) -> str | None:
        if text is not None:
            gigabytes(text)
        return text


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SecretSettings:
    """A key of a Kubernetes secret."""

    secret: str = Field(description="name of the secret")
    key: str = Field(description="key within it")


Resources = Annotated[ResourceSettings, BeforeValidator(empty_is_default)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class KubeflowSettings:
    """Pods, their retries and what they see.

    Raises:
        ValueError: A setting is unknown or does not fit.
    """

    pipeline_root: str = Field(
        default="",
        description="URI for the artifacts (`s3://`, `gs://`, `minio://`); empty takes the folder "
        "`pipeline` of the work folder, which must be a volume then",
    )
    retries: Integer = Field(default=2, ge=0, le=20, description="of each component that failed")
    resources: Annotated[dict[str, Resources], BeforeValidator(empty_is_default)] = Field(
        default_factory=dict,
        description="by component (`Trainer: {gpus: 1, memory_limit: 16Gi}`), `default` for others",
    )
    env: Annotated[dict[str, str], BeforeValidator(empty_is_default)] = Field(
        default_factory=dict, description="environment variables of all components"
    )
    secrets: Annotated[dict[str, SecretSettings], BeforeValidator(empty_is_default)] = Field(
        default_factory=dict,
        description="environment variables from secrets: "
        "`AWS_SECRET_ACCESS_KEY: {secret: s3, key: secret}`",
    )
    volumes: Annotated[dict[str, str], BeforeValidator(empty_is_default)] = Field(
        default_factory=dict, description="persistent volume claims and where they are mounted"
    )
    parameter_servers: Integer = Field(
        default=0,
        ge=0,
        description="of the Trainer's cluster: a TFJob is written beside the pipeline; 0 trains in "
        "the Trainer's pod",
    )
    workers: Integer = Field(default=1, ge=1, description="of the Trainer's cluster")
    namespace: str = Field(default="kubeflow", description="of the TFJob")

    @field_validator("env", "secrets")
    @classmethod
    def _are_variables(cls, values: dict[str, object]) -> dict[str, object]:
        for name in values:
            if not _NAME.fullmatch(name):
                raise ValueError(f"holds {name!r}, which is no name of an environment variable")
        return values

    @field_validator("volumes")
    @classmethod
    def _are_absolute(cls, values: dict[str, str]) -> dict[str, str]:
        for claim, path in values.items():
            if not path.startswith("/"):
                raise ValueError(f"mounts {claim!r} at {path!r}; give an absolute path")
        return values
