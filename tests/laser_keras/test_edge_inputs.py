"""Inputs at the edges: empty axes, extreme numbers, narrow integers, masks that are not boolean."""

import warnings
from typing import Any

import keras
import numpy as np
import pytest
from layer_tools import BACKEND, assert_close, float64_enabled, gradients, randomise, run, to_numpy

import laser_keras
from laser_keras import (
    Dice,
    GlobalStackedTargetAttention,
    LaserEncoder,
    MultiResolutionFusion,
    RankMixer,
    RecencyEmbedding,
    SegmentedTargetAttention,
)
from laser_keras.activations import gelu_tanh
from laser_keras.sequence import masked_softmax

ENCODERS = {
    "laser": lambda: LaserEncoder(key_dim=3, segment_size=4, num_recent_segments=2),
    "laser_projected": lambda: LaserEncoder(
        segment_size=4, num_recent_segments=0, order="oldest_first", implementation="project"
    ),
    "twin": lambda: laser_keras.TWINEncoder(4, 2, 3),
    "longer": lambda: laser_keras.LONGEREncoder(2, 3, 1, 2, 2),
    "din": laser_keras.DINEncoder,
    "hstu_target_position": lambda: laser_keras.HSTUEncoder(read_out="target_position"),
    "hstu_own_length": lambda: laser_keras.HSTUEncoder(normalizer="length"),
    "transformer": laser_keras.TransformerEncoder,
    "sim": lambda: laser_keras.SIMEncoder("soft", 4),
    "stca": laser_keras.STCAEncoder,
}


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("sizes", [(0, 2, 11), (2, 0, 11), (2, 3, 0)])
def test_empty_axes_give_empty_outputs_of_the_right_shape(name: str, sizes: tuple) -> None:
    batch, candidates, length = sizes
    target = np.ones((batch, candidates, 8), "float32")
    history = np.ones((batch, length, 8), "float32")
    encoder = ENCODERS[name]()
    mask = np.ones((batch, length), bool)
    outputs = run(encoder, target=target, history=history, mask=mask)
    assert tuple(outputs.shape) == (batch, candidates, encoder.num_output_tokens, 8)
    assert np.isfinite(to_numpy(outputs)).all()
    if name == "laser" and not length:  # a user without history
        assert_close(outputs[:, :, 0], target)
        assert not to_numpy(outputs[:, :, 1:]).any()


def test_the_maximum_of_very_low_segments_is_theirs_and_has_a_gradient() -> None:
    z, segments = np.zeros((1, 2), "float32"), np.array([[[-9e4, -1e6], [-8e4, -2e6]]], "float32")
    mask = np.array([[True, True]])
    fusion = MultiResolutionFusion(0)
    assert to_numpy(fusion(z, segments, mask=mask))[0, 1].tolist() == [-8e4, -1e6]
    loss = lambda s: keras.ops.sum(fusion(keras.ops.zeros((1, 2)), s, mask=mask))  # noqa: E731
    (gradient,) = gradients(fusion, loss, [segments])
    assert gradient.tolist() == [[[0.0, 1.0], [1.0, 0.0]]]


def test_scores_below_any_fill_value_are_still_preferred_to_padding() -> None:
    scores = keras.ops.convert_to_tensor(np.array([[-2e30, -1e38, 0.0]], "float32"))
    mask = keras.ops.convert_to_tensor(np.array([[True, True, False]]))
    assert to_numpy(masked_softmax(scores, mask)).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("dtype", "filler"), [("float32", 1e4), ("float32", 3e38), ("mixed_float16", 1e4)]
)
def test_finite_padding_reaches_no_gradient_however_large(dtype: str, filler: float) -> None:
    """The loss scale of a half-precision optimiser makes the gradients large as well."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 1, 8)).astype("float32")
    history = rng.normal(size=(2, 12, 8)).astype("float32")
    mask = np.arange(12) < np.array([[12], [5]])
    layer = SegmentedTargetAttention(2, 3, 4, norm="none", ffn_expansion=0, dtype=dtype)
    layer.build(target.shape, history.shape)
    # Small queries keep the scores of the padding finite: nothing tells it from valid events.
    randomise(layer, scale=1e-4)
    layer.value_kernel.assign(rng.normal(size=(8, 8)))
    scale = 2.0**10 if dtype == "mixed_float16" else 3e4

    def loss(t: Any, h: Any) -> Any:
        return keras.ops.sum(keras.ops.cast(layer(t, h, mask=mask), "float32")) * scale

    spoiled = np.where(mask[..., None], history, np.float32(filler))
    clean = gradients(layer, loss, [target, np.where(mask[..., None], history, 0)])
    for dirty, expected in zip(gradients(layer, loss, [target, spoiled]), clean, strict=True):
        assert_close(dirty, expected, 1e-3)


def test_moments_ignore_what_a_mask_hides_even_nan() -> None:
    values = np.array([[[1.0], [3.0], [np.nan]], [[5.0], [3e38], [np.inf]]], "float32")
    mask = np.array([[True, True, False], [True, False, False]])
    dice = Dice(momentum=0.0)
    run(dice, inputs=values, mask=mask, training=True)
    assert to_numpy(dice.moving_mean).tolist() == [3.0]
    assert_close(dice.moving_variance, np.array([8 / 3], "float32"))


def test_integers_of_numpy_are_integers() -> None:
    layer = SegmentedTargetAttention(num_heads=np.int64(2), value_dim=np.int32(4))
    assert type(layer.num_heads) is int and type(layer.value_dim) is int
    keras.saving.serialize_keras_object(layer)
    with pytest.raises(ValueError, match=r"`num_heads` must be an integer .*Received: True"):
        SegmentedTargetAttention(num_heads=True)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int8", "int32"])
def test_ages_of_a_narrow_type_find_the_same_rows(dtype: str) -> None:
    age = np.array([0, 60, 120], dtype)
    layer = RecencyEmbedding(4)
    assert to_numpy(layer.rows(age)).tolist() == [1, 9, 13]
    hstu = laser_keras.HSTUEncoder(dialect="dlrm_v3")
    target, history = np.ones((1, 1, 8), "float32"), np.ones((1, 3, 8), "float32")
    wide = to_numpy(hstu(target, history, age=age[None].astype("int32")))
    assert_close(hstu(target, history, age=age[None]), wide)


def test_an_int8_mask_is_a_mask() -> None:
    rng = np.random.default_rng(0)
    target, history = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 12, 8))
    mask = np.arange(12) < np.array([[12], [5]])
    encoder = LaserEncoder(segment_size=4, num_recent_segments=2)
    expected = to_numpy(run(encoder, target=target, history=history, mask=mask))
    assert_close(encoder(target, history, mask=mask.astype("int8")), expected)
    with pytest.raises(ValueError, match=r"must be boolean .* or int8. Received dtype: int32"):
        encoder(target, history, mask=mask.astype("int32"))


def test_swapped_arguments_are_named() -> None:
    target, history = np.ones((2, 3, 8), "float32"), np.ones((2, 100, 8), "float32")
    message = r"`target` before `history`.*target \(2, 100, 8\), history \(2, 3, 8\)"
    with pytest.raises(ValueError, match=message):
        LaserEncoder()(history, target)


def test_one_segment_gives_no_warning_and_the_segments_own_value() -> None:
    target, segments = np.ones((1, 1, 4), "float32"), np.full((1, 1, 4), 2.0, "float32")
    layer = GlobalStackedTargetAttention(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = layer(target, segments)
    assert_close(outputs[0], target[0] + segments[0] @ to_numpy(layer.value_kernels[0]))


def test_gelu_is_exact_in_float64_everywhere() -> None:
    """One definition for all networks: TensorFlow's own is off by 1e-8."""
    with float64_enabled():
        from laser_keras import FeatureMLP, FeedForward, PerTokenFeedForward

        x = np.linspace(-3, 3, 12).reshape(1, 3, 4)
        identity, zeros = np.eye(4), np.zeros(4)
        expected = x * 0.5 * (1 + np.vectorize(__import__("math").erf)(x / np.sqrt(2)))
        shared, dropped = (FeedForward(1, dropout=p, dtype="float64") for p in (0.0, 0.5))
        per_token = PerTokenFeedForward(1, dtype="float64")
        mlp = FeatureMLP(4, 1, "gelu", dtype="float64")
        for layer in (shared, dropped, per_token, mlp):
            layer.build(x.shape)
            for weight in layer.trainable_weights:
                value = identity if "kernel" in weight.name else zeros
                weight.assign(np.broadcast_to(value, weight.shape))
            found = to_numpy(layer(keras.ops.convert_to_tensor(x, "float64")))
            assert np.abs(found - expected).max() < 1e-14, layer.name


def test_gelu_tanh_by_name_survives_the_configuration() -> None:
    mixer = RankMixer(4, 8, activation="gelu_tanh")
    assert mixer.get_config()["activation"] == "gelu_tanh"
    assert RankMixer.from_config(mixer.get_config()).activation is gelu_tanh
    assert (
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(gelu_tanh))
        is gelu_tanh
    )


def test_a_short_history_scores_as_it_does_alone() -> None:
    """Lengths 18 and 3 in one batch."""
    rng = np.random.default_rng(0)
    target, history = rng.normal(size=(2, 3, 8)), rng.normal(size=(2, 18, 8))
    mask = np.arange(18) < np.array([[18], [3]])
    for name, make in ENCODERS.items():
        encoder = make()
        together = to_numpy(run(encoder, target=target, history=history, mask=mask))
        alone = run(encoder, target=target[1:], history=history[1:], mask=mask[1:])
        assert_close(alone[0], together[1])
        # LASER needs R segments; HSTU divides by the padded length, unless told otherwise.
        if name not in ("laser", "hstu_target_position"):
            short = run(encoder, target=target[1:], history=history[1:, :3])
            assert_close(short[0], together[1], 1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.export is JAX's")
@pytest.mark.parametrize("order", ["auto", "absorb"])
def test_an_encoder_exports_with_symbolic_batch_and_candidates(order: str) -> None:
    import jax
    from jax import export

    batch, candidates = export.symbolic_shape("b, n")
    encoder = LaserEncoder(segment_size=4, num_recent_segments=2, implementation=order)
    encoder.build((None, None, 8), (None, 12, 8))

    def call(target: Any, history: Any, mask: Any) -> Any:
        return encoder(target, history, mask=mask)

    shapes = (
        jax.ShapeDtypeStruct((batch, candidates, 8), "float32"),
        jax.ShapeDtypeStruct((batch, 12, 8), "float32"),
        jax.ShapeDtypeStruct((batch, 12), "bool"),
    )
    exported = export.export(jax.jit(call))(*shapes)
    rng = np.random.default_rng(0)
    for b, n in ((1, 1), (3, 20)):
        target = rng.normal(size=(b, n, 8)).astype("float32")
        history = rng.normal(size=(b, 12, 8)).astype("float32")
        mask = rng.random((b, 12)) < 0.6
        assert_close(exported.call(target, history, mask), call(target, history, mask))
