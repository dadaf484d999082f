"""The TFX component AnomalyGate."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import json_utils

from components.anomaly_gate.executor import AnomalyGateExecutor


class AnomalyGateSpec(ComponentSpec):
    """Input and parameters of ``AnomalyGate``."""

    PARAMETERS = {"allowed": ExecutionParameter(type=str)}  # noqa: RUF012 - declared so there
    INPUTS = {"anomalies": ChannelParameter(type=standard_artifacts.ExampleAnomalies)}  # noqa: RUF012
    OUTPUTS: dict[str, ChannelParameter] = {}  # noqa: RUF012


class AnomalyGate(base_component.BaseComponent):
    """Stops a run if ExampleValidator found anomalies that are not allowed.

    ExampleValidator only writes down what it finds. This component has no output: make the nodes
    that must wait for it depend on it with ``add_upstream_node``.

    Args:
        anomalies: Output of ExampleValidator.
        allowed: Names of features whose anomalies are accepted.
    """

    SPEC_CLASS = AnomalyGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(AnomalyGateExecutor)

    def __init__(self, anomalies: BaseChannel, allowed: list[str]) -> None:
        super().__init__(AnomalyGateSpec(anomalies=anomalies, allowed=json_utils.dumps(allowed)))
