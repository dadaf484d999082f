"""Values, gradients and properties of ``SegmentedTargetAttention``."""

import itertools
import math
from typing import Any

import keras
import laser_reference as reference
import numpy as np
import pytest
from layer_tools import (
    assert_close,
    float64_enabled,
    gradients,
    randomise,
    to_numpy,
    weights_by_name,
)

from laser_keras import SegmentedTargetAttention

D, HEADS, KEY_DIM = 8, 2, 3
ORDERS = ("project", "absorb")


def make(seed: int = 0, **kwargs: object) -> SegmentedTargetAttention:
    arguments = {"num_heads": HEADS, "key_dim": KEY_DIM, "segment_size": 4, **kwargs}
    layer = SegmentedTargetAttention(**arguments)
    layer.build((None, None, D), (None, None, D))
    randomise(layer, seed)
    return layer


def twins(**kwargs: object) -> list[SegmentedTargetAttention]:
    return [make(implementation=order, **kwargs) for order in ORDERS]


def data(batch: int = 3, candidates: int = 2, length: int = 11, seed: int = 1) -> tuple:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(batch, candidates, D)).astype("float32")
    history = rng.normal(size=(batch, length, D)).astype("float32")
    mask = np.arange(length) < np.array([length, 5, 0])[:batch, None]
    return target, history, mask


VARIANTS = [
    {},
    {"use_bias": True, "gate_bias": -1.0},
    {"gate": "softmax", "use_bias": True},
    {"num_heads": 1},
    {"segment_size": 1},
    {"segment_size": 11},
    {"segment_size": 100},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_equals_the_naive_loop_of_the_paper(variant: dict, order: str) -> None:
    layer = make(implementation=order, **variant)
    target, history, mask = data()
    w = weights_by_name(layer)
    outputs = to_numpy(layer(target, history, mask=mask))
    for b, n in itertools.product(range(3), range(2)):
        segments = reference.sta_loop(
            target[b, n].astype("float64"),
            history[b].astype("float64"),
            w,
            heads=layer.num_heads,
            key_dim=KEY_DIM,
            segment_size=layer.segment_size,
            mask=mask[b],
            gate=layer.gate,
        )
        assert_close(outputs[b, n], reference.refine(segments, w))


@pytest.mark.parametrize("order", ORDERS)
def test_equals_the_vectorised_form_of_the_paper(order: str) -> None:
    layer = make(implementation=order, num_heads=1)
    target, history, _ = data(batch=2, candidates=1, length=12)
    w = weights_by_name(layer)
    for b in range(2):
        segments = reference.sta_vectorised(
            target[b, 0].astype("float64"),
            history[b].astype("float64"),
            w,
            key_dim=KEY_DIM,
            segment_size=4,
        )
        assert_close(layer(target, history)[b, 0], reference.refine(segments, w))


@pytest.mark.parametrize("candidates", [1, 2, 12, 20])
@pytest.mark.parametrize("variant", [{}, {"use_bias": True, "gate_bias": 0.5, "gamma": "learned"}])
def test_execution_orders_agree_in_value_and_gradient(candidates: int, variant: dict) -> None:
    target, history, mask = data(candidates=candidates)
    probe = np.random.default_rng(5).normal(size=(3, candidates, 3, D)).astype("float32")

    def run(layer: SegmentedTargetAttention) -> tuple:
        def loss(t, h):
            return keras.ops.sum(keras.ops.multiply(layer(t, h, mask=mask), probe))

        return layer(target, history, mask=mask), gradients(layer, loss, [target, history])

    expected, expected_gradients = run(make(implementation="project", **variant))
    assert any(np.abs(g).max() > 0 for g in expected_gradients)
    for order in ("absorb", "auto"):
        value, found = run(make(implementation=order, **variant))
        assert_close(value, expected)
        for a, b in zip(found, expected_gradients):
            assert_close(a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_float64_orders_agree_to_1e_10_in_value_and_gradient(masked: bool) -> None:
    target, history, mask = (np.asarray(x) for x in data(length=12))
    target, history = target.astype("float64"), history.astype("float64")
    with float64_enabled():
        found = []
        for layer in twins(dtype="float64", use_bias=True, gate_bias=-1.0):

            def function(t: Any, h: Any, layer: Any = layer) -> Any:
                return layer(t, h, mask=mask if masked else None)

            def loss(t: Any, h: Any, function: Any = function) -> Any:
                return keras.ops.sum(keras.ops.sin(function(t, h)))

            outputs = function(target, history)
            assert str(keras.backend.standardize_dtype(outputs.dtype)) == "float64"
            found.append([outputs, *gradients(layer, loss, [target, history])])
        for project, absorb in zip(*found):
            assert_close(absorb, project, relative=1e-10)


def test_auto_resolves_from_the_static_number_of_candidates() -> None:
    layer = SegmentedTargetAttention()
    expected = {1: (True, True), 9: (True, True), 10: (True, False), 17: (True, False)}
    expected |= {18: (False, False), 500: (False, False), None: (False, False)}
    for candidates, choice in expected.items():
        assert layer.resolve_implementation(candidates, 1000, 128) == choice


@pytest.mark.parametrize("order", ORDERS)
def test_padding_never_matters_even_when_it_is_nan(order: str) -> None:
    layer = make(implementation=order, use_bias=True)
    target, history, mask = data()
    expected = to_numpy(layer(target, history, mask=mask))
    for filler in (1e4, np.nan, np.inf):
        spoiled = np.where(mask[..., None], history, np.float32(filler))
        np.testing.assert_array_equal(to_numpy(layer(target, spoiled, mask=mask)), expected)
    longer = np.concatenate([history, np.full((3, 5, D), np.nan, "float32")], axis=1)
    longer_mask = np.concatenate([mask, np.zeros((3, 5), bool)], axis=1)
    assert_close(layer(target, longer, mask=longer_mask)[:, :, :3], expected)

    def loss(t, h):
        return keras.ops.sum(keras.ops.square(layer(t, h, mask=mask)))

    spoiled = np.where(mask[..., None], history, np.float32(np.nan))
    for clean, dirty in zip(
        gradients(layer, loss, [target, np.where(mask[..., None], history, 0)]),
        gradients(layer, loss, [target, spoiled]),
    ):
        assert_close(dirty, clean)


@pytest.mark.parametrize("order", ORDERS)
def test_segments_are_a_prefix_property(order: str) -> None:
    layer = make(implementation=order)
    target, history, _ = data(length=12)
    whole = to_numpy(layer(target, history))
    assert_close(layer(target, history[:, :8]), whole[:, :, :2])


def test_permuting_events_inside_a_segment_changes_nothing() -> None:
    target, history, _ = data(length=8)
    shuffled = history[:, [2, 0, 3, 1, 4, 5, 6, 7]]
    for layer in twins():
        assert_close(layer(target, shuffled), layer(target, history))


def test_candidates_in_one_call_equal_separate_calls() -> None:
    target, history, mask = data(candidates=3)
    for layer in (*twins(), make()):
        together = to_numpy(layer(target, history, mask=mask))
        for n in range(3):
            assert_close(layer(target[:, n : n + 1], history, mask=mask)[:, 0], together[:, n])
            assert_close(layer(target[:, n], history, mask=mask), together[:, n])


def test_oldest_first_accepts_padding_on_either_side() -> None:
    target, history, mask = data()
    rng = np.random.default_rng(3)
    similarity = rng.normal(size=(3, 2, 11, 2)).astype("float32")
    left, left_s = history[:, ::-1].copy(), similarity[:, :, ::-1].copy()
    right, right_s = np.full_like(history, 7.0), np.full_like(similarity, 7.0)
    for b, count in enumerate(mask.sum(axis=1)):
        right[b, :count] = history[b, :count][::-1]
        right_s[b, :, :count] = similarity[b, :, :count][:, ::-1]
    layers = []
    for order in ("newest_first", "oldest_first"):
        layer = SegmentedTargetAttention(HEADS, KEY_DIM, 4, order=order)
        layer.build(target.shape, history.shape, similarity.shape)
        randomise(layer)
        layers.append(layer)
    newest, oldest = layers
    expected = newest(target, history, mask=mask, similarity=similarity)
    assert_close(oldest(target, left, mask=mask[:, ::-1], similarity=left_s), expected)
    assert_close(oldest(target, right, mask=mask, similarity=right_s), expected)
    assert_close(
        oldest(target, left, similarity=left_s), newest(target, history, similarity=similarity)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_similarity_equals_adding_its_projection_to_the_history(order: str, use_bias: bool) -> None:
    layer = SegmentedTargetAttention(HEADS, KEY_DIM, 4, implementation=order, use_bias=use_bias)
    target, history, mask = data()
    similarity = np.random.default_rng(2).normal(size=(3, 2, 11, 2)).astype("float32")
    layer.build(target.shape, history.shape, similarity.shape)
    randomise(layer)
    w = weights_by_name(layer)
    spoiled = np.where(mask[:, None, :, None], similarity, np.nan)
    outputs = to_numpy(layer(target, history, mask=mask, similarity=spoiled))
    for b, n in itertools.product(range(3), range(2)):
        segments = reference.sta_loop(
            target[b, n].astype("float64"),
            history[b] + similarity[b, n] @ w["similarity_kernel"],
            w,
            heads=HEADS,
            key_dim=KEY_DIM,
            segment_size=4,
            mask=mask[b],
        )
        assert_close(outputs[b, n], reference.refine(segments, w))


def test_golden_gates_by_hand() -> None:
    """Two events, one head, unit projections: gates sigmoid(1) and sigmoid(-1)."""
    layer = SegmentedTargetAttention(1, 1, 2, ffn_expansion=0, norm="none", gamma=2.0)
    layer.build((1, 2), (1, 2, 2))
    layer.query_kernel.assign([[1.0], [0.0]])
    layer.key_kernel.assign([[0.0], [1.0]])
    layer.value_kernel.assign([[1.0, 0.0], [0.0, 10.0]])
    target = np.array([[2.0, 5.0]], "float32")
    history = np.array([[[3.0, 1.0], [7.0, -1.0]]], "float32")
    up, down = 0.7310585786300049, 0.2689414213699951
    expected = [[[3 * up + 7 * down, 10 * up - 10 * down]]]
    assert_close(layer(target, history), np.array(expected, "float32"))


def test_infinite_gamma_halves_the_sum_of_valid_values() -> None:
    layer = make(gamma=math.inf, ffn_expansion=0, norm="none")
    target, history, mask = data()
    values = np.where(mask[..., None], history, 0) @ to_numpy(layer.value_kernel)
    values = np.pad(values, ((0, 0), (0, 1), (0, 0))).reshape(3, 1, 3, 4, D)
    expected = np.broadcast_to(0.5 * values.sum(axis=3), (3, 2, 3, D))
    assert_close(layer(target, history, mask=mask), expected)


def test_zero_values_give_the_null_token() -> None:
    for layer in twins(norm="none", ffn_expansion=0):
        layer.value_kernel.assign(np.zeros((D, D)))
        target, history, mask = data()
        assert not to_numpy(layer(target, history, mask=mask)).any()


def test_layer_norm_hides_the_size_of_the_gates() -> None:
    """Silence does not reach the next layer: gates a hundred times smaller, the same norm."""
    quiet = make(gate_bias=-7.0)
    loud = make(gate_bias=-7.0 + math.log(100.0))
    for layer, bias in ((quiet, -7.0), (loud, -7.0 + math.log(100.0))):
        layer.score_bias.assign([bias] * HEADS)
        for weight in layer.weights:
            if "layer_norm" in weight.path:
                weight.assign(np.full(weight.shape, 1.0 if "gamma" in weight.path else 0.0))
    target, history, _ = data(length=12)
    for layer in (quiet, loud):
        norms = np.linalg.norm(to_numpy(layer(target, history)), axis=-1)
        np.testing.assert_allclose(norms, math.sqrt(D), rtol=2e-2)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("use_bias", [False, True])
def test_wide_values_and_the_output_projection(order: str, use_bias: bool) -> None:
    layer = make(implementation=order, value_dim=D, use_output_projection=True, use_bias=use_bias)
    target, history, mask = data()
    w = weights_by_name(layer)
    outputs = to_numpy(layer(target, history, mask=mask))
    assert w["value_kernel"].shape == (D, HEADS * D)
    for b, n in itertools.product(range(3), range(2)):
        heads = []
        for head in range(HEADS):
            keys, values = (slice(head * size, (head + 1) * size) for size in (KEY_DIM, D))
            own = {
                f"{kind}_{part}": w[f"{kind}_{part}"][..., values if kind == "value" else keys]
                for kind in ("query", "key", "value")
                for part in (("kernel", "bias") if use_bias else ("kernel",))
            }
            heads.append(
                reference.sta_loop(
                    target[b, n].astype("float64"),
                    history[b].astype("float64"),
                    own,
                    heads=1,
                    key_dim=KEY_DIM,
                    segment_size=4,
                    mask=mask[b],
                )
            )
        segments = np.concatenate(heads, axis=-1) @ w["output_kernel"] + w.get("output_bias", 0.0)
        # The reference finds its network by the names' ends.
        refinement = {k: v for k, v in w.items() if k not in ("output_kernel", "output_bias")}
        assert_close(outputs[b, n], reference.refine(segments, refinement))


def test_values_of_another_width_need_the_output_projection() -> None:
    with pytest.raises(ValueError, match="`value_dim` times `num_heads` must be the width d"):
        make(value_dim=D)


def test_default_weights_match_the_paper() -> None:
    layer = SegmentedTargetAttention()
    layer.build((None, None, 128), (None, 1000, 128))
    shapes = {name: value.shape for name, value in weights_by_name(layer).items()}
    assert shapes["query_kernel"] == shapes["key_kernel"] == (128, 32)
    assert shapes["value_kernel"] == (128, 128)
    assert layer.count_params() == 2 * 128 * 32 + 128 * 128 + 2 * 4 * 128**2 + 5 * 128 + 2 * 128
