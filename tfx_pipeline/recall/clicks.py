"""From Examples to clicks: what each user saw click by click, as rows of the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.recall.recall_spec import ITEM, item_inputs, user_inputs
from tfx_pipeline.training.parsing import parse_examples
from tfx_pipeline.training.row_lookup import RowLookup

REQUESTS_AT_ONCE = 256
_SHUFFLED = 16_384
LENGTH, LABEL = "history_length", "label"


def request_batches(files: Sequence[str], spec: FeatureSpec) -> tf.data.Dataset:
    """Batches of requests as ``parse_examples`` reads them, with ``label`` [B, N].

    Args:
        files: GZIP TFRecord files of Examples.
        spec: What ``recall_spec`` left of the feature spec.
    """
    label = next(iter(spec.labels))

    @tf.autograph.experimental.do_not_convert
    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        return parse_examples(serialized, spec, label)

    examples = tf.data.TFRecordDataset(list(files), compression_type="GZIP")
    return examples.batch(REQUESTS_AT_ONCE).map(parse, num_parallel_calls=2).prefetch(2)


def item_rows(spec: FeatureSpec, lookup: RowLookup) -> Callable[[tf.Tensor], tf.Tensor]:
    """Maps ``candidate_item_id`` to rows; a vocabulary is sorted once, not for each batch."""
    item = item_inputs(spec)[0]
    signature = [tf.TensorSpec([None, None], item.dtype)]
    return tf.function(
        lambda values: lookup.rows(item, values), input_signature=signature, autograph=False
    )


def clicks_per_item(
    requests: tf.data.Dataset, spec: FeatureSpec, lookup: RowLookup
) -> NDArray[np.int64]:
    """Clicks per row of the item table, int64 [rows]; row 0 counts items without a row."""
    rows_of = item_rows(spec, lookup)
    counts = np.zeros(spec.tables[item_inputs(spec)[0].table or ""].rows, np.int64)
    for batch in requests:
        rows = rows_of(batch[ITEM]).numpy()
        counts += np.bincount(rows[batch[LABEL].numpy() > 0], minlength=len(counts))
    return counts


def click_batches(
    requests: tf.data.Dataset,
    spec: FeatureSpec,
    lookup: RowLookup,
    batch_size: int,
    seed: int,
) -> tf.data.Dataset:
    """Batches of clicks in another order in each epoch.

    A click is its request's user side and its candidate's item side, as rows; clicks on items
    without a row are left out.
    """
    user, item = user_inputs(spec), item_inputs(spec)

    @tf.autograph.experimental.do_not_convert
    def flatten(batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        rows = {each.name: lookup.rows(each, batch[each.name]) for each in (*user, *item)}
        clicked = tf.where((batch[LABEL] > 0) & (rows[ITEM] > 0))
        of_user = {each.name: tf.gather(rows[each.name], clicked[:, 0]) for each in user}
        of_item = {each.name: tf.gather_nd(rows[each.name], clicked) for each in item}
        return {**of_user, **of_item, LENGTH: tf.gather(batch[LENGTH], clicked[:, 0])}

    clicks = requests.map(flatten, num_parallel_calls=2).unbatch()
    return clicks.shuffle(_SHUFFLED, seed=seed).batch(batch_size).prefetch(2)
