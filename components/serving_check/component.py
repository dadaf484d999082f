"""The TFX component: a model and Examples in, an InfraBlessing out."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import json_utils

from components.serving_check.executor import ServingCheckExecutor


class ServingCheckSpec(ComponentSpec):
    """Inputs, outputs and parameters of ``ServingCheck``."""

    PARAMETERS = {  # noqa: RUF012 - the base class declares it so
        "model_name": ExecutionParameter(type=str),
        "command": ExecutionParameter(type=str),
        "requests": ExecutionParameter(type=int),
        "fingerprint": ExecutionParameter(type=str),
    }
    INPUTS = {  # noqa: RUF012
        "model": ChannelParameter(type=standard_artifacts.Model),
        "examples": ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {  # noqa: RUF012
        "blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
    }


class ServingCheck(base_component.BaseComponent):
    """Blesses a model only if a model server returns the model's own answers over REST.

    TFX's InfraValidator does this with docker or Kubernetes alone; this component starts the
    server as a process, and compares the answers instead of only waiting for some.

    Args:
        model: The exported model, with the signatures ``serving_default`` and
            ``serving_examples``.
        examples: Requests to send are the first of the ``eval`` split.
        model_name: Name to serve the model under.
        command: Starts a server that takes TensorFlow Serving's flags (``--model_name``,
            ``--model_base_path``, ``--rest_api_port``, ``--port``), for example
            ``["tensorflow_model_server"]``; empty for the embedded model server.
        requests: How many requests to send.
        fingerprint: Of the server's code; a change makes the check run again.
    """

    SPEC_CLASS = ServingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(ServingCheckExecutor)

    def __init__(
        self,
        model: BaseChannel,
        examples: BaseChannel,
        model_name: str,
        command: list[str],
        requests: int,
        fingerprint: str,
    ) -> None:
        super().__init__(
            ServingCheckSpec(
                model=model,
                examples=examples,
                model_name=model_name,
                command=json_utils.dumps(command),
                requests=requests,
                fingerprint=fingerprint,
                blessing=Channel(type=standard_artifacts.InfraBlessing),
            )
        )
