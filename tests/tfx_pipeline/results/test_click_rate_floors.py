"""Click-rate floors."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_features.testing import tiny_spec
from tfx_pipeline.results.click_rate_floors import click_rate_floors, smoothed_rates

SPEC = tiny_spec()


def test_rates_by_hand():
    rates = smoothed_rates(np.array([0, 0, 0, 1]), np.array([1, 1, 1, 0]), 3)
    assert rates == pytest.approx([(3 + 15) / 23, 15 / 21, 0.75])


def test_items_tell_what_users_do_not(tmp_path):
    """Item 1 is always clicked, item 2 never; users click half of what they see."""
    rows = [(user, time, item, int(item == 1)) for time in (0, 1, 10) for user in (1, 2)
            for item in (1, 2)]  # fmt: skip
    rows.append((1, 10, None, 1))
    columns = zip(*rows, strict=True)
    names = ("user_id", "timestamp", "item_id", "click")
    path = tmp_path / "impressions.parquet"
    pq.write_table(pa.table(dict(zip(names, map(list, columns), strict=True))), path)
    floors = click_rate_floors(path, SPEC, {"train": (0, 10), "eval": (10, 20)})
    assert floors == {"item click rate": 1.0, "user click rate": 0.5}
