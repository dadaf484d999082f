"""A rank request as JSON sends it, checked against the feature spec."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laser_features.errors import RequestError, TimeUnitError
from laser_features.field import Field
from laser_features.request import RequestBatch
from laser_features.spec import FeatureSpec

_KEYS = {"user_id", "time_ms", "candidates", "context", "user"}


def parse_rank_request(spec: FeatureSpec, content: object) -> RequestBatch:
    """Check one rank request and turn it into a batch of one.

    Args:
        spec: The feature spec that says which fields exist.
        content: ``{"user_id": int, "time_ms": int, "candidates": [...], "context": {...},
            "user": {...}}``. A candidate is an item id, or an object with ``item_id`` and
            candidate fields. ``time_ms`` (default: now), ``context`` and ``user`` may be absent;
            an absent or null field is missing.

    Raises:
        RequestError: Says which part of the request is wrong and what is expected.

    Example:
        >>> from laser_features.testing import tiny_spec
        >>> spec = tiny_spec()
        >>> request = {"user_id": 7, "candidates": [3, {"item_id": 5}]}
        >>> batch = parse_rank_request(spec, request)
        >>> batch.candidate_item_id
        array([[3, 5]])
    """
    if not isinstance(content, Mapping):
        raise RequestError(f"the request is {_kind(content)}; send a JSON object")
    unknown = sorted(str(key) for key in set(content) - _KEYS)
    if unknown:
        raise RequestError(f"unknown key {unknown[0]!r}; a request has {sorted(_KEYS)}")
    user_id = _integer(content.get("user_id"), "user_id", np.iinfo(np.int64))
    time_ms = content.get("time_ms")
    if time_ms is None:
        time_ms = time.time_ns() // 1_000_000
    time_ms = _integer(time_ms, "time_ms", np.iinfo(np.int64))
    item_ids, candidate_fields = _candidates(spec, content.get("candidates"))
    sections = {"context": spec.context_fields, "user": spec.user_fields}
    fields: dict[str, NDArray] = {}
    for section, declared in sections.items():
        sendable = {name: declared[name] for name in declared if name in spec.request_fields}
        fields.update(_section(section, sendable, content.get(section)))
    try:
        return RequestBatch(
            user_id=np.array([user_id], np.int64),
            time_ms=np.array([time_ms], np.int64),
            candidate_item_id=item_ids[None],
            candidate_count=np.array([len(item_ids)], np.int32),
            fields=fields,
            candidate_fields={name: values[None] for name, values in candidate_fields.items()},
        )
    except TimeUnitError as error:
        raise RequestError(str(error)) from error


def _candidates(spec: FeatureSpec, candidates: object) -> tuple[NDArray, dict[str, NDArray]]:
    if not isinstance(candidates, list) or not candidates:
        found = "missing" if candidates is None else "empty" if candidates == [] else "not a list"
        raise RequestError(f"candidates is {found}; send a list of item ids or objects")
    limits = np.iinfo(np.int64)
    item_ids = np.empty(len(candidates), np.int64)
    columns: dict[str, list[Any]] = {
        name: [None] * len(candidates) for name in spec.candidate_fields
    }
    for index, candidate in enumerate(candidates):
        if not isinstance(candidate, Mapping):
            item_ids[index] = _integer(candidate, f"candidates[{index}]", limits)
            continue
        where = f"candidates[{index}]"
        item_ids[index] = _integer(candidate.get("item_id"), f"{where}.item_id", limits)
        for name, value in candidate.items():
            if name == "item_id":
                continue
            if name not in columns:
                known = ["item_id", *columns]
                raise RequestError(f"{where} has the unknown field {name!r}; known are {known}")
            columns[name][index] = value
    fields = {
        name: np.array(
            [
                _scalar(declared, value, f"candidates[{index}].{name}")
                for index, value in enumerate(columns[name])
            ],
            declared.dtype,
        )
        for name, declared in spec.candidate_fields.items()
    }
    return item_ids, fields


def _section(section: str, declared: Mapping[str, Field], given: object) -> dict[str, NDArray]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RequestError(f"{section} is {_kind(given)}; send an object of fields")
    for name in given:
        if name not in declared:
            known = sorted(declared)
            raise RequestError(f"{section} has the unknown field {name!r}; known are {known}")
    return {
        name: np.array([_scalar(declared[name], value, f"{section}.{name}")], declared[name].dtype)
        for name, value in given.items()
    }


def _scalar(field: Field, value: object, where: str) -> Any:
    if value is None:
        return field.missing
    if not field.is_float:
        return _integer(value, where, np.iinfo(field.dtype))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{where} is {_kind(value)}; send a number")
    most = float(np.finfo(field.dtype).max)
    if abs(value) > most:
        raise RequestError(f"{where} is {_kind(value)}; {field.type} holds up to {most:g}")
    return value


def _integer(value: object, where: str, limits: np.iinfo) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        found = "missing" if value is None else _kind(value)
        raise RequestError(f"{where} is {found}; send an integer")
    if not limits.min <= value <= limits.max:
        raise RequestError(f"{where} is {value}; it must lie within {limits.min} and {limits.max}")
    return value


def _kind(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
