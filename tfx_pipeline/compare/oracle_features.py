"""An estimate of how much a log can teach: boosted trees on counts over the history.

No network: for every candidate the matches of its item and of each of its ids in the history are
counted within windows of events back, all of them and those that were acted upon. A system that
reads the history well comes close to the trees' AUC or exceeds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.compare.joined_log import JoinedLog
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.results.click_rate_floors import smoothed_rates

WINDOWS = (0, 20, 100, 1000, 4000, 1 << 30)
_BLOCK = 64  # requests
_FOLDS = 5  # of requests, for click rates of the train split
_ACTED_ROW = 2  # of an event field ``action``: 0 is missing, 1 an exposure alone


def oracle_scores(log: JoinedLog, length: int, seed: int) -> NDArray[np.float32]:
    """Train on the train split; probabilities of the eval split's impressions.

    Raises:
        PipelineError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError as error:
        raise PipelineError(
            "oracle_features needs scikit-learn: pip install 'laser-ranking[pipeline]'"
        ) from error
    label = f"label_{next(iter(log.spec.labels))}"
    clicks = np.asarray(log.of_impressions("train", label))
    features = {split: _features(log, split, length) for split in ("train", "eval")}
    rates = _click_rates(log, clicks)
    train, held_out = (
        np.concatenate([features[split], rates[split]], axis=1) for split in ("train", "eval")
    )
    trees = HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.08, max_leaf_nodes=31, early_stopping=True, random_state=seed
    )
    trees.fit(train, clicks)
    return trees.predict_proba(held_out)[:, 1].astype(np.float32)


def _features(log: JoinedLog, split: str, length: int) -> NDArray[np.float32]:
    requests = np.arange(log.requests(split))
    blocks = (requests[first : first + _BLOCK] for first in range(0, len(requests), _BLOCK))
    return np.concatenate([_of_block(log, split, block, length) for block in blocks])


def _of_block(log: JoinedLog, split: str, block: NDArray, length: int) -> NDArray[np.float32]:
    batch = log.batch(split, block, length)
    valid = np.arange(batch["candidate_item_id"].shape[1]) < batch["candidate_count"][:, None]
    acted = batch.get("history_action")
    columns: list[NDArray] = []
    for name in shared_ids(log.spec):
        candidate, history = batch[f"candidate_{name}"], batch[f"history_{name}"]
        same = (candidate[:, :, None] == history[:, None, :]) & (candidate > 0)[:, :, None]
        columns += _windows(same)
        if acted is not None:
            columns += _windows(same & (acted >= _ACTED_ROW)[:, None, :])
    for each in log.spec.model_inputs():
        if each.kind == "candidate" and each.values is None and each.name != "candidate_item_id":
            columns.append(batch[each.name])
        if each.kind == "request" and each.table is not None:
            columns.append(np.broadcast_to(batch[each.name][:, None], valid.shape))
    columns.append(np.broadcast_to(batch["history_length"][:, None], valid.shape))
    return np.stack([column[valid] for column in columns], axis=1).astype(np.float32)


def shared_ids(spec: FeatureSpec) -> list[str]:
    """Fields that candidate and events have in common: the item and its ids, no quantities."""
    ids = [
        name
        for name, field in spec.item_fields.items()
        if field.table and field.values is None and not (field.quantiles or field.boundaries)
    ]
    return ["item_id", *ids]


def _windows(same: NDArray) -> Iterator[NDArray]:
    for first, end in pairwise(WINDOWS):
        if first < same.shape[2]:
            yield same[:, :, first:end].sum(axis=2)
        else:
            yield np.zeros(same.shape[:2], np.int64)


def _click_rates(log: JoinedLog, clicks: NDArray) -> dict[str, NDArray]:
    """Smoothed click rates of item, ids and user, from impressions of the train split alone.

    Those of the train split are taken from other folds of requests. Leaving out only the
    impression itself would not do: what is left is lower where it was clicked, which trees learn.
    """
    rates: dict[str, list[NDArray]] = {"train": [], "eval": []}
    keys = {
        split: [
            *(log.of_impressions(split, f"candidate_{name}") for name in shared_ids(log.spec)),
            log.users_of_impressions(split),
        ]
        for split in rates
    }
    counts = log.of_request("train", "candidate_count")
    fold = np.repeat(np.arange(len(counts)) % _FOLDS, counts)
    for train, held_out in zip(keys["train"], keys["eval"], strict=True):
        known, place = np.unique(np.concatenate([train, held_out]), return_inverse=True)
        own, other = place[: len(train)], place[len(train) :]
        of_others = np.zeros(len(own))
        for number in range(_FOLDS):
            held = fold == number
            found = smoothed_rates(own[~held], clicks[~held], len(known))
            of_others[held] = found[own[held]]
        rates["train"].append(of_others)
        rates["eval"].append(smoothed_rates(own, clicks, len(known))[other])
    return {split: np.stack(columns, axis=1) for split, columns in rates.items()}
