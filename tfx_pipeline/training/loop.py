"""The training loop: one closure per file, run directly or scheduled on a cluster's workers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import tensorflow as tf

from components.heartbeat import shown_time
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.example_files import batches_of_file, epoch_order, file_seed
from tfx_pipeline.training.labels import columns_of
from tfx_pipeline.training.learning_rate import rate_of_progress
from tfx_pipeline.training.ranking_step import RankingStep, cross_entropy, valid_candidates
from tfx_pipeline.training.running_totals import BINS, RunningTotals, Totals, probability_histogram

log = logging.getLogger(__name__)
_BEGINNING = Position()
REPORT_STEPS = 20
"""Steps between two additions to the shared totals."""
REPORT_SECONDS = 5.0


class TrainingLoop:
    """Trains and evaluates over files.

    Args:
        step: The step, with its model and variables.
        totals: Where the closures add up loss and AUC, one per label of the step.
        checkpoints: Where the state is saved; None saves nothing.
        coordinator: Schedules closures on workers; None runs them here.
        report: Takes one line of progress.
        log_dir: Where TensorBoard scalars go; None writes none.
    """

    def __init__(
        self,
        step: RankingStep,
        totals: Sequence[RunningTotals],
        checkpoints: Checkpoints | None = None,
        coordinator: Any = None,
        report: Callable[[str], None] = print,
        log_dir: str | None = None,
    ) -> None:
        self._step, self._totals, self._more_totals = step, totals[0], totals[1:]
        self._label, self._more = step.labels[0].name, columns_of(step.labels)
        self._fixed_length = step.tower.fixed_length
        self._checkpoints, self._coordinator, self._report = checkpoints, coordinator, report
        self._writer = tf.summary.create_file_writer(log_dir) if log_dir else None
        # Not jit-compiled: XLA makes a step cheaper, but compiles for every shape that a batch has,
        # and cutting batches to their longest history makes many.
        self._train_file = tf.function(self._train_on_file)
        self._evaluate_file = tf.function(self._evaluate_on_file)
        # What the time left is told from: files begun, and impressions of an epoch once known.
        self._part_begun, self._epoch_impressions = 0.0, 0

    def train(self, files: Sequence[str], start: Position = _BEGINNING) -> Totals:
        """Train for the epochs of the settings, from a position on.

        Returns:
            Loss and AUC of the predictions made before each step, of the last epoch.

        Raises:
            ValueError: The loss became NaN or infinite. Nothing is saved then.
        """
        settings = self._step.settings
        totals = self._totals.read()
        began, before = time.monotonic(), _part(start, len(files), settings.epochs)
        for epoch in range(start.epoch, settings.epochs):
            self._totals.reset()
            skipped = start.files_done if epoch == start.epoch else 0

            def left(seen: int, epoch: int = epoch) -> str:
                done = self._part_begun
                if self._epoch_impressions:
                    done = (epoch + min(1.0, seen / self._epoch_impressions)) / settings.epochs
                return time_left(time.monotonic() - began, before, done)

            with self._progress(f"epoch {epoch + 1}/{settings.epochs}", left):
                for position, path in enumerate(epoch_order(files, settings.seed, epoch)):
                    if position < skipped:
                        continue
                    seed = file_seed(settings.seed, epoch, position)
                    done = _part(Position(epoch, position), len(files), settings.epochs)
                    self._part_begun = done if self._coordinator is None else 0.0
                    rate = rate_of_progress(settings, done)
                    arguments = tf.constant(seed, tf.int64), tf.constant(rate, tf.float32)
                    self._run(self._train_file, path, *arguments)
                    files_done = position + 1
                    if files_done % settings.checkpoint_files == 0 and files_done < len(files):
                        self._save(Position(epoch, files_done))
                self._join()
            totals = self._totals.read()
            self._epoch_impressions = 0 if skipped else totals.impressions
            if not math.isfinite(totals.loss_sum):
                raise ValueError(
                    f"the loss is {totals.loss_sum} in epoch {epoch + 1}: training diverged with "
                    f"dense_learning_rate {settings.dense_learning_rate} and table_learning_rate "
                    f"{settings.table_learning_rate}; lower them"
                )
            self._write("train", totals, epoch + 1)
            self._save(Position(epoch + 1, 0))
        return totals

    def evaluate(self, files: Sequence[str]) -> Totals:
        """Loss and AUC of the present weights over files."""
        for each in (self._totals, *self._more_totals):
            each.reset()
        for path in files:
            self._run(self._evaluate_file, path)
        self._join()
        totals = self._totals.read()
        self._write("eval", totals, self._step.settings.epochs)
        for label, more in zip(self._step.labels[1:], self._more_totals, strict=True):
            self._write(f"eval {label.name}", more.read(), self._step.settings.epochs)
        return totals

    def _train_on_file(self, path: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor) -> None:
        step = self._step
        batches = batches_of_file(
            path, step.spec, step.settings, self._label, seed, self._fixed_length, self._more
        )
        histogram = tf.zeros([2, BINS], tf.int64)
        loss_sum = tf.zeros([], tf.float64)
        steps = tf.zeros([], tf.int64)
        for batch in iter(batches):
            logits, valid, loss = step.train(batch, rate)
            histogram += probability_histogram(tf.sigmoid(logits), batch["label"], valid)
            loss_sum += tf.cast(loss, tf.float64)
            steps += 1
            if steps % REPORT_STEPS == 0:
                self._totals.add(histogram, loss_sum)
                histogram = tf.zeros([2, BINS], tf.int64)
                loss_sum = tf.zeros([], tf.float64)
        self._totals.add(histogram, loss_sum)

    def _evaluate_on_file(self, path: tf.Tensor) -> None:
        step = self._step
        batches = batches_of_file(
            path, step.spec, step.settings, self._label, None, self._fixed_length, self._more
        )
        histogram = tf.zeros([2, BINS], tf.int64)
        loss_sum = tf.zeros([], tf.float64)
        for batch in iter(batches):
            (logits, *others), valid = step.predict_heads(batch), valid_candidates(batch)
            histogram += probability_histogram(tf.sigmoid(logits), batch["label"], valid)
            loss_sum += tf.cast(cross_entropy(logits, batch["label"], valid), tf.float64)
            for label, head, totals in zip(step.labels[1:], others, self._more_totals, strict=True):
                value = batch[f"label_{label.name}"]
                losses = tf.where(valid, label.losses(head, value), 0.0)
                totals.add(
                    probability_histogram(label.answer(head), value, valid),
                    tf.cast(tf.reduce_sum(losses), tf.float64),
                )
        self._totals.add(histogram, loss_sum)

    def _run(self, closure: Any, path: str, *arguments: tf.Tensor) -> None:
        if self._coordinator is None:
            closure(tf.constant(path), *arguments)
        else:
            self._coordinator.schedule(closure, args=(tf.constant(path), *arguments))

    def _join(self) -> None:
        if self._coordinator is not None:
            self._coordinator.join()

    def _save(self, position: Position) -> None:
        if self._checkpoints is not None:
            self._join()
            self._checkpoints.save(position)

    def _write(self, split: str, totals: Totals, epoch: int) -> None:
        self._report(f"{split}: {describe(totals)}")
        if self._writer is not None:
            with self._writer.as_default(step=epoch):
                name = split.replace(" ", "/")
                for metric in ("loss", "auc", "normalised_entropy", "calibration"):
                    tf.summary.scalar(f"{name}/{metric}", getattr(totals, metric))
            self._writer.flush()

    @contextmanager
    def _progress(self, name: str, left: Callable[[int], str]) -> Iterator[None]:
        """Report the totals, and the time left, every few seconds while closures run.

        A report that fails (a closed pipe, say) is logged once and does not end the reports.
        """
        ended = Event()
        began = time.monotonic()

        def watch() -> None:
            before: Totals | None = None
            failed = False
            while True:
                try:
                    now = self._totals.read()
                    recent = now - before if before else now
                    if before and recent.impressions:
                        rate = now.impressions / (time.monotonic() - began)
                        self._report(
                            f"{name}: {rate:,.0f} impressions/s, {describe(recent)}"
                            + left(now.impressions)
                        )
                    before = now
                except Exception:
                    if not failed:
                        log.warning("progress of training cannot be reported", exc_info=True)
                    failed = True
                if ended.wait(REPORT_SECONDS):
                    return

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def describe(totals: Totals) -> str:
    """Loss and AUC as a person reads them."""
    return f"{totals.impressions:,} impressions, loss {totals.loss:.4f}, AUC {totals.auc:.4f}"


def time_left(elapsed: float, before: float, done: float) -> str:
    """How much of the training is left, "" while that is unknown.

    Args:
        elapsed: Seconds of this run.
        before: Part of the whole that was done when it began.
        done: Part that is done now.

    Example:
        >>> time_left(60.0, before=0.25, done=0.5)
        ', about 2 min left'
    """
    if not before < done < 1:
        return ""
    return f", about {shown_time(elapsed * (1 - done) / (done - before))} left"


def _part(position: Position, files: int, epochs: int) -> float:
    """How much of a training lies before a position."""
    return (position.epoch * files + position.files_done) / max(1, epochs * files)
