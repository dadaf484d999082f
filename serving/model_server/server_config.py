"""Reads ``models.config``, TensorFlow Serving's list of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server.status import ServingError, invalid
from serving.model_server.versions import ModelConfig, VersionPolicy


def read_config(path: Path) -> list[ModelConfig]:
    """The models of a ``ModelServerConfig`` in text form.

    Raises:
        ServingError: The file cannot be read or parsed, or an entry is not valid.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ServingError("NOT_FOUND", f"{path}: {error.strerror}") from error
    config = model_server_config_pb2.ModelServerConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise invalid(
            f"Error parsing text-format tensorflow.serving.ModelServerConfig: {error}"
        ) from error
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(f"{path}: expected a model_config_list")
    models = [_model(entry) for entry in config.model_config_list.config]
    for model in models:
        if sum(other.name == model.name for other in models) > 1:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
    return models


def single_model(name: str, base_path: str) -> ModelConfig:
    """The configuration that ``--model_name`` and ``--model_base_path`` make.

    Raises:
        ServingError: The base path is not absolute.
    """
    if not Path(base_path).is_absolute():
        raise invalid(
            f"Expected model {name} to have an absolute path or URI; got base_path()={base_path}"
        )
    return ModelConfig(name, Path(base_path))


def _model(entry: model_server_config_pb2.ModelConfig) -> ModelConfig:
    if entry.model_platform != "tensorflow":
        raise invalid(
            f'Illegal setting of model {entry.name}: model_platform must be "tensorflow"; '
            f"got {entry.model_platform!r}"
        )
    single = single_model(entry.name, entry.base_path)
    policy = _policy(entry.model_version_policy)
    return ModelConfig(single.name, single.base_path, policy, dict(entry.version_labels))


def _policy(policy: Any) -> VersionPolicy:
    """The policy of a ``ServableVersionPolicy``, whose class the API package does not export."""
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(all=True)
    if kind == "specific":
        return VersionPolicy(latest=0, specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions or 1)
