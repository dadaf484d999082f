"""Every system goes the whole way: trained, evaluated, pushed, ranked by the gateway."""

import os

import pytest

from laser_keras import SYSTEMS
from tfx_pipeline.datasets import GeneratorSettings
from tfx_pipeline.demo.demo import run_demo

# A tiny log: what counts is that each part of the way takes each system.
# The preset declares what systems can use beside ids: similarities, categories and cross features.
LOG = GeneratorSettings.of_preset(
    "long", users=40, items=1200, min_events=20, max_events=120, requests=120, max_history=40
)
CONFIG = """
name: every_system
min_auc: 0.0
checked_requests: 4
model: {{system: {system}, dim: 16, mixer_dim: 32, num_tokens: 8, encoder: {options}}}
training: {{batch_size: 64, epochs: 1}}
"""
OPTIONS = {
    system: {"num_recent_segments": 2} for system in ("laser", "laser_fast", "laser_printed")
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_is_trained_evaluated_pushed_and_ranks(system, tmp_path):
    config = tmp_path / "system.yaml"
    config.write_text(CONFIG.format(system=system, options=OPTIONS.get(system, {})))
    result = run_demo(tmp_path, config=str(config), generator=LOG)
    report = result["report"]
    assert os.path.isfile(os.path.join(report["pushed"], "saved_model.pb"))
    assert 0 < report["evaluation"][""]["auc"] < 1 and report["problems"] == []
    before, after = result["ranking"].before, result["ranking"].after
    assert after["history_length"] == min(before["history_length"] + 1, LOG.max_history)
    scores = {each["item_id"]: each["score"] for each in after["ranked"]}
    assert len(scores) > 1 and all(0 < score < 1 for score in scores.values())
    assert len(set(scores.values())) > 1
