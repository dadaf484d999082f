"""What a stream of batches looks like: the columns of its Arrow record batches, and their order.

A row of a stream is one batch of requests, and each of its columns one list. The values of items
stand once per distinct item of the batch; events and candidates have an index into them. What is
sent are planes of bytes (the lowest byte of all values, then the next), of which ZSTD makes more
than of the values themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from laser_features import FeatureSpec, ModelInput

LAYOUT_VERSION = 1
"""Of what is described here; hosts and trainers of different versions refuse each other."""
HISTORY_LENGTH, CANDIDATE_COUNT = "history_length", "candidate_count"
INDEX = "index"
"""Position of the item of each event, then of each candidate, among the items of the batch."""
SEAL = "seal"
"""The last bytes of a batch: ``SEAL_VALUES``. What was cut off before them is noticed."""
SEAL_VALUES = ("stream", "sequence", "batches", "requests")


@dataclass(frozen=True)
class WireColumn:
    """One column of a stream.

    Attributes:
        name: Of the column.
        dtype: ``int32``, ``int64`` or ``float32``.
        per: What it has a value for: ``request``, ``event``, ``candidate``, ``item`` or ``both``
            (events, then candidates).
        inputs: The model's inputs that are read from it.
        values: Values that each of them holds, as in ``ModelInput``.
    """

    name: str
    dtype: str
    per: str
    inputs: tuple[ModelInput, ...] = ()
    values: int | None = None


def wire_columns(spec: FeatureSpec) -> tuple[WireColumn, ...]:
    """The columns of a spec's streams, without the seal that ends each row.

    Example:
        >>> from laser_features.testing import tiny_spec
        >>> [column.name for column in wire_columns(tiny_spec())]
        ['history_length', 'candidate_count', 'index', 'item/item_id', 'history_age_seconds', \
'label_click']
    """
    by_field: dict[str, list[ModelInput]] = {}
    others: list[WireColumn] = []
    for each in spec.model_inputs():
        if is_of_item(each):
            by_field.setdefault(each.field.name if each.field else "", []).append(each)
        elif each.name != HISTORY_LENGTH:
            per = "event" if each.kind == "history" else each.kind
            others.append(WireColumn(each.name, each.dtype, per, (each,), each.values))
    items = [
        WireColumn(f"item/{name}", inputs[0].dtype, "item", tuple(inputs), inputs[0].values)
        for name, inputs in by_field.items()
    ]
    labels = [WireColumn(f"label_{name}", "float32", "candidate") for name in spec.labels]
    return (
        WireColumn(HISTORY_LENGTH, "int32", "request"),
        WireColumn(CANDIDATE_COUNT, "int32", "request"),
        WireColumn(INDEX, "int32", "both"),
        *items,
        *others,
        *labels,
    )


def is_of_item(model_input: ModelInput) -> bool:
    """Whether an input is a function of the item alone."""
    source = model_input.field
    if source is None:
        return False
    return source.section == "item" or (source.section == "event" and source.name == "item_id")


def wire_schema(spec: FeatureSpec) -> pa.Schema:
    """The Arrow schema of a spec's streams."""
    planes = [(column.name, pa.list_(pa.uint8())) for column in wire_columns(spec)]
    return pa.schema([*planes, (SEAL, pa.list_(pa.int64()))])


def wire_fingerprint(spec: FeatureSpec) -> str:
    """Hash that hosts and trainers must share: of the layout and of the feature spec."""
    return hashlib.sha256(f"{LAYOUT_VERSION}:{spec.fingerprint()}".encode()).hexdigest()


def to_planes(values: np.ndarray) -> np.ndarray:
    """Bytes of values, plane after plane: uint8 [width * n] of [n] values.

    Example:
        >>> to_planes(np.array([1, 258], np.int32))
        array([1, 2, 0, 1, 0, 0, 0, 0], dtype=uint8)
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat.view(np.uint8).reshape(flat.size, flat.itemsize).T.reshape(-1)
