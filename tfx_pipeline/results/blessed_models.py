"""The models that past runs blessed, and how far in time each had learned."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tfx_pipeline.results.past_runs import read_runs
from tfx_pipeline.training.warm_start import WarmStart


@dataclass(frozen=True)
class BlessedModel:
    """A model that passed its evaluation.

    Attributes:
        model: Folder of the Trainer's ``model`` artifact, a baseline for others.
        checkpoints: Folder of its training's checkpoints, a warm start for others.
        trained_until: End of the time that it was trained on, milliseconds UTC.
        run_id: The run that blessed it.
    """

    model: str
    checkpoints: str
    trained_until: int
    run_id: str


def last_blessed_model(database: Path, until: int) -> BlessedModel | None:
    """The blessed model that has learned furthest, but nothing of what comes at ``until`` or later.

    What a later run blessed does not count, so that the same day's run finds the same model again,
    whatever was run in between. Of models that learned equally far the newest is taken. Those of
    versions that left no warm start are passed over.

    Args:
        database: The SQLite file of ML Metadata; without it there is none.
        until: Milliseconds UTC.

    Raises:
        PipelineError: What its training left is damaged.
    """
    best: BlessedModel | None = None
    for run in read_runs(database) if database.is_file() else []:
        evaluator, trainer = run.nodes.get("Evaluator"), run.nodes.get("Trainer")
        if evaluator is None or trainer is None or not evaluator.outputs.get("blessing"):
            continue
        if evaluator.output("blessing")[1].get("blessed") != 1:
            continue
        checkpoints = os.path.join(trainer.output("model_run")[0], "checkpoints")
        if not WarmStart.is_at(checkpoints):
            continue
        trained_until = WarmStart.load(checkpoints).trained_until
        if trained_until > until or (best is not None and trained_until < best.trained_until):
            continue
        if best is not None and checkpoints == best.checkpoints:  # the same one, from the cache
            continue
        best = BlessedModel(trainer.output("model")[0], checkpoints, trained_until, run.run_id)
    return best
