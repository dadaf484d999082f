"""Multiply-accumulates of a comparison's systems."""

import math

import pytest

from laser_features.testing import tiny_spec
from laser_keras import CombinedEncoder, DINEncoder, TWINEncoder
from tfx_pipeline.compare.macs import encoder_macs, request_macs
from tfx_pipeline.settings.model_settings import ModelSettings
from tfx_pipeline.training.tower import Tower


@pytest.mark.parametrize(("limit", "seen"), [(None, 100), (20, 20), (500, 100)])
def test_a_limited_encoder_costs_as_much_as_its_events(limit, seen):
    both = CombinedEncoder([DINEncoder(), TWINEncoder(top_k=10)], recent_events=[limit, None])
    costs = encoder_macs(DINEncoder(), 5, seen, 8), encoder_macs(TWINEncoder(top_k=10), 5, 100, 8)
    assert encoder_macs(both, 5, 100, 8) == sum(costs)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_mlp_costs_as_much_as_its_kernels(layers):
    settings = ModelSettings(system="mean", dim=4, mixer="mlp", mixer_dim=8, mixer_blocks=layers)
    tower = Tower(tiny_spec(), settings, seed=1)
    kernels = sum(math.prod(each.shape) for each in tower.model.mixer.kernels)
    assert request_macs(tower, 5, 10)["mixer"] == 5 * kernels > 0
