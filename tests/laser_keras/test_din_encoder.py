"""DIN in both senses: ``TargetAttention``, ``ActivationUnitAttention``, ``Dice``."""

import itertools

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, D, N, target_attention
from layer_tools import assert_close, built, gradients, run, to_numpy, weights_by_name

from laser_keras import ActivationUnitAttention, Dice, DINEncoder, TargetAttention

SEQUENCE = {"target": TARGET, "history": HISTORY, "mask": MASK}


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(None, None), (3, None), (None, 5)])
def test_target_attention_equals_numpy_in_both_orders(
    score: str, key_dim: int | None, value_dim: int | None
) -> None:
    found = []
    for order in ("project", "absorb"):
        layer = built(TargetAttention(2, key_dim, score, order, value_dim), **SEQUENCE)
        w = weights_by_name(layer)
        outputs = to_numpy(run(layer, **SEQUENCE))
        assert outputs.shape[-1] == (2 * value_dim if value_dim else D)
        for b, n in itertools.product(range(3), range(N)):
            expected = target_attention(TARGET[b, n], HISTORY[b], w, 2, MASK[b], score)
            assert_close(outputs[b, n], expected)

        def loss(t, h, layer=layer):
            return keras.ops.sum(keras.ops.sin(layer(t, h, mask=MASK)))

        found.append(gradients(layer, loss, [TARGET, HISTORY]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


def test_gamma_divides_the_scores_and_an_aligned_start_makes_them_similarities() -> None:
    plain = built(TargetAttention(2, key_dim=4), **SEQUENCE)
    sharp = built(TargetAttention(2, key_dim=4, gamma=0.5), **SEQUENCE)
    sharp.set_weights(plain.get_weights())
    sharp.query_kernel.assign(plain.query_kernel * 0.25)  # sqrt(4) / 0.5 times the scores
    assert_close(run(sharp, **SEQUENCE), run(plain, **SEQUENCE))
    aligned = TargetAttention(2, aligned_start=True)
    aligned.build(TARGET.shape, HISTORY.shape)
    assert_close(aligned.query_kernel, aligned.key_kernel)
    encoder = DINEncoder(gamma=0.1, aligned_start=True)
    encoder.build(TARGET.shape, HISTORY.shape)
    assert_close(encoder._attention.query_kernel, encoder._attention.key_kernel)
    assert DINEncoder.from_config(encoder.get_config())._attention.gamma == 0.1


def test_target_attention_auto() -> None:
    layer = TargetAttention()
    assert layer.absorbs(1, 1000, 128)
    assert not layer.absorbs(500, 1000, 128)
    assert not layer.absorbs(None, 1000, 128)


def test_softmax_weights_sum_to_one() -> None:
    """Equal values come out unchanged, however many there are; none gives zero."""
    same = np.broadcast_to(HISTORY[:, :1], HISTORY.shape).copy()
    layer = built(TargetAttention(2), **SEQUENCE)
    layer.value_kernel.assign(np.eye(D))
    outputs = to_numpy(run(layer, target=TARGET, history=same, mask=MASK))
    assert_close(outputs[:2], np.broadcast_to(same[:2, :1], (2, N, D)))
    assert not outputs[2].any()


def unit_reference(t, h, w, hidden, normalize):
    """The concatenated form: the whole of [t, h, t - h, t * h] through the network."""
    x = np.concatenate([np.broadcast_to(t, h.shape), h, t - h, t * h], axis=1)
    for i in range(hidden):
        x = np.maximum(x @ w[f"kernel_{i}"] + w[f"bias_{i}"], 0)
    a = (x @ w[f"kernel_{hidden}"])[:, 0] + w.get(f"bias_{hidden}", np.zeros(1))
    if normalize == "softmax" and a.size:
        a = reference.softmax(a)
    return a @ h


@pytest.mark.parametrize("normalize", [None, "softmax"])
def test_activation_unit_equals_the_concatenated_form(normalize: str | None) -> None:
    layer = built(ActivationUnitAttention((5, 4), "relu", normalize), **SEQUENCE)
    w = weights_by_name(layer)
    outputs = to_numpy(run(layer, **SEQUENCE))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b][MASK[b]].astype("float64")
        assert_close(outputs[b, n], unit_reference(t, h, w, 2, normalize))


def test_a_unit_that_always_says_one_pools_by_sum() -> None:
    layer = built(ActivationUnitAttention((5,), "relu"), **SEQUENCE)
    for kernel, bias in zip(layer.kernels, layer.biases, strict=True):
        kernel.assign(np.zeros(kernel.shape))
        bias.assign(np.zeros(bias.shape))
    layer.biases[-1].assign([1.0])
    expected = (HISTORY * MASK[..., None]).sum(axis=1, keepdims=True)
    assert_close(run(layer, **SEQUENCE), np.broadcast_to(expected, TARGET.shape))


def test_unnormalised_weights_keep_the_strength_of_an_interest() -> None:
    twice = np.concatenate([HISTORY, HISTORY], axis=1)
    for normalize, factor in ((None, 2.0), ("softmax", 1.0)):
        layer = ActivationUnitAttention((5,), "relu", normalize)
        built(layer, target=TARGET, history=HISTORY)
        once = to_numpy(run(layer, target=TARGET, history=HISTORY))
        assert_close(run(layer, target=TARGET, history=twice), factor * once)


def dice_reference(x, mean, variance, alpha):
    p = reference.sigmoid((x - mean) / np.sqrt(variance + 1e-8))
    return x * (p + (1 - p) * alpha)


def test_dice_uses_the_moments_of_valid_positions() -> None:
    layer = Dice(momentum=0.9)
    layer.build(HISTORY.shape)
    layer.alpha.assign(np.full(D, 0.3))
    spoiled = np.where(MASK[..., None], HISTORY, np.float32(1e3))
    trained = to_numpy(run(layer, inputs=spoiled, mask=MASK, training=True))
    valid = HISTORY[MASK].astype("float64")
    mean, variance = valid.mean(axis=0), valid.var(axis=0)
    assert_close(trained[MASK], dice_reference(valid, mean, variance, 0.3))
    assert_close(layer.moving_mean, 0.1 * mean, 1e-4)
    assert_close(layer.moving_variance, 0.9 + 0.1 * variance, 1e-4)
    moving = to_numpy(layer.moving_mean), to_numpy(layer.moving_variance)
    inferred = to_numpy(run(layer, inputs=HISTORY))
    assert_close(inferred[MASK], dice_reference(valid, *moving, 0.3))


def test_dice_is_prelu_with_a_soft_step() -> None:
    """Far from the mean the step is hard: x above it, alpha x below."""
    layer = Dice()
    layer.build((None, 1))
    layer.alpha.assign([0.25])
    layer.moving_variance.assign([1e-4])
    x = np.array([[-3.0], [-1.0], [1.0], [3.0]], "float32")
    assert_close(run(layer, inputs=x), [[-0.75], [-0.25], [1.0], [3.0]])


def test_dice_saves_its_moments(tmp_path) -> None:
    inputs = keras.Input((4,))
    layer = Dice()
    model = keras.Model(inputs, layer(inputs))
    x = np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype("float32")
    for _ in range(3):
        run(layer, inputs=x, training=True)
    assert (to_numpy(layer.moving_mean) > 0.01).all()
    model.save(tmp_path / "dice.keras")
    revived = keras.saving.load_model(tmp_path / "dice.keras").layers[-1]
    for name in ("moving_mean", "moving_variance", "alpha"):
        a, b = to_numpy(getattr(layer, name)), to_numpy(getattr(revived, name))
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("unit", ["target_attention", "activation_unit"])
def test_the_encoder_is_its_attention(unit: str) -> None:
    encoder = built(DINEncoder(unit, hidden_units=(5, 4), activation="relu"), **SEQUENCE)
    w = {k.split("/", 1)[1]: v for k, v in weights_by_name(encoder).items()}
    outputs = to_numpy(run(encoder, **SEQUENCE))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        if unit == "target_attention":
            expected = target_attention(t, h, w, 2, MASK[b])
        else:
            expected = unit_reference(t, h[MASK[b]], w, 2, None)
        assert_close(outputs[b, n, 0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DINEncoder("gru"), "`unit` must be one of"),
        (lambda: ActivationUnitAttention(()), "`hidden_units` must name"),
        (lambda: ActivationUnitAttention((0,)), "`hidden_units` must be an integer"),
        (lambda: ActivationUnitAttention(normalize="sum"), "`normalize` must be one of"),
        (lambda: TargetAttention(score="max"), "`score` must be one of"),
        (lambda: TargetAttention(value_dim=0), "`value_dim` must be an integer"),
        (lambda: TargetAttention(gamma=0), "`gamma` must be a finite number above 0"),
        (lambda: TargetAttention(key_dim=0), "`key_dim` must be an integer"),
        (lambda: TargetAttention(implementation="x"), "`implementation` must be one of"),
        (lambda: TargetAttention(3)(TARGET, HISTORY), "multiple of `num_heads`"),
        (lambda: Dice(momentum=1.0), "`momentum` must be a number"),
        (lambda: Dice()(HISTORY, mask=MASK[:, :2], training=True), "`mask` must have shape"),
        (lambda: Dice()(HISTORY, mask=MASK.astype(int), training=True), "`mask` must be boolean"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
