"""Evaluation while training: when, over what, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.checkpoint import Checkpoints, Position
from tfx_pipeline.training.evaluation_log import Evaluation, EvaluationLog
from tfx_pipeline.training.running_totals import Totals


class Evaluations:
    """Keeps the best checkpoint by AUC, and ends a run that does not get better.

    Args:
        settings: ``evaluate_steps``, ``evaluate_files`` and ``patience``.
        files: Of the eval split.
        log: Of this run so far.
        best: Where the best state is saved; None saves none.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        files: Sequence[str],
        log: EvaluationLog,
        best: Checkpoints | None,
    ) -> None:
        self._settings, self._log, self._best = settings, log, best
        self.files = list(files)[: settings.evaluate_files or None]

    def start_at(self, position: Position) -> None:
        """Forget what was made beyond the place where the run goes on."""
        self._log.forget_after(position)

    def is_due(self, steps: int, is_last: bool = False) -> bool:
        """Whether enough steps were taken since the last one; at the end of a run one is."""
        enough = 1 if is_last else self._settings.evaluate_steps
        return steps - self._log.last_step >= enough

    def add(self, steps: int, position: Position, totals: Totals) -> None:
        """Keep the result; save the state if it is the best so far."""
        auc = 0.0 if math.isnan(totals.auc) else totals.auc  # a part without both classes
        made = Evaluation(steps, position.epoch, position.files_done, auc, totals.loss)
        best = self._log.best
        # Saved before it is written down: after a crash in between it is made again.
        if self._best is not None and (best is None or made.auc > best.auc):
            self._best.save(position)
        self._log.add(made)

    @property
    def is_over(self) -> bool:
        """Whether the run has had its patience."""
        patience = self._settings.patience
        return bool(patience) and self._log.since_best >= patience

    def restore_best(self) -> bool:
        """Put the best state in place of the last; False if there is none."""
        if self._best is None or self._best.latest is None or self._log.best is None:
            return False
        self._best.restore()
        return True

    def describe(self) -> str:
        """For people."""
        best = self._log.best
        if best is None:
            return "not evaluated yet"
        return (
            f"AUC {best.auc:.4f} at step {best.step} was the best of {len(self._log)} evaluations, "
            f"{self._log.since_best} ago"
        )
