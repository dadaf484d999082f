"""Chooses the model that a new one is compared with."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.common.resolver import ResolverStrategy


class BaselineStrategy(ResolverStrategy):
    """The latest blessed model other than the candidate itself.

    TFX's ``LatestBlessedModelStrategy`` would hand a model that an earlier run blessed to its own
    evaluation when nothing changed: the Evaluator would run again, and the Pusher push it twice.

    Inputs ``model``, ``model_blessing`` and ``candidate``; the output ``model`` is empty if no
    other model was blessed.
    """

    def resolve_artifacts(
        self, store: object, input_dict: dict[str, list[types.Artifact]]
    ) -> dict[str, list[types.Artifact]]:
        """Pick the model; all but ``model`` come out empty."""
        candidates = {artifact.id for artifact in input_dict["candidate"]}
        blessed = {
            blessing.get_int_custom_property("current_model_id")
            for blessing in input_dict["model_blessing"]
            if blessing.get_int_custom_property("blessed") == 1
        }
        others = [
            model
            for model in input_dict["model"]
            if model.id in blessed and model.id not in candidates
        ]
        latest = max(others, key=lambda model: int(model.id), default=None)
        return {**{key: [] for key in input_dict}, "model": [latest] if latest else []}
