"""The training loop: one closure per file, run directly or scheduled on a cluster's workers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from threading import Event, Thread
from typing import Any

import tensorflow as tf

from components.heartbeat import shown_time
from tfx_pipeline.feature_host.feature_hosts import is_shard
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.diverged import DivergedError, where_not_finite
from tfx_pipeline.training.evaluations import Evaluations
from tfx_pipeline.training.example_files import epoch_order, file_seed
from tfx_pipeline.training.file_runs import FileRuns
from tfx_pipeline.training.input_wait import InputWait, Waited
from tfx_pipeline.training.learning_rate import rate_of_progress
from tfx_pipeline.training.look_inside import LookInside
from tfx_pipeline.training.metrics_log import MetricsLog
from tfx_pipeline.training.passes import Passes
from tfx_pipeline.training.ranking_step import RankingStep
from tfx_pipeline.training.regression_totals import RegressionMeans, RegressionTotals
from tfx_pipeline.training.running_totals import RunningTotals, Totals
from tfx_pipeline.training.stop_request import TrainingStopped
from tfx_pipeline.training.stream_progress import StreamProgress
from tfx_pipeline.training.stream_runs import StreamRuns
from tfx_pipeline.training.traffic import Moved, Traffic
from tfx_pipeline.training.transmission import DamagedFrameError, damage_of

log = logging.getLogger(__name__)
_BEGINNING = Position()
REPORT_SECONDS = 5.0


class TrainingLoop:
    """Trains and evaluates over files.

    Args:
        step: The step, with its model and variables.
        totals: Where training adds up loss and AUC.
        eval_totals: Where evaluation does, one per label of the step.
        checkpoints: Where the state is saved; None saves nothing.
        evaluations: Evaluates while training; None does not.
        coordinator: Schedules closures on workers; None runs them here.
        report: Takes one line of progress.
        log_dir: Where metrics go, see ``MetricsLog``; None writes none.
        wait: Where training adds up how long steps wait for their batches.
        streams: Runs closures over the shards of feature hosts; None where there are files alone.
        progress: Counts the batches of ``streams``.
        traffic: Where steps add up what travels; None where nothing does.
        ahead: Closures that may wait for a worker; what is given out cannot be taken back, so a
            request to stop waits for them.
    """

    def __init__(
        self,
        step: RankingStep,
        totals: RunningTotals,
        eval_totals: Sequence[RunningTotals | RegressionTotals],
        checkpoints: Checkpoints | None = None,
        evaluations: Evaluations | None = None,
        coordinator: Any = None,
        report: Callable[[str], None] = print,
        log_dir: str | None = None,
        ahead: int = 1,
        wait: InputWait | None = None,
        streams: StreamRuns | None = None,
        progress: StreamProgress | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._traffic = traffic
        self._wait = wait or InputWait()
        self._streams = streams
        self._saved = _BEGINNING
        self._step, self._totals, self._eval_totals = step, totals, eval_totals
        self._evaluations = evaluations
        self._checkpoints, self._coordinator, self._report = checkpoints, coordinator, report
        self._files = FileRuns(coordinator, ahead, step.settings.max_damaged_files, report)
        self._metrics = MetricsLog(log_dir)
        progress = progress or StreamProgress(1)
        self._passes = Passes(step, totals, eval_totals, self._wait, progress)
        self._look = LookInside(step, self._passes, self._metrics, streams)
        # What the time left is told from: files begun, and impressions of an epoch once known.
        self._part_begun, self._epoch_impressions = 0.0, 0

    def train(
        self,
        files: Sequence[str],
        start: Position = _BEGINNING,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Totals:
        """Train for the epochs of the settings, from a position on.

        Args:
            files: Of Examples.
            start: Where to go on.
            should_stop: Asked before each file.

        Returns:
            Loss and AUC of the predictions made before each step, of the last epoch.

        Raises:
            DivergedError: A step met NaN or infinity. Nothing of it is saved.
            DamagedFrameError: Rows or gradients arrived damaged. Nothing is saved.
            DamagedExamplesError: More files are damaged than may be.
            TrainingStopped: It was asked to stop; the state is saved.
        """
        settings = self._step.settings
        totals = self._totals.read()
        began, before = time.monotonic(), _part(start, len(files), settings.epochs)
        self._saved = start
        if self._evaluations is not None:
            self._evaluations.start_at(start)
        for epoch in range(start.epoch, settings.epochs):
            waited, moved, first_step = self._wait.read(), self._moved(), self.steps
            skipped = start.files_done if epoch == start.epoch else 0
            if not skipped:  # else they were restored with the state
                self._totals.reset()

            def left(seen: int, epoch: int = epoch) -> str:
                done = self._part_begun
                if self._epoch_impressions:
                    done = (epoch + min(1.0, seen / self._epoch_impressions)) / settings.epochs
                return time_left(time.monotonic() - began, before, done)

            with self._progress(f"epoch {epoch + 1}/{settings.epochs}", left):
                for position, path in enumerate(epoch_order(files, settings.seed, epoch)):
                    if position < skipped:
                        continue
                    reached = Position(epoch, position)
                    if should_stop():
                        self._stop(reached, start)
                    if self._is_over(reached):
                        return self._totals.read()
                    seed = file_seed(settings.seed, epoch, position)
                    done = _part(Position(epoch, position), len(files), settings.epochs)
                    self._part_begun = done if self._coordinator is None else 0.0
                    rate = rate_of_progress(settings, done)
                    self._train_part(path, seed, tf.constant(rate, tf.float32))
                    files_done = position + 1
                    if files_done % settings.admit_files == 0 or files_done == len(files):
                        self._admit()
                    if files_done % settings.checkpoint_files == 0 and files_done < len(files):
                        self._save(Position(epoch, files_done))
                self._join()
            totals = self._totals.read()
            self._epoch_impressions = totals.impressions
            travelled = self._travelled(moved, self.steps - first_step)
            self._write("train", totals, self._wait.read() - waited, travelled)
            with self._names_failure():
                self._look.write(files[0], self.steps)
            self._save(Position(epoch + 1, 0))
        self._is_over(Position(settings.epochs, 0), is_last=True)
        return totals

    def evaluate(self, files: Sequence[str], split: str = "eval") -> Totals:
        """Loss and AUC of the present weights over files; metrics are named by the split."""
        for each in self._eval_totals:
            each.reset()
        for path in files:
            self._evaluate_part(path)
        self._join()
        first, *more = [each.read() for each in self._eval_totals]
        assert isinstance(first, Totals)  # the first label is a binary one
        self._write(split, first)
        for label, counted in zip(self._step.labels[1:], more, strict=True):
            if isinstance(counted, RegressionMeans):
                self._write_means(f"{split} {label.name}", counted)
            else:
                self._write(f"{split} {label.name}", counted)
        return first

    @property
    def steps(self) -> int:
        """Training steps so far."""
        return int(self._step.state.step.numpy())

    def _train_part(self, name: str, seed: int, rate: tf.Tensor) -> None:
        """Train on a file, or on a shard of feature hosts."""
        if not is_shard(name):
            self._run(self._passes.train_file, name, tf.constant(seed, tf.int64), rate)
            return
        assert self._streams is not None
        with self._names_failure():
            self._streams.run(self._passes.train_stream, name, seed, rate, counts=True)

    def _evaluate_part(self, name: str) -> None:
        if not is_shard(name):
            self._run(self._passes.evaluate_file, name)
            return
        assert self._streams is not None
        with self._names_failure():
            self._streams.run(self._passes.evaluate_stream, name, None, counts=False)

    def _run(self, closure: Any, path: str, *arguments: tf.Tensor) -> None:
        with self._names_failure():
            self._files.run(closure, path, *arguments)

    def _join(self) -> None:
        with self._names_failure():
            if self._streams is not None:
                self._streams.join()
            self._files.join()
            if self._coordinator is not None:
                self._coordinator.join()

    @contextmanager
    def _names_failure(self) -> Iterator[None]:
        """Turn the failure of a step that met NaN, or damaged rows, into an error for people."""
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            where = where_not_finite(error)
            if where is None:
                raise
            settings = self._step.settings
            kept = None if self._checkpoints is None else self._checkpoints.latest
            raise DivergedError(
                f"training diverged at step {self.steps}: {where} is not finite (NaN or infinity). "
                f"It had dense_learning_rate {settings.dense_learning_rate} and "
                f"table_learning_rate {settings.table_learning_rate}; lower them, set clip_norm, "
                f"or mend the input. The last checkpoint is {kept or 'not written yet'}"
            ) from error
        except tf.errors.DataLossError as error:
            damage = damage_of(error)
            if damage is None:
                raise
            kept = None if self._checkpoints is None else self._checkpoints.latest
            raise DamagedFrameError(
                f"rows arrived damaged at step {self.steps} ({damage}): memory or network of a "
                "role is at fault; the same command goes on from the last "
                f"checkpoint, {kept or 'not written yet'}"
            ) from error

    def _is_over(self, position: Position, is_last: bool = False) -> bool:
        """Evaluate if it is time to, and say whether training should end early."""
        if self._evaluations is None:
            return False
        if self._evaluations.is_due(self.steps, is_last):
            self._save(position)
            self._evaluations.add(
                self.steps, position, self.evaluate(self._evaluations.files, "eval_part")
            )
        if self._evaluations.is_over and not is_last:
            self._report(f"ends early: {self._evaluations.describe()}")
        return self._evaluations.is_over

    def _stop(self, position: Position, start: Position) -> None:
        """Save and leave; at the start there is nothing new to save."""
        if position > start:
            self._save(position)
        raise TrainingStopped(
            f"stopped after {position.files_done} files of epoch {position.epoch + 1}; the same "
            "command goes on from there"
        )

    def _save(self, position: Position) -> None:
        self._join()
        if self._checkpoints is not None and position != self._saved:
            self._checkpoints.save(position)
            self._saved = position

    def _admit(self) -> None:
        """Let the open tables admit and evict ids, while no step runs."""
        if not self._step.settings.open_tables:
            return
        self._join()
        for line in self._step.state.refresh_open_tables():
            self._report(line)

    def _moved(self) -> Moved:
        return Moved() if self._traffic is None else self._traffic.read()

    def _travelled(self, before: Moved, steps: int) -> dict[str, float]:
        """Bytes of a step by codec, nothing where nothing travels."""
        if self._traffic is None:
            return {}
        return self._moved().per_step(before, steps, self._step.settings.transmission)

    def _write(
        self,
        split: str,
        totals: Totals,
        waited: Waited | None = None,
        travelled: Mapping[str, float] | None = None,
    ) -> None:
        names = ("loss", "auc", "normalised_entropy", "calibration")
        values = {name: getattr(totals, name) for name in names}
        values["impressions"] = totals.impressions
        values.update(travelled or {})
        line = describe(totals)
        if waited is not None and waited.whole:
            values["input_wait"] = waited.share
            line += f", {waited.share:.0%} of the time waiting for input"
        self._report(f"{split}: {line}")
        self._metrics.write(split.replace(" ", "/"), self.steps, values)

    def _write_means(self, split: str, means: RegressionMeans) -> None:
        self._report(
            f"{split}: {means.impressions:,} impressions, mean squared error "
            f"{means.squared_error:.4f}, mean label {means.label:.4f}, mean prediction "
            f"{means.prediction:.4f}"
        )
        self._metrics.write(split.replace(" ", "/"), self.steps, asdict(means))

    @contextmanager
    def _progress(self, name: str, left: Callable[[int], str]) -> Iterator[None]:
        """Report the totals, and the time left, every few seconds while closures run.

        A report that fails (a closed pipe, say) is logged once and does not end the reports.
        """
        ended = Event()
        began = time.monotonic()

        def watch() -> None:
            first: Totals | None = None  # a resumed epoch does not begin at zero
            before: Totals | None = None
            steps, then, waited, moved = 0, began, Waited(), Moved()
            failed = False
            while True:
                try:
                    now, steps_now, at = self._totals.read(), self.steps, time.monotonic()
                    first = first or now
                    recent = now - before if before else now
                    if before and recent.impressions:
                        rate = (now - first).impressions / (at - began)
                        self._report(
                            f"{name}: {rate:,.0f} impressions/s, {describe(recent)}"
                            + left(now.impressions)
                        )
                        values = {
                            "loss": recent.loss,
                            "auc": recent.auc,
                            "impressions_per_second": recent.impressions / (at - then),
                            "steps_per_second": (steps_now - steps) / (at - then),
                            "input_wait": (self._wait.read() - waited).share,
                            **self._travelled(moved, steps_now - steps),
                        }
                        self._metrics.write("progress", steps_now, values)
                    before, steps, then = now, steps_now, at
                    waited, moved = self._wait.read(), self._moved()
                except Exception as error:
                    if not failed:
                        reason = next(iter(str(error).splitlines()), type(error).__name__)
                        log.warning("progress of training cannot be reported: %s", reason)
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
