"""From a stream of a feature host to batches: what ``batches_of_file`` makes of Examples."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow_io.arrow import ArrowStreamDataset
from tensorflow_io.python.ops import core_ops

from laser_features import FeatureSpec, ModelInput
from tfx_pipeline.feature_host.wire_layout import (
    CANDIDATE_COUNT,
    HISTORY_LENGTH,
    INDEX,
    SEAL,
    wire_columns,
)
from tfx_pipeline.training.parsing import without_padding

BROKEN = "broken feature stream"
"""In the message of a batch that is not the one expected: cut off, or of another stream."""


def batches_of_stream(
    endpoint: tf.Tensor,
    stream: tf.Tensor,
    first: tf.Tensor,
    reached: tf.Tensor,
    spec: FeatureSpec,
    label: str | None,
    fixed: bool = False,
    more: Sequence[str] = (),
) -> tf.data.Dataset:
    """Batches of one stream.

    The native reader takes what came before a connection broke for a whole batch, with whatever
    its memory held before in place of the rest. So each batch ends with a seal that names it: one
    that does not carry its own is an error, as is a connection that ends too early.

    Args:
        endpoint: Scalar string, "IPv4:port"; the reader ends the process where it is malformed.
        stream: Scalar int64, the stream's number.
        first: Scalar int64, number of its first batch.
        reached: Scalar int64, number of the first batch that is wanted.
        spec: The feature spec.
        label: Label to read, if any.
        fixed: Keep histories at the spec's length.
        more: Further labels to read.

    Returns:
        A dataset of what ``batches_of_file`` gives.
    """
    columns = wire_columns(spec)
    names = [*(column.name for column in columns), SEAL]
    dataset = ArrowStreamDataset(
        tf.expand_dims(endpoint, 0),
        list(range(len(names))),
        (tf.uint8,) * len(columns) + (tf.int64,),
        (tf.TensorShape([None]),) * len(names),
    )

    @tf.autograph.experimental.do_not_convert
    def check(expected: tf.Tensor, values: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        row = dict(zip(names, values, strict=True))
        seal = row[SEAL]
        is_whole = tf.cond(
            tf.equal(tf.size(seal), 4),
            lambda: tf.reduce_all(tf.equal(seal[:2], tf.stack([stream, expected]))),
            lambda: tf.constant(False),
        )
        guard = tf.debugging.Assert(is_whole, [BROKEN, seal, stream, expected])
        with tf.control_dependencies([guard]):
            return {name: tf.identity(value) for name, value in row.items()}

    @tf.autograph.experimental.do_not_convert
    def is_wanted(number: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        return number >= reached

    @tf.autograph.experimental.do_not_convert
    def decode(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return without_padding(spec, decode_row(row, spec, label, more), fixed)

    numbered = dataset.enumerate(first).filter(is_wanted)
    checked = numbered.map(lambda number, values: check(number, values))
    return checked.map(decode, num_parallel_calls=2).prefetch(2)


def decode_row(
    row: dict[str, tf.Tensor], spec: FeatureSpec, label: str | None, more: Sequence[str] = ()
) -> dict[str, tf.Tensor]:
    """The arrays of one row of a stream, as ``parse_examples`` returns them."""
    columns = {column.name: column for column in wire_columns(spec)}
    values = {
        name: from_planes(row[name], tf.as_dtype(column.dtype)) for name, column in columns.items()
    }
    lengths, counts = values[HISTORY_LENGTH], values[CANDIDATE_COUNT]
    of_events, of_candidates = tf.split(
        values[INDEX], [tf.reduce_sum(lengths), tf.reduce_sum(counts)]
    )
    where = {"history": of_events, "candidate": of_candidates}
    sizes = {"history": lengths, "candidate": counts}
    read: dict[str, tf.Tensor] = {}
    for name, column in columns.items():
        flat = values[name]
        if name == "history_age_seconds":
            flat = tf.cumsum(flat)
        for each in column.inputs:
            if each.kind == "request":
                read[each.name] = flat
                continue
            width = spec.max_history if each.kind == "history" else None
            of_each = flat if each.values is None else tf.reshape(flat, [-1, each.values])
            if column.per == "item":
                of_each = tf.gather(of_each, where[each.kind])
            read[each.name] = _padded(of_each, sizes[each.kind], each, width)
    batch = {
        each.name: lengths if each.name == HISTORY_LENGTH else read[each.name]
        for each in spec.model_inputs()
    }
    batch[CANDIDATE_COUNT] = counts
    keys = {name: f"label_{name}" for name in more}
    for name, key in [*([] if label is None else [(label, "label")]), *keys.items()]:
        of_label = tf.RaggedTensor.from_row_lengths(values[f"label_{name}"], counts, validate=False)
        batch[key] = of_label.to_tensor()
    return batch


def load_reader() -> None:
    """Register the native reader in this process: the graphs of others may then use it."""
    core_ops.io_arrow_stream_dataset  # noqa: B018  # loads the library


def from_planes(planes: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The inverse of ``to_planes``: [n] values.

    Example:
        >>> from_planes(tf.constant([1, 2, 0, 1, 0, 0, 0, 0], tf.uint8), tf.int32).numpy()
        array([  1, 258], dtype=int32)
    """
    return tf.bitcast(tf.transpose(tf.reshape(planes, [dtype.size, -1])), dtype)


def _padded(
    values: tf.Tensor, sizes: tf.Tensor, model_input: ModelInput, width: int | None
) -> tf.Tensor:
    padding = tf.constant(model_input.padding, values.dtype)
    ragged = tf.RaggedTensor.from_row_lengths(values, sizes, validate=False)
    shape = [None, width] if model_input.values is None else [None, width, model_input.values]
    return ragged.to_tensor(padding, shape=shape)
