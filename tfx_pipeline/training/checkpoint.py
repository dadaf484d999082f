"""Checkpoints of a run, with the place in the data where it stood."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import tensorflow as tf

from tfx_pipeline.training.grown_tables import grown_tables, read_grown_table
from tfx_pipeline.training.running_totals import RunningTotals
from tfx_pipeline.training.training_state import TrainingState


@dataclass(frozen=True, order=True)
class Position:
    """How far a run has come: the epoch and how many of its files are done."""

    epoch: int = 0
    files_done: int = 0


class Checkpoints:
    """Writes and restores checkpoints that fit any number of parameter servers, also none.

    Under a cluster every server writes its own part: the directory must be on a file system that
    all of them share.

    Args:
        directory: Where checkpoints live; made if it is missing.
        state: The variables.
        keep: Number of checkpoints kept.
        report: Takes a line about a checkpoint that cannot be read.
        totals: What was counted in the epoch so far; saved and restored with the state.

    Attributes:
        damaged: Paths of the checkpoints that ``restore`` found damaged.
    """

    def __init__(
        self,
        directory: str,
        state: TrainingState,
        keep: int = 2,
        report: Callable[[str], None] = print,
        totals: RunningTotals | None = None,
    ) -> None:
        self._directory, self._report = directory, report
        self.damaged: list[str] = []
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._files_done = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._state = state
        self._beside = {"epoch": self._epoch, "files_done": self._files_done}
        if totals is not None:
            self._beside["totals"] = totals
        self._checkpoint = tf.train.Checkpoint(state=state, **self._beside)
        self._manager = tf.train.CheckpointManager(self._checkpoint, directory, max_to_keep=keep)

    @property
    def latest(self) -> str | None:
        """Path of the newest checkpoint, None before the first."""
        return self._manager.latest_checkpoint

    def save(self, position: Position) -> str:
        """Write the state and the position; no step may be running."""
        self._epoch.assign(position.epoch)
        self._files_done.assign(position.files_done)
        return self._manager.save(checkpoint_number=int(self._number(position)))

    def restore(self, may_grow: Collection[str] = ()) -> Position:
        """Read the newest checkpoint that is whole; its position, or without any the beginning.

        A machine that goes down may leave a newest checkpoint whose bytes never reached the disk:
        then the one before is taken, and the report says so.

        Args:
            may_grow: Names of tables that may have more rows than they have there; the further ones
                keep their values.

        Raises:
            ValueError: The checkpoint is of a model with other tables or sizes, or none is whole.
        """
        self.damaged = []
        found = _checkpoints(self._directory)
        for path in found:
            try:
                _read_header(path)
                self._read(path, may_grow)
            except tf.errors.OpError as error:
                if isinstance(error, _NOT_OF_THE_FILE):
                    raise
                if _OTHER_SHAPE in error.message:
                    raise _of_another_model(path, error.message.splitlines()[0][-200:]) from error
                self.damaged.append(path)
                reason = error.message.splitlines()[0][:200]
                self._report(f"checkpoint {path} is damaged ({reason}): trying the one before")
                continue
            except (ValueError, AssertionError) as error:
                raise _of_another_model(path, str(error)) from error
            position = Position(int(self._epoch.numpy()), int(self._files_done.numpy()))
            if self.damaged:
                self._report(
                    f"going on from {path}, epoch {position.epoch}, {position.files_done} files "
                    f"done; damaged checkpoints: {len(self.damaged)}"
                )
            return position
        if found:
            # Some variables may have been read already, so this is no beginning any more.
            raise ValueError(
                f"no checkpoint in {self._directory} is whole: remove this folder to train from "
                "the beginning"
            )
        return Position()

    def _read(self, path: str, may_grow: Collection[str]) -> None:
        grown = grown_tables(path, self._state, may_grow)
        checkpoint = self._checkpoint
        if grown:
            others = self._state.without(grown)
            checkpoint = tf.train.Checkpoint(state=others, **self._beside)
        found = checkpoint.restore(path).assert_existing_objects_matched()
        found.expect_partial()  # what this state does not hold may stay unread
        for name, rows in grown.items():
            read_grown_table(path, self._state, name, rows)
            self._report(
                f"table {name!r} grows from {rows:,} rows to {self._state.tables[name].rows:,}"
            )

    @staticmethod
    def _number(position: Position) -> int:
        return position.epoch * 1_000_000 + position.files_done


# A file that is cut short, not there or other than its checksum has many names in TensorFlow, also
# plain OpError. These tell of other things.
_NOT_OF_THE_FILE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
)

_OTHER_SHAPE = "does not match the shape stored in checkpoint"
"""What a sharded variable says of one that has another shape."""


def _of_another_model(path: str, reason: str) -> ValueError:
    return ValueError(
        f"checkpoint {path} is of another model ({reason}); train in an empty directory, or with "
        "the feature spec and settings that wrote it"
    )


def _read_header(path: str) -> None:
    """Read what a checkpoint says of itself; where it is damaged the reader raises anything."""
    try:
        tf.train.load_checkpoint(path).get_tensor(_OBJECT_GRAPH)
    except Exception as error:
        raise tf.errors.DataLossError(None, None, str(error) or type(error).__name__) from error


_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"  # in every checkpoint of ``tf.train.Checkpoint``


def _checkpoints(directory: str) -> list[str]:
    """Paths of the checkpoints in a directory, newest first.

    Read from the files that are there: the list that TensorFlow keeps may be damaged, too.
    """
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    numbers = [int(found[1]) for name in names if (found := _INDEX.fullmatch(name))]
    return [os.path.join(directory, f"ckpt-{number}") for number in sorted(numbers, reverse=True)]


_INDEX = re.compile(r"ckpt-(\d+)\.index")
