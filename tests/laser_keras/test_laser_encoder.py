"""``LaserEncoder``, ``GlobalStackedTargetAttention`` and ``MultiResolutionFusion``."""

import itertools
from collections.abc import Callable

import keras
import laser_reference as reference
import numpy as np
import pytest
from layer_tools import assert_close, gradients, randomise, to_numpy, weights_by_name

from laser_keras import GlobalStackedTargetAttention, LaserEncoder, MultiResolutionFusion

D = 8


def make(kind: Callable = LaserEncoder, **kwargs: object) -> LaserEncoder:
    arguments = {"key_dim": 3, "segment_size": 4, "num_recent_segments": 2, **kwargs}
    encoder = kind(**arguments)
    encoder.build((None, None, D), (None, None, D))
    randomise(encoder)
    return encoder


def data(candidates: int = 2) -> tuple:
    rng = np.random.default_rng(1)
    mask = np.arange(11) < np.array([[11], [5], [0]])
    target = rng.normal(size=(3, candidates, D)).astype("float32")
    return target, rng.normal(size=(3, 11, D)).astype("float32"), mask


def part(weights: dict, name: str) -> dict:
    return {k.split(f"{name}/", 1)[1]: v for k, v in weights.items() if f"{name}/" in k}


@pytest.mark.parametrize("order", ["project", "absorb", "auto"])
def test_as_printed_equals_the_equations(order: str) -> None:
    encoder = make(LaserEncoder.as_printed, implementation=order, num_layers=3)
    check_equations(encoder, None, reference.refine)


def test_the_defaults_sharpen_the_gate_and_leave_segments_unnormalised() -> None:
    def refine(segments: np.ndarray, weights: dict) -> np.ndarray:
        return segments + reference.feed_forward(segments, weights, "feed_forward/")

    encoder = make(num_layers=3)
    sta = encoder.segmented_attention
    assert to_numpy(sta.score_bias).shape == (2,)  # one offset per head
    check_equations(encoder, 0.1, refine)


def check_equations(encoder: LaserEncoder, gamma: float | None, refine: Callable) -> None:
    """Values of an encoder of three stacked layers against the loops of the reference."""
    target, history, mask = data()
    w = weights_by_name(encoder)
    outputs = to_numpy(encoder(target, history, mask=mask))
    assert outputs.shape == (3, 2, 4, D)
    for b, n in itertools.product(range(3), range(2)):
        t = target[b, n].astype("float64")
        sta, stacked = part(w, "segmented_attention"), part(w, "stacked_attention")
        segments = reference.sta_loop(
            t,
            history[b].astype("float64"),
            sta,
            heads=2,
            key_dim=3,
            segment_size=4,
            mask=mask[b],
            gamma=gamma,
        )
        segments = refine(segments, sta)
        valid = np.array([mask[b, i : i + 4].any() for i in (0, 4, 8)])
        z = reference.gsta(t, segments, stacked, layers=3, heads=2, mask=valid)
        assert_close(outputs[b, n], reference.fuse(z, segments, 2, valid))


def test_a_score_starts_as_a_similarity_and_gates_start_nearly_closed() -> None:
    encoder = LaserEncoder(segment_size=4, num_recent_segments=1)
    encoder.build((None, None, D), (None, None, D))
    sta = encoder.segmented_attention
    np.testing.assert_array_equal(to_numpy(sta.query_kernel), to_numpy(sta.key_kernel))
    np.testing.assert_allclose(to_numpy(sta.score_bias), -np.log(4.0), rtol=1e-6)
    printed = LaserEncoder.as_printed(segment_size=4, num_recent_segments=1)
    printed.build((None, None, D), (None, None, D))
    sta = printed.segmented_attention
    assert np.abs(to_numpy(sta.query_kernel) - to_numpy(sta.key_kernel)).max() > 0.01
    assert sta.score_bias is None


def test_a_silent_segment_stays_small() -> None:
    """Gates near zero: as printed the segment is normalised to full length all the same."""
    lengths = {}
    for make_one in (LaserEncoder, LaserEncoder.as_printed):
        encoder = make_one(segment_size=4, num_recent_segments=1, gate_bias=-6.0)
        target, history = np.ones((1, 1, D), "float32"), data()[1][:1]
        inputs = np.zeros_like(target), history  # a query of zero: the offset alone opens gates
        lengths[make_one] = float(np.linalg.norm(to_numpy(encoder(*inputs))[0, 0, 2]))
    assert lengths[LaserEncoder] < 0.05
    assert lengths[LaserEncoder.as_printed] > 2.0


def test_execution_orders_agree_in_gradient() -> None:
    target, history, mask = data()
    probe = np.random.default_rng(5).normal(size=(3, 2, 4, D)).astype("float32")
    found = []
    for order in ("project", "absorb"):
        encoder = make(implementation=order)

        def loss(t, h, encoder=encoder):
            return keras.ops.sum(keras.ops.multiply(encoder(t, h, mask=mask), probe))

        found.append(gradients(encoder, loss, [target, history]))
    for a, b in zip(*found):
        assert_close(a, b)


def test_empty_history_returns_the_target_and_zeros() -> None:
    encoder = make()
    target, history, mask = data()
    outputs = to_numpy(encoder(target, history, mask=mask))
    np.testing.assert_array_equal(outputs[2, :, 0], target[2])
    assert not outputs[2, :, 1:].any()


def test_works_as_it_stands() -> None:
    outputs = LaserEncoder()(np.ones((1, 128), "float32"), np.ones((1, 1000, 128), "float32"))
    assert tuple(outputs.shape) == (1, 7, 128)


def test_order_and_single_target() -> None:
    target, history, mask = data()
    newest, oldest = make(), make(order="oldest_first")
    expected = to_numpy(newest(target, history, mask=mask))
    flipped = oldest(target, history[:, ::-1].copy(), mask=mask[:, ::-1].copy())
    assert_close(flipped, expected)
    assert_close(newest(target[:, 1], history, mask=mask), expected[:, 1])


def test_permuting_old_segments_leaves_global_and_salient_tokens() -> None:
    encoder = make(num_recent_segments=0)
    target, history, _ = data()
    history = history[:, :8]
    swapped = np.concatenate([history[:, 4:], history[:, :4]], axis=1)
    assert_close(encoder(target, swapped), encoder(target, history))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
def test_gsta_equals_equation_7(heads: int, shared: bool) -> None:
    rng = np.random.default_rng(3)
    target = rng.normal(size=(2, 3, D)).astype("float32")
    history = rng.normal(size=(2, 5, D) if shared else (2, 3, 5, D)).astype("float32")
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    found = []
    for order in ("project", "absorb"):
        layer = GlobalStackedTargetAttention(2, heads, implementation=order)
        layer.build(target.shape, history.shape)
        randomise(layer)
        w = weights_by_name(layer)
        spoiled = history.copy()
        spoiled[~(mask if shared else np.broadcast_to(mask[:, None], (2, 3, 5)))] = np.nan
        outputs = to_numpy(layer(target, spoiled, mask=mask))
        for b, n in itertools.product(range(2), range(3)):
            sequence = history[b] if shared else history[b, n]
            expected = reference.gsta(
                target[b, n].astype("float64"),
                sequence.astype("float64"),
                w,
                layers=2,
                heads=heads,
                mask=mask[b],
            )
            assert_close(outputs[b, n], expected)

        def loss(t, h, layer=layer):
            return keras.ops.sum(keras.ops.sin(layer(t, h, mask=mask)))

        found.append(gradients(layer, loss, [target, history]))
    for a, b in zip(*found):
        assert_close(a, b)


@pytest.mark.parametrize("norm", ["none", "post", "pre"])
@pytest.mark.parametrize("expansion", [0, 3])
@pytest.mark.parametrize("order", ["project", "absorb"])
def test_gsta_with_norms_and_networks_equals_numpy(norm: str, expansion: int, order: str) -> None:
    rng = np.random.default_rng(3)
    target = rng.normal(size=(2, D)).astype("float32")
    history = rng.normal(size=(2, 5, D)).astype("float32")
    mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    layer = GlobalStackedTargetAttention(
        2, implementation=order, norm=norm, ffn_expansion=expansion, epsilon=1e-3
    )
    layer.build(target.shape, history.shape)
    randomise(layer)
    w = weights_by_name(layer)
    outputs = to_numpy(layer(target, history, mask=mask))

    def add(x, part, name):
        def normalised(x):
            return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-3)

        if norm == "none":
            return x + part(x)
        return x + part(normalised(x)) if norm == "pre" else normalised(x + part(x))

    for b in range(2):
        t = target[b].astype("float64")
        for i in range(2):
            own = {
                f"{kind}_kernel_0": w[f"{kind}_kernel_{i}"] for kind in ("query", "key", "value")
            }

            def attention(x, own=own, b=b):
                s = history[b].astype("float64")
                return reference.gsta(x, s, own, layers=1, heads=2, mask=mask[b]) - x

            t = add(t, attention, f"attention_norm_{i}")
            if expansion:
                network = f"feed_forward_{i}/"
                t = add(t, lambda x, n=network: reference.feed_forward(x, w, n), f"ffn_norm_{i}")
        assert_close(outputs[b], t)
    assert len(w) == 2 * (3 + 2 * (norm != "none") + (4 + 2 * (norm != "none")) * bool(expansion))


def test_the_encoder_hands_its_stack_the_options() -> None:
    stack = make(stacked_norm="pre", stacked_ffn_expansion=3, epsilon=1e-4).stacked_attention
    assert (stack.norm, stack.ffn_expansion, stack.epsilon) == ("pre", 3, 1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "batch"}, "`norm` must be one of .*Received: 'batch'"),
        ({"ffn_expansion": -1}, "`ffn_expansion` must be an integer of at least 0. Received: -1"),
    ],
)
def test_gsta_options_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlobalStackedTargetAttention(**arguments)


def test_gsta_limits() -> None:
    rng = np.random.default_rng(3)
    target, history = rng.normal(size=(2, D)), rng.normal(size=(2, 5, D))
    target, history = target.astype("float32"), history.astype("float32")
    np.testing.assert_array_equal(
        to_numpy(GlobalStackedTargetAttention(0)(target, history)), target
    )
    layer = GlobalStackedTargetAttention(2)
    layer.build(target.shape, history.shape)
    for kernel in layer.value_kernels:
        kernel.assign(np.zeros((D, D)))
    np.testing.assert_array_equal(to_numpy(layer(target, history)), target)


def test_gsta_auto_absorbs_except_for_many_candidates_of_one_sequence() -> None:
    layer = GlobalStackedTargetAttention(num_heads=2)
    assert layer.resolve_implementation(None, (None, None, None, 128)) == "absorb"
    assert layer.resolve_implementation(1, (None, 1000, 128)) == "absorb"
    assert layer.resolve_implementation(500, (None, 1000, 128)) == "project"
    assert layer.resolve_implementation(None, (None, 1000, 128)) == "project"


def test_fusion_golden() -> None:
    z = np.array([[[9.0, 8.0]], [[7.0, 6.0]]], "float32")
    segments = np.array([[[[-1, -2], [-3, -1], [5, 5]]]] * 2, "float32")
    mask = np.array([[True, True, False], [False, False, False]])
    fused = to_numpy(MultiResolutionFusion(3)(z, segments, mask=mask))
    assert fused[0, 0].tolist() == [[9, 8], [-1, -1], [-1, -2], [-3, -1], [0, 0]]
    assert fused[1, 0].tolist() == [[7, 6], [0, 0], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("masked", [False, True])
def test_without_the_salient_token_the_others_stay(masked: bool) -> None:
    target, history, mask = data()
    whole, without = make(), make(salient_token=False)
    without.set_weights(whole.get_weights())
    given = {"mask": mask} if masked else {}
    tokens, fewer = to_numpy(whole(target, history, **given)), without(target, history, **given)
    assert tuple(fewer.shape) == (3, 2, without.num_output_tokens, D) == (3, 2, 3, D)
    assert without.compute_output_shape((3, 2, D), (3, 11, D)) == (3, 2, 3, D)
    assert_close(fewer, tokens[:, :, [0, 2, 3]])
    again = LaserEncoder.from_config(without.get_config())
    assert again.num_output_tokens == 3


def test_the_gradient_of_the_salient_view_goes_to_the_maximum() -> None:
    """Behind a normalisation, where XLA computes the segments twice and rounds twice."""
    rng = np.random.default_rng(7)
    z, segments = rng.normal(size=(2, 3, D)), rng.normal(size=(2, 3, 40, D))
    mask = np.arange(40) < np.array([[40], [17]])
    norm, fusion = keras.layers.LayerNormalization(epsilon=1e-6), MultiResolutionFusion(0)
    norm.build((None, None, None, D))

    def loss(t, h):
        return keras.ops.sum(fusion(t, norm(h), mask=mask)[..., 1, :])

    found = gradients(norm, loss, [z.astype("float32"), segments.astype("float32")])
    # Every candidate passes 1 per feature on to the shift of the normalisation.
    assert_close(found[1], np.full(D, 2.0 * 3.0, "float32"))
