"""``TransformerEncoder`` (with it "Base") and the controls."""

import itertools
import math
from typing import Any

import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, RNG, TARGET, L, N, heads_of, target_attention
from keras import ops
from layer_tools import (
    assert_close,
    built,
    float64_enabled,
    gradients,
    run,
    to_numpy,
    weights_by_name,
)

from laser_keras import PoolingEncoder, TransformerEncoder

SEQUENCE = {"target": TARGET, "history": HISTORY, "mask": MASK}


def self_attention(x, w, i, heads, mask):
    q, k, v = (heads_of(x @ w[f"{kind}_kernel_{i}"], heads) for kind in ("query", "key", "value"))
    if not mask.any():
        return np.zeros_like(x)
    rows = []
    for row in range(x.shape[0]):
        parts = []
        for h in range(heads):
            scores = k[mask][:, h] @ q[row, h] / math.sqrt(q.shape[-1])
            parts.append(reference.softmax(scores) @ v[mask][:, h])
        rows.append(np.concatenate(parts))
    return np.stack(rows) @ w[f"output_kernel_{i}"]


def transformer_reference(t, h, mask, w, layers, append, ffn):
    x = h * mask[:, None]
    if append:
        x, mask = np.concatenate([t[None], x]), np.concatenate([[True], mask])

    def norm(x, name):
        return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    for i in range(layers):
        if ffn:
            x = x + self_attention(norm(x, f"attention_norm_{i}"), w, i, 2, mask)
            x = x + reference.feed_forward(norm(x, f"ffn_norm_{i}"), w, f"ffn_{i}/")
        else:
            x = x + self_attention(x, w, i, 2, mask)
    return target_attention(t, x, w, 2, mask, prefix="read_out/"), x, mask


@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("ffn", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_numpy(append: bool, ffn: int, dtype: str) -> None:
    with float64_enabled():
        layer = TransformerEncoder(2, ffn_expansion=ffn, append_target=append, dtype=dtype)
        built(layer, **SEQUENCE)
        w = weights_by_name(layer)
        outputs = to_numpy(run(layer, **SEQUENCE))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        expected, _, _ = transformer_reference(t, h, MASK[b], w, 2, append, ffn)
        # TensorFlow's GELU divides by a float32 root of 2, in float64 too.
        exact = 1e-7 if ffn else 1e-10
        assert_close(outputs[b, n, 0], expected, exact if dtype == "float64" else 1e-5)


def test_parallel_mode_equals_numpy() -> None:
    layer = built(TransformerEncoder(append_target=False, mode="parallel"), **SEQUENCE)
    w = weights_by_name(layer)
    outputs = to_numpy(run(layer, **SEQUENCE))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        _, x, mask = transformer_reference(t, h, MASK[b], w, 1, False, 0)
        of_events = target_attention(t, h, w, 2, MASK[b], prefix="read_out/")
        mean = x[mask].mean(axis=0) if mask.any() else np.zeros_like(t)
        assert_close(outputs[b, n], np.stack([of_events, mean]))


def test_one_event() -> None:
    layer = built(TransformerEncoder(), target=TARGET, history=HISTORY[:, :1])
    w = weights_by_name(layer)
    outputs = to_numpy(run(layer, target=TARGET, history=HISTORY[:, :1]))
    expected, _, _ = transformer_reference(
        TARGET[0, 0].astype("float64"),
        HISTORY[0, :1].astype("float64"),
        np.array([True]),
        w,
        1,
        True,
        0,
    )
    assert_close(outputs[0, 0, 0], expected)


@pytest.mark.parametrize("ffn", [0, 2])
def test_the_first_layer_shared_by_the_targets_equals_one_sequence_per_target(ffn: int) -> None:
    """``attend_with_appended_target`` beside plain attention over ``[target; history]``."""
    target, history = TARGET.astype("float64"), HISTORY.astype("float64")
    mask = np.concatenate([np.ones((len(MASK), 1), bool), MASK], axis=1)
    steps = np.linspace(-1, 1, N)[:, None]

    def shared(target: Any, history: Any) -> Any:
        return ops.sum(ops.multiply(encoder(target, history, mask=MASK)[:, :, 0], steps))

    def one_by_one(target: Any, history: Any) -> Any:
        # The target is one more event there, and sees and is seen as such.
        found = []
        for n in range(N):
            own = target[:, n : n + 1]
            found.append(plain(own, ops.concatenate([own, history], axis=1), mask=mask)[:, 0, 0])
        return ops.sum(ops.multiply(ops.stack(found, axis=1), steps))

    with float64_enabled():
        encoder = TransformerEncoder(ffn_expansion=ffn, dtype="float64")
        plain = TransformerEncoder(ffn_expansion=ffn, append_target=False, dtype="float64")
        for each in (encoder, plain):
            built(each, target=target, history=history)
        for mine, theirs in zip(plain.weights, encoder.weights, strict=True):
            mine.assign(theirs)
        results = [
            [to_numpy(function(*map(ops.convert_to_tensor, (target, history))))]
            + gradients(layer, function, [target, history])
            for function, layer in ((shared, encoder), (one_by_one, plain))
        ]
    # Newer versions of Keras normalise in float32 for float64 inputs. Some gradients are zero: what
    # an attention adds to all of its keys has no effect.
    relative, absolute = (1e-6, 1e-6) if ffn else (1e-9, 1e-12)
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=relative, atol=absolute)


def test_half_precision_holds_the_sum_of_many_events() -> None:
    """The sum over 3,000 events of 60 is above the largest float16, their mean is not."""
    encoder = TransformerEncoder(num_heads=1, dtype="float16")
    target, history = np.zeros((1, 1, 2), "float16"), np.full((1, 3000, 2), 60.0, "float16")
    encoder.build(target.shape, history.shape)
    for weight in encoder.weights:
        identity = "value" in weight.path or "output" in weight.path
        weight.assign(np.eye(2) if identity else np.zeros((2, 2)))
    outputs = to_numpy(run(encoder, target=target, history=history))
    # Each event reads the mean of 3,000 events and the target and is added to it: near 120, but
    # for the rounding of 3,000 weights and of their running sums to 11 bits.
    np.testing.assert_allclose(outputs, np.full((1, 1, 1, 2), 120.0), rtol=0.05)


def test_without_positions_the_order_does_not_matter() -> None:
    layer = built(TransformerEncoder(2, ffn_expansion=2), target=TARGET, history=HISTORY)
    shuffled = HISTORY[:, RNG.permutation(L)]
    expected = run(layer, target=TARGET, history=HISTORY)
    assert_close(run(layer, target=TARGET, history=shuffled), expected, 1e-4)


@pytest.mark.parametrize("append", [True, False])
def test_an_empty_history_is_finite_and_reads_the_target_or_nothing(append: bool) -> None:
    layer = built(TransformerEncoder(append_target=append), **SEQUENCE)
    outputs = to_numpy(run(layer, **SEQUENCE))[2]
    assert np.isfinite(outputs).all()
    assert outputs.any() == append


@pytest.mark.parametrize(
    "encoder",
    [
        TransformerEncoder(recent_events=4, mode="parallel"),
        TransformerEncoder(recent_events=4),
        PoolingEncoder(recent_events=4),
    ],
    ids=["base_parallel", "base", "recent_mean"],
)
def test_base_and_the_recent_control_see_the_newest_events_only(encoder) -> None:
    if not encoder.built:
        built(encoder, target=TARGET, history=HISTORY)
    older = HISTORY.copy()
    older[:, 4:] = 9.0
    np.testing.assert_array_equal(
        to_numpy(run(encoder, target=TARGET, history=older)),
        to_numpy(run(encoder, target=TARGET, history=HISTORY)),
    )


def test_pooling_is_the_mean_of_valid_events() -> None:
    outputs = to_numpy(run(PoolingEncoder(), **SEQUENCE))[:, :, 0]
    assert_close(outputs[0, 1], HISTORY[0].mean(axis=0))
    assert_close(outputs[1, 0], HISTORY[1, :5].mean(axis=0))
    assert not outputs[2].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TransformerEncoder(num_heads=3)(TARGET, HISTORY), "multiple of `num_heads`"),
        (lambda: TransformerEncoder(num_layers=0), "`num_layers` must be an integer"),
        (lambda: TransformerEncoder(mode="both"), "`mode` must be one of"),
        (lambda: TransformerEncoder(recent_events=0), "`recent_events` must be an integer"),
        (lambda: TransformerEncoder(dropout=-1), "`dropout` must be a number"),
        (lambda: PoolingEncoder(recent_events=0), "`recent_events` must be an integer"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
