"""The curated TFDV schema, derived from the feature spec."""

from __future__ import annotations

import hashlib
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from laser_features import FeatureSpec, ModelInput

SCHEMA_FILE = "schema.pbtxt"
REQUEST_FEATURES = ("request_user_id", "request_time_ms", "candidate_count")


def make_schema(spec: FeatureSpec) -> schema_pb2.Schema:
    """Build the schema of the Examples: types, lengths and table sizes.

    Rows of embedding tables are bounded by the table, histories by the spec's length, the trained
    label by 0 and 1; a value outside shows as an anomaly before training.
    """
    schema = schema_pb2.Schema()
    for entry in spec.model_inputs():
        _add_model_input(schema, entry, spec)
    for name in REQUEST_FEATURES:
        _add(schema, name, schema_pb2.INT, one_value=True)
    _feature(schema, "candidate_count").int_domain.min = 1
    _feature(schema, "history_length").int_domain.max = spec.max_history
    for position, (name, field) in enumerate(spec.labels.items()):
        kind = schema_pb2.FLOAT if field.is_float else schema_pb2.INT
        feature = _add(schema, f"label_{name}", kind)
        feature.presence.min_fraction = 1.0
        feature.value_count.min = 1
        if position == 0:
            feature.int_domain.min, feature.int_domain.max = 0, 1
    return schema


def write_schema(spec: FeatureSpec, folder: Path) -> Path:
    """Write the schema where ImportSchemaGen reads it; returns the file.

    ImportSchemaGen's cache key holds the path and not the content: another schema needs another
    path, or a changed feature spec would run on the schema of the one before.
    """
    text = text_format.MessageToString(make_schema(spec))
    path = folder / hashlib.sha256(text.encode()).hexdigest()[:16] / SCHEMA_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def statistics_features(spec: FeatureSpec) -> list[str]:
    """Features worth statistics: those of requests, candidates' items and labels.

    Long histories are left out: counting every id of every history costs more than the join.
    """
    requests = [entry.name for entry in spec.model_inputs() if entry.kind == "request"]
    labels = [f"label_{name}" for name in spec.labels]
    return [*requests, *REQUEST_FEATURES, "candidate_item_id", *labels]


def _add_model_input(schema: schema_pb2.Schema, entry: ModelInput, spec: FeatureSpec) -> None:
    kind = schema_pb2.FLOAT if entry.dtype == "float32" else schema_pb2.INT
    feature = _add(schema, entry.name, kind, one_value=entry.kind == "request")
    if entry.kind == "candidate":
        feature.value_count.min = 1
    if entry.dtype == "int32":
        feature.int_domain.min = 0
        if entry.table is not None:
            feature.int_domain.max = spec.tables[entry.table].rows - 1


def _add(
    schema: schema_pb2.Schema, name: str, kind: int, one_value: bool = False
) -> schema_pb2.Feature:
    feature = schema.feature.add(name=name, type=kind)
    if one_value:
        feature.presence.min_fraction = 1.0
        feature.shape.dim.add(size=1)
    return feature


def _feature(schema: schema_pb2.Schema, name: str) -> schema_pb2.Feature:
    return next(feature for feature in schema.feature if feature.name == name)
