"""Parses and checks the events of an append request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laser_features import FeatureSpec, RequestError, TimeUnitError, check_milliseconds

_INT64 = np.dtype(np.int64)


def parse_events(
    spec: FeatureSpec, content: object, max_events: int | None = None
) -> dict[str, NDArray]:
    """Columns of the events in ``{"events": [{"user_id", "timestamp", "item_id", ...}, ...]}``.

    Args:
        spec: The feature spec; its event fields are the ones an event may have.
        content: The parsed body. A field other than the three may be left out: it is missing.
        max_events: Most that one call may hold; None: any number.

    Returns:
        Arrays of equal length by column, with the spec's types.

    Raises:
        RequestError: Names the event and the field.

    Example:
        >>> from laser_features.testing import tiny_spec
        >>> spec = tiny_spec()
        >>> event = {"user_id": 7, "timestamp": 1700000000000, "item_id": 3}
        >>> parse_events(spec, {"events": [event]})["item_id"]
        array([3])
    """
    events = content.get("events") if isinstance(content, Mapping) else None
    if not isinstance(events, list) or not events:
        raise RequestError('send {"events": [...]} with at least one event')
    if max_events is not None and len(events) > max_events:
        raise RequestError(
            f"the call holds {len(events)} events; send at most {max_events} at a time"
        )
    if isinstance(content, Mapping) and len(content) > 1:
        unknown = sorted(str(key) for key in content if key != "events")
        raise RequestError(f"unknown key {unknown[0]!r}; an append has only 'events'")
    dtypes = {"user_id": _INT64, "timestamp": _INT64}
    dtypes |= {name: np.dtype(field.dtype) for name, field in spec.event_fields.items()}
    for index, event in enumerate(events):
        if not isinstance(event, Mapping):
            raise RequestError(
                f"events[{index}] is not an object; send one with user_id, timestamp"
            )
        unknown = sorted(str(key) for key in event if key not in dtypes)
        if unknown:
            raise RequestError(
                f"events[{index}] has the unknown field {unknown[0]!r}; known are {list(dtypes)}"
            )
    required = ("user_id", "timestamp", "item_id")
    columns = {}
    for name, dtype in dtypes.items():
        default = None if name in required else spec.event_fields[name].missing
        columns[name] = np.array(
            [
                _value(event.get(name), default, dtype, f"events[{index}].{name}")
                for index, event in enumerate(events)
            ],
            dtype,
        )
    try:
        check_milliseconds(columns["timestamp"], "an event's timestamp")
    except TimeUnitError as error:
        raise RequestError(str(error)) from error
    return columns


def _value(value: object, default: Any, dtype: np.dtype, where: str) -> Any:
    if value is None:
        if default is None:
            raise RequestError(f"{where} is missing; send an integer")
        return default
    wanted: tuple[type, ...] = (int,) if dtype.kind in "iu" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kind = "an integer" if dtype.kind in "iu" else "a number"
        raise RequestError(f"{where} is {value!r}; send {kind}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= int(value) <= limits.max:  # type: ignore[call-overload]
            raise RequestError(f"{where} is {value}; {dtype} holds {limits.min} to {limits.max}")
    elif abs(value) > (most := float(np.finfo(dtype).max)):  # type: ignore[arg-type]
        raise RequestError(f"{where} is {value}; {dtype} holds up to {most:g}")
    return value
