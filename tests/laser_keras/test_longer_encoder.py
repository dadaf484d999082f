"""``LONGEREncoder`` against one masked sequence in NumPy, and its cache of the user's side."""

import itertools
import math

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, D, L, N, heads_of
from layer_tools import assert_close, built, run, to_numpy, weights_by_name

from laser_keras import LONGEREncoder, complexity

GLOBALS = np.random.default_rng(2).normal(size=(3, 2, 5)).astype("float32")


def norm(x, w, name):
    return reference.layer_norm(x, w[f"{name}/gamma"], w[f"{name}/beta"], 1e-6)


def block(x, visible, w, name, heads):
    """A pre-norm Transformer block on [S, e]; row i sees the columns of ``visible[i]``."""
    normed = norm(x, w, f"attention_norm_{name}")
    zero = np.zeros(x.shape[-1])
    q, k, v = (
        heads_of(normed @ w[f"{kind}_kernel_{name}"] + w.get(f"{kind}_bias_{name}", zero), heads)
        for kind in ("query", "key", "value")
    )
    read = np.zeros_like(x)
    for row in range(len(x)):
        if not visible[row].any():
            continue
        parts = []
        for head in range(heads):
            scores = k[visible[row], head] @ q[row, head] / math.sqrt(q.shape[-1])
            parts.append(reference.softmax(scores) @ v[visible[row], head])
        read[row] = np.concatenate(parts)
    y = x + read @ w[f"output_kernel_{name}"] + w[f"output_bias_{name}"]
    return y + reference.feed_forward(norm(y, w, f"ffn_norm_{name}"), w, f"ffn_{name}/")


def longer_reference(t, h, mask, user, w, *, merge, queries, layers, inner, learned, heads=2):
    """One target and one history: the printed form, one sequence under one mask."""
    rows = np.minimum(np.arange(len(h)), len(w["position_rows"]) - 1)
    events = np.where(mask[:, None], h + w["position_rows"][rows], 0.0)
    missing = -len(h) % merge
    events = np.concatenate([events, np.zeros((missing, D))]).reshape(-1, merge, D)
    valid = np.append(mask, np.zeros(missing, bool)).reshape(-1, merge)
    for i in range(inner):
        for group, of_group in zip(events, valid):
            group[:] = block(group, np.tile(of_group, (merge, 1)), w, f"inner_{i}", heads)
    merged = np.where(valid[..., None], events, 0.0).reshape(len(events), merge * D)
    tokens = [w["learned_tokens"]] if learned else []
    if user is not None:
        tokens.append(user @ w["global_kernel"])
    tokens = np.concatenate(tokens) if tokens else np.zeros((0, merge * D))
    # One sequence: the target, the globals, the history (newest first).
    first = 1 + len(tokens)
    x = np.concatenate([(t @ w["target_kernel"])[None], tokens, merged])
    seen = np.concatenate([np.ones(first, bool), valid.any(axis=1)])
    for i in range(layers + 1):
        visible = np.tile(seen, (len(x), 1))
        visible[1:, 0] = False  # nobody but the target sees the target
        for row in range(first, len(x)):
            visible[row, :row] = False  # history: nothing newer, and no global token
        x = block(x, visible, w, str(i), heads)[: first + queries]
        seen = seen[: first + queries]
    used = seen[first:]
    mean = x[first:][used].mean(axis=0) if used.any() else np.zeros(merge * D)
    views = [x[0], mean, *([x[1:first].mean(axis=0)] if learned else [])]
    return np.stack(views) @ w["output_kernel"]


SETTINGS = [
    {"merge_size": 2, "num_queries": 3, "num_layers": 1, "ffn_expansion": 2},
    {"merge_size": 2, "num_queries": 3, "num_layers": 1, "inner_layers": 0, "num_positions": 4},
    {"merge_size": 4, "num_queries": 100, "num_layers": 0, "num_learned_tokens": 0},
    {"merge_size": 3, "num_queries": 2, "num_layers": 2, "inner_layers": 2},
    {"merge_size": 1, "num_queries": 4, "num_layers": 1, "inner_layers": 0},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("user", [False, True])
def test_equals_numpy(options: dict, user: bool) -> None:
    encoder = LONGEREncoder(**options)
    if user and not encoder.num_learned_tokens:
        return
    mask = MASK.copy()
    mask[0, 1] = False  # a hole inside a group
    inputs = {"target": TARGET, "history": HISTORY, "mask": mask}
    inputs |= {"global_features": GLOBALS} if user else {}
    built(encoder, **inputs)
    w = weights_by_name(encoder)
    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(3), range(N)):
        expected = longer_reference(
            TARGET[b, n].astype("float64"),
            HISTORY[b].astype("float64"),
            mask[b],
            GLOBALS[b].astype("float64") if user else None,
            w,
            merge=encoder.merge_size,
            queries=encoder.num_queries,
            layers=encoder.num_layers,
            inner=encoder.inner_layers,
            learned=encoder.num_learned_tokens,
        )
        assert_close(outputs[b, n], expected, 1e-4)


def test_cached_equals_uncached() -> None:
    """One user state serves any number of calls, whatever targets it was made with."""
    encoder = LONGEREncoder(2, 3, 1)
    inputs = {"history": HISTORY, "mask": MASK, "global_features": GLOBALS}
    built(encoder, target=TARGET, **inputs)
    expected = to_numpy(run(encoder, target=TARGET, **inputs))
    state = encoder.user_state(TARGET[:, :1] * 0 + 7.0, **inputs)
    for n in range(N):
        assert_close(encoder.read(TARGET[:, n : n + 1], state)[:, 0], expected[:, n])


def merge(encoder: LONGEREncoder, history: np.ndarray) -> tuple:
    tensor = keras.ops.convert_to_tensor
    return encoder._merge(tensor(history), tensor(np.ones((3, L), bool)))


def test_merging_is_a_reshape_and_pads_at_the_oldest_end() -> None:
    encoder = LONGEREncoder(4, inner_layers=0)
    built(encoder, target=TARGET, history=HISTORY)
    encoder.position_rows.assign(np.zeros(encoder.position_rows.shape))
    merged, mask = merge(encoder, HISTORY)
    flat = to_numpy(merged).reshape(3, 12, D)
    np.testing.assert_array_equal(flat[:, :L], HISTORY)
    assert not flat[:, L:].any()
    assert to_numpy(mask).all()
    identity, _ = LONGEREncoder(1, inner_layers=0), None
    built(identity, target=TARGET, history=HISTORY)
    identity.position_rows.assign(np.zeros(identity.position_rows.shape))
    np.testing.assert_array_equal(to_numpy(merge(identity, HISTORY)[0]), HISTORY)


def test_the_inner_transformer_stays_inside_its_group() -> None:
    encoder = LONGEREncoder(4, inner_layers=1)
    built(encoder, target=TARGET, history=HISTORY)
    before = to_numpy(merge(encoder, HISTORY)[0])
    changed = HISTORY.copy()
    changed[:, 5] = 1.0  # in the second group
    moved = np.abs(to_numpy(merge(encoder, changed)[0]) - before).max(axis=0)
    moved = moved.reshape(3, 4, D).max(axis=-1) > 0
    assert moved.tolist() == [[False] * 4, [True] * 4, [False] * 4]


@pytest.mark.parametrize("merge", [1, 4])
def test_parameters_of_a_block_follow_the_papers_formula(merge: int) -> None:
    """``12 K^2 d^2 + 13 K d``, less the bias of the keys, which the softmax cancels."""
    one, two = LONGEREncoder(merge, num_layers=0), LONGEREncoder(merge, num_layers=1)
    for encoder in (one, two):
        encoder.build(TARGET.shape, HISTORY.shape)
    wide = merge * D
    assert two.count_params() - one.count_params() == 12 * wide**2 + 12 * wide


def test_cost_of_merging_follows_the_papers_example() -> None:
    """L=2048, d=32, K=4: 587.2 to 335.5 million operations per layer, two per MAC."""
    vanilla, merged = (complexity.paper_longer_layer(2048, 32, k) for k in (1, 4))
    assert (round(vanilla / 1e6, 1), round(merged / 1e6, 1)) == (587.2, 335.5)
    assert round(1 - merged / vanilla, 3) == 0.429


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(TARGET, HISTORY), "built with `global_features`"),
        (lambda e: e(TARGET, HISTORY, global_features=GLOBALS[..., :3]), "`global_features` must"),
        (lambda e: e(TARGET, HISTORY, global_features=GLOBALS[:2]), "`global_features` must"),
        (lambda e: LONGEREncoder(merge_size=0), "`merge_size` must be an integer"),
        (lambda e: LONGEREncoder(num_heads=5)(TARGET, HISTORY), "multiple of `num_heads`"),
        (
            lambda e: LONGEREncoder(4, num_heads=16)(TARGET, HISTORY),
            "the width d must be a multiple of `num_heads`",
        ),
        (
            lambda e: LONGEREncoder(num_learned_tokens=0)(TARGET, HISTORY, global_features=GLOBALS),
            "`num_learned_tokens` of at least 1",
        ),
        (lambda e: LONGEREncoder()(TARGET, HISTORY, global_features=MASK), "`global_features` mu"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    encoder = LONGEREncoder(2, 3, 1)
    encoder.build(TARGET.shape, HISTORY.shape, GLOBALS.shape)
    with pytest.raises(ValueError, match=message):
        call(encoder)
