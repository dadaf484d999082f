"""Looks inside a model between files, while no step runs, and logs what there is to see."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from tfx_pipeline.feature_host.feature_hosts import is_shard
from tfx_pipeline.training.file_runs import is_of_file
from tfx_pipeline.training.metrics_log import MetricsLog
from tfx_pipeline.training.model_statistics import REQUESTS, model_statistics
from tfx_pipeline.training.passes import Passes
from tfx_pipeline.training.ranking_step import RankingStep
from tfx_pipeline.training.stream_runs import StreamRuns, first_line, is_of_stream

log = logging.getLogger(__name__)


class LookInside:
    """Writes lengths of embeddings and gates of a few requests, as metrics of the split ``model``.

    It runs in this process, also over a cluster: the servers send the rows of those requests alone,
    and no worker is asked.

    Args:
        step: The step, with its model and variables.
        passes: Reads requests.
        metrics: Where it writes; one that writes nothing is not looked for.
        streams: Opens the shards of feature hosts; None where there are files alone.
    """

    def __init__(
        self, step: RankingStep, passes: Passes, metrics: MetricsLog, streams: StreamRuns | None
    ) -> None:
        self._step, self._passes = step, passes
        self._metrics, self._streams = metrics, streams

    def write(self, name: str, steps: int) -> None:
        """Look at the first requests of a file or shard.

        Args:
            name: Of the file or shard.
            steps: Training steps so far.
        """
        if not self._metrics.is_on:
            return
        try:
            with self._few_requests(name) as few:
                self._write(few, steps)
        except tf.errors.OpError as error:
            is_input = is_of_stream(error) if is_shard(name) else is_of_file(error)
            if not is_input:
                raise
            log.warning("no look inside the model at step %d: %s", steps, first_line(error))

    def _write(self, few: tf.data.Dataset, steps: int) -> None:
        gates_of = self._passes.gates.get_concrete_function
        for batch in few:
            scalars, histograms = model_statistics(
                self._step, batch, lambda given: gates_of(few.element_spec)(given)
            )
            self._metrics.write("model", steps, scalars)
            for name, values in histograms.items():
                self._metrics.histogram(f"model/{name}", steps, values)

    @contextmanager
    def _few_requests(self, name: str) -> Iterator[tf.data.Dataset]:
        if not is_shard(name):
            yield self._passes.few_requests(name)
            return
        assert self._streams is not None
        with self._streams.opened(name, REQUESTS) as stream:
            yield self._passes.few_of_stream(stream.endpoint, stream.number)
