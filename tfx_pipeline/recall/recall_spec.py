"""What the recall model takes of a feature spec."""

from __future__ import annotations

from dataclasses import replace

from laser_features import FeatureSpec, ModelInput
from laser_features.interactions import Interactions

ITEM = "candidate_item_id"


def recall_spec(spec: FeatureSpec, history: int) -> FeatureSpec:
    """The spec without what belongs to an event or to a candidate on its page.

    Of the newest ``history`` events their items and the items' fields are left, of a request its
    user and context fields, of a candidate its item and the item's fields, and the first label.
    """
    label = next(iter(spec.labels))
    return replace(
        spec,
        max_history=min(history, spec.max_history),
        event_fields={"item_id": spec.event_fields["item_id"]},
        candidate_fields={},
        derived_candidate_fields={},
        labels={label: spec.labels[label]},
        interactions=Interactions(),
    )


def user_inputs(spec: FeatureSpec) -> list[ModelInput]:
    """Inputs of the user tower that are embedded; ``history_length`` comes beside them."""
    return [
        each for each in spec.model_inputs() if each.kind != "candidate" and each.table is not None
    ]


def item_inputs(spec: FeatureSpec) -> list[ModelInput]:
    """Inputs of the item tower; the first is ``candidate_item_id``."""
    return [each for each in spec.model_inputs() if each.kind == "candidate"]
