"""What a comparison does with `training.labels`: impressions weighted by a label, and mistakes."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from tfx_pipeline.datasets import PreparedDataset
from tfx_pipeline.errors import SettingsError

TEXT = """
name: weighted
baseline: weighted
seeds: [1]
length: 10
bootstrap: 20
model: {dim: 4, num_tokens: 4, mixer_dim: 8, mixer_blocks: 1}
training: {batch_size: 64, dense_learning_rate: 0.05}
systems:
  weighted: {model: {system: mean}, training: {labels: {click: {weighted_by: dwell}}}}
"""


@pytest.fixture
def with_dwell(dataset, tmp_path):
    """The dataset with a second label, a number, that only clicks have."""
    folder = tmp_path / "with_dwell"
    folder.mkdir()
    for file in dataset.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    table = pq.read_table(dataset.impressions_path)
    dwell = 3 * table["click"].to_numpy().astype(np.float32)
    pq.write_table(table.append_column("dwell", [dwell]), folder / "impressions.parquet")
    spec = dataset.spec.to_dict()
    spec["label"]["dwell"] = {"type": "float32"}
    (folder / "features.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return PreparedDataset.load(folder)


def test_impressions_are_weighted_by_another_label(compare, with_dwell):
    (row,) = compare(TEXT, data=with_dwell.path)
    assert row["problems"] == [] and row["runs"] == 1
    assert row["calibration"] > 1.5  # no other impression counted


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("{like: {}}", "system 'weighted': training.labels names 'like', which is not a label"),
        ("{click: {weighted_by: dwell}}", "'weighted': training.labels names 'dwell'"),
        ("{click: {kind: regression}}", "must hold 'click'.* as a binary one"),
    ],
)
def test_a_label_that_does_not_fit_is_named_before_any_work(compare, tmp_path, labels, message):
    with pytest.raises(SettingsError, match=message):
        compare(TEXT.replace("{click: {weighted_by: dwell}}", labels))
    assert not (tmp_path / "work").exists()
