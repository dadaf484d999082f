"""The TFX component RecallGate."""

from __future__ import annotations

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import BaseChannel, Channel, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from components.recall_gate.executor import RecallGateExecutor


class RecallGateSpec(ComponentSpec):
    """Input, output and parameter of ``RecallGate``."""

    PARAMETERS = {"min_recall": ExecutionParameter(type=float)}  # noqa: RUF012 - declared so there
    INPUTS = {"model_run": ChannelParameter(type=standard_artifacts.ModelRun)}  # noqa: RUF012
    OUTPUTS = {  # noqa: RUF012
        # Not a ModelBlessing: by those the Evaluator of the ranker finds its baseline.
        "blessing": ChannelParameter(type=standard_artifacts.InfraBlessing),
    }


class RecallGate(base_component.BaseComponent):
    """Blesses a recall model whose recall@k is high enough.

    Args:
        model_run: Output of the Trainer of the recall model; holds ``recall.json``.
        min_recall: Lowest recall@k.
    """

    SPEC_CLASS = RecallGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RecallGateExecutor)

    def __init__(self, model_run: BaseChannel, min_recall: float) -> None:
        super().__init__(
            RecallGateSpec(
                model_run=model_run,
                min_recall=min_recall,
                blessing=Channel(type=standard_artifacts.InfraBlessing),
            )
        )
