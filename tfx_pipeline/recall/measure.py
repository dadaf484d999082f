"""How many clicks an exported recall model finds, and how many the most clicked items would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from laser_features import FeatureSpec
from tfx_pipeline.recall.clicks import LABEL, LENGTH, item_rows
from tfx_pipeline.recall.recall_spec import ITEM, user_inputs
from tfx_pipeline.training.row_lookup import RowLookup


@dataclass(frozen=True)
class Found:
    """Clicks, and how many of them were among the k items.

    Attributes:
        clicks: Of the split.
        recalled: Whose item the model answered with.
        popular: Whose item is one of the k most clicked of the training split.
    """

    clicks: int
    recalled: int
    popular: int


def measure(
    directory: str,
    requests: tf.data.Dataset,
    spec: FeatureSpec,
    lookup: RowLookup,
    catalogue: dict[int, int],
    clicked: NDArray[np.int64],
    k: int,
) -> Found:
    """Ask a SavedModel for each request, as its users will.

    Items are told apart by their rows: one without a row is never found, and those that share a
    row of a ``hash`` table count as one.

    Args:
        directory: Of the SavedModel.
        requests: Of the split, see ``request_batches``.
        spec: What ``recall_spec`` left of the feature spec.
        lookup: Turns raw inputs into rows.
        catalogue: Row of each item id that the model may answer with.
        clicked: Clicks of the training split per row.
        k: Items of an answer.
    """
    ask = tf.saved_model.load(directory).signatures["serving_default"]
    names = [*(each.name for each in user_inputs(spec)), LENGTH]
    ids = np.array(sorted(catalogue), np.int64)
    rows_of_ids = np.array([catalogue[each] for each in ids.tolist()], np.int64)
    rows_of = item_rows(spec, lookup)
    popular = most_clicked(clicked, k)
    clicks = recalled = popular_clicks = 0
    for batch in requests:
        answer = ask(**{name: batch[name] for name in names})["item_id"].numpy()
        answered = rows_of_ids[np.searchsorted(ids, answer)]
        rows = rows_of(batch[ITEM]).numpy()
        request, place = np.nonzero(batch[LABEL].numpy() > 0)
        wanted = rows[request, place]
        clicks += len(wanted)
        recalled += int((answered[request] == wanted[:, None]).any(axis=1).sum())
        popular_clicks += int(np.isin(wanted, popular).sum())
    return Found(clicks, recalled, popular_clicks)


def most_clicked(clicked: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """The k rows with the most clicks, row 0 never; of equally many the lower row.

    Example:
        >>> most_clicked(np.array([9, 1, 4, 4, 0]), 2)
        array([2, 3])
    """
    rows = np.arange(1, len(clicked))
    return rows[np.argsort(-clicked[1:], kind="stable")[:k]]
