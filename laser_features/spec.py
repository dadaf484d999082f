"""The feature spec: one declarative file per dataset, from which everything else is derived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from laser_features.errors import FeatureSpecError
from laser_features.field import Field
from laser_features.interactions import Interactions
from laser_features.model_input import ModelInput
from laser_features.parsing import parse_spec
from laser_features.table import Table


@dataclass(frozen=True)
class FeatureSpec:
    """A validated feature spec: tables, fields by section, and what is derived from them.

    Build one with ``load`` or ``from_dict``; both validate. Instances are immutable and can be
    pickled, compared and sent to Beam workers.

    Attributes:
        name: Name of the dataset.
        max_history: L, the newest events kept per request.
        tables: Embedding tables by name.
        event_fields: Fields of an event beside ``user_id`` and ``timestamp``; ``item_id`` is first.
        item_fields: Side information, once per item.
        user_fields: ``user_id``, if listed, is the request's; others are impression columns.
        context_fields: Of the request; fields with ``derive`` have no column.
        candidate_fields: Of one candidate beyond its item, as sent with a request.
        derived_candidate_fields: Likewise, but computed from the item and the request's time.
        labels: The first one is trained on.
        interactions: What the model computes of a candidate and an event together.

    Example:
        >>> spec = FeatureSpec.from_dict({
        ...     "name": "tiny", "history": {"max_length": 3},
        ...     "tables": {"item": {"rows": 10, "width": 4, "ids": "direct"}},
        ...     "event": {"item_id": {"type": "int64", "table": "item"}},
        ...     "label": {"click": {"type": "int8"}}})
        >>> [model_input.name for model_input in spec.model_inputs()]
        ['history_item_id', 'history_age_seconds', 'history_length', 'candidate_item_id']
    """

    name: str
    max_history: int
    tables: dict[str, Table]
    event_fields: dict[str, Field]
    item_fields: dict[str, Field]
    user_fields: dict[str, Field]
    context_fields: dict[str, Field]
    candidate_fields: dict[str, Field]
    derived_candidate_fields: dict[str, Field]
    labels: dict[str, Field]
    interactions: Interactions

    @classmethod
    def load(cls, path: str | Path) -> FeatureSpec:
        """Read and validate a YAML file.

        Raises:
            FeatureSpecError: The file cannot be read, is not YAML or is not a valid spec.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FeatureSpecError(f"{path}: cannot be read ({error}); give a YAML file") from error
        try:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise FeatureSpecError(f"{path}: not valid YAML: {problem}") from error
        return cls.from_dict(content, source=str(path))

    @classmethod
    def from_dict(cls, content: object, source: str = "feature spec") -> FeatureSpec:
        """Validate a spec given as a dict; ``source`` names it in messages.

        Raises:
            FeatureSpecError: Names the source, the field, what was found and what to do.
        """
        parsed = parse_spec(content, source)
        sections = parsed.sections
        candidate = sections["candidate"].items()
        return cls(
            name=parsed.name,
            max_history=parsed.max_history,
            tables=parsed.tables,
            event_fields=sections["event"],
            item_fields=sections["item"],
            user_fields=sections["user"],
            context_fields=sections["context"],
            candidate_fields={name: field for name, field in candidate if not field.derive},
            derived_candidate_fields={name: field for name, field in candidate if field.derive},
            labels=sections["label"],
            interactions=parsed.interactions,
        )

    def to_dict(self) -> dict[str, object]:
        """The canonical content: ``FeatureSpec.from_dict(spec.to_dict()) == spec``."""
        sections: dict[str, Mapping[str, Table | Field]] = {
            "tables": self.tables,
            "event": self.event_fields,
            "item": self.item_fields,
            "user": self.user_fields,
            "context": self.context_fields,
            "candidate": {**self.candidate_fields, **self.derived_candidate_fields},
            "label": self.labels,
        }
        content: dict[str, object] = {
            "name": self.name,
            "history": {"max_length": self.max_history},
        }
        for section, entries in sections.items():
            if entries:
                content[section] = {name: entry.to_dict() for name, entry in entries.items()}
        if declared := self.interactions.to_dict():
            content["interactions"] = declared
        return content

    def save(self, path: str | Path) -> None:
        """Write the canonical content as YAML, readable by ``load``."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, width=100)
        Path(path).write_text(text, encoding="utf-8")

    def fingerprint(self) -> str:
        """SHA-256 of the canonical content, order of fields included: it orders the inputs."""
        canonical = json.dumps(self.to_dict(), separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def content_fields(self) -> dict[str, Field]:
        """Item fields with a shape: frozen vectors inside the model, keyed by the item's row."""
        return {name: field for name, field in self.item_fields.items() if field.shape is not None}

    def event_schema(self) -> pa.Schema:
        """Columns of ``events.parquet``: user_id, timestamp, item_id, then other event fields."""
        return pa.schema(
            [("user_id", pa.int64()), ("timestamp", pa.int64()), *_columns(self.event_fields)]
        )

    def item_schema(self) -> pa.Schema:
        """Columns of ``items.parquet``: item_id, then the item fields."""
        return pa.schema([("item_id", pa.int64()), *_columns(self.item_fields)])

    def impression_schema(self) -> pa.Schema:
        """Columns of ``impressions.parquet``: user_id, timestamp, item_id, context, user and
        candidate fields, labels. A column ``request_id`` may be there too."""
        ids = [("user_id", pa.int64()), ("timestamp", pa.int64()), ("item_id", pa.int64())]
        return pa.schema(
            [
                *ids,
                *_columns(self.request_fields),
                *_columns(self.candidate_fields),
                *_columns(self.labels),
            ]
        )

    @cached_property
    def request_fields(self) -> dict[str, Field]:
        """Context and user fields that arrive with a request: not derived, not ``user_id``."""
        fields = {**self.context_fields, **self.user_fields}
        return {
            name: field
            for name, field in fields.items()
            if field.derive is None and name != "user_id"
        }

    def model_inputs(self) -> tuple[ModelInput, ...]:
        """Every array that the model takes, in a fixed order: history, candidate, context, user."""
        return self._model_inputs

    @cached_property
    def _model_inputs(self) -> tuple[ModelInput, ...]:
        item_side = list(self.item_fields.values())
        history_side = [*self.event_fields.values(), *item_side]
        candidate_side = [
            self.event_fields["item_id"],
            *item_side,
            *self.candidate_fields.values(),
            *self.derived_candidate_fields.values(),
        ]
        return (
            *self._inputs("history", "history", history_side),
            ModelInput("history_age_seconds", "int32", "history"),
            ModelInput("history_length", "int32", "request"),
            *self._inputs("candidate", "candidate", candidate_side),
            *self._inputs("request", "context", self.context_fields.values()),
            *self._inputs("request", "user", self.user_fields.values()),
        )

    def _inputs(self, kind: str, prefix: str, fields: Iterable[Field]) -> list[ModelInput]:
        """The inputs of those fields that have a table; others are stored, not embedded."""
        inputs = []
        for field in fields:
            if field.table is None:
                continue
            transform, dtype = None, "int32"
            if field.quantiles is not None:
                transform, dtype = "quantiles", "float32"
            elif field.boundaries is None and self.tables[field.table].ids == "vocabulary":
                transform, dtype = "vocabulary", "int64"
            name = f"{prefix}_{field.name}"
            inputs.append(ModelInput(name, dtype, kind, field, field.table, transform))
        return inputs


def _columns(fields: Mapping[str, Field]) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.arrow_type) for field in fields.values() if field.derive is None]


class _UniqueKeyLoader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys; plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    problem=f"line {line}: the name {key_node.value!r} is used twice; rename one"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)
