"""``PerTokenMixtureOfExperts`` and the sparse ``RankMixer``."""

import numpy as np
import pytest
from layer_tools import assert_close, gradients, randomise, to_numpy

from laser_keras.layers.per_token_feed_forward import PerTokenFeedForward
from laser_keras.layers.per_token_mixture_of_experts import PerTokenMixtureOfExperts

X = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")


def make(**kwargs: object) -> PerTokenMixtureOfExperts:
    layer = PerTokenMixtureOfExperts(**{"num_experts": 2, "expansion": 2, **kwargs})
    layer.build(X.shape)
    randomise(layer)
    return layer


def set_gates(layer: PerTokenMixtureOfExperts, value: float) -> None:
    for router in ("train", "inference"):
        kernel, bias = getattr(layer, f"{router}_kernel"), getattr(layer, f"{router}_bias")
        kernel.assign(np.zeros(kernel.shape))
        bias.assign(np.full(bias.shape, value))


def test_equals_a_loop_over_tokens_and_experts() -> None:
    layer = make(activation="relu")
    w = {weight.name: to_numpy(weight).astype("float64") for weight in layer.weights}

    def relu(x):
        return np.maximum(x, 0)

    for training in (False, True):
        expected = np.zeros(X.shape)
        for t in range(3):
            for m in range(5):
                x = X[t, m].astype("float64")
                gates = relu(x @ w["inference_kernel"][t] + w["inference_bias"][t, 0])
                if training:
                    other = relu(x @ w["train_kernel"][t] + w["train_bias"][t, 0])
                    gates = (gates + other) / 2
                for e in range(2):
                    hidden = relu(x @ w["hidden_kernel"][t, e] + w["hidden_bias"][t, 0, e])
                    output = hidden @ w["output_kernel"][t, e] + w["output_bias"][t, e]
                    expected[t, m] += gates[e] * output
        assert_close(layer(X, training=training), expected)


def test_one_expert_with_gate_one_is_the_dense_network() -> None:
    layer = make(num_experts=1)
    set_gates(layer, 1.0)
    dense = PerTokenFeedForward(2)
    dense.build(X.shape)
    for name in ("hidden_kernel", "hidden_bias", "output_kernel", "output_bias"):
        weight = getattr(dense, name)
        weight.assign(to_numpy(getattr(layer, name)).reshape(weight.shape))
    for training in (False, True):
        assert_close(layer(X, training=training), dense(X))


def test_closed_gates_give_zero() -> None:
    layer = make()
    set_gates(layer, -1.0)
    for training in (False, True):
        assert not to_numpy(layer(X, training=training)).any()


def test_inference_ignores_the_training_router() -> None:
    layer = make()
    before, trained = to_numpy(layer(X)), to_numpy(layer(X, training=True))
    layer.train_bias.assign(to_numpy(layer.train_bias) + 1)
    np.testing.assert_array_equal(to_numpy(layer(X)), before)
    assert np.abs(to_numpy(layer(X, training=True)) - trained).max() > 0


def test_penalty_is_one_loss_on_the_inference_router_alone() -> None:
    layer = make(penalty=0.5)

    def penalty(x):
        layer(x, training=True)
        (loss,) = layer.losses
        return loss

    found = gradients(layer, penalty, [X])
    moved = {
        weight.name
        for weight, gradient in zip(layer.trainable_weights, found)
        if np.abs(gradient).max() > 0
    }
    assert moved == {"inference_kernel", "inference_bias"}
    layer = make(penalty=0.5)
    gates = X @ to_numpy(layer.inference_kernel) + to_numpy(layer.inference_bias)
    expected = 0.5 * np.maximum(gates, 0).sum() / 5
    np.testing.assert_allclose(float(to_numpy(penalty(X))), expected, rtol=1e-5)
    layer(X, training=False)
    assert layer.losses == []


@pytest.mark.parametrize(("budget", "factor"), [(0.9, 1 / 1.2), (0.1, 1.2)])
def test_the_penalty_follows_the_budget(budget: float, factor: float) -> None:
    layer = make(active_budget=budget, penalty=0.01)
    gates = X @ to_numpy(layer.inference_kernel) + to_numpy(layer.inference_bias)
    layer(X, training=True)
    np.testing.assert_allclose(to_numpy(layer.active_ratio), (gates > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.penalty_weight), 0.01 * factor, rtol=1e-5)
    layer(X)
    np.testing.assert_allclose(to_numpy(layer.penalty_weight), 0.01 * factor, rtol=1e-5)


@pytest.mark.parametrize(("budget", "low", "high"), [(0.1, 0.0, 0.3), (0.95, 0.4, 1.0)])
def test_the_penalty_closes_gates_until_the_budget_is_met(
    budget: float, low: float, high: float
) -> None:
    layer = make(active_budget=budget, penalty=0.01)

    def penalty(x):
        layer(x, training=True)
        return layer.losses[0]

    ratio = 1.0
    for _ in range(25):
        for weight, gradient in zip(layer.trainable_weights, gradients(layer, penalty, [X])):
            weight.assign(to_numpy(weight) - 0.2 * gradient)
        layer(X, training=True)
        ratio = float(to_numpy(layer.active_ratio))
        if ratio <= budget:
            break
    assert low <= ratio <= high


def test_bad_budget() -> None:
    with pytest.raises(ValueError, match="`active_budget`"):
        PerTokenMixtureOfExperts(active_budget=0)
