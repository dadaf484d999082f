"""Rank requests to a running gateway, before and right after a live event."""

from __future__ import annotations

import json
import statistics
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from laser_features import FeatureSpec
from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import PipelineError

_CANDIDATES = 10
MEASURED_REQUESTS = 50


@dataclass(frozen=True)
class Ranking:
    """Rank answers before and right after a live event with ``item``.

    ``latency`` holds the median of each part, in milliseconds, over the requests that follow.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    item: int
    latency: dict[str, float]


def rank_twice(address: str, dataset: PreparedDataset) -> Ranking:
    """Rank candidates for an active user, click the one ranked last, and rank again."""
    request, event = _live_example(dataset)
    before = _post(f"{address}/v1/rank", request)
    item = before["ranked"][-1]["item_id"]
    _post(f"{address}/v1/events", {"events": [{**event, "item_id": item}]})
    after = _post(f"{address}/v1/rank", request)
    measured = [_post(f"{address}/v1/rank", request)["latency"] for _ in range(MEASURED_REQUESTS)]
    latency = {part: statistics.median(each[part] for each in measured) for part in measured[0]}
    return Ranking(before, after, item, latency)


def _live_example(dataset: PreparedDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """A rank request a minute after the last impression, and the event that comes before it."""
    impressions = pq.read_table(dataset.impressions_path)
    last = impressions.slice(impressions.num_rows - 1).to_pylist()[0]
    user = last["user_id"]
    events = pq.read_table(dataset.events_path, filters=[("user_id", "==", user)])
    now = max(last["timestamp"], pc.max(events["timestamp"]).as_py() if len(events) else 0)
    spec = dataset.spec
    candidates = _candidates(impressions, spec)
    sections = {
        "context": [name for name in spec.context_fields if name in spec.request_fields],
        "user": [name for name in spec.user_fields if name in spec.request_fields],
    }
    request = {"user_id": user, "time_ms": now + 60_000, "candidates": candidates}
    for section, names in sections.items():
        request[section] = {name: last[name] for name in names if last[name] is not None}
    event = events.slice(len(events) - 1).to_pylist()[0] if len(events) else {"user_id": user}
    return request, {**event, "timestamp": now + 30_000}


def _candidates(impressions: pa.Table, spec: FeatureSpec) -> list[dict[str, Any]]:
    """What was shown last, each item once, with its candidate fields."""
    shown = impressions.select(["item_id", *spec.candidate_fields])
    newest: dict[int, dict[str, Any]] = {}
    for row in reversed(shown.slice(max(0, shown.num_rows - 1000)).to_pylist()):
        newest.setdefault(row["item_id"], row)
    return list(newest.values())[:_CANDIDATES]


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise PipelineError(f"{url} answered {error.code}: {text}") from error
