"""What every encoder owes its user, LASER's and those it is compared with."""

from typing import Any

import keras
import numpy as np
import pytest
from encoder_tools import AGE, HISTORY, MASK, TARGET, D, L, N
from layer_tools import assert_close, built, long_on, run, to_numpy

from laser_keras import (
    CombinedEncoder,
    DINEncoder,
    HSTUEncoder,
    LaserEncoder,
    LONGEREncoder,
    PoolingEncoder,
    SIMEncoder,
    STCAEncoder,
    TransformerEncoder,
    TWINEncoder,
)

RNG = np.random.default_rng(11)
MATCH = RNG.random((3, N, L)) < 0.5
CROSS = RNG.normal(size=(3, L, 3, 2)).astype("float32")
LASER = {"key_dim": 3, "segment_size": 4}

# name: (encoder, inputs beside target, history and mask)
ENCODERS: dict[str, tuple[Any, dict[str, np.ndarray]]] = {
    "laser": (lambda **k: LaserEncoder(**LASER, num_recent_segments=2, **k), {}),
    "laser_absorb": (
        lambda **k: LaserEncoder(**LASER, num_recent_segments=2, implementation="absorb", **k),
        {},
    ),
    "din": (lambda **k: DINEncoder(**k), {}),
    "din_unit": (lambda **k: DINEncoder("activation_unit", **k), {}),
    "transformer": (lambda **k: TransformerEncoder(ffn_expansion=2, **k), {}),
    "transformer_shared": (lambda **k: TransformerEncoder(append_target=False, **k), {}),
    "base": (lambda **k: TransformerEncoder(recent_events=4, mode="parallel", **k), {}),
    "hstu": (lambda **k: HSTUEncoder(2, normalizer="length", **k), {"age": AGE}),
    "hstu_v3": (
        lambda **k: HSTUEncoder(2, dialect="dlrm_v3", normalizer="length", **k),
        {"age": AGE},
    ),
    "hstu_targets": (
        lambda **k: HSTUEncoder(2, read_out="target_position", normalizer="length", **k),
        {"age": AGE},
    ),
    "twin": (lambda **k: TWINEncoder(4, 2, 3, **k), {"cross": CROSS}),
    "stca": (lambda **k: STCAEncoder(2, 2, 2, **k), {}),
    "longer": (lambda **k: LONGEREncoder(2, 3, 1, 2, 2, **k), {}),
    "sim": (lambda **k: SIMEncoder("soft", 4, 2, 3, **k), {}),
    "sim_hard": (lambda **k: SIMEncoder("hard", 4, 2, 3, **k), {"category_match": MATCH}),
    "pooling": (lambda **k: PoolingEncoder(**k), {}),
    "combined": (
        lambda **k: CombinedEncoder(
            [
                DINEncoder(dtype=k.get("dtype"), order=k.get("order", "newest_first")),
                TWINEncoder(4, 2, 3, dtype=k.get("dtype"), order=k.get("order", "newest_first")),
            ],
            **{name: value for name, value in k.items() if name != "order"},
        ),
        {"cross": CROSS},
    ),
    "combined_recent": (
        lambda **k: CombinedEncoder(
            [
                DINEncoder(dtype=k.get("dtype"), order=k.get("order", "newest_first")),
                SIMEncoder(
                    "hard", 4, 2, 3, dtype=k.get("dtype"), order=k.get("order", "newest_first")
                ),
            ],
            recent_events=[5, None],
            **{name: value for name, value in k.items() if name != "order"},
        ),
        {"category_match": MATCH},
    ),
}
NAMES = sorted(ENCODERS)


def make(name: str, **kwargs: Any) -> tuple[keras.layers.Layer, dict[str, np.ndarray]]:
    make_encoder, extras = ENCODERS[name]
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK, **extras}
    return built(make_encoder(**kwargs), **inputs), inputs


def by_candidate(inputs: dict[str, np.ndarray], which: Any) -> dict[str, np.ndarray]:
    """The inputs of some candidates: an index keeps the axis out, a slice in."""
    return {
        name: value[:, which] if name in ("target", "category_match") else value
        for name, value in inputs.items()
    }


def by_event(inputs: dict[str, np.ndarray], change: Any) -> dict[str, np.ndarray]:
    """``change(name, values)`` of everything that has an axis of events, that axis second."""
    changed = dict(inputs)
    for name, value in inputs.items():
        if name == "category_match":
            changed[name] = np.moveaxis(change(name, np.moveaxis(value, 2, 1)), 1, 2)
        elif name != "target":
            changed[name] = change(name, value)
    return {name: np.ascontiguousarray(value) for name, value in changed.items()}


@pytest.mark.parametrize("name", NAMES)
def test_candidates_in_one_call_equal_one_call_each(name: str) -> None:
    encoder, inputs = make(name)
    together = to_numpy(run(encoder, **inputs))
    assert together.shape == (3, N, encoder.num_output_tokens, D)
    assert tuple(encoder.compute_output_shape(TARGET.shape, HISTORY.shape)) == together.shape
    for n in range(N):
        alone = run(encoder, **by_candidate(inputs, slice(n, n + 1)))
        assert_close(to_numpy(alone)[:, 0], together[:, n], 1e-4)
        assert_close(run(encoder, **by_candidate(inputs, n)), together[:, n], 1e-4)
    order = np.array([2, 0, 1])
    assert_close(run(encoder, **by_candidate(inputs, order)), together[:, order], 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_oldest_first_histories_agree(name: str) -> None:
    encoder, inputs = make(name)
    other, _ = make(name, order="oldest_first")
    expected = to_numpy(run(encoder, **inputs))
    flipped = by_event(inputs, lambda _, value: value[:, ::-1])  # padding on the left
    assert_close(run(other, **flipped), expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_extra_padding_changes_nothing_even_nan(name: str) -> None:
    encoder, inputs = make(name)

    def pad(name: str, value: np.ndarray) -> np.ndarray:
        filler = np.nan if value.dtype == np.float32 else name == "category_match"
        extra = np.full((3, 6, *value.shape[2:]), filler, value.dtype)
        return np.concatenate([value, extra], axis=1)

    expected = to_numpy(run(encoder, **inputs))
    longer = by_event(inputs, pad)
    assert not longer["mask"][:, L:].any()
    assert_close(run(encoder, **longer), expected, 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "policy", ["float32", "float16", *long_on(("jax",), ["mixed_float16", "mixed_bfloat16"])]
)
def test_an_empty_history_is_finite(name: str, policy: str) -> None:
    encoder, inputs = make(name, dtype=policy)
    empty = {**inputs, "mask": np.zeros_like(MASK), "history": np.full_like(HISTORY, np.nan)}
    outputs = to_numpy(keras.ops.cast(run(encoder, **empty), "float32"))
    assert np.isfinite(outputs).all()
    # Nothing of the user: every user's outputs depend on the target alone.
    same = {**empty, "target": np.broadcast_to(TARGET[:1], TARGET.shape).copy()}
    outputs = to_numpy(keras.ops.cast(run(encoder, **same), "float32"))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    if name.startswith("laser"):
        z = to_numpy(keras.ops.cast(run(encoder, **empty), "float32"))[:, :, 0]
        np.testing.assert_array_equal(z, to_numpy(keras.ops.cast(TARGET, policy_dtype(policy))))
    if name in ("din", "din_unit", "twin", "sim", "sim_hard", "pooling"):
        assert not outputs.any()


def policy_dtype(policy: str) -> str:
    return keras.DTypePolicy(policy).compute_dtype


@pytest.mark.parametrize("name", NAMES)
def test_the_keras_mask_of_the_history_is_used(name: str) -> None:
    encoder, inputs = make(name)
    expected = to_numpy(run(encoder, **inputs))
    history = keras.ops.convert_to_tensor(HISTORY)
    keras.src.backend.set_keras_mask(history, keras.ops.convert_to_tensor(MASK))
    rest = {name: value for name, value in inputs.items() if name not in ("mask", "history")}
    assert_close(encoder(history=history, **rest), expected, 1e-4)


@pytest.mark.parametrize("name", ["laser", "laser_absorb", "transformer", "din", "stca", "longer"])
def test_a_longer_history_at_serving_keeps_what_was_computed_for_newer_events(name: str) -> None:
    """The prefix property: segments, merged tokens and queries count from the newest event."""
    if name.startswith("laser"):
        encoder = built(
            LaserEncoder(**LASER, num_recent_segments=2), target=TARGET, history=HISTORY
        )
        short = to_numpy(run(encoder, target=TARGET, history=HISTORY[:, :8]))
        long = to_numpy(run(encoder, target=TARGET, history=HISTORY))
        np.testing.assert_allclose(long[:, :, 2:], short[:, :, 2:], atol=1e-6)
        assert long[:, :, 2:].any()
        return
    # Elsewhere the history's length is no part of the weights: the same ones serve any length.
    encoder, inputs = make(name)
    hidden = {**inputs, "mask": MASK & (np.arange(L) < 4)}
    short = {**inputs, "history": HISTORY[:, :4], "mask": MASK[:, :4]}
    assert_close(run(encoder, **short), run(encoder, **hidden), 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": TARGET[0, 0]}, "`target` must have shape"),
        ({"target": TARGET[..., None]}, "`target` must have shape"),
        ({"target": TARGET[..., :4]}, "same last dimension|must have shape"),
        ({"target": TARGET[:2]}, "must have shape"),
        ({"history": HISTORY[0]}, "must have shape"),
        ({"history": HISTORY[..., :4]}, "same last dimension|must have shape"),
        ({"mask": MASK.astype("float32")}, "`mask` must be boolean"),
        ({"mask": MASK.astype("int32")}, "`mask` must be boolean"),
        ({"mask": MASK[:, :4]}, "`mask` must have shape"),
        ({"mask": MASK[:1]}, "`mask` must have shape"),
        ({"mask": MASK[:, :1]}, "`mask` must have shape"),
        ({"mask": MASK[..., None]}, "`mask` must have shape"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else next(iter(value)),
)
def test_bad_input_is_named(name: str, change: dict, message: str) -> None:
    """An error that names the argument, what was expected and what came; never a broadcast."""
    make_encoder, extras = ENCODERS[name]
    encoder = make_encoder()
    shapes = {f"{key}_shape": value.shape for key, value in extras.items()}
    encoder.build(TARGET.shape, HISTORY.shape, **shapes)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK, **extras, **change}
    with pytest.raises(ValueError, match=f"(?s)({message}).*Received"):
        encoder(**inputs)
