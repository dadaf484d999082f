"""How the labels of logged impressions follow from events: ``labels.yaml``."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from laser_features import FeatureSpec
from tfx_pipeline.errors import DatasetError, SettingsError
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.section import CONFIG, Integer, Real, check, empty_is_default

_MS_PER_MINUTE = 60_000


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LabelRule:
    """Which events make one label, and of what value.

    Attributes:
        where: Event fields and the values that count; without any every event counts.
        value: Event field whose value in the first such event that has one is the label; without a
            field it is 1. An impression without such an event has 0.
    """

    where: dict[str, list[Integer]] = field(default_factory=dict)
    value: str = ""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class LabelRules:
    """The rules of all labels.

    An event belongs to the newest impression of its user and item that is not newer than itself
    and not older than ``within_minutes``.

    Attributes:
        within_minutes: How long after an impression its events count.
        labels: Rule of each of the spec's labels.
    """

    within_minutes: Annotated[Real, Field(gt=0)]
    labels: dict[str, Annotated[LabelRule, BeforeValidator(empty_is_default)]]

    @classmethod
    def load(cls, path: Path, spec: FeatureSpec) -> LabelRules:
        """Read a file and check it against the spec.

        Raises:
            DatasetError: It is not there, not valid, or names labels or fields of another spec.
        """
        if not path.is_file():
            raise DatasetError(
                f"{path} is missing: a log of what was shown needs it, to say which events make "
                "the labels (docs/datasets.md has an example)"
            )
        try:
            rules = check(cls, read_yaml(path), str(path))
        except SettingsError as error:
            raise DatasetError(str(error)) from error
        if set(rules.labels) != set(spec.labels):
            raise DatasetError(
                f"{path} has rules for {sorted(rules.labels)}, and features.yaml has the labels "
                f"{sorted(spec.labels)}: give each a rule"
            )
        for name, rule in rules.labels.items():
            used = [*rule.where, *([rule.value] if rule.value else [])]
            if unknown := [each for each in used if each not in spec.event_fields]:
                raise DatasetError(
                    f"{path}: labels.{name} names the event fields {unknown}, and features.yaml "
                    f"has {sorted(spec.event_fields)}"
                )
            if floats := [each for each in rule.where if spec.event_fields[each].is_float]:
                raise DatasetError(f"{path}: labels.{name}.where takes no {floats}: not integers")
        return rules

    @property
    def window_ms(self) -> int:
        """How long after an impression its events count, in milliseconds."""
        return round(self.within_minutes * _MS_PER_MINUTE)

    def label(self, impressions: pa.Table, events: pa.Table, spec: FeatureSpec) -> pa.Table:
        """The impressions with a column for each label of the spec.

        Args:
            impressions: Columns ``user_id``, ``item_id`` and ``timestamp``, at least.
            events: Columns of ``spec.event_schema()``, at least those of the users' events within
                the window of each impression.
            spec: The feature spec.

        Raises:
            DatasetError: A value is none of the label's type.
        """
        keys = ["user_id", "item_id", "timestamp"]
        shown = impressions.select(keys).to_pandas()
        shown["row"] = np.arange(len(shown))
        shown = shown.sort_values("timestamp", kind="stable")
        for name, declared in spec.labels.items():
            found = self._events_of(name, events, shown, spec)
            values = np.zeros(len(shown), declared.dtype)
            rows = found["row"].to_numpy(np.int64)
            rule = self.labels[name]
            made = found[rule.value].to_numpy() if rule.value else np.ones(len(found), np.int64)
            values[rows] = made
            if not declared.is_float and (wrong := values[rows] != made).any():
                raise DatasetError(
                    f"label {name!r} is {declared.type}, and {rule.value!r} of an event is "
                    f"{made[wrong][0]}: give the label a type that holds it"
                )
            impressions = impressions.append_column(name, pa.array(values, declared.arrow_type))
        return impressions

    def _events_of(
        self, label: str, events: pa.Table, shown: pd.DataFrame, spec: FeatureSpec
    ) -> pd.DataFrame:
        """The first event of each impression that makes a label, with the impression's row."""
        rule = self.labels[label]
        for name, wanted in rule.where.items():
            kept = pc.is_in(events[name].cast(pa.int64()), pa.array(wanted, pa.int64()))
            events = events.filter(kept)
        if rule.value:
            field = spec.event_fields[rule.value]
            values = events[rule.value]
            has_one = (
                pc.is_finite(values) if field.is_float else pc.not_equal(values, field.missing)
            )
            events = events.filter(has_one)  # a null is kept out, too
        keys = ["user_id", "item_id", "timestamp"]
        more = [rule.value] if rule.value and rule.value not in keys else []
        made = events.select([*keys, *more]).to_pandas()
        found = pd.merge_asof(
            made.sort_values("timestamp", kind="stable"),
            shown,
            on="timestamp",
            by=["user_id", "item_id"],
            tolerance=self.window_ms,
        )
        return found.dropna(subset=["row"]).drop_duplicates("row")
