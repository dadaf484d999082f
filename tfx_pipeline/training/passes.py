"""What runs over the batches of one file or one stream, on this machine or on a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tensorflow as tf

from tfx_pipeline.training.example_files import batches_of_file
from tfx_pipeline.training.feature_streams import batches_of_stream
from tfx_pipeline.training.input_wait import InputWait, time_after
from tfx_pipeline.training.labels import columns_of, value_of
from tfx_pipeline.training.model_statistics import REQUESTS
from tfx_pipeline.training.ranking_step import RankingStep, valid_candidates
from tfx_pipeline.training.regression_totals import RegressionTotals, regression_sums
from tfx_pipeline.training.running_totals import BINS, RunningTotals, probability_histogram
from tfx_pipeline.training.stream_progress import StreamProgress

REPORT_STEPS = 20
"""Steps between two additions to the shared totals."""


class Passes:
    """The closures of training and of evaluation; each is a graph that can run anywhere.

    Args:
        step: The step, with its model and variables.
        totals: Where training adds up loss and AUC.
        eval_totals: Where evaluation does, one per label of the step.
        wait: Where training adds up how long steps wait for their batches.
        progress: Counts the batches of streams.

    Attributes:
        gates: How far the gates open on a parsed batch.
        train_file: Trains on one file: path, seed of its order, factor of the learning rates.
        evaluate_file: Adds one file's predictions to the totals: path.
        train_stream: Trains on one stream: endpoint, number, first batch, slot of its progress,
            factor of the learning rates.
        evaluate_stream: Likewise, without the factor; adds nothing before its end.
    """

    def __init__(
        self,
        step: RankingStep,
        totals: RunningTotals,
        eval_totals: Sequence[RunningTotals | RegressionTotals],
        wait: InputWait,
        progress: StreamProgress,
    ) -> None:
        self._step, self._totals, self._eval_totals = step, totals, eval_totals
        self._wait, self._progress = wait, progress
        self._label, self._more = step.labels[0].name, columns_of(step.labels)
        self._fixed_length = step.tower.fixed_length
        # AutoGraph is for the loops over batches alone. To convert the tower too would take most of
        # the time until the first step, and no branch in it depends on a tensor. The step is a
        # graph of its own so that the end of all it does can be waited for.
        self._take_step = tf.function(step.train, autograph=False)
        self._predict_heads = tf.autograph.experimental.do_not_convert(step.predict_heads)
        # Not jit-compiled: XLA makes a step cheaper, but compiles for every shape that a batch has,
        # and cutting batches to their longest history makes many.
        self.gates = tf.function(step.gates, autograph=False)
        self.train_file = tf.function(self._train_on_file)
        self.evaluate_file = tf.function(self._evaluate_on_file)
        self.train_stream = tf.function(self._train_on_stream)
        self.evaluate_stream = tf.function(self._evaluate_on_stream)

    def few_requests(self, path: str) -> tf.data.Dataset:
        """One small batch, the first requests of a file: enough for a look inside the model."""
        few = replace(self._step.settings, batch_size=REQUESTS)
        return batches_of_file(
            tf.constant(path),
            self._step.spec,
            few,
            self._label,
            None,
            self._fixed_length,
            self._more,
        ).take(1)

    def few_of_stream(self, endpoint: str, number: int) -> tf.data.Dataset:
        """The first batch of a stream that begins with its shard."""
        number_of_it, first = tf.constant(number, tf.int64), tf.zeros([], tf.int64)
        return self._of_stream(tf.constant(endpoint), number_of_it, first, first).take(1)

    def _train_on_file(self, path: tf.Tensor, seed: tf.Tensor, rate: tf.Tensor) -> None:
        self._train_on(self._of_file(path, seed), rate, None)

    def _train_on_stream(
        self,
        endpoint: tf.Tensor,
        number: tf.Tensor,
        first: tf.Tensor,
        slot: tf.Tensor,
        rate: tf.Tensor,
    ) -> None:
        # Read here, not where the closure was given out: a lost worker's closure is run again.
        reached = self._progress.reached(slot)
        self._train_on(self._of_stream(endpoint, number, first, reached), rate, slot)

    def _train_on(self, batches: tf.data.Dataset, rate: tf.Tensor, slot: tf.Tensor | None) -> None:
        histogram = tf.zeros([2, BINS], tf.int64)
        loss_sum = tf.zeros([], tf.float64)
        steps = tf.zeros([], tf.int64)
        waiting = tf.zeros([], tf.float64)
        began = tf.timestamp()
        ended = began
        for batch in iter(batches):
            waiting += tf.maximum(time_after(batch) - ended, 0.0)
            logits, valid, loss = self._take_step(batch, rate)
            ended = time_after([loss])
            if slot is not None:
                with tf.control_dependencies([ended]):
                    self._progress.advance(slot)
            histogram += probability_histogram(tf.sigmoid(logits), batch["label"], valid)
            loss_sum += tf.cast(loss, tf.float64)
            steps += 1
            if steps % REPORT_STEPS == 0:
                self._totals.add(histogram, loss_sum)
                self._wait.add(waiting, ended - began)
                histogram = tf.zeros([2, BINS], tf.int64)
                loss_sum = tf.zeros([], tf.float64)
                waiting = tf.zeros([], tf.float64)
                began = ended
        self._totals.add(histogram, loss_sum)
        self._wait.add(waiting, ended - began)

    def _evaluate_on_file(self, path: tf.Tensor) -> None:
        self._evaluate_on(self._of_file(path, None))

    def _evaluate_on_stream(
        self, endpoint: tf.Tensor, number: tf.Tensor, first: tf.Tensor, slot: tf.Tensor
    ) -> None:
        del slot  # whatever is lost begins anew: nothing is added before the end
        self._evaluate_on(self._of_stream(endpoint, number, first, first))

    def _evaluate_on(self, batches: tf.data.Dataset) -> None:
        step = self._step
        histograms = tf.zeros([len(step.labels), 2, BINS], tf.int64)
        loss_sums = tf.zeros([len(step.labels)], tf.float64)
        sums = tf.zeros([len(step.labels), 4], tf.float64)
        for batch in iter(batches):
            heads, valid = self._predict_heads(batch), valid_candidates(batch)
            values = [value_of(label, step.labels, batch) for label in step.labels]
            answers = [label.answer(head) for label, head in zip(step.labels, heads, strict=True)]
            losses = [
                tf.reduce_sum(tf.where(valid, label.losses(head, value), 0.0))
                for label, head, value in zip(step.labels, heads, values, strict=True)
            ]
            found = [*zip(answers, values, strict=True)]
            histograms += tf.stack([probability_histogram(*each, valid) for each in found])
            sums += tf.stack([regression_sums(*each, valid) for each in found])
            loss_sums += tf.cast(tf.stack(losses), tf.float64)
        for position, totals in enumerate(self._eval_totals):
            if isinstance(totals, RegressionTotals):
                totals.add(sums[position])
            else:
                totals.add(histograms[position], loss_sums[position])

    def _of_file(self, path: tf.Tensor, seed: tf.Tensor | None) -> tf.data.Dataset:
        step = self._step
        return batches_of_file(
            path, step.spec, step.settings, self._label, seed, self._fixed_length, self._more
        )

    def _of_stream(
        self, endpoint: tf.Tensor, number: tf.Tensor, first: tf.Tensor, reached: tf.Tensor
    ) -> tf.data.Dataset:
        numbers = (number, first, reached)
        return batches_of_stream(
            endpoint, *numbers, self._step.spec, self._label, self._fixed_length, self._more
        )
