"""The evaluations made while a run trains: which was best, and whether it is time to stop."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import tensorflow as tf

from tfx_pipeline.training.checkpoint import Position


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: Training steps taken before.
        epoch: The position in the data, see ``Position``.
        files_done: Likewise.
        auc: Of the first label, over the part of the eval split that is read.
        loss: Likewise.
    """

    step: int
    epoch: int
    files_done: int
    auc: float
    loss: float

    @property
    def position(self) -> Position:
        """Where in the data it was made."""
        return Position(self.epoch, self.files_done)


class EvaluationLog:
    """Evaluations in the order of steps, kept in a file of JSON lines.

    The file is written whole each time: it is short, and a crash leaves the old one or the new.

    Args:
        path: The file; None keeps them in memory alone.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._entries: list[Evaluation] = []
        if path is not None and tf.io.gfile.exists(path):
            with tf.io.gfile.GFile(path) as file:
                self._entries = [Evaluation(**json.loads(line)) for line in file]

    def __len__(self) -> int:
        return len(self._entries)

    def forget_after(self, position: Position) -> None:
        """Drop what was made beyond a position: the run goes on from there and makes it again."""
        self._entries = [each for each in self._entries if each.position <= position]

    def add(self, evaluation: Evaluation) -> None:
        """Keep one more."""
        self._entries.append(evaluation)
        if self._path is not None:
            fresh = f"{self._path}.tmp"
            tf.io.gfile.makedirs(self._path.rpartition("/")[0])
            with tf.io.gfile.GFile(fresh, "w") as file:
                file.write("".join(json.dumps(asdict(each)) + "\n" for each in self._entries))
            tf.io.gfile.rename(fresh, self._path, overwrite=True)

    @property
    def best(self) -> Evaluation | None:
        """That of the highest AUC, the first of equals; None before the first."""
        return max(self._entries, key=lambda each: each.auc, default=None)

    @property
    def since_best(self) -> int:
        """Evaluations after the best one."""
        best = self.best
        return 0 if best is None else len(self._entries) - 1 - self._entries.index(best)

    @property
    def last_step(self) -> int:
        """Steps at the newest evaluation, 0 before the first."""
        return self._entries[-1].step if self._entries else 0
