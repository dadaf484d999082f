"""One rank request, from parsed JSON to the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laser_features import (
    FeatureSpec,
    OutsideIds,
    RequestBatch,
    RequestError,
    build_model_inputs,
    history_fields,
    parse_rank_request,
)
from seqvault.errors import InvalidRequestError, SeqVaultError
from serving.gateway.errors import GatewayError
from serving.gateway.impression_log import Shown
from serving.gateway.item_rules import ItemRules
from serving.gateway.nothing_read import EmptyHistory, UnknownItems
from serving.gateway.options import Rules
from serving.gateway.store import Store, time_for
from serving.runtime.call import Call

OUTPUT = "probability"
_NAMED = 10


class Model(Protocol):
    """What scores candidates."""

    def predict(
        self, inputs: Mapping[str, NDArray], output: str, call: Call
    ) -> tuple[int, NDArray]:
        """The version that ran, and its output."""

    def available_versions(self, timeout_seconds: float) -> list[int]:
        """Versions that can be run now, newest first."""

    def close(self) -> None:
        """Release it."""


class Ranker:
    """Ranks candidates for a user by the history that is in the store now.

    Args:
        spec: The feature spec.
        store: Where histories and items are read.
        model: Where candidates are scored.
        rules: What callers may ask.
        store_is_up: Whether the store answered recently. If not, and answers without history are
            allowed, the store is skipped.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        store: Store,
        model: Model,
        rules: Rules | None = None,
        store_is_up: Callable[[], bool] = lambda: True,
    ) -> None:
        self._spec = spec
        self._store = store
        self._model = model
        self._rules = rules or Rules()
        self._items = ItemRules(spec, self._rules.max_ahead_seconds)
        self._store_is_up = store_is_up
        self._fields = history_fields(spec)

    def rank(self, content: object, call: Call) -> dict[str, Any]:
        """Answer one request.

        Args:
            content: The parsed body: what ``laser_features.parse_rank_request`` takes, and
                ``top_k``, the number of candidates to return (all).
            call: Deadline of the request, and whether its caller is still connected.

        Returns:
            ``ranked`` (best first; equal scores in the order of the request), ``model_version``,
            ``history_length``, ``latency`` in milliseconds; ``unknown_candidates``,
            ``outside_ids`` (by model input, ids that lie outside their direct table and count as
            missing) and ``degraded`` if there is something to tell.

        Raises:
            GatewayError: With the HTTP status to answer.
            RuntimeRefusal: The deadline has passed, or the caller has gone away.
        """
        return self._rank(content, call)[0]

    def rank_and_show(self, content: object, call: Call) -> tuple[dict[str, Any], Shown]:
        """As ``rank``; beside the answer, what it shows."""
        answer, shown = self._rank(content, call)
        return answer, shown()

    def _rank(self, content: object, call: Call) -> tuple[dict[str, Any], Callable[[], Shown]]:
        started = time.monotonic()
        try:
            body, top_k = _take_top_k(content)
            self._check_count(body)
            batch = parse_rank_request(self._spec, body)
            self._items.check_ids(batch.candidate_item_id[0], "candidates[{}]")
            self._items.check_times(batch.time_ms, "time_ms")
        except RequestError as error:
            raise GatewayError(400, str(error)) from error
        call.check("the store was read")
        read = self._read(batch, call)
        if self._rules.refuse_unknown and read.unknown:
            named = read.unknown[:_NAMED]
            raise GatewayError(
                400,
                f"{len(read.unknown)} candidates are not known, the first are {named}: the store "
                "has no such items, or the item table no row for them",
            )
        built = time.monotonic()
        version, probability = self._model.predict(read.inputs, OUTPUT, call)
        answered = time.monotonic()
        item_ids = batch.candidate_item_id[0]
        scores = _check_scores(probability, len(item_ids))
        order = np.argsort(-scores, kind="stable")[:top_k]
        answer: dict[str, Any] = {
            "ranked": [
                {"item_id": item_id, "score": score}
                for item_id, score in zip(
                    item_ids[order].tolist(), scores[order].tolist(), strict=True
                )
            ],
            "model_version": version,
            "history_length": read.history_length,
        }
        if read.unknown:
            answer["unknown_candidates"] = read.unknown
        if read.outside_ids:
            answer["outside_ids"] = read.outside_ids
        if read.degraded:
            answer["degraded"] = ["history"]
        answer["latency"] = {
            "queue_ms": _milliseconds(started - call.arrived),
            "store_ms": _milliseconds(read.store_seconds),
            "features_ms": _milliseconds(built - started - read.store_seconds),
            "model_ms": _milliseconds(answered - built),
            "total_ms": _milliseconds(time.monotonic() - call.arrived),
        }
        return answer, partial(Shown.of, batch, order, scores, version)

    def _check_count(self, body: object) -> None:
        candidates = body.get("candidates") if isinstance(body, Mapping) else None
        if isinstance(candidates, list) and len(candidates) > self._rules.max_candidates:
            raise RequestError(
                f"the request has {len(candidates)} candidates; send at most "
                f"{self._rules.max_candidates}"
            )

    def _read(self, batch: RequestBatch, call: Call) -> _Read:
        """Inputs from the store; without it, if that is allowed."""
        degradable = self._rules.degrade_history
        try:
            if degradable and not self._store_is_up():
                return self._build(batch, None, call)
            return self._build(batch, self._store, call)
        except (RequestError, InvalidRequestError) as error:
            raise GatewayError(400, str(error)) from error
        except (SeqVaultError, OSError) as error:
            if not degradable:
                raise GatewayError(503, f"the store cannot be read: {error}") from error
        return self._build(batch, None, call)

    def _build(self, batch: RequestBatch, store: Store | None, call: Call) -> _Read:
        started = time.monotonic()
        items = _WatchedItems(store or UnknownItems(self._spec), call)
        history: Any = EmptyHistory(1)
        if store is not None:
            history = store.read(
                batch.user_id,
                batch.time_ms,
                self._spec.max_history,
                fields=self._fields,
                **time_for(store, call.left),
            )
            call.check("the items were read")
        seconds = time.monotonic() - started
        outside = OutsideIds()
        inputs = build_model_inputs(self._spec, batch, history, items, outside)
        unknown: list[int] = []
        if store is not None:
            candidates = batch.candidate_item_id[0]
            beyond = self._items.beyond_table(candidates)
            unknown = candidates[beyond | items.missing(candidates)].tolist()
        return _Read(
            inputs,
            int(history.lengths[0]),
            unknown,
            outside.outside,
            store is None,
            seconds + items.seconds,
        )


class _Read:
    """The result of reading the store."""

    def __init__(
        self,
        inputs: dict[str, NDArray],
        history_length: int,
        unknown: list[int],
        outside_ids: dict[str, int],
        degraded: bool,
        store_seconds: float,
    ) -> None:
        self.inputs = inputs
        self.history_length = history_length
        self.unknown = unknown
        self.outside_ids = outside_ids
        self.degraded = degraded
        self.store_seconds = store_seconds


class _WatchedItems:
    """The store's items, with the time that reading them took, and which were not there."""

    def __init__(self, items: Any, call: Call) -> None:
        self._items, self._call = items, call
        self._not_found: NDArray = np.zeros(0, np.int64)
        self.seconds = 0.0

    def read_items(self, ids: Any, fields: Any = None) -> Any:
        started = time.monotonic()
        rows = self._items.read_items(ids, fields=fields, **time_for(self._items, self._call.left))
        self.seconds += time.monotonic() - started
        self._not_found = np.asarray(ids)[~np.asarray(rows.found, bool)]
        return rows

    def missing(self, ids: NDArray) -> NDArray[np.bool_]:
        """Which of the ids were asked for and not found."""
        if not len(self._not_found):
            return np.zeros(len(ids), bool)
        return np.isin(ids, self._not_found)


def _take_top_k(content: object) -> tuple[object, int | None]:
    if not isinstance(content, Mapping) or "top_k" not in content:
        return content, None
    top_k = content["top_k"]
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise RequestError(f"top_k is {top_k!r}; send an integer of at least 1")
    return {key: value for key, value in content.items() if key != "top_k"}, top_k


def _check_scores(probability: NDArray, count: int) -> NDArray:
    # A model server that batches requests answers all of them as wide as the widest.
    if probability.ndim != 2 or len(probability) != 1 or probability.shape[1] < count:
        raise GatewayError(
            502, f"the model answered shape {list(probability.shape)} for {count} candidates"
        )
    scores = probability[0, :count]
    if not np.isfinite(scores).all():
        raise GatewayError(502, "the model answered a score that is not a finite number")
    return scores


def _milliseconds(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1e3, 3)
