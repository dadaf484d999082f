"""The paper's comparisons can be run, and the page of results says what was run and no more."""

import json
import re

import pytest
import yaml

from benchmarks.paper import render
from laser_features import FeatureSpec
from tfx_pipeline.compare.compare_settings import CompareSettings, runs_of
from tfx_pipeline.datasets import GeneratorSettings
from tfx_pipeline.datasets.generator import _spec
from tfx_pipeline.settings.read_yaml import read_yaml
from tfx_pipeline.settings.section import check
from tfx_pipeline.training.tower import check_model


@pytest.fixture(scope="module")
def spec() -> FeatureSpec:
    return _spec(GeneratorSettings.of_preset("long"))


@pytest.mark.parametrize("name", sorted(render.PAPER))
def test_every_system_of_a_config_can_be_built(name, spec):
    path = render.HERE / f"{name}.yaml"
    settings = check(CompareSettings, read_yaml(path), str(path))
    assert set(render.PAPER[name]) <= set(settings.systems)
    for run in runs_of(settings)[: len(settings.systems)]:
        if run.model is not None:
            check_model(spec, run.model)


def test_the_file_shown_in_the_docs_is_one():
    page = (render.PAGE.parent / "compare.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    settings = check(CompareSettings, yaml.safe_load(block), "docs/compare.md")
    assert len(runs_of(settings)) == 13


def test_the_page_is_what_the_kept_results_say():
    assert render.PAGE.read_text(encoding="utf-8") == render.page()


def test_a_kept_result_names_command_machine_and_seeds(tmp_path, monkeypatch):
    row = {"system": "laser", "auc": 0.8123, "auc_sd": 0.001, "gauc": 0.7, "gauc_sd": None}
    row |= {"problems": [], "macs": {"encoder": 2e6}, "difference_auc": [0.01, 0.002, 0.02]}
    row |= {"runs": 1, "difference_gauc": [0.02, -0.01, 0.05]}
    summary = {"dataset": {"source": "a log", "counts": {"impressions": 9}}, "machine": {}}
    summary |= {"seeds": [1, 2], "baseline": "din", "rows": [row]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "PLOTS", tmp_path)
    render.keep("table2", tmp_path)
    text = render.page()
    assert "compare --config benchmarks/paper/table2.yaml`, 20" in text and "seeds [1, 2]" in text
    assert (
        "| laser (seeds: 1) | 0.7826 | 0.8123 ± 0.0010 | 0.7000 | +0.0100 [+0.0020, +0.0200] * "
        "| +0.0200 [-0.0100, +0.0500] |  | 2.0 |" in text
    )
    assert text.count("Not run yet") == len(render.TITLES) - 1
