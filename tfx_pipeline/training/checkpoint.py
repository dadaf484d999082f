"""Checkpoints of a run, with the place in the data where it stood."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

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
    """

    def __init__(self, directory: str, state: TrainingState, keep: int = 2) -> None:
        self._epoch = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._files_done = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            state=state, epoch=self._epoch, files_done=self._files_done
        )
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

    def restore(self) -> Position:
        """Read the newest checkpoint, if there is one; its position, or the beginning.

        Raises:
            ValueError: The checkpoint is of a model with other tables or sizes.
        """
        if self.latest is None:
            return Position()
        try:
            self._checkpoint.restore(self.latest).assert_existing_objects_matched()
        except (ValueError, AssertionError) as error:
            raise ValueError(
                f"checkpoint {self.latest} is of another model ({error}); train in an empty "
                "directory, or with the feature spec and settings that wrote it"
            ) from error
        return Position(int(self._epoch.numpy()), int(self._files_done.numpy()))

    @staticmethod
    def _number(position: Position) -> int:
        return position.epoch * 1_000_000 + position.files_done
