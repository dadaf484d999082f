"""Runs closures over streams of feature hosts, and takes them up again where a host was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfx_pipeline.cluster.exit_codes import EXIT_NO_FEATURE_HOST, EXIT_OTHER_SCHEMA
from tfx_pipeline.errors import ClusterError
from tfx_pipeline.feature_host.feature_hosts import FeatureHosts, OpenStream
from tfx_pipeline.feature_host.silent_streams import SilentStreams
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.feature_streams import BROKEN
from tfx_pipeline.training.run_here import RunHere, drained, give_out
from tfx_pipeline.training.stream_progress import StreamProgress

_ATTEMPTS = 5
"""Streams in a row that bring a shard no batch further before the run is given up."""


@dataclass
class _Run:
    """One shard under way."""

    closure: Any
    shard: str
    order: dict[str, Any]
    arguments: tuple[tf.Tensor, ...]
    counts: bool
    slot: int
    stream: OpenStream
    reached: int = 0
    attempts: int = 0
    given: Any = None


class StreamRuns:
    """Gives each shard to a closure that reads its stream.

    A closure that fails because of its stream is run again from the batch it had reached, by the
    same host or by another one. On a cluster the coordinator then cancels what the other workers
    are doing, which go on likewise: each of them may take its last batch twice, wholly or in part.

    Args:
        hosts: Open the streams.
        settings: Batch size and shuffling.
        progress: Counts the batches of each stream under way.
        coordinator: Schedules closures on workers; None runs them here.
        report: Takes a line for each stream that is begun again.
    """

    def __init__(
        self,
        hosts: FeatureHosts,
        settings: TrainingSettings,
        progress: StreamProgress,
        coordinator: Any,
        report: Callable[[str], None],
    ) -> None:
        self._hosts, self._progress, self._coordinator = hosts, progress, coordinator
        self._report, self._settings = report, settings
        self._under_way: deque[_Run] = deque()
        self._begun = 0

    def run(
        self, closure: Any, shard: str, seed: int | None, *arguments: tf.Tensor, counts: bool
    ) -> None:
        """Run a closure over a shard; on a cluster give it out once there is room for it.

        Args:
            closure: Takes endpoint, number and first batch of a stream, slot of its progress, and
                the arguments.
            shard: See ``FeatureHosts.shards``.
            seed: Of the order of requests; None keeps that of time.
            *arguments: For the closure.
            counts: Whether the closure counts its batches; one that does not begins anew.

        Raises:
            ClusterError: No host answers, one has another schema or other data, or a shard gets no
                further.
            tf.errors.OpError: The closure failed for another reason than its stream.
        """
        order = {
            "batch_size": self._settings.batch_size,
            "shuffle_buffer": self._settings.shuffle_buffer,
            "seed": seed,
        }
        slot = self._begun % self._progress.streams
        self._begun += 1
        stream = self._hosts.open(shard, order)
        self._progress.start(slot, 0)
        self._under_way.append(_Run(closure, shard, order, arguments, counts, slot, stream))
        self._persist(lambda: None)
        while len(self._under_way) >= self._progress.streams:
            self._finish_first()

    def join(self) -> None:
        """Wait for all closures."""
        while self._under_way:
            self._finish_first()

    @contextmanager
    def opened(self, shard: str, batch_size: int) -> Iterator[OpenStream]:
        """A stream of a shard in the order of time, to be read in this process.

        Args:
            shard: See ``FeatureHosts.shards``.
            batch_size: Requests of a batch.

        Raises:
            ClusterError: No host answers, or one has another schema or other data.
        """
        order = {
            "batch_size": batch_size,
            "shuffle_buffer": self._settings.shuffle_buffer,
            "seed": None,
        }
        stream = self._hosts.open(shard, order)
        try:
            with self._silence_ends():
                yield stream
        finally:
            self._hosts.close(stream)

    def _finish_first(self) -> None:
        self._persist(lambda: self._under_way[0].given.get())
        first = self._under_way.popleft()
        self._hosts.close(first.stream)
        taken = self._progress.read()[first.slot]
        if first.counts and taken != first.stream.batches:
            raise ClusterError(
                f"{taken} of the {first.stream.batches} batches of {first.shard} were taken: host "
                f"{first.stream.host} ended its stream too early",
                EXIT_OTHER_SCHEMA,
            )

    def _persist(self, wait: Callable[[], Any]) -> None:
        """Give out what waits, then wait; what fails because of its stream begins again."""
        while True:
            try:
                for run in self._under_way:
                    if run.given is None:
                        run.given = self._give_out(run)
                with self._watched():
                    wait()
                return
            except tf.errors.OpError as error:
                self._begin_again(drained(self._coordinator, error))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Streams that are read in this process are ended when nothing comes any more."""
        if self._coordinator is not None:  # workers do that themselves
            yield
            return
        with self._silence_ends():
            yield

    @contextmanager
    def _silence_ends(self) -> Iterator[None]:
        hosts = self._hosts
        watch = SilentStreams(hosts.addresses, hosts.silent_seconds, self._report)
        watch.start()
        try:
            yield
        finally:
            watch.stop()

    def _give_out(self, run: _Run) -> Any:
        stream = run.stream
        numbers = (stream.number, stream.first, run.slot)
        arguments = (
            tf.constant(stream.endpoint),
            *(tf.constant(number, tf.int64) for number in numbers),
            *run.arguments,
        )
        return give_out(self._coordinator, run.closure, *arguments)

    def _begin_again(self, error: tf.errors.OpError) -> None:
        if not is_of_stream(error):
            raise error
        counts = self._progress.read()
        for run in self._under_way:
            if run.given is not None and _ended_well(run.given):
                continue
            reached = counts[run.slot] if run.counts else 0
            if run.counts and reached == run.stream.batches:  # cancelled behind its last batch
                run.given = RunHere(lambda: None)
                continue
            run.attempts = run.attempts + 1 if reached <= run.reached else 0
            if run.attempts > _ATTEMPTS:
                raise ClusterError(
                    f"{run.shard} gets no further than batch {reached} of {run.stream.batches} "
                    f"after {_ATTEMPTS} attempts ({first_line(error)})",
                    EXIT_NO_FEATURE_HOST,
                ) from error
            run.reached, run.given = reached, None
            # A host that answers and brings nothing further may do so with its other streams, too.
            if run.attempts or not self._hosts.is_open(run.stream):
                self._hosts.close(run.stream)
                run.stream = self._hosts.open(run.shard, run.order, reached)
            self._report(
                f"{run.shard}: goes on with batch {reached} of {run.stream.batches} from host "
                f"{run.stream.host} ({first_line(error)})"
            )


def is_of_stream(error: tf.errors.OpError) -> bool:
    """Whether a closure failed because of its stream: the reader's own errors are internal ones."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        return BROKEN in error.message
    return isinstance(error, tf.errors.InternalError)


def first_line(error: tf.errors.OpError) -> str:
    """What the reader says; TensorFlow adds where in the graph it was."""
    for line in error.message.splitlines():
        if "Error:" in line or BROKEN in line:
            return line.strip()[:200]
    return next(iter(error.message.splitlines()), "")[:200]


def _ended_well(given: Any) -> bool:
    try:
        given.get()
    except tf.errors.OpError:
        return False
    return True
