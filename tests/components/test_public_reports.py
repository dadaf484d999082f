"""What users of other stacks reported about joins and histories, as tests of this one.

Others of these reports are tested where they belong: trained and served scores of every encoder in
``tests/tfx_pipeline/training/test_systems.py``, probabilities after sampled negatives in
``test_calibration.py`` there, run-time parameters in ``tests/tfx_pipeline/test_kubeflow.py``.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from components.seqvault_example_gen.impressions import check_rows, group_requests
from components.seqvault_example_gen.join import join_requests


@pytest.fixture
def labels_of(spec, vault, table_of):
    """Rows to the clicks of each Example."""

    def run(rows, **columns):
        requests = group_requests(check_rows(table_of(rows, **columns), 0, spec).good, spec)
        joined = [each for part, _ in join_requests(requests, vault, spec) for each in part]
        return [
            list(tf.train.Example.FromString(each).features.feature["label_click"].int64_list.value)
            for each in joined
        ]

    return run


def test_three_requests_of_one_user_at_one_time_are_three_rows(labels_of, row):
    """A join on (user, time) would pair each with each: nine rows."""
    rows = [row(item=item, click=click) for item, click in ((10, 1), (11, 0), (12, 1))]
    assert labels_of(rows, request_id=[7, 8, 9]) == [[1], [0], [1]]
    assert labels_of(rows) == [[1, 0, 1]]  # one request with three candidates: three rows, too
    same_item = [row(item=10, click=click) for click in (1, 0, 1)]
    assert labels_of(same_item, request_id=[7, 8, 9]) == [[1], [0], [1]]
    assert labels_of(same_item) == [[1, 0, 1]]


def history(vault, now, version=None):
    read = vault.read([1], before=now, last_n=9, fields=["item_id"], version=version)
    return read["item_id"][0, : read.lengths[0]].tolist(), read.version


def late(now, item):
    return {
        "user_id": np.array([1]), "timestamp": np.array([now - 5]),
        "item_id": np.array([item]), "scenario": np.array([0], np.int8),
    }  # fmt: skip


def test_an_event_that_arrives_late_is_hidden_from_a_read_as_of_before(vault, now):
    before, version = history(vault, now)
    assert before == [13, 12, 11, 10]
    vault.append(late(now, 19))
    assert history(vault, now, version)[0] == before
    assert history(vault, now)[0] == [13, 19, 12, 11, 10]


def test_a_back_fill_is_hidden_from_a_read_as_of_before(vault, now):
    vault.merge()
    before, version = history(vault, now)
    vault.bulk_load(pa.table(late(now, 19)).cast(vault.schema.to_arrow()))
    assert history(vault, now, version)[0] == before
    assert history(vault, now)[0] == [13, 19, 12, 11, 10]


def test_the_same_event_written_three_times_has_one_order_before_and_after_a_merge(vault, now):
    for item in (16, 17, 18):
        vault.append(late(now, item))
    expected = [13, 18, 17, 16, 12, 11, 10]
    assert history(vault, now)[0] == expected
    vault.merge()
    assert history(vault, now)[0] == expected
    vault.append(late(now, 19))
    assert history(vault, now)[0] == [13, 19, *expected[1:]]
