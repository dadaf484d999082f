"""The comparison encoders against NumPy and against the traps of public ports."""

import itertools
import math

import keras
import laser_reference as reference
import numpy as np
import pytest
from layer_tools import assert_close, gradients, randomise, to_numpy, weights_by_name

from laser_keras import (
    ActivationUnitAttention,
    Dice,
    DINEncoder,
    HSTUEncoder,
    LONGEREncoder,
    SIMEncoder,
    STCAEncoder,
    TargetAttention,
    TransformerEncoder,
    TWINEncoder,
)
from laser_keras.encoders.search import round_robin_scores, top_events

D, L, N = 8, 11, 3
RNG = np.random.default_rng(7)
TARGET = RNG.normal(size=(3, N, D)).astype("float32")
HISTORY = RNG.normal(size=(3, L, D)).astype("float32")
MASK = np.arange(L) < np.array([[L], [5], [0]])

ENCODERS = {
    "din": lambda **k: DINEncoder(**k),
    "din_unit": lambda **k: DINEncoder("activation_unit", **k),
    "transformer": lambda **k: TransformerEncoder(ffn_expansion=2, **k),
    "transformer_shared": lambda **k: TransformerEncoder(append_target=False, **k),
    "base": lambda **k: TransformerEncoder(recent_events=4, mode="parallel", **k),
    "hstu": lambda **k: HSTUEncoder(2, **k),
    "hstu_v3": lambda **k: HSTUEncoder(2, dialect="dlrm_v3", normalizer="length", **k),
    "hstu_targets": lambda **k: HSTUEncoder(2, read_out="target_position", **k),
    "twin": lambda **k: TWINEncoder(4, 2, 3, **k),
    "stca": lambda **k: STCAEncoder(2, 2, 2, **k),
    "longer": lambda **k: LONGEREncoder(2, 3, 1, 2, 2, **k),
    "sim": lambda **k: SIMEncoder("soft", 4, 2, 3, **k),
}


def make(name: str, **kwargs: object) -> keras.layers.Layer:
    encoder = ENCODERS[name](**kwargs)
    encoder.build((None, None, D), (None, None, D))
    randomise(encoder)
    return encoder


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_contract(name: str) -> None:
    """Candidates are independent, single targets and the oldest-first order agree."""
    encoder = make(name)
    together = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    assert together.shape == (3, N, encoder.num_output_tokens, D)
    for n in range(N):
        alone = encoder(TARGET[:, n : n + 1], HISTORY, mask=MASK)
        assert_close(alone[:, 0], together[:, n], 1e-4)
        assert_close(encoder(TARGET[:, n], HISTORY, mask=MASK), together[:, n], 1e-4)
    flipped = make(name, order="oldest_first")
    found = flipped(TARGET, HISTORY[:, ::-1].copy(), mask=MASK[:, ::-1].copy())
    assert_close(found, together, 1e-4)


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"hstu", "hstu_targets"}))
def test_extra_padding_changes_nothing(name: str) -> None:
    encoder = make(name)
    longer = np.concatenate([HISTORY, np.full((3, 6, D), np.nan, "float32")], axis=1)
    mask = np.concatenate([MASK, np.zeros((3, 6), bool)], axis=1)
    expected = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    assert_close(encoder(TARGET, longer, mask=mask), expected, 1e-4)


def heads_of(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], heads, -1)


def target_attention(t, h, w, heads, mask, score="softmax", prefix=""):
    """[d] over [L, d] in NumPy."""
    if not mask.any():
        return np.zeros(t.shape[-1])
    q = heads_of(t @ w[f"{prefix}query_kernel"], heads)
    k = heads_of(h[mask] @ w[f"{prefix}key_kernel"], heads)
    v = heads_of(h[mask] @ w[f"{prefix}value_kernel"], heads)
    outputs = []
    for i in range(heads):
        scores = k[:, i] @ q[i] / math.sqrt(q.shape[-1])
        a = reference.softmax(scores) if score == "softmax" else reference.sigmoid(scores)
        outputs.append(a @ v[:, i])
    return np.concatenate(outputs)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("key_dim", [None, 3])
def test_target_attention_equals_numpy_in_both_orders(score: str, key_dim: int | None) -> None:
    found = []
    for order in ("project", "absorb"):
        layer = TargetAttention(2, key_dim, score, order)
        layer.build(TARGET.shape, HISTORY.shape)
        randomise(layer)
        w = weights_by_name(layer)
        outputs = to_numpy(layer(TARGET, HISTORY, mask=MASK))
        for b, n in itertools.product(range(3), range(N)):
            expected = target_attention(TARGET[b, n], HISTORY[b], w, 2, MASK[b], score)
            assert_close(outputs[b, n], expected)

        def loss(t, h, layer=layer):
            return keras.ops.sum(keras.ops.sin(layer(t, h, mask=MASK)))

        found.append(gradients(layer, loss, [TARGET, HISTORY]))
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


def test_target_attention_auto() -> None:
    layer = TargetAttention()
    assert layer.absorbs(1, 1000, 128)
    assert not layer.absorbs(500, 1000, 128)
    assert not layer.absorbs(None, 1000, 128)


@pytest.mark.parametrize("normalize", [None, "softmax"])
def test_activation_unit_equals_the_concatenated_form(normalize: str | None) -> None:
    layer = ActivationUnitAttention((5, 4), "relu", normalize)
    layer.build(TARGET.shape, HISTORY.shape)
    randomise(layer)
    w = weights_by_name(layer)
    outputs = to_numpy(layer(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b][MASK[b]].astype("float64")
        x = np.concatenate([np.broadcast_to(t, h.shape), h, t - h, t * h], axis=1)
        for i in range(2):
            x = np.maximum(x @ w[f"kernel_{i}"] + w[f"bias_{i}"], 0)
        a = (x @ w["kernel_2"])[:, 0] + w.get("bias_2", np.zeros(1))
        if normalize == "softmax":
            a = reference.softmax(a) if a.size else a
        assert_close(outputs[b, n], a @ h)


def test_unnormalised_weights_keep_the_strength_of_an_interest() -> None:
    twice = np.concatenate([HISTORY, HISTORY], axis=1)
    for normalize, factor in ((None, 2.0), ("softmax", 1.0)):
        layer = ActivationUnitAttention((5,), "relu", normalize)
        layer.build(TARGET.shape, HISTORY.shape)
        randomise(layer)
        assert_close(layer(TARGET, twice), factor * to_numpy(layer(TARGET, HISTORY)))


def test_dice_uses_the_moments_of_valid_positions() -> None:
    layer = Dice(momentum=0.9)
    layer.build(HISTORY.shape)
    layer.alpha.assign(np.full(D, 0.3))
    spoiled = np.where(MASK[..., None], HISTORY, np.float32(1e3))
    trained = to_numpy(layer(spoiled, mask=MASK, training=True))
    valid = HISTORY[MASK].astype("float64")
    mean, variance = valid.mean(axis=0), valid.var(axis=0)
    p = reference.sigmoid((valid - mean) / np.sqrt(variance + 1e-8))
    assert_close(trained[MASK], valid * (p + (1 - p) * 0.3))
    assert_close(layer.moving_mean, 0.1 * mean, 1e-4)
    assert_close(layer.moving_variance, 0.9 + 0.1 * variance, 1e-4)
    p = reference.sigmoid(
        (valid - to_numpy(layer.moving_mean)) / np.sqrt(to_numpy(layer.moving_variance) + 1e-8)
    )
    assert_close(to_numpy(layer(HISTORY))[MASK], valid * (p + (1 - p) * 0.3))


def self_attention(x, w, i, heads, mask):
    q, k, v = (heads_of(x @ w[f"{kind}_kernel_{i}"], heads) for kind in ("query", "key", "value"))
    rows = []
    for row in range(x.shape[0]):
        parts = []
        for h in range(heads):
            scores = k[mask][:, h] @ q[row, h] / math.sqrt(q.shape[-1])
            parts.append(reference.softmax(scores) @ v[mask][:, h])
        rows.append(np.concatenate(parts))
    return np.stack(rows) @ w[f"output_kernel_{i}"]


def test_transformer_equals_numpy() -> None:
    encoder = make("transformer_shared")
    appended = TransformerEncoder(2)
    appended.build(TARGET.shape, HISTORY.shape)
    randomise(appended)
    for layer, append in ((encoder, False), (appended, True)):
        w = weights_by_name(layer)
        outputs = to_numpy(layer(TARGET, HISTORY, mask=MASK))
        for b, n in itertools.product(range(2), range(N)):
            t = TARGET[b, n].astype("float64")
            x = HISTORY[b].astype("float64") * MASK[b][:, None]
            mask = MASK[b]
            if append:
                x, mask = np.concatenate([t[None], x]), np.concatenate([[True], mask])
            for i in range(layer.num_layers):
                x = x + self_attention(x, w, i, 2, mask)
            expected = target_attention(t, x, w, 2, mask, prefix="read_out/")
            assert_close(outputs[b, n, 0], expected)


def test_transformer_without_positions_ignores_the_order() -> None:
    encoder = make("transformer")
    shuffled = HISTORY[:, RNG.permutation(L)]
    assert_close(encoder(TARGET, shuffled), encoder(TARGET, HISTORY), 1e-4)


def test_base_sees_the_newest_events_only() -> None:
    encoder = make("base")
    older = HISTORY.copy()
    older[:, 4:] = 9.0
    np.testing.assert_array_equal(
        to_numpy(encoder(TARGET, older)), to_numpy(encoder(TARGET, HISTORY))
    )


def silu(x: np.ndarray) -> np.ndarray:
    return x * reference.sigmoid(x)


def hstu_layer(x, w, i, dialect, visible, distance, n, heads=2):
    """One layer on [S, d] in NumPy, by the table of the two dialects."""
    research = dialect == "research"

    def norm(x, place):
        ones, zeros = np.ones(D), np.zeros(D)
        gain = w.get(f"{place}_norm_{i}/gamma", ones)
        return reference.layer_norm(x, gain, w.get(f"{place}_norm_{i}/beta", zeros), 1e-6)

    mixed = norm(x, "input") @ w[f"input_kernel_{i}"]
    if research:
        mixed = silu(mixed)
    else:
        mixed = mixed + w[f"input_bias_{i}"]
    u, v, q, k = np.split(mixed, 4, axis=1)
    if not research:
        u = silu(u)
    parts = []
    for h in range(heads):
        e = slice(h * D // heads, (h + 1) * D // heads)
        scores = q[:, e] @ k[:, e].T
        if research:
            scores = scores + w[f"distance_bias_{i}"][np.clip(distance, 0, None)]
        else:
            scores = scores / math.sqrt(D // heads)
        parts.append((silu(scores) / n * visible) @ v[:, e])
    av = np.concatenate(parts, axis=1)
    y = u * norm(av, "output")
    if research:
        return x + y @ w[f"output_kernel_{i}"] + w[f"output_bias_{i}"]
    return x + np.concatenate([u, av, y], axis=1) @ w[f"output_kernel_{i}"]


@pytest.mark.parametrize("dialect", ["research", "dlrm_v3"])
@pytest.mark.parametrize("read_out", ["target_attention", "target_position"])
@pytest.mark.parametrize("normalizer", ["max_length", "length"])
def test_hstu_equals_numpy(dialect: str, read_out: str, normalizer: str) -> None:
    encoder = HSTUEncoder(2, 2, dialect, read_out, normalizer)
    encoder.build(TARGET.shape, HISTORY.shape)
    randomise(encoder)
    w = weights_by_name(encoder)
    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(2), range(N)):
        t, x = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64") * MASK[b][:, None]
        position, mask = np.arange(L), MASK[b]
        if read_out == "target_position":
            x = np.concatenate([t[None], x])
            position, mask = np.arange(-1, L), np.concatenate([[True], mask])
        distance = position[None] - position[:, None]
        visible = (distance >= 0) & mask
        count = MASK[b].sum() if normalizer == "length" else L
        for i in range(2):
            x = hstu_layer(x, w, i, dialect, visible, distance, count)
        if read_out == "target_position":
            expected = x[0]
        else:
            expected = target_attention(t, x, w, 2, mask, prefix="read_out/")
        assert_close(outputs[b, n, 0], expected, 1e-4)


def test_hstu_is_causal() -> None:
    """A newer event never reaches what was computed for an older one."""
    encoder = HSTUEncoder(1)
    encoder.build(TARGET.shape, HISTORY.shape)
    randomise(encoder)
    seen = []
    encoder._attention.call = lambda target, history, mask=None: seen.append(history) or target
    newer = HISTORY.copy()
    newer[:, 3] += 1.0
    encoder(TARGET, HISTORY)
    encoder(TARGET, newer)
    difference = np.abs(to_numpy(seen[1]) - to_numpy(seen[0])).max(axis=(0, 2))
    assert (difference[:4] > 0).all() and not difference[4:].any()


def test_top_events_never_prefers_padding() -> None:
    """Masking by a product would put padding (0) above negative scores."""
    scores = np.array([[[-3.0, -1.0, -2.0, 0.0]]], "float32")
    index, valid = top_events(scores, np.array([[[True, True, True, False]]]), 3)
    assert to_numpy(index).tolist() == [[[1, 2, 0]]]
    assert to_numpy(valid).all()


def test_round_robin_is_the_walk_down_the_ranked_lists() -> None:
    rng = np.random.default_rng(0)
    for heads, length, count in ((1, 7, 3), (2, 9, 5), (4, 12, 6)):
        scores = rng.normal(size=(2, 3, heads, length)).round(1).astype("float32")
        mask = rng.random((2, 1, 1, length)) < 0.8
        order = round_robin_scores(scores, mask)
        index, _ = top_events(order, np.broadcast_to(mask[:, :, 0], order.shape), count)
        for b, n in itertools.product(range(2), range(3)):
            masked = np.where(mask[b, 0, 0], scores[b, n], -np.inf)
            lists = [
                sorted(range(length), key=lambda j, h=h: (-masked[h, j], j)) for h in range(heads)
            ]
            walked: list[int] = []
            for rank in range(length):
                for ranked in lists:
                    if ranked[rank] not in walked and mask[b, 0, 0, ranked[rank]]:
                        walked.append(ranked[rank])
            found = [j for j in to_numpy(index)[b, n].tolist() if mask[b, 0, 0, j]]
            assert found == walked[: len(found)]
            assert len(found) == min(count, mask[b].sum())


def test_twin_with_room_for_all_equals_target_attention() -> None:
    encoder = TWINEncoder(top_k=50, num_heads=2)
    encoder.build(TARGET.shape, HISTORY.shape)
    randomise(encoder)
    w = weights_by_name(encoder)
    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        expected = target_attention(TARGET[b, n], HISTORY[b], w, 2, MASK[b]) @ w["output_kernel"]
        assert_close(outputs[b, n, 0], expected)


def test_twin_selects_by_the_score_it_attends_with() -> None:
    encoder = TWINEncoder(top_k=4, num_heads=1)
    encoder.build(TARGET.shape, HISTORY.shape)
    randomise(encoder)
    w = weights_by_name(encoder)
    outputs = to_numpy(encoder(TARGET, HISTORY))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n], HISTORY[b]
        scores = (h @ w["key_kernel"]) @ (t @ w["query_kernel"])
        chosen = np.zeros(L, bool)
        chosen[np.argsort(-scores)[:4]] = True
        expected = target_attention(t, h, w, 1, chosen) @ w["output_kernel"]
        assert_close(outputs[b, n, 0], expected)


def test_hard_search_equals_a_filter() -> None:
    match = RNG.random((3, N, L)) < 0.5
    encoder = SIMEncoder("hard", top_k=3, recent_events=2)
    encoder.build(TARGET.shape, HISTORY.shape, match.shape)
    randomise(encoder)
    w = {k.replace("kernel_0", "kernel"): v for k, v in weights_by_name(encoder).items()}
    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK, category_match=match))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        found = [j for j in range(L) if match[b, n, j] and MASK[b, j]][:3]
        chosen = np.isin(np.arange(L), found)
        expected = target_attention(t, h, w, 2, chosen, prefix="long_term/")
        assert_close(outputs[b, n, 0], expected)
        assert_close(outputs[b, n, 2], h[found].mean(axis=0) if found else np.zeros(D))
        newest = MASK[b] & (np.arange(L) < 2)
        expected = target_attention(t, h, w, 2, newest, prefix="short_term/")
        assert_close(outputs[b, n, 1], expected)


def test_soft_search_equals_a_full_sort_and_learns_through_the_pooled_token() -> None:
    encoder = make("sim")
    w = {k.replace("kernel_0", "kernel"): v for k, v in weights_by_name(encoder).items()}
    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(2), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        scores = (h @ w["event_kernel"]) @ (t @ w["target_kernel"])
        order = [j for j in np.argsort(-scores) if MASK[b, j]]
        chosen = np.isin(np.arange(L), order[:4])
        expected = target_attention(t, h, w, 2, chosen, prefix="long_term/")
        assert_close(outputs[b, n, 0], expected)
        pooled = (scores * MASK[b]) @ h / MASK[b].sum()
        assert_close(outputs[b, n, 2], pooled)
    names = [weight.name for weight in encoder.trainable_weights]
    for token, moved in ((0, False), (2, True)):

        def loss(t, h, token=token):
            return keras.ops.sum(keras.ops.sin(encoder(t, h, mask=MASK)[:, :, token]))

        found = dict(zip(names, gradients(encoder, loss, [TARGET, HISTORY]), strict=False))
        for name in ("event_kernel", "target_kernel"):
            assert (np.abs(found[name]).max() > 0) == moved


def swiglu(x, w, prefix):
    return ((x @ w[f"{prefix}/up_kernel"]) * silu(x @ w[f"{prefix}/gate_kernel"])) @ w[
        f"{prefix}/output_kernel"
    ]


@pytest.mark.parametrize("implementation", ["project", "absorb"])
def test_stca_equals_numpy(implementation: str) -> None:
    encoder = STCAEncoder(3, 2, 2, implementation)
    encoder.build(TARGET.shape, HISTORY.shape)
    randomise(encoder)
    w = weights_by_name(encoder)

    def norm(x, name):
        return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        fused, read = t, []
        for i in range(3):
            q = norm(swiglu(fused, w, f"query_ffn_{i}"), f"query_norm_{i}")
            x = norm(swiglu(h, w, f"history_ffn_{i}"), f"history_norm_{i}")
            o = target_attention(q, x, w, 2, MASK[b], prefix=f"attention_{i}/")
            read.append(o @ w[f"output_kernel_{i}"])
            fused = np.concatenate([*read, t]) @ w[f"fusion_kernel_{i}"]
        assert_close(outputs[b, n, 0], swiglu(fused, w, "output_ffn"), 1e-4)


def test_longer_equals_attention_over_one_masked_sequence() -> None:
    """The printed form: one target and the history in one sequence under one mask."""
    merge, queries, heads = 2, 3, 2
    encoder = make("longer")
    w = weights_by_name(encoder)

    def norm(x, name):
        return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)

    outputs = to_numpy(encoder(TARGET, HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        h = np.concatenate([HISTORY[b] * MASK[b][:, None], np.zeros((1, D))]).reshape(-1, merge * D)
        valid = np.append(MASK[b], False).reshape(-1, merge).any(axis=1)
        x = np.concatenate([(TARGET[b, n] @ w["target_kernel"])[None], h]).astype("float64")
        seen = np.concatenate([[True], valid])
        rows = 1 + queries
        for i in range(2):
            normed = norm(x, f"attention_norm_{i}")
            q, k, v = (
                heads_of(normed @ w[f"{kind}_kernel_{i}"], heads)
                for kind in ("query", "key", "value")
            )
            read = np.zeros((rows, merge * D))
            for row in range(rows):
                # The target sees all; history sees what is not newer, and never the target.
                visible = seen.copy() if row == 0 else seen & (np.arange(len(x)) >= row)
                if not visible.any():
                    continue
                parts = []
                for head in range(heads):
                    scores = k[visible, head] @ q[row, head] / math.sqrt(q.shape[-1])
                    parts.append(reference.softmax(scores) @ v[visible, head])
                read[row] = np.concatenate(parts)
            y = x[:rows] + read @ w[f"output_kernel_{i}"]
            x = y + reference.feed_forward(norm(y, f"ffn_norm_{i}"), w, f"ffn_{i}/")
            seen = seen[:rows]
        used = seen[1:]
        mean = x[1:][used].mean(axis=0) if used.any() else np.zeros(merge * D)
        expected = np.stack([x[0], mean]) @ w["output_kernel"]
        assert_close(outputs[b, n], expected, 1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SIMEncoder("hard")(TARGET, HISTORY), "`category_match` belongs to the hard"),
        (
            lambda: SIMEncoder("hard")(TARGET, HISTORY, category_match=np.ones((3, 1, L), bool)),
            "`category_match` must have shape",
        ),
        (lambda: DINEncoder("gru"), "`unit` must be one of"),
        (lambda: TransformerEncoder(num_heads=3)(TARGET, HISTORY), "multiple of `num_heads`"),
        (lambda: HSTUEncoder(dialect="torch"), "`dialect` must be one of"),
        (lambda: TWINEncoder(top_k=0), "`top_k` must be an integer"),
        (lambda: DINEncoder()(TARGET[:2], HISTORY), "`history` must have shape"),
        (lambda: DINEncoder()(TARGET[..., :4], HISTORY), "same last dimension"),
        (lambda: DINEncoder()(TARGET, HISTORY, mask=np.ones((3, L))), "must be boolean"),
        (lambda: ActivationUnitAttention(()), "`hidden_units` must name"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
