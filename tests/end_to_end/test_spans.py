"""Three tiny days through the whole pipeline, each from the last one's model."""

import json
from datetime import datetime, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest

from laser_features import FeatureSpec
from tests.end_to_end.conftest import SETTINGS
from tfx_pipeline.config import load_config
from tfx_pipeline.datasets import prepare
from tfx_pipeline.errors import OtherModelError
from tfx_pipeline.load_store import load_store
from tfx_pipeline.runners.spans import run_spans
from tfx_pipeline.span import parse_days

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]


def test_three_days_one_after_another(tmp_path, small_config, capfd):
    dataset = prepare(None, tmp_path / "dataset", generator=SETTINGS)
    load_store(dataset.path, tmp_path / "store")
    overrides = {"max_auc_drop": 1.0}

    def config(**more):
        return load_config(
            str(small_config), dataset.path, tmp_path / "store", tmp_path / "run",
            {**overrides, **more},
        )  # fmt: skip

    times = pq.read_table(dataset.impressions_path)["timestamp"].to_numpy()
    last = datetime.fromtimestamp(times.max() / 1000, tz=timezone.utc).date()
    days = parse_days(f"{np.datetime64(last) - 3}:{np.datetime64(last) - 1}")
    results = run_spans(config(), days, lambda line: None)
    said = capfd.readouterr().out
    assert said.count("begins with the state of") == 2
    assert [each.predicted for each in results] == [
        str(np.datetime64(last) - 2 + n) for n in range(3)
    ]
    assert all(each.pushed and each.impressions for each in results)
    assert results[1].warm_start and results[2].warm_start != results[1].warm_start
    before = [each.auc_before for each in results]
    assert np.isnan(before[0]) and not np.isnan(before[1:]).any()
    pushed = sorted((tmp_path / "run" / "serving" / "small").iterdir())
    assert len(pushed) == 3

    again = run_spans(config(), days, lambda line: None)
    assert "begins with the state of" not in capfd.readouterr().out  # all from the cache
    assert [each.auc for each in again] == [each.auc for each in results]
    assert sorted((tmp_path / "run" / "serving" / "small").iterdir()) == pushed
    lines = (tmp_path / "run" / "spans.jsonl").read_text().splitlines()
    assert [json.loads(line)["span"] for line in lines] == [str(day) for day in days]

    other = config(model={"dim": 24, "mixer_dim": 16, "num_tokens": 8})
    with pytest.raises(OtherModelError, match=r"another model\.dim \(16, now 24\).*--cold-start"):
        run_spans(other, days[2:], lambda line: None)

    # A day whose tables have more rows begins with the model before it, and is compared with it.
    spec_path = dataset.path / "features.yaml"
    spec = FeatureSpec.load(spec_path)
    content = spec.to_dict()
    direct = [name for name, table in spec.tables.items() if table.ids == "direct"]
    for name in direct:
        content["tables"][name]["rows"] += 1000
    FeatureSpec.from_dict(content).save(spec_path)
    (grown,) = run_spans(config(), days[2:], lambda line: None)
    said = capfd.readouterr().out
    assert all(f"table {name!r} grows from" in said for name in direct)
    assert grown.warm_start == results[2].warm_start and grown.pushed
    assert grown.auc_before == results[2].auc_before and abs(grown.auc - results[2].auc) < 0.1
