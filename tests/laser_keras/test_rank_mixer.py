"""``RankMixer``, ``PerTokenFeedForward`` and ``mix_tokens``."""

import keras
import laser_reference as reference
import numpy as np
import pytest
from layer_tools import assert_close, gradients, randomise, to_numpy, weights_by_name

from laser_keras import RankMixer
from laser_keras.layers.per_token_feed_forward import PerTokenFeedForward
from laser_keras.layers.rank_mixer import mix_tokens


def rank_mixer_reference(
    groups: list[tuple[str, int, np.ndarray]], w: dict, dim: int, blocks: int, norm: str
) -> np.ndarray:
    """RankMixer of one sample in plain loops."""
    tokens = []
    for prefix, count, features in groups:
        width = -(-features.size // count)
        padded = np.concatenate([features, np.zeros(count * width - features.size)])
        for t in range(count):
            part = padded[t * width : (t + 1) * width]
            tokens.append(part @ w[f"{prefix}token_kernel"][t] + w[f"{prefix}token_bias"][t, 0])
    x = np.stack(tokens)
    total = len(tokens)

    def mix(x):
        head = dim // total
        return np.stack([x[:, h * head : (h + 1) * head].reshape(-1) for h in range(total)])

    def per_token(x, i):
        p = f"per_token_ffn_{i}/"
        hidden = [
            reference.gelu(x[t] @ w[p + "hidden_kernel"][t] + w[p + "hidden_bias"][t, 0])
            for t in range(total)
        ]
        return np.stack(
            [
                hidden[t] @ w[p + "output_kernel"][t] + w[p + "output_bias"][t, 0]
                for t in range(total)
            ]
        )

    def normalise(x, name):
        return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    for i in range(blocks):
        if norm == "post":
            x = normalise(mix(x) + x, f"mixing_norm_{i}")
            x = normalise(per_token(x, i) + x, f"ffn_norm_{i}")
        else:
            x = x + mix(normalise(x, f"mixing_norm_{i}"))
            x = x + per_token(normalise(x, f"ffn_norm_{i}"), i)
    return x.mean(axis=0)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_equals_plain_loops(norm: str) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "user": rng.normal(size=(2, 3, 7)).astype("float32"),
        "item": rng.normal(size=(2, 3, 5)).astype("float32"),
    }
    mixer = RankMixer(dim=8, groups={"user": 3, "item": 1}, ffn_expansion=2, norm=norm)
    mixer.build({name: value.shape for name, value in inputs.items()})
    randomise(mixer)
    w = weights_by_name(mixer)
    outputs = to_numpy(mixer(inputs))
    for b in range(2):
        for n in range(3):
            groups = [
                (f"{name}_", count, inputs[name][b, n].astype("float64"))
                for name, count in (("user", 3), ("item", 1))
            ]
            assert_close(outputs[b, n], rank_mixer_reference(groups, w, 8, 2, norm))


@pytest.mark.parametrize("tokens", [1, 2, 4, 8])
def test_mixing_is_an_involution_and_a_permutation(tokens: int) -> None:
    x = np.random.default_rng(0).normal(size=(tokens, 3, 8)).astype("float32")
    mixed = to_numpy(mix_tokens(x))
    np.testing.assert_array_equal(to_numpy(mix_tokens(mixed)), x)
    for sample in range(3):
        np.testing.assert_array_equal(np.sort(mixed[:, sample], None), np.sort(x[:, sample], None))
    if tokens == 1:
        np.testing.assert_array_equal(mixed, x)
    # Token h only holds slice h of every token.
    width = 8 // tokens
    for h in range(tokens):
        for t in range(tokens):
            np.testing.assert_array_equal(
                mixed[h, :, t * width : (t + 1) * width], x[t, :, h * width : (h + 1) * width]
            )


def test_gradient_of_mixing_is_the_same_permutation() -> None:
    rng = np.random.default_rng(0)
    x, probe = rng.normal(size=(2, 4, 3, 8)).astype("float32")
    layer = keras.layers.Identity()
    (gradient,) = gradients(
        layer, lambda x: keras.ops.sum(keras.ops.multiply(mix_tokens(x), probe)), [x]
    )
    np.testing.assert_array_equal(gradient, to_numpy(mix_tokens(probe)))


def test_tokens_have_weights_of_their_own() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    layer = PerTokenFeedForward(2)
    layer.build(x.shape)
    before = to_numpy(layer(x))
    kernel = to_numpy(layer.hidden_kernel).copy()
    kernel[1] += 1
    layer.hidden_kernel.assign(kernel)
    changed = np.abs(to_numpy(layer(x)) - before).max(axis=(1, 2)) > 0
    assert changed.tolist() == [False, True, False]
    assert layer.count_params() == 3 * (2 * 2 * 4**2 + 2 * 4 + 4)


def test_tied_weights_equal_shared_dense_layers() -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")
    layer = PerTokenFeedForward(2, activation="relu")
    layer.build(x.shape)
    first = keras.layers.Dense(8, activation="relu", bias_initializer="uniform")
    second = keras.layers.Dense(4, bias_initializer="uniform")
    expected = second(first(x))
    for weight, dense in (
        (layer.hidden_kernel, first.kernel),
        (layer.output_kernel, second.kernel),
    ):
        weight.assign(np.stack([to_numpy(dense)] * 3))
    for weight, dense in ((layer.hidden_bias, first.bias), (layer.output_bias, second.bias)):
        weight.assign(np.stack([to_numpy(dense)[None]] * 3))
    assert_close(layer(x), expected)


def test_kernels_start_with_the_fans_of_one_token() -> None:
    layer = PerTokenFeedForward(4)
    layer.build((16, None, 64))
    glorot = np.sqrt(2 / (64 + 256))
    np.testing.assert_allclose(to_numpy(layer.hidden_kernel).std(), glorot, rtol=0.02)
    assert len(np.unique(to_numpy(layer.hidden_kernel)[:, 0, 0])) == 16


def test_a_group_touches_its_own_tokens_only() -> None:
    mixer = RankMixer(dim=4, groups={"a": 1, "b": 1})
    inputs = {"a": np.ones((1, 3), "float32"), "b": np.ones((1, 2), "float32")}
    mixer.build({k: v.shape for k, v in inputs.items()})
    shapes = {k: v.shape for k, v in weights_by_name(mixer).items() if "token_kernel" in k}
    assert shapes == {"a_token_kernel": (1, 3, 4), "b_token_kernel": (1, 2, 4)}
    swapped = dict(reversed(list(inputs.items())))
    np.testing.assert_array_equal(to_numpy(mixer(swapped)), to_numpy(mixer(inputs)))


def test_defaults_are_the_papers_100m_setting() -> None:
    mixer = RankMixer()
    assert (mixer.num_tokens, mixer.dim, mixer.num_blocks) == (16, 768, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RankMixer(num_tokens=3, dim=8), "must be a multiple of the number of tokens"),
        (lambda: RankMixer(dim=8, groups={}), "`groups` must name"),
        (lambda: RankMixer(dim=8, groups={"a": 0}), "groups\\['a'\\]"),
        (lambda: RankMixer(4, 8)(np.ones((1, 3), "float32")), "at least one number per token"),
        (lambda: RankMixer(2, 8)({"a": np.ones((1, 3))}), "must be one tensor"),
        (
            lambda: RankMixer(dim=8, groups={"a": 2})({"b": np.ones((1, 3), "float32")}),
            "keys \\['a'\\]",
        ),
        (lambda: RankMixer(2, 8, norm="batch"), "`norm` must be one of"),
    ],
)
def test_errors_name_the_argument(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_other_shapes_than_those_of_the_build_are_refused() -> None:
    """Neither padded to the width that was built nor flattened over other leading dimensions."""
    layer = RankMixer(4, 8)
    layer(np.ones((2, 9), "float32"))
    with pytest.raises(ValueError, match=r"(?s)`inputs` must have .*Received shape: \(2, 5\)"):
        layer(np.ones((2, 5), "float32"))
    groups = {"a": np.ones((3, 2, 4), "float32"), "b": np.ones((6, 4), "float32")}
    with pytest.raises(ValueError, match=r"(?s)'b'.` must have .*Received shape: \(6, 4\)"):
        RankMixer(dim=8, groups={"a": 2, "b": 2})(groups)
