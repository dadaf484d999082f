"""``HSTUEncoder``: both dialects against NumPy, and the traps that ports fall into."""

import itertools
import math
from typing import Any

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import AGE, HISTORY, MASK, TARGET, D, L, N, silu, target_attention
from layer_tools import assert_close, built, randomise, run, to_numpy, weights_by_name

from laser_keras import HSTUEncoder
from laser_keras.encoders.hstu_time import production_buckets, research_buckets


def research_bucket(seconds: int) -> int:
    return math.floor(math.log(max(abs(seconds), 1)) / 0.301)


def production_bucket(seconds: int) -> int:
    return min(math.isqrt(seconds // 60), 2048)


def norm(x, w, place):
    gain, bias = w.get(f"{place}/gamma", np.ones(D)), w.get(f"{place}/beta", np.zeros(D))
    return reference.layer_norm(x, gain, bias, 1e-6)


def hstu_layer(x, w, i, dialect, visible, bias, n, heads=2):
    """One layer on [S, d] in NumPy, by the table of the two dialects."""
    research = dialect == "research"
    mixed = norm(x, w, f"input_norm_{i}") @ w[f"input_kernel_{i}"]
    mixed = silu(mixed) if research else mixed + w[f"input_bias_{i}"]
    u, v, q, k = np.split(mixed, 4, axis=1)
    u = u if research else silu(u)
    parts = []
    for h in range(heads):
        e = slice(h * D // heads, (h + 1) * D // heads)
        scores = q[:, e] @ k[:, e].T
        scores = scores + bias if research else scores / math.sqrt(D // heads)
        parts.append((silu(scores) / n * visible) @ v[:, e])
    av = np.concatenate(parts, axis=1)
    y = u * norm(av, w, f"output_norm_{i}")
    if research:
        return x + y @ w[f"output_kernel_{i}"] + w[f"output_bias_{i}"]
    return x + np.concatenate([u, av, y], axis=1) @ w[f"output_kernel_{i}"]


def hstu_reference(t, h, mask, age, w, *, dialect, read_out, normalizer, layers=2):
    """One target [d] and one history [L, d] whose masked events are zero; ``age`` may be None.

    Plain loops over pairs, with the clock as the public code has it: times, not ages.
    """
    x, position, valid = h, np.arange(len(h)), mask
    times = None if age is None else -age.astype("int64")
    if read_out == "target_position":
        x = np.concatenate([t[None], x])
        position, valid = np.arange(-1, len(h)), np.concatenate([[True], valid])
        times = None if age is None else np.concatenate([[0], times])
    size = len(x)
    if dialect == "dlrm_v3":
        x = x + w["position_rows"][np.minimum(position + 1, len(w["position_rows"]) - 1)]
        if age is not None:
            x = x + w["time_rows"][[production_bucket(-time) for time in times]]
    visible = np.zeros((size, size))
    biases = [np.zeros((size, size)) for _ in range(layers)]
    for i, j in itertools.product(range(size), range(size)):
        visible[i, j] = position[j] >= position[i] and valid[j]
        newer = [k for k in range(i) if valid[k]]  # the event after i; the last repeats itself
        following = newer[-1] if newer else i
        for layer in range(layers):
            if dialect == "research":
                bias = w[f"distance_bias_{layer}"][max(position[j] - position[i], 0)]
                if age is not None:
                    bucket = research_bucket(times[following] - times[j])
                    bias = bias + w[f"time_bias_{layer}"][bucket]
                biases[layer][i, j] = bias
    n = mask.sum() if normalizer == "length" else len(h)
    for i in range(layers):
        x = hstu_layer(x, w, i, dialect, visible, biases[i], n)
    if read_out == "target_position":
        return x[0]
    return target_attention(t, x, w, 2, mask, prefix="read_out/")


@pytest.mark.parametrize("dialect", ["research", "dlrm_v3"])
@pytest.mark.parametrize("read_out", ["target_attention", "target_position"])
@pytest.mark.parametrize(
    ("normalizer", "clock"), [("max_length", False), ("max_length", True), ("length", True)]
)
def test_equals_numpy(dialect: str, read_out: str, normalizer: str, clock: bool) -> None:
    encoder = HSTUEncoder(2, 2, dialect, read_out, normalizer)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK.copy()}
    inputs["mask"][0, 3] = False  # a hole
    if clock:
        inputs["age"] = AGE
    built(encoder, **inputs)
    w = weights_by_name(encoder)
    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(2), range(N)):
        mask = inputs["mask"][b]
        expected = hstu_reference(
            TARGET[b, n].astype("float64"),
            HISTORY[b].astype("float64") * mask[:, None],
            mask,
            AGE[b] if clock else None,
            w,
            dialect=dialect,
            read_out=read_out,
            normalizer=normalizer,
        )
        assert_close(outputs[b, n, 0], expected, 1e-4)


def encoded(encoder: HSTUEncoder, **inputs: np.ndarray) -> np.ndarray:
    """The encoded history [B, L, d], caught where the read-out gets it."""
    seen = []

    def catch(target: Any, history: Any, mask: Any = None, return_weights: bool = False) -> Any:
        seen.append(history)
        return target, None

    encoder._attention.call = catch
    encoder(**inputs)
    return to_numpy(seen[-1])


@pytest.mark.parametrize("dialect", ["research", "dlrm_v3"])
def test_is_causal_with_time_as_well(dialect: str) -> None:
    """What was computed for an event knows no newer one: so it can be cached as events come in."""
    encoder = HSTUEncoder(2, dialect=dialect)
    inputs = {"target": TARGET, "history": HISTORY, "age": AGE}
    built(encoder, **inputs)
    before = encoded(encoder, **inputs)
    newer = HISTORY.copy()
    newer[:, 3] = np.random.default_rng(3).normal(size=(3, D))
    difference = np.abs(encoded(encoder, **{**inputs, "history": newer}) - before).max(axis=(0, 2))
    assert (difference[:4] > 0).all() and not difference[4:].any()


def test_an_events_own_time_does_not_enter_its_own_row_but_its_followers_does() -> None:
    """``t[i + 1] - t[j]``: the trap is to take the current event's time for i."""
    encoder = HSTUEncoder(1)
    inputs = {"target": TARGET, "history": HISTORY, "age": AGE}
    built(encoder, **inputs)
    before = encoded(encoder, **inputs)
    later = AGE.copy()
    later[:, 4] = later[:, 3]  # event 4 moves up to event 3
    difference = np.abs(encoded(encoder, **{**inputs, "age": later}) - before).max(axis=(0, 2))
    assert difference[5] > 0, "event 4 is what followed event 5"
    assert not difference[6:].any()


def test_constant_times_give_a_constant_time_bias() -> None:
    encoder, plain = HSTUEncoder(1), HSTUEncoder(1)
    same = np.full((3, L), 12345, "int32")
    built(encoder, target=TARGET, history=HISTORY, age=same)
    built(plain, target=TARGET, history=HISTORY)
    first = encoder._layers_weights[0]["time_bias"][0]
    shifted = plain._layers_weights[0]
    for name, weight in shifted.items():
        weight.assign(encoder._layers_weights[0][name])
    shifted["distance_bias"].assign(shifted["distance_bias"] + first)
    for a, b in zip(plain._attention.weights, encoder._attention.weights):
        a.assign(b)
    expected = run(plain, target=TARGET, history=HISTORY)
    assert_close(run(encoder, target=TARGET, history=HISTORY, age=same), expected)


def test_buckets_are_exact_at_every_edge() -> None:
    seconds = np.unique(
        [max(math.ceil(math.exp(0.301 * k)) + o, 0) for k in range(71) for o in (-1, 0, 1)]
    )
    found = to_numpy(research_buckets(seconds.astype("int32")))
    assert found.tolist() == [research_bucket(int(s)) for s in seconds]
    ages = np.unique([max(60 * k**2 + o, 0) for k in range(2100) for o in (-1, 0, 1)])
    found = to_numpy(production_buckets(ages.astype("int32")))
    assert found.tolist() == [production_bucket(int(a)) for a in ages]


@pytest.mark.parametrize("dialect", ["research", "dlrm_v3"])
@pytest.mark.parametrize("normalizer", ["max_length", "length"])
def test_longer_padding_rescales_by_n_unless_n_is_the_users_length(
    dialect: str, normalizer: str
) -> None:
    encoder = HSTUEncoder(1, dialect=dialect, normalizer=normalizer)
    built(encoder, target=TARGET, history=HISTORY)
    randomise(encoder, scale=1.0)
    longer = np.concatenate([HISTORY, np.full((3, 6, D), np.nan, "float32")], axis=1)
    mask = np.concatenate([MASK, np.zeros((3, 6), bool)], axis=1)
    expected = to_numpy(run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    found = to_numpy(run(encoder, target=TARGET, history=longer, mask=mask))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    if normalizer == "length":
        assert error < 1e-5
    elif dialect == "research":
        assert 0 < error < 3e-3, "the norm after the sum hides 1/n"
    else:
        assert error > 1e-2, "the raw sum is read as well"


def test_the_norms_epsilon_does_not_swamp_sums_of_size_one_nth() -> None:
    """With Keras' default of 1e-3 the layer would be silent at n = 1000."""
    length = 1000
    rng = np.random.default_rng(0)
    history = rng.normal(size=(1, length, D)).astype("float32")
    encoder = HSTUEncoder(1)
    built(encoder, target=TARGET[:1], history=history)
    normed = []
    output_norm = encoder._norms[1]
    call = output_norm.call
    output_norm.call = lambda x: normed.append(call(x)) or normed[-1]
    encoder(TARGET[:1], history)
    size = np.sqrt((to_numpy(normed[0]) ** 2).mean(axis=-1))[0, : length // 2]
    assert size.mean() > 0.9


def test_closed_gates_leave_the_input_and_the_bias() -> None:
    encoder = HSTUEncoder(1, read_out="target_position")
    built(encoder, target=TARGET, history=HISTORY)
    kernel = to_numpy(encoder._layers_weights[0]["input_kernel"]).copy()
    kernel[:, :D] = 0.0  # u = SiLU(0)
    encoder._layers_weights[0]["input_kernel"].assign(kernel)
    bias = to_numpy(encoder._layers_weights[0]["output_bias"])
    found = to_numpy(run(encoder, target=TARGET, history=HISTORY))[:, :, 0]
    assert_close(found, TARGET + bias)


@pytest.mark.parametrize("dialect", ["research", "dlrm_v3"])
def test_candidates_never_see_each_other(dialect: str) -> None:
    encoder = HSTUEncoder(2, dialect=dialect, read_out="target_position")
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK, "age": AGE}
    built(encoder, **inputs)
    before = to_numpy(run(encoder, **inputs))
    changed = TARGET.copy()
    changed[:, 1] = 9.0
    after = to_numpy(run(encoder, **{**inputs, "target": changed}))
    assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert np.abs(after[:, 1] - before[:, 1]).max() > 0.1


def test_scores_are_divided_by_n_and_bounded_in_half_precision() -> None:
    encoder = HSTUEncoder(1, dialect="dlrm_v3", dtype="mixed_float16")
    history = np.random.default_rng(0).normal(size=(1, 2000, D)).astype("float32") * 4
    encoder.build((1, 1, D), history.shape)
    randomise(encoder, scale=0.7)
    outputs = run(encoder, target=TARGET[:1], history=history)
    assert np.isfinite(to_numpy(keras.ops.cast(outputs, "float32"))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(TARGET, HISTORY), "`age`, which is missing"),
        (lambda e: e(TARGET, HISTORY, age=AGE.astype("float32")), "`age` must be an integer"),
        (lambda e: e(TARGET, HISTORY, age=AGE[:, :4]), "`age` must have shape"),
        (lambda e: HSTUEncoder(dialect="torch"), "`dialect` must be one of"),
        (lambda e: HSTUEncoder(normalizer="sqrt"), "`normalizer` must be one of"),
        (lambda e: HSTUEncoder(read_out="mean"), "`read_out` must be one of"),
        (lambda e: HSTUEncoder(dropout=1.0), "`dropout` must be a number"),
        (lambda e: HSTUEncoder(num_heads=3)(TARGET, HISTORY), "multiple of `num_heads`"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    encoder = HSTUEncoder()
    encoder.build(TARGET.shape, HISTORY.shape, AGE.shape)
    with pytest.raises(ValueError, match=message):
        call(encoder)


def test_age_needs_an_encoder_built_for_it() -> None:
    encoder = HSTUEncoder()
    encoder.build(TARGET.shape, HISTORY.shape)
    with pytest.raises(ValueError, match="built without an `age`"):
        encoder(TARGET, HISTORY, age=AGE)
