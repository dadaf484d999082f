"""One run of a comparison: train a system on the joined log, and score the eval split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.compare.compare_settings import Run
from tfx_pipeline.compare.gates_of_causes import gates_auc
from tfx_pipeline.compare.joined_log import JoinedLog, with_length
from tfx_pipeline.compare.macs import request_macs
from tfx_pipeline.compare.oracle_features import oracle_scores
from tfx_pipeline.compare.results_file import DIVERGED, OK
from tfx_pipeline.ranking_metrics import (
    auc,
    calibration,
    group_auc,
    log_loss,
    normalised_entropy,
)
from tfx_pipeline.training.diverged import where_not_finite
from tfx_pipeline.training.export import as_variable
from tfx_pipeline.training.labels import columns_of
from tfx_pipeline.training.learning_rate import rate_of_progress
from tfx_pipeline.training.ranking_step import RankingStep
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.tower import Tower
from tfx_pipeline.training.training_state import TrainingState

EVAL_BATCH = 256


class Diverged(Exception):
    """The loss of a run became NaN or infinite."""


class _ReadyRows(RowLookup):
    """A row lookup for values that are rows already."""

    def rows(self, model_input: Any, values: tf.Tensor) -> tf.Tensor:
        """The values as they are."""
        return values


def take_run(
    run: Run,
    log: JoinedLog,
    content: NDArray | None,
    report: Callable[[str], None] = lambda line: None,
    windows: Mapping[str, Sequence[int]] | None = None,
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Train and evaluate.

    Args:
        run: What to train.
        log: The joined log.
        content: Frozen content vectors, if the spec has any.
        report: Takes a line per epoch.
        windows: Of a generated log, where the causes of its clicks lie: gates are compared with
            them.

    Returns:
        The result's entries, and the scores of the eval split's impressions; None for a run that
        diverged.
    """
    began = time.monotonic()
    entries: dict[str, Any] = {"status": OK}
    try:
        if run.model is None:
            scores = oracle_scores(log, run.length, run.seed)
        else:
            scores, more = _train(run, log, content, report, windows)
            entries.update(more)
    except Diverged as error:
        seconds = round(time.monotonic() - began, 1)
        return {"status": DIVERGED, "problem": str(error), "seconds": seconds}, None
    entries.update(metrics(log, scores))
    entries["seconds"] = round(time.monotonic() - began, 1)
    return entries, scores


def metrics(log: JoinedLog, scores: NDArray) -> dict[str, float]:
    """Of the eval split's first label."""
    labels = np.asarray(log.of_impressions("eval", f"label_{next(iter(log.spec.labels))}"))
    return {
        "auc": auc(labels, scores),
        "gauc": group_auc(log.users_of_impressions("eval"), labels, scores),
        "log_loss": log_loss(labels, scores),
        "normalised_entropy": normalised_entropy(labels, scores),
        "calibration": calibration(labels, scores),
    }


def _train(
    run: Run,
    log: JoinedLog,
    content: NDArray | None,
    report: Callable[[str], None],
    windows: Mapping[str, Sequence[int]] | None,
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    assert run.model is not None
    spec, settings = with_length(log.spec, run.length), run.training
    tower = Tower(
        spec, run.model, settings.seed, implementation="absorb", precision=settings.precision
    )
    state = TrainingState(spec, settings, tower)
    step = RankingStep(spec, settings, tower, _ReadyRows(), state, as_variable(content))
    more_labels = columns_of(step.labels)
    signature = _signature(spec, run.length if tower.fixed_length else None)
    label = tf.TensorSpec([None, None], tf.float32)
    of_training = {**signature, **{f"label_{name}": label for name in more_labels}}
    train = tf.function(
        lambda batch, rate: step.train(batch, rate)[2],
        input_signature=[of_training, tf.TensorSpec([], tf.float32)],
        autograph=False,
    )
    predict = tf.function(
        lambda batch: tf.sigmoid(step.predict(batch)),
        input_signature=[signature],
        autograph=False,
    )
    count = log.requests("train")
    steps = -(-count // settings.batch_size)
    began = time.monotonic()
    for epoch in range(settings.epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(count)
        loss = 0.0
        for number, chosen in enumerate(_chunks(order, settings.batch_size)):
            done = (epoch * steps + number) / (settings.epochs * steps)
            rate = tf.constant(rate_of_progress(settings, done), tf.float32)
            batch = log.batch("train", chosen, run.length, tower.fixed_length, more_labels)
            try:
                loss += float(train(_tensors(batch), rate))
            except tf.errors.InvalidArgumentError as error:
                where = where_not_finite(error)
                if where is None:
                    raise
                raise Diverged(f"{where} is not finite in epoch {epoch + 1}") from error
        report(f"epoch {epoch + 1}/{settings.epochs}: loss {loss / _impressions(log):.4f}")
    trained = time.monotonic() - began
    scores = []
    for chosen in _chunks(np.arange(log.requests("eval")), EVAL_BATCH):
        batch = log.batch("eval", chosen, run.length, tower.fixed_length)
        found = predict(_tensors(batch)).numpy()
        scores.append(found[np.arange(found.shape[1]) < batch["candidate_count"][:, None]])
    causes = None
    if windows is not None and tower.has_gates:
        take = tf.function(step.gates, input_signature=[signature], autograph=False)
        causes = gates_auc(
            lambda batch: take(_tensors(batch)).numpy(),
            log,
            windows,
            run.length,
            tower.fixed_length,
        )
    weights = sum(int(np.prod(each.shape)) for each in tower.model.trainable_variables)
    lengths = np.minimum(log.of_request("eval", "history_length"), run.length)
    candidates = round(float(np.mean(log.of_request("eval", "candidate_count"))))
    return np.concatenate(scores), {
        "weights": weights,
        "macs": request_macs(tower, candidates, run.length),
        "mean_history": round(float(lengths.mean()), 1),
        "train_seconds": round(trained, 1),
        "interactions": list(tower.interactions),
        **({} if causes is None else {"gates_auc": causes}),
    }


def _impressions(log: JoinedLog) -> int:
    return int(log.of_request("train", "candidate_count").sum())


def _chunks(values: NDArray, size: int) -> Iterator[NDArray]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _tensors(batch: Mapping[str, NDArray]) -> dict[str, tf.Tensor]:
    return {
        name: tf.constant(value, tf.float32 if name.startswith("label") else tf.int32)
        for name, value in batch.items()
    }


def _signature(spec: FeatureSpec, length: int | None) -> dict[str, tf.TensorSpec]:
    widths: dict[str, list[int | None]] = {
        "history": [None, length],
        "candidate": [None, None],
        "request": [None],
    }
    signature = {
        each.name: tf.TensorSpec(
            [*widths[each.kind], *([each.values] if each.values else [])], tf.int32
        )
        for each in spec.model_inputs()
    }
    signature["candidate_count"] = tf.TensorSpec([None], tf.int32)
    signature["label"] = tf.TensorSpec([None, None], tf.float32)
    return signature
