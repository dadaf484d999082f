"""Multiply-accumulates of a comparison's systems."""

import pytest

from laser_keras import CombinedEncoder, DINEncoder, TWINEncoder
from tfx_pipeline.compare.macs import encoder_macs


@pytest.mark.parametrize(("limit", "seen"), [(None, 100), (20, 20), (500, 100)])
def test_a_limited_encoder_costs_as_much_as_its_events(limit, seen):
    both = CombinedEncoder([DINEncoder(), TWINEncoder(top_k=10)], recent_events=[limit, None])
    costs = encoder_macs(DINEncoder(), 5, seen, 8), encoder_macs(TWINEncoder(top_k=10), 5, 100, 8)
    assert encoder_macs(both, 5, 100, 8) == sum(costs)
