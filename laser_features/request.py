"""From requests and their histories to model inputs: the one code path of training and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laser_features.errors import HistoryLeakError, RequestError
from laser_features.field import Field
from laser_features.ids import model_values
from laser_features.model_input import ModelInput
from laser_features.outside_ids import OutsideIds
from laser_features.spec import FeatureSpec
from laser_features.time import (
    age_minutes,
    age_seconds,
    check_milliseconds,
    day_of_week,
    hour_of_day,
)

_DERIVE = {"hour_of_day": hour_of_day, "day_of_week": day_of_week}


class History(Protocol):
    """Histories of B users, newest first, right-padded: what ``SeqVault.read`` returns."""

    @property
    def lengths(self) -> NDArray:
        """Valid events per user, [B]."""

    def __getitem__(self, field: str) -> NDArray:
        """A field's values, [B, L]; what lies beyond a length is never looked at."""


class ItemRows(Protocol):
    """Side information of some items, aligned to the ids that were asked for."""

    @property
    def found(self) -> NDArray:
        """Whether the item is known, bool [number of ids]."""

    def __getitem__(self, field: str) -> NDArray:
        """A field's values, [number of ids]."""


class Items(Protocol):
    """Where side information is read from: a SeqVault or its client."""

    def read_items(self, ids: Any, fields: Any = None) -> ItemRows:
        """Rows of the given item ids, in their order."""


@dataclass(frozen=True)
class RequestBatch:
    """B rank requests in raw values.

    Attributes:
        user_id: int64 [B].
        time_ms: int64 [B], milliseconds UTC; histories end strictly before it.
        candidate_item_id: int64 [B, N], right-padded.
        candidate_count: int32 [B], the valid candidates.
        fields: Raw context and user fields, [B] each; an absent field is missing (row 0).
        candidate_fields: Raw candidate fields, [B, N] each; likewise.

    Raises:
        RequestError: An array's shape does not fit, or a count is outside [0, N].
        TimeUnitError: ``time_ms`` is not in milliseconds.
    """

    user_id: NDArray
    time_ms: NDArray
    candidate_item_id: NDArray
    candidate_count: NDArray
    fields: Mapping[str, NDArray] = field(default_factory=dict)
    candidate_fields: Mapping[str, NDArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if np.ndim(self.candidate_item_id) != 2:
            shape = np.shape(self.candidate_item_id)
            raise RequestError(f"candidate_item_id has shape {shape}; give [requests, candidates]")
        batch, width = np.shape(self.candidate_item_id)
        for name in ("user_id", "time_ms", "candidate_count"):
            _check_shape(name, getattr(self, name), (batch,))
        for name, values in self.fields.items():
            _check_shape(f"fields[{name!r}]", values, (batch,))
        for name, values in self.candidate_fields.items():
            _check_shape(f"candidate_fields[{name!r}]", values, (batch, width))
        counts = np.asarray(self.candidate_count)
        if counts.size and (counts.min() < 0 or counts.max() > width):
            found = counts[(counts < 0) | (counts > width)][0]
            raise RequestError(f"candidate_count holds {found}; it must lie within 0 and {width}")
        check_milliseconds(self.time_ms, "the request's time_ms")


def history_fields(spec: FeatureSpec) -> list[str]:
    """The event fields that ``build_model_inputs`` reads from a history; ask SeqVault for these."""
    return ["timestamp", *(f.name for f in spec.event_fields.values() if f.table is not None)]


def build_model_inputs(
    spec: FeatureSpec,
    requests: RequestBatch,
    history: History,
    items: Items,
    outside: OutsideIds | None = None,
) -> dict[str, NDArray]:
    """Turn requests and their histories into the arrays the model takes.

    Training (in the join) and serving (in the gateway) both call this function, so that a model
    sees the same bytes in both.

    Args:
        spec: The feature spec; L = ``spec.max_history``.
        requests: B requests with up to N candidates each.
        history: Histories of the B users, read strictly before each request's time; at least the
            fields that ``history_fields`` names. Any width; the newest L events are kept.
        items: Side information; read once per call, each distinct item once.
        outside: Counts ids that lie outside their ``direct`` table and so become missing.

    Returns:
        One array per ``spec.model_inputs()``, in that order: [B, L], [B, N] or [B] (and one more
        axis [V] for a field that holds several values), with the dtype and the padding that its
        ``ModelInput`` states.

    Raises:
        RequestError: A field of the requests that the spec does not know, or wrong shapes.
        HistoryLeakError: An event at or after its request's time.
    """
    _check_known_fields(spec, requests)
    batch, width = requests.candidate_item_id.shape
    length = spec.max_history
    lengths = np.minimum(np.asarray(history.lengths, np.int64), length)
    if lengths.shape != (batch,):
        raise RequestError(
            f"{batch} requests came with {lengths.shape[0]} histories; read one each"
        )
    in_history = np.arange(length) < lengths[:, None]
    in_candidates = np.arange(width) < np.asarray(requests.candidate_count)[:, None]
    times = _fit(history["timestamp"], length, np.int64)
    _check_no_leak(requests, times, in_history)

    history_ids = _fit(history["item_id"], length, np.int64)
    side = _SideInformation(spec, items, history_ids, in_history, requests, in_candidates)
    side.outside = outside
    inputs: dict[str, NDArray] = {}
    for model_input in spec.model_inputs():
        name, source = model_input.name, model_input.field
        if name == "history_age_seconds":
            ages = age_seconds(requests.time_ms[:, None], times)
            inputs[name] = ages * in_history
        elif source is None:
            inputs[name] = lengths.astype(np.int32)
        elif source.section == "item":
            inputs[name] = side.gather(model_input, source)
        elif model_input.kind == "history":
            raw = _fit(history[source.name], length, source.dtype)
            _count(spec, model_input, source, raw, in_history, outside)
            inputs[name] = _masked(spec, model_input, source, raw, in_history)
        elif model_input.kind == "candidate":
            raw = _candidate_values(requests, source, side)
            _count(spec, model_input, source, raw, in_candidates, outside)
            inputs[name] = _masked(spec, model_input, source, raw, in_candidates)
        else:
            raw = _request_values(requests, source)
            _count(spec, model_input, source, raw, None, outside)
            inputs[name] = _values(spec, model_input, source, raw)
    return inputs


class _SideInformation:
    """Model values of the items of history and candidates, computed once per distinct item."""

    def __init__(
        self,
        spec: FeatureSpec,
        items: Items,
        all_history_ids: NDArray,
        in_history: NDArray,
        requests: RequestBatch,
        in_candidates: NDArray,
    ) -> None:
        self.spec = spec
        starts = {field.of for field in spec.derived_candidate_fields.values()}
        self.fields = [
            name
            for name, field in spec.item_fields.items()
            if field.table is not None or name in starts
        ]
        self.codes: dict[str, NDArray] = {}
        self.values: dict[str, NDArray] = {}
        self.outside: OutsideIds | None = None
        if not self.fields:
            return
        history_ids = all_history_ids[in_history]
        candidate_ids = np.asarray(requests.candidate_item_id, np.int64)[in_candidates]
        # Arrow's hash encoding finds the distinct ids several times faster than a sort.
        encoded = pa.array(np.concatenate([history_ids, candidate_ids])).dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        distinct = encoded.dictionary.to_numpy()
        # Padding's code is one past the last item, where ``gather`` keeps the padding value.
        for kind, valid, own in (
            ("history", in_history, codes[: len(history_ids)]),
            ("candidate", in_candidates, codes[len(history_ids) :]),
        ):
            placed = np.full(valid.shape, len(distinct), np.intp)
            placed[valid] = own
            self.codes[kind] = placed
        self.rows = items.read_items(distinct, fields=self.fields)
        self.found = np.asarray(self.rows.found, bool)

    def gather(self, model_input: ModelInput, source: Field) -> NDArray:
        """The field's values [B, L] or [B, N], padding included; [..., V] for several values."""
        if source.name not in self.values:
            raw = np.asarray(self.rows[source.name])
            _count(self.spec, model_input, source, raw, self.found, self.outside)
            found = self.found if raw.ndim == 1 else self.found[:, None]
            known = _masked(self.spec, model_input, source, raw, found)
            padding = np.full((1, *known.shape[1:]), model_input.padding, known.dtype)
            self.values[source.name] = np.concatenate([known, padding])
        return self.values[source.name].take(self.codes[model_input.kind], axis=0)

    def candidate_starts(self, name: str) -> NDArray:
        """Raw times [B, N] of the candidates' items, 0 where not known."""
        known = np.asarray(self.rows[name]) * self.found
        return np.append(known, 0).take(self.codes["candidate"])


def _count(
    spec: FeatureSpec,
    model_input: ModelInput,
    source: Field,
    raw: NDArray,
    valid: NDArray | None,
    outside: OutsideIds | None,
) -> None:
    """Count the ids of an input whose values are rows of a ``direct`` table."""
    if outside is None or source.boundaries is not None or source.quantiles is not None:
        return
    table = spec.tables[source.table or ""]
    if table.ids == "direct":
        outside.count(model_input.name, table.rows, raw if valid is None else raw[valid])


def _values(spec: FeatureSpec, model_input: ModelInput, source: Field, raw: NDArray) -> NDArray:
    return model_values(source, spec.tables[source.table or ""], raw).astype(
        model_input.dtype, copy=False
    )


def _masked(
    spec: FeatureSpec, model_input: ModelInput, source: Field, raw: NDArray, valid: NDArray
) -> NDArray:
    values = _values(spec, model_input, source, raw)
    if model_input.transform is None:
        return values * valid  # rows: the padding is 0
    return np.where(valid, values, values.dtype.type(model_input.padding))


def _fit(values: NDArray, length: int, dtype: Any) -> NDArray:
    """The newest ``length`` columns; narrower arrays get zeros, which the mask hides."""
    values = np.asarray(values).astype(dtype, copy=False)
    if values.shape[1] >= length:
        return values[:, :length]
    fitted = np.zeros((values.shape[0], length), dtype)
    fitted[:, : values.shape[1]] = values
    return fitted


def _candidate_values(requests: RequestBatch, source: Field, side: _SideInformation) -> NDArray:
    if source.of is not None:
        return age_minutes(requests.time_ms[:, None], side.candidate_starts(source.of))
    if source.name == "item_id":
        return requests.candidate_item_id
    given = requests.candidate_fields.get(source.name)
    if given is None:
        return np.full(requests.candidate_item_id.shape, source.missing, source.dtype)
    return np.asarray(given)


def _request_values(requests: RequestBatch, source: Field) -> NDArray:
    if source.derive is not None:
        offset = source.utc_offset_hours if source.time_zone is None else source.time_zone
        return _DERIVE[source.derive](requests.time_ms, offset)
    if source.name == "user_id":
        return requests.user_id
    given = requests.fields.get(source.name)
    if given is None:
        return np.full(requests.user_id.shape, source.missing, source.dtype)
    return np.asarray(given)


def _check_known_fields(spec: FeatureSpec, requests: RequestBatch) -> None:
    for name in requests.fields:
        if name not in spec.request_fields:
            known = sorted(spec.request_fields)
            raise RequestError(f"unknown context or user field {name!r}; the spec has {known}")
    for name in requests.candidate_fields:
        if name not in spec.candidate_fields:
            known = sorted(spec.candidate_fields)
            raise RequestError(f"unknown candidate field {name!r}; the spec has {known}")


def _check_shape(name: str, values: object, shape: tuple[int, ...]) -> None:
    if np.shape(values) != shape:  # type: ignore[arg-type]
        raise RequestError(f"{name} has shape {np.shape(values)}; expected {shape}")  # type: ignore[arg-type]


def _check_no_leak(requests: RequestBatch, times: NDArray, in_history: NDArray) -> None:
    request_times = np.asarray(requests.time_ms, np.int64)
    late = in_history & (times >= request_times[:, None])
    if late.any():
        row, column = np.argwhere(late)[0]
        raise HistoryLeakError(
            f"the history of user {requests.user_id[row]} holds an event at {times[row, column]}, "
            f"not before the request's time {request_times[row]}; read it with before=time_ms"
        )
