"""A trace of some training steps, which TensorBoard's profiler opens."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import tensorflow as tf

from tfx_pipeline.config import PipelineConfig
from tfx_pipeline.errors import PipelineError
from tfx_pipeline.train_alone import training_job
from tfx_pipeline.training.content_vectors import content_vectors
from tfx_pipeline.training.example_files import batches_of_file, find_files
from tfx_pipeline.training.labels import columns_of
from tfx_pipeline.training.row_lookup import RowLookup
from tfx_pipeline.training.trainer import Trainer

_WARM_UP = 3


def profile_training(
    config: PipelineConfig,
    output: Path,
    steps: int = 20,
    examples: Path | None = None,
    transform: Path | None = None,
) -> float:
    """Take some steps on the first files of an earlier run's Examples and trace them.

    Nothing is trained on: the weights are thrown away. The first steps, in which TensorFlow
    compiles, are not traced.

    Args:
        config: Model and training; ``work`` is where an earlier run of the pipeline joined.
        output: Folder for the trace: ``tensorboard --logdir`` of it, tab Profile.
        steps: Traced steps; fewer if there are no more batches.
        examples: As in ``train_alone``.
        transform: As in ``train_alone``.

    Returns:
        Seconds per traced step.

    Raises:
        PipelineError: There are no Examples, or too few.
    """
    job = training_job(config, output.resolve(), examples, transform)
    files, spec = find_files(job.train_files), config.load_spec()
    lookup = RowLookup.from_transform(job.transform_graph_path, spec)
    content = content_vectors(spec, str(config.dataset / "items.parquet"), lookup)
    trainer = Trainer(spec, config.model, config.training, lookup, content)
    first, *_ = trainer.labels
    take_step = tf.function(trainer.step.train, reduce_retracing=True, autograph=False)
    batches = itertools.chain.from_iterable(
        batches_of_file(
            tf.constant(path), spec, config.training, first.name, tf.constant(1, tf.int64),
            trainer.tower.fixed_length, columns_of(trainer.labels),
        )
        for path in files
    )  # fmt: skip
    for batch in itertools.islice(batches, _WARM_UP):
        take_step(batch)
    taken, began = 0, time.monotonic()
    tf.profiler.experimental.start(str(output))
    try:
        while taken < steps:
            with tf.profiler.experimental.Trace("train", step_num=taken, _r=1):
                batch = next(batches, None)
                if batch is None:
                    break
                take_step(batch)
            taken += 1
    finally:
        seconds = time.monotonic() - began
        tf.profiler.experimental.stop()
    if not taken:
        raise PipelineError(
            f"the Examples hold at most {_WARM_UP} batches of {config.training.batch_size} "
            "requests: nothing is left to trace; lower training.batch_size"
        )
    return seconds / taken
