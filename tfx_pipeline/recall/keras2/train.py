"""The process that trains the recall model: ``python -m tfx_pipeline.recall.keras2.train JOB``.

It needs ``TF_USE_LEGACY_KERAS=1`` in its environment. It prints a line per epoch, and on a failure
one line that begins with ``error:``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path

import tensorflow as tf
import tf_keras as keras  # noqa: TID251 - tensorflow-recommenders needs Keras 2

from tfx_pipeline.errors import PipelineError
from tfx_pipeline.recall.clicks import (
    click_batches,
    clicks_per_item,
    request_batches,
)
from tfx_pipeline.recall.keras2.recall_index import RecallIndex
from tfx_pipeline.recall.keras2.two_towers import TwoTowers
from tfx_pipeline.recall.measure import Found, measure
from tfx_pipeline.recall.recall_job import RecallJob
from tfx_pipeline.recall.recall_spec import ITEM, item_inputs, recall_spec

ERROR = "error: "


def train(folder: Path) -> Found:
    """Train on a job's Examples, export the index and measure what was exported.

    Raises:
        PipelineError: A split holds no click on an item that the feature spec tells apart, or the
            training diverged.
    """
    job, catalogue, lookup = RecallJob.load(folder)
    settings = job.settings
    spec = recall_spec(job.spec, settings.history)
    keras.utils.set_random_seed(settings.seed)
    requests = request_batches(job.train_files, spec)
    clicked = clicks_per_item(requests, spec, lookup)
    if not clicked[1:].any():
        raise PipelineError(
            "the train split holds no click on an item that has a row of its table: there is "
            "nothing to recall"
        )
    rows = {each.name: lookup.rows(each, catalogue[each.name]) for each in item_inputs(spec)}
    known = rows[ITEM] > 0
    rows = {name: tf.boolean_mask(value, known) for name, value in rows.items()}
    item_ids = tf.boolean_mask(catalogue["item_id"], known)
    k = min(settings.k, len(item_ids))
    print(f"{clicked[1:].sum():,} clicks on {(clicked[1:] > 0).sum():,} of {len(item_ids):,} items")

    towers = TwoTowers(spec, settings.width, clicked)
    towers.compile(optimizer=keras.optimizers.Adagrad(settings.learning_rate))
    batches = click_batches(requests, spec, lookup, settings.batch_size, settings.seed)
    step = tf.function(towers.train_step, autograph=False, reduce_retracing=True)
    for epoch in range(settings.epochs):
        towers.reset_metrics()
        for batch in batches:
            losses = step(batch)
        print(f"epoch {epoch + 1} of {settings.epochs}: loss {losses['click_loss']:.4f} per click")
    vectors = towers.items(rows)
    if not bool(tf.reduce_all(tf.math.is_finite(vectors))):
        raise PipelineError("the recall model's training diverged: lower recall.learning_rate")
    RecallIndex(spec, towers, lookup, item_ids, vectors, k).save(job.serving_model_dir)
    found = measure(
        job.serving_model_dir,
        request_batches(job.eval_files, spec),
        spec,
        lookup,
        dict(zip(item_ids.numpy().tolist(), rows[ITEM].numpy().tolist(), strict=True)),
        clicked,
        k,
    )
    if not found.clicks:
        raise PipelineError("the eval split holds no click: recall cannot be measured")
    result = {
        "k": k,
        "recall": found.recalled / found.clicks,
        "floor": found.popular / found.clicks,
        "clicks": found.clicks,
        "trained_clicks": int(clicked[1:].sum()),
        "items": len(item_ids),
    }
    Path(job.result).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return found


def _end_with_parent() -> None:
    """End when the parent does, however it does: it holds the other end of our standard input."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def main(folder: str) -> int:
    """Run the job; the exit code is 1 after an error."""
    _end_with_parent()
    try:
        train(Path(folder))
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split())
        print(
            ERROR
            + (words if isinstance(error, PipelineError) else f"{type(error).__name__}: {words}")
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # Threads of tf.data may still run: their end is not waited for.
    code = main(sys.argv[1])
    sys.stdout.flush()
    os._exit(code)
