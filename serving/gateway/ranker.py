"""One rank request, from parsed JSON to the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laser_features import (
    FeatureSpec,
    RequestError,
    build_model_inputs,
    history_fields,
    parse_rank_request,
)
from seqvault.errors import InvalidRequestError, SeqVaultError
from serving.gateway.errors import GatewayError
from serving.gateway.model_client import ModelClient
from serving.gateway.store import Store

OUTPUT = "probability"


class Ranker:
    """Ranks candidates for a user by the history that is in the store now.

    Args:
        spec: The feature spec.
        store: Where histories and items are read.
        model: Where candidates are scored.
    """

    def __init__(self, spec: FeatureSpec, store: Store, model: ModelClient) -> None:
        self._spec = spec
        self._store = store
        self._model = model
        self._fields = history_fields(spec)

    def rank(self, content: object, deadline: float) -> dict[str, Any]:
        """Answer one request.

        Args:
            content: The parsed body: what ``laser_features.parse_rank_request`` takes, and
                ``top_k``, the number of candidates to return (all).
            deadline: Time of ``time.perf_counter`` by which the model must have answered.

        Returns:
            ``ranked`` (best first; equal scores in the order of the request), ``model_version``,
            ``history_length`` and ``latency`` in milliseconds.

        Raises:
            GatewayError: With the HTTP status to answer.
        """
        started = time.perf_counter()
        try:
            body, top_k = _take_top_k(content)
            batch = parse_rank_request(self._spec, body)
        except RequestError as error:
            raise GatewayError(400, str(error)) from error
        parsed = time.perf_counter()
        items = _TimedItems(self._store)
        try:
            history = self._store.read(
                batch.user_id, batch.time_ms, self._spec.max_history, fields=self._fields
            )
            read = time.perf_counter()
            inputs = build_model_inputs(self._spec, batch, history, items)
        except RequestError as error:
            raise GatewayError(400, str(error)) from error
        except InvalidRequestError as error:
            raise GatewayError(400, str(error)) from error
        except (SeqVaultError, OSError) as error:
            raise GatewayError(503, f"the store cannot be read: {error}") from error
        built = time.perf_counter()
        version, probability = self._model.predict(inputs, OUTPUT, deadline - built)
        answered = time.perf_counter()
        item_ids = batch.candidate_item_id[0]
        scores = _check_scores(probability, len(item_ids))
        order = np.argsort(-scores, kind="stable")[:top_k]
        store_seconds = read - parsed + items.seconds
        return {
            "ranked": [
                {"item_id": int(item_ids[index]), "score": float(scores[index])} for index in order
            ],
            "model_version": version,
            "history_length": int(history.lengths[0]),
            "latency": {
                "store_ms": _milliseconds(store_seconds),
                "features_ms": _milliseconds(built - started - store_seconds),
                "model_ms": _milliseconds(answered - built),
                "total_ms": _milliseconds(time.perf_counter() - started),
            },
        }


class _TimedItems:
    """The store's items, with the time that reading them took: it belongs to the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.seconds = 0.0

    def read_items(self, ids: Any, fields: Any = None) -> Any:
        started = time.perf_counter()
        rows = self._store.read_items(ids, fields=fields)
        self.seconds += time.perf_counter() - started
        return rows


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
    return round(seconds * 1e3, 3)
