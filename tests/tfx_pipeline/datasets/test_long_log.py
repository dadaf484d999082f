"""The presets with signals far back: their truth follows from the events that they name."""

import numpy as np
import pytest

from seqvault.progress import no_progress
from tfx_pipeline.datasets import DatasetError, GeneratorSettings
from tfx_pipeline.datasets import long_log as module
from tfx_pipeline.datasets.generated_items import make_catalogue
from tfx_pipeline.datasets.generator import generate
from tfx_pipeline.datasets.long_log import EFFECTS, planted_windows, simulate_long
from tfx_pipeline.datasets.planted_causes import planted_causes

SIZES = {"users": 12, "items": 1500, "min_events": 600, "max_events": 1200, "requests": 300}


@pytest.fixture
def nearer(monkeypatch):
    """The same windows at a tenth of the way back, so that short life cycles reach them."""
    for name in ("NEAR_EVENTS", "FAR_EVENTS", "END_EVENTS"):
        monkeypatch.setattr(module, name, getattr(module, name) // 10)


@pytest.mark.parametrize("preset", sorted(EFFECTS))
def test_the_planted_causes_explain_the_planted_parts(preset, nearer):
    settings = GeneratorSettings.of_preset(preset, **SIZES)
    rng = np.random.default_rng(5)
    catalogue = make_catalogue(rng, settings.items)
    pages = simulate_long(rng, settings, catalogue, no_progress)
    windows = planted_windows(settings)
    near_weight, far_weight = module._WEIGHTS[preset]
    own = np.flatnonzero(pages.user == 0)
    checked = 0
    for page in own[5::7]:
        before = own[own < page][::-1]  # newest first
        inputs = {
            "history_author_id": 1 + catalogue.niche[pages.item[before][:, ::-1]].reshape(1, -1),
            "history_action": 1 + pages.clicked[before][:, ::-1].reshape(1, -1).astype(int),
            "history_length": np.array([len(before) * settings.candidates]),
            "candidate_author_id": 1 + catalogue.niche[pages.item[page]][None],
        }
        parts = {}
        for name, window in windows.items():
            clicks = planted_causes(inputs, {name: window})[0].sum(1)
            parts[name] = EFFECTS[preset](clicks)
        np.testing.assert_allclose(far_weight * parts["far"], pages.far_part[page], atol=1e-5)
        long_part = near_weight * parts["near"] + far_weight * parts["far"]
        np.testing.assert_allclose(long_part, pages.long_part[page], atol=1e-5)
        checked += int((parts["far"] > 0).sum())
    assert checked > 20


def test_each_window_tells_something_and_the_truth_more(nearer):
    facts = generate(GeneratorSettings.of_preset("long", **SIZES)).facts
    truth = facts["eval_auc_of_truth"]
    assert truth > facts["eval_auc_without_far_history"] + 0.02
    assert facts["eval_auc_without_far_history"] > facts["eval_auc_without_long_history"] + 0.02
    assert facts["planted_windows"] == {"near": [10, 100], "far": [100, 400]}


def test_a_preset_brings_its_sizes_and_another_name_is_refused():
    assert GeneratorSettings.of_preset("long").max_history == 4000
    assert GeneratorSettings.of_preset("long", users=7).users == 7
    assert GeneratorSettings.of_preset("demo") == GeneratorSettings()
    with pytest.raises(DatasetError, match=r"preset is 'lng'; give one of demo, long"):
        GeneratorSettings.of_preset("lng")


def test_the_spec_declares_what_the_systems_can_use(nearer):
    spec = generate(GeneratorSettings.of_preset("presence", **SIZES)).spec
    assert spec.interactions.similarity == ("content",)
    assert spec.interactions.category == "author_id"
    assert "action" in spec.interactions.cross
