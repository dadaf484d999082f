"""``STCAEncoder`` and ``RandomSuffix``."""

import itertools

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, N, silu, target_attention
from layer_tools import assert_close, built, gradients, run, to_numpy, weights_by_name

from laser_keras import RandomSuffix, STCAEncoder


def swiglu(x, w, prefix):
    gate = silu(x @ w[f"{prefix}/gate_kernel"])
    return ((x @ w[f"{prefix}/up_kernel"]) * gate) @ w[f"{prefix}/output_kernel"]


@pytest.mark.parametrize("implementation", ["project", "absorb"])
@pytest.mark.parametrize("norm_fused", [True, False])
def test_equals_numpy(implementation: str, norm_fused: bool) -> None:
    encoder = STCAEncoder(3, 2, 2, implementation, norm_fused)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK}
    built(encoder, **inputs)
    w = weights_by_name(encoder)

    def norm(x, name):
        return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        fused, read = t, []
        for i in range(3):
            q = swiglu(fused, w, f"query_ffn_{i}")
            if i == 0 or norm_fused:
                q = norm(q, f"query_norm_{i}")
            x = norm(swiglu(h, w, f"history_ffn_{i}"), f"history_norm_{i}")
            o = target_attention(q, x, w, 2, MASK[b], prefix=f"attention_{i}/")
            if not MASK[b].any():
                assert not o.any()
            read.append(o @ w[f"output_kernel_{i}"])
            fused = np.concatenate([*read, t]) @ w[f"fusion_kernel_{i}"]
        assert_close(outputs[b, n, 0], swiglu(fused, w, "output_ffn"), 1e-4)


def test_absorbed_equals_direct_in_gradient() -> None:
    found = []
    for implementation in ("project", "absorb"):
        encoder = STCAEncoder(2, 2, 2, implementation)
        built(encoder, target=TARGET, history=HISTORY, mask=MASK)

        def loss(t, h, encoder=encoder):
            return keras.ops.sum(keras.ops.sin(encoder(t, h, mask=MASK)))

        found.append(gradients(encoder, loss, [TARGET, HISTORY]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, 1e-4)


def lengths(layer: RandomSuffix, users: int = 2000, length: int = 100) -> np.ndarray:
    visible = to_numpy(layer(np.ones((users, length), bool), training=True))
    kept = visible.sum(axis=1)
    np.testing.assert_array_equal(visible, np.arange(length) < kept[:, None])  # the newest
    return kept


def test_random_suffix_draws_a_u_shape_of_multiples() -> None:
    kept = lengths(RandomSuffix(20, seed=1))
    assert set((kept[kept < 100] % 8).tolist()) == {0}
    assert kept.min() == 24 and kept.max() == 100
    ends = ((kept <= 36) | (kept >= 84)).mean()
    middle = ((kept > 52) & (kept <= 68)).mean()
    # Beta(0.5, 0.5): a fifth at each end holds 0.295, the middle fifth 0.128.
    assert 0.5 < ends < 0.75 and 0.08 < middle < 0.2


def test_random_suffix_follows_its_seed_and_its_parameters() -> None:
    same = [lengths(RandomSuffix(20, seed=3), 50) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (lengths(RandomSuffix(20, seed=4), 50) != same[0]).any()
    layer = RandomSuffix(20, seed=3)
    assert (lengths(layer, 50) != lengths(layer, 50)).any()
    middle = lengths(RandomSuffix(20, 50.0, 50.0, seed=1))
    assert middle.min() > 36 and middle.max() < 88


def test_random_suffix_hides_nothing_but_old_events_and_only_in_training() -> None:
    np.testing.assert_array_equal(to_numpy(RandomSuffix(2)(MASK)), MASK)
    np.testing.assert_array_equal(to_numpy(RandomSuffix(200)(MASK, training=True)), MASK)
    visible = to_numpy(RandomSuffix(2, multiple=1, seed=1)(MASK, training=True))
    assert not (visible & ~MASK).any()
    assert visible[0].sum() >= 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RandomSuffix(0), "`min_length` must be an integer"),
        (lambda: RandomSuffix(alpha=0), "`alpha` must be a positive number"),
        (lambda: RandomSuffix(beta=-1.0), "`beta` must be a positive number"),
        (lambda: RandomSuffix(multiple=0), "`multiple` must be an integer"),
        (lambda: RandomSuffix()(MASK.astype("float32")), "`valid` must be boolean"),
        (lambda: RandomSuffix()(MASK[0]), "`valid` must have shape"),
        (lambda: STCAEncoder(implementation="fast"), "`implementation` must be one of"),
        (lambda: STCAEncoder(num_heads=3)(TARGET, HISTORY), "multiple of `num_heads`"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
