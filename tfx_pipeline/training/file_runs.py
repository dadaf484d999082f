"""Runs closures over files of Examples, and leaves out what damaged ones do not give."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfx_pipeline.cluster.exit_codes import EXIT_DAMAGED_EXAMPLES
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.training.run_here import RunHere, drained, give_out
from tfx_pipeline.training.transmission import damage_of


class DamagedExamplesError(PipelineError):
    """More files of Examples are damaged than may be."""

    exit_code = EXIT_DAMAGED_EXAMPLES


@dataclass
class _Run:
    """One file under way."""

    closure: Any
    path: str
    arguments: tuple[tf.Tensor, ...]
    given: Any = None


class FileRuns:
    """Gives each file to a closure.

    Where a file is cut short or its checksum is another one, its closure ends there. On a cluster
    the coordinator then cancels what the other workers are doing: their files are given out again,
    and up to one file's steps of each are taken twice.

    Args:
        coordinator: Schedules closures on workers; None runs them here.
        ahead: Closures that may wait for a worker.
        max_damaged: Files that may be damaged, of all that are run over.
        report: Takes a line for each of them.
    """

    def __init__(
        self, coordinator: Any, ahead: int, max_damaged: int, report: Callable[[str], None]
    ) -> None:
        self._coordinator, self._ahead = coordinator, ahead
        self._max_damaged, self._report = max_damaged, report
        self._damaged: set[str] = set()
        self._under_way: deque[_Run] = deque()

    def run(self, closure: Any, path: str, *arguments: tf.Tensor) -> None:
        """Run a closure over a file; on a cluster give it out, and wait while too many wait.

        Args:
            closure: Takes the path, and the arguments.
            path: Of the file.
            *arguments: For the closure.

        Raises:
            DamagedExamplesError: It is damaged, or one given out before, and no more may be.
            tf.errors.OpError: The closure failed for another reason.
        """
        self._under_way.append(_Run(closure, path, arguments))
        if self._coordinator is not None:
            self._persist(lambda: None)
        while len(self._under_way) > (0 if self._coordinator is None else self._ahead):
            self._finish_first()

    def join(self) -> None:
        """Wait for all closures; raises what ``run`` does."""
        while self._under_way:
            self._finish_first()

    def _finish_first(self) -> None:
        self._persist(lambda: self._under_way[0].given.get())
        self._under_way.popleft()

    def _persist(self, wait: Callable[[], Any]) -> None:
        """Give out what waits, then wait; again for what was cancelled because of another file."""
        while True:
            try:
                for run in self._under_way:
                    if run.given is None:
                        run.given = give_out(
                            self._coordinator, run.closure, tf.constant(run.path), *run.arguments
                        )
                wait()
                return
            except tf.errors.OpError as error:
                self._go_on_after(drained(self._coordinator, error))

    def _go_on_after(self, error: tf.errors.OpError) -> None:
        if not is_of_file(error) and not isinstance(error, tf.errors.CancelledError):
            raise error
        failures = [(run, _failure(run.given)) for run in self._under_way]
        damaged = [(run, found) for run, found in failures if found and is_of_file(found)]
        if not damaged:
            raise error
        for run, found in damaged:
            self._leave_out(run, found)
        for run, found in failures:
            if found is not None:
                run.given = RunHere(lambda: None) if is_of_file(found) else None

    def _leave_out(self, run: _Run, error: tf.errors.OpError) -> None:
        if run.path in self._damaged:  # in an epoch before
            return
        self._damaged.add(run.path)
        found = _REASON.search(error.message)
        reason = found[0] if found else "its checksum is another one"
        if len(self._damaged) > self._max_damaged:
            raise DamagedExamplesError(
                f"file {run.path} is damaged ({reason}): write the Examples again, or let "
                f"training.max_damaged_files (now {self._max_damaged}) leave out the rest of it"
            ) from error
        self._report(
            f"file {run.path} is damaged ({reason}): the rest of it is left out; damaged files: "
            f"{len(self._damaged)} of at most {self._max_damaged}"
        )


_REASON = re.compile(r"(truncated|corrupted) record at \d+|inflate\(\) failed[^\n\[]*")


def is_of_file(error: tf.errors.OpError) -> bool:
    """Whether a closure failed because its file is damaged."""
    return isinstance(error, tf.errors.DataLossError) and damage_of(error) is None


def _failure(given: Any) -> tf.errors.OpError | None:
    """Why a closure that is not under way any more failed, None if it did not."""
    try:
        if given is not None:
            given.get()
    except tf.errors.OpError as error:
        return error
    return None
