"""The point-in-time join: requests and the store in, serialized Examples and counts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from components.seqvault_example_gen.impressions import Requests
from laser_features import (
    FeatureSpec,
    OutsideIds,
    RequestBatch,
    build_model_inputs,
    history_fields,
)
from laser_features.request import History, Items

REQUESTS_PER_READ = 256
# Names of counts, a model input's name behind them.
IDS, OUTSIDE, OUTSIDE_EXAMPLE = "ids: ", "outside: ", "outside example: "


class Store(Items, Protocol):
    """The methods of SeqVault that the join uses."""

    def read(self, user_ids: Any, *, before: Any, last_n: int, fields: Any) -> History:
        """Histories strictly before a time, newest first."""


def join_requests(
    requests: Requests, store: Store, spec: FeatureSpec
) -> Iterator[tuple[list[bytes], Counter[str]]]:
    """Join requests with the histories of their users, a batch of reads at a time.

    Args:
        requests: Grouped impressions.
        store: An open SeqVault.
        spec: The feature spec.

    Yields:
        The serialized Examples of a batch of requests, in order, and what was counted:
        ``impressions``, ``requests``, ``unknown_users`` (requests whose user the store has never
        seen), ``empty_histories`` (no event before the request; unknown users are among them),
        ``truncated_histories`` (longer than the spec's ``max_history``), and by model input the
        ids of ``direct`` tables (``IDS``), those outside (``OUTSIDE``) and examples of these.
    """
    for first in range(0, len(requests), REQUESTS_PER_READ):
        part = requests.slice(first, min(first + REQUESTS_PER_READ, len(requests)))
        joined = join_batch(part, store, spec)
        labels = {name: part.of_candidate(name) for name in spec.labels}
        yield serialize_examples(spec, joined.batch, joined.inputs, labels), joined.counts


@dataclass(frozen=True)
class JoinedBatch:
    """Some requests with what the model takes of them.

    Attributes:
        batch: B requests in raw values.
        history: What the store answered: one event more than the model takes.
        inputs: The model's inputs, see ``build_model_inputs``.
        counts: What was counted, see ``join_requests``.
    """

    batch: RequestBatch
    history: History
    inputs: dict[str, NDArray]
    counts: Counter[str]


def join_batch(requests: Requests, store: Store, spec: FeatureSpec) -> JoinedBatch:
    """Join requests with the histories of their users by one read.

    Args:
        requests: Grouped impressions, in any order.
        store: An open SeqVault.
        spec: The feature spec.
    """
    batch = request_batch(requests, spec)
    # One event more than the model takes tells a truncated history from a full one.
    history = store.read(
        batch.user_id,
        before=batch.time_ms,
        last_n=spec.max_history + 1,
        fields=history_fields(spec),
    )
    outside = OutsideIds()
    inputs = build_model_inputs(spec, batch, history, store, outside)
    lengths = np.asarray(history.lengths)
    counts = Counter(
        impressions=int(requests.starts[-1]),
        requests=len(requests),
        unknown_users=_unknown_users(batch.user_id[lengths == 0], store),
        empty_histories=int((lengths == 0).sum()),
        truncated_histories=int((lengths > spec.max_history).sum()),
        **{f"{IDS}{name}": count for name, count in outside.ids.items()},
        **{f"{OUTSIDE}{name}": count for name, count in outside.outside.items()},
        **{
            f"{OUTSIDE_EXAMPLE}{name}: {example}": 1
            for name, examples in outside.examples.items()
            for example in examples
        },
    )
    return JoinedBatch(batch, history, inputs, counts)


def request_batch(requests: Requests, spec: FeatureSpec) -> RequestBatch:
    """Raw requests as the feature code takes them, candidates padded to the longest list."""
    counts = np.diff(requests.starts)
    valid = np.arange(counts.max()) < counts[:, None]

    def padded(name: str, missing: Any) -> NDArray:
        values = requests.table.column(name).to_numpy()
        matrix = np.full(valid.shape, missing, values.dtype)
        matrix[valid] = values
        return matrix

    return RequestBatch(
        user_id=requests.of_request("user_id"),
        time_ms=requests.of_request("timestamp"),
        candidate_item_id=padded("item_id", -1),
        candidate_count=counts.astype(np.int32),
        fields={name: requests.of_request(name) for name in spec.request_fields},
        candidate_fields={
            name: padded(name, field.missing) for name, field in spec.candidate_fields.items()
        },
    )


def serialize_examples(
    spec: FeatureSpec,
    batch: RequestBatch,
    inputs: Mapping[str, NDArray],
    labels: Mapping[str, list[NDArray]],
) -> list[bytes]:
    """One Example per request, padding left out.

    Args:
        spec: The feature spec.
        batch: B requests.
        inputs: Their model inputs, from ``build_model_inputs``.
        labels: For each label B arrays [n].
    """
    lengths = inputs["history_length"]
    counts = batch.candidate_count
    valid = {"history": lengths, "candidate": counts, "request": np.ones_like(lengths)}
    columns = [
        (entry.name, entry.dtype == "float32", inputs[entry.name], valid[entry.kind])
        for entry in spec.model_inputs()
    ]
    examples = []
    for row in range(len(counts)):
        example = tf.train.Example()
        feature = example.features.feature
        for name, is_float, values, sizes in columns:
            taken = values[row : row + 1] if values.ndim == 1 else values[row, : sizes[row]]
            target = feature[name].float_list if is_float else feature[name].int64_list
            target.value.extend(taken.ravel().tolist())  # several values: event after event
        feature["request_user_id"].int64_list.value.append(int(batch.user_id[row]))
        feature["request_time_ms"].int64_list.value.append(int(batch.time_ms[row]))
        feature["candidate_count"].int64_list.value.append(int(counts[row]))
        for name, per_request in labels.items():
            is_float = spec.labels[name].is_float
            target = feature[f"label_{name}"]
            (target.float_list if is_float else target.int64_list).value.extend(
                per_request[row].tolist()
            )
        examples.append(example.SerializeToString(deterministic=True))
    return examples


def _unknown_users(user_ids: NDArray, store: Store) -> int:
    if len(user_ids) == 0:
        return 0
    ever = store.read(user_ids, before=None, last_n=1, fields=["timestamp"])
    return int((np.asarray(ever.lengths) == 0).sum())
