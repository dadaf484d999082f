"""Config files: what is read, and what is said about bad ones."""

import json

import pyarrow.parquet as pq
import pytest

from laser_features.testing import tiny_spec
from tfx_pipeline.config import CONFIGS, load_config
from tfx_pipeline.errors import PipelineError

SPLITS = """
splits:
  train: {start: 2022-04-25T00:00:00+08:00, end: 2022-05-05T00:00:00+08:00}
  eval: {start: 2022-05-05T00:00:00+08:00, end: 2022-05-09T00:00:00+08:00}
"""


@pytest.fixture
def load(tmp_path):
    def read(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(str(path), tmp_path / "data", tmp_path / "store", tmp_path / "work")

    return read


def test_times_with_an_offset_become_milliseconds(load):
    config = load(f"name: mine\nslices: [scenario]{SPLITS}")
    assert config.splits["eval"].start == 1_651_680_000_000
    assert config.splits["train"].end == config.splits["eval"].start
    assert config.slices == ("scenario",)
    assert config.serving.parts[-2:] == ("serving", "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SPLITS, "the entry 'name' is missing"),
        (f"name: mine\nsplitz: 1{SPLITS}", "unknown entry 'splitz'; known are .*'splits'"),
        ("name: [", "is not valid YAML"),
        ("- name", "must hold entries like"),
        ("name: mine\nsplits: {train: 5}", "splits are time ranges like"),
        ("name: mine\nsplits: {train: {start: 2022-05-01, end: 2022-04-01}}", "end after it sta"),
        ("name: mine\nsplits: {train: {start: 1650000000, end: 1650000001}}", "like seconds"),
        ("name: mine\nsplits: {train: {start: 2022-04-01, end: 2022-05-01}}", "train and eval"),
        ("name: mine", "is not a prepared dataset"),
    ],
)
def test_each_mistake_gets_one_clear_line(load, text, message):
    with pytest.raises(PipelineError, match=message) as caught:
        load(text)
    if "YAML" not in message:
        assert "\n" not in str(caught.value)


def test_an_unknown_config_name_lists_those_there_are(tmp_path):
    with pytest.raises(PipelineError, match=r"no config 'nope'; give a YAML file or one of .*demo"):
        load_config("nope", tmp_path, tmp_path, tmp_path)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_package_is_valid(path, tmp_path):
    parsed = tiny_spec()
    for name, schema in (
        ("events", parsed.event_schema()),
        ("items", parsed.item_schema()),
        ("impressions", parsed.impression_schema()),
    ):
        pq.write_table(schema.empty_table(), tmp_path / f"{name}.parquet")
    parsed.save(tmp_path / "features.yaml")
    day = 86_400_000
    splits = {"train": [10**12, 10**12 + day], "eval": [10**12 + day, 10**12 + 2 * day]}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"counts": {}, "splits": splits, "source": "", "facts": {}})
    )
    assert load_config(path.stem, tmp_path, tmp_path, tmp_path).splits["train"].start == 10**12
