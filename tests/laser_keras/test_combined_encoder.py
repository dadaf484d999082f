"""Several encoders in one, some of which see the newest events alone."""

from typing import Any

import keras
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, D, L, N
from layer_tools import assert_close, built, run, to_numpy

from laser_keras import (
    CombinedEncoder,
    DINEncoder,
    HSTUEncoder,
    LaserEncoder,
    SIMEncoder,
    TWINEncoder,
)

RNG = np.random.default_rng(5)
SIMILARITY = RNG.normal(size=(3, N, L, 2)).astype("float32")
MATCH = RNG.random((3, N, L)) < 0.5
AGE = np.sort(RNG.integers(0, 10**6, (3, L)), axis=1).astype("int32")


def parts(order: str) -> list[keras.layers.Layer]:
    return [
        LaserEncoder(key_dim=3, segment_size=2, num_recent_segments=1, order=order),
        HSTUEncoder(order=order),
        SIMEncoder("hard", 3, 2, 2, order=order),
        TWINEncoder(4, 2, 3, order=order),
    ]


def newest(limit: int | None, order: str) -> dict[str, np.ndarray]:
    """All inputs by event, cut down to the newest ``limit``, in this order."""
    step = 1 if order == "newest_first" else -1
    cut = {
        "history": HISTORY[:, :limit][:, ::step],
        "mask": MASK[:, :limit][:, ::step],
        "age": AGE[:, :limit][:, ::step],
        "similarity": SIMILARITY[:, :, :limit][:, :, ::step],
        "category_match": MATCH[:, :, :limit][:, :, ::step],
    }
    return {name: np.ascontiguousarray(value) for name, value in cut.items()}


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
def test_each_encoder_gets_its_newest_events(order: str) -> None:
    """An encoder within equals the same encoder that is called with the newest events alone."""
    encoders, limits = parts(order), [4, 3, 5, None]
    together = CombinedEncoder(encoders, recent_events=limits)
    inputs = {"target": TARGET, **newest(None, order)}
    tokens = to_numpy(run(built(together, **inputs), **inputs))
    takes: list[tuple[str, ...]] = [("similarity",), ("age",), ("category_match",), ()]
    count = 0
    for encoder, limit, names in zip(encoders, limits, takes, strict=True):
        seen = newest(limit, order)
        given = {name: seen[name] for name in ("history", "mask", *names)}
        width = encoder.num_output_tokens
        alone = run(encoder, target=TARGET, **given)
        assert_close(tokens[:, :, count : count + width], alone, 1e-5)
        count += width
    assert count == tokens.shape[2]


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
def test_an_auxiliary_loss_reads_the_newest_events_too(order: str) -> None:
    soft = SIMEncoder("soft", 3, 2, 2, order=order)
    together = CombinedEncoder([DINEncoder(order=order), soft], recent_events=[None, 6])
    whole, seen = newest(None, order), newest(6, order)
    built(together, target=TARGET, history=whole["history"], mask=whole["mask"])
    (logits,) = together.auxiliary_logits(TARGET, whole["history"], whole["mask"])
    (expected,) = soft.auxiliary_logits(TARGET, seen["history"], seen["mask"])
    assert_close(logits, expected, 1e-5)


def test_older_events_change_nothing_beyond_the_limit() -> None:
    encoder = CombinedEncoder([DINEncoder(), HSTUEncoder()], recent_events=[4, 4])
    inputs: dict[str, Any] = {"target": TARGET, "history": HISTORY}
    before = to_numpy(run(built(encoder, **inputs), **inputs))
    changed = HISTORY.copy()
    changed[:, 4:] += 7
    assert_close(run(encoder, target=TARGET, history=changed), before, 0)
    changed[:, 3] += 7
    assert np.abs(to_numpy(run(encoder, target=TARGET, history=changed)) - before).max() > 1e-4


def test_limits_survive_saving() -> None:
    encoder = CombinedEncoder([DINEncoder(), DINEncoder()], recent_events=[2, None])
    again = CombinedEncoder.from_config(encoder.get_config())
    assert again.recent_events == [2, None]
    # A layer saved before there were limits.
    config = encoder.get_config()
    del config["recent_events"]
    assert CombinedEncoder.from_config(config).recent_events == [None, None]


@pytest.mark.parametrize(
    ("limits", "message"), [([3], "each of the 2"), ([0, None], "recent_events"), (["a", 1], "'a'")]
)
def test_limits_that_do_not_fit(limits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CombinedEncoder([DINEncoder(), DINEncoder()], recent_events=limits)


def test_output_shape() -> None:
    encoder = CombinedEncoder([DINEncoder(), TWINEncoder(4, 2, 3)], recent_events=[2, None])
    assert encoder.compute_output_shape((3, N, D), (3, L, D)) == (3, N, 3, D)
