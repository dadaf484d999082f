"""The executor of RecallGate."""

from __future__ import annotations

import json
import os
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils

RESULT = "recall.json"
"""File in which a training of the recall model leaves what was measured."""


class RecallGateExecutor(base_executor.BaseExecutor):
    """Compares the measured recall with the least that was asked for.

    The reason of a refusal is the artifact's property ``reason``.
    """

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Bless the model, or say why not."""
        run = artifact_utils.get_single_instance(input_dict["model_run"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        with fileio.open(os.path.join(run.uri, RESULT)) as file:
            found = json.loads(file.read())
        reason = refusal(found, exec_properties["min_recall"])
        blessing.set_int_custom_property("blessed", int(not reason))
        file_name = "INFRA_NOT_BLESSED" if reason else "INFRA_BLESSED"
        io_utils.write_string_file(os.path.join(blessing.uri, file_name), reason)
        if reason:
            blessing.set_string_custom_property("reason", reason)


def refusal(found: dict[str, Any], min_recall: float) -> str:
    """Why a model with this result is not pushed; empty if it is.

    Example:
        >>> refusal({"k": 100, "recall": 0.3}, min_recall=0.25)
        ''
        >>> refusal({"k": 100, "recall": 0.3}, min_recall=0.35)
        'recall@100 is 0.3000, below recall.min_recall 0.35'
    """
    if found["recall"] >= min_recall:
        return ""
    return f"recall@{found['k']} is {found['recall']:.4f}, below recall.min_recall {min_recall:g}"
