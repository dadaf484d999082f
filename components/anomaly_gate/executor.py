"""The executor of AnomalyGate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tensorflow_metadata.proto.v0 import anomalies_pb2
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import json_utils

_SHOWN = 5


class AnomaliesError(ValueError):
    """The Examples do not fit their schema: the message names features and what is wrong."""


class Anomaly(NamedTuple):
    """What ExampleValidator found about one feature of one split."""

    split: str
    feature: str
    description: str

    def __str__(self) -> str:
        return f"{self.split}: {self.feature}: {self.description}"


class AnomalyGateExecutor(base_executor.BaseExecutor):
    """Raises if the validator found an anomaly that is not allowed by name."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Look at the anomalies.

        Raises:
            AnomaliesError: Features that are not allowed have anomalies.
        """
        anomalies = artifact_utils.get_single_instance(input_dict["anomalies"])
        check_anomalies(read_anomalies(anomalies.uri), json_utils.loads(exec_properties["allowed"]))


def check_anomalies(anomalies: list[Anomaly], allowed: list[str]) -> None:
    """Raise unless each anomaly's feature is allowed.

    Args:
        anomalies: What was found.
        allowed: Names of features whose anomalies are known and accepted.

    Raises:
        AnomaliesError: Shows the first of the others.
    """
    others = [anomaly for anomaly in anomalies if anomaly.feature not in allowed]
    if others:
        names = ", ".join(sorted({anomaly.feature for anomaly in others}))
        shown = "".join(f"\n  {anomaly}" for anomaly in others[:_SHOWN])
        more = f"\n  and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise AnomaliesError(
            f"the Examples do not fit the schema of the feature spec:{shown}{more}\n"
            f"Correct the data or the spec, or set allow_anomalies: [{names}] to train all the same"
        )


def read_anomalies(uri: str) -> list[Anomaly]:
    """What ExampleValidator wrote, by split and feature."""
    found = []
    for path in sorted(fileio.glob(f"{uri}/Split-*/SchemaDiff.pb")):
        with fileio.open(path, "rb") as file:
            content = anomalies_pb2.Anomalies.FromString(file.read())
        split = Path(path).parent.name.removeprefix("Split-")
        found += [
            Anomaly(split, name, " ".join(info.description.split()))
            for name, info in sorted(content.anomaly_info.items())
        ]
        if content.HasField("dataset_anomaly_info"):
            words = " ".join(content.dataset_anomaly_info.description.split())
            found.append(Anomaly(split, "dataset", words))
    return found
