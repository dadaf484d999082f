"""From one file of Examples to batches, the same for every epoch that has the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.settings.training_settings import TrainingSettings
from tfx_pipeline.training.parsing import (
    REQUEST_TIME,
    parse_examples,
    request_times,
    without_padding,
)


def find_files(patterns: Sequence[str]) -> list[str]:
    """Files that match any of the patterns, sorted.

    Raises:
        ValueError: Nothing matches.
    """
    files = sorted({path for pattern in patterns for path in tf.io.gfile.glob(pattern)})
    if not files:
        raise ValueError(f"no file of Examples matches {list(patterns)}; did ExampleGen write any?")
    return files


def epoch_order(files: Sequence[str], seed: int, epoch: int) -> list[str]:
    """The files in the order of an epoch, a function of seed and epoch alone."""
    order = np.random.default_rng([seed, epoch]).permutation(len(files))
    return [files[index] for index in order]


def file_seed(seed: int, epoch: int, position: int) -> int:
    """Seed of the order within the file at a position of an epoch."""
    return int(np.random.default_rng([seed, epoch, position, 1]).integers(2**31))


def shuffled_positions(requests: int, buffer: int, seed: int | None) -> NDArray[np.int64]:
    """The positions of a file's requests in the order in which ``batches_of_file`` takes them.

    Args:
        requests: Their number.
        buffer: ``shuffle_buffer`` of the settings.
        seed: Of the order; None keeps it.
    """
    if seed is None or not requests:
        return np.arange(requests)

    @tf.function(autograph=False)
    def shuffled() -> tf.Tensor:
        dataset = tf.data.Dataset.range(requests)
        dataset = _shuffled(dataset, buffer, tf.constant(seed, tf.int64))
        return dataset.batch(requests).get_single_element()

    return np.asarray(shuffled().numpy())


@tf.autograph.experimental.do_not_convert
def _shuffled(dataset: tf.data.Dataset, buffer: int, seed: tf.Tensor) -> tf.data.Dataset:
    """Shuffled by the seed alone: ``tf.random.set_seed`` would count, too, or fail if it is 0."""
    graph = tf.compat.v1.get_default_graph()
    of_the_process, graph.seed = graph.seed, None
    try:
        return dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)
    finally:
        graph.seed = of_the_process


def batches_of_file(
    path: tf.Tensor,
    spec: FeatureSpec,
    settings: TrainingSettings,
    label: str | None,
    seed: tf.Tensor | None,
    fixed: bool = False,
    more: Sequence[str] = (),
) -> tf.data.Dataset:
    """Batches of one GZIP TFRecord file.

    Args:
        path: Scalar string.
        spec: The feature spec.
        settings: Batch size and the like.
        label: Label to read, if any.
        seed: Scalar int64 of the shuffled order; None keeps the file's order.
        fixed: Keep histories at the spec's length.
        more: Further labels to read.

    Returns:
        A dataset of what ``parse_examples`` returns, histories cut to the longest of a batch
        unless their length is fixed.
    """
    dataset = tf.data.TFRecordDataset(path, compression_type="GZIP")
    if seed is not None:
        dataset = _shuffled(dataset, settings.shuffle_buffer, seed)

    @tf.autograph.experimental.do_not_convert
    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = without_padding(spec, parse_examples(serialized, spec, label, more), fixed)
        if settings.open_tables:
            batch[REQUEST_TIME] = request_times(serialized)
        return batch

    return dataset.batch(settings.batch_size).map(parse, num_parallel_calls=2).prefetch(2)
