"""``TWINEncoder``: one score for search and attention, with cross features in both."""

import itertools
import math

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, D, L, N, heads_of, target_attention
from layer_tools import assert_close, built, gradients, randomise, run, to_numpy, weights_by_name

from laser_keras import TWINEncoder
from laser_keras.search import round_robin_events, top_events

J, K = 3, 2
CROSS = np.random.default_rng(5).normal(size=(3, L, J, K)).astype("float32")


def twin_scores(t, h, cross, w, heads):
    """[heads, L]: the cross features reduced by a block-diagonal matrix, as the paper prints it."""
    q, k = heads_of(t @ w["query_kernel"], heads), heads_of(h @ w["key_kernel"], heads)
    scores = np.einsum("he,lhe->hl", q, k) / math.sqrt(q.shape[-1])
    if cross is None:
        return scores
    for head in range(heads):
        block_diagonal = np.zeros((J * K, J))  # dense W^c
        for j in range(J):
            block_diagonal[j * K : (j + 1) * K, j] = w["cross_kernel"][head, j]
        reduced = cross.reshape(len(cross), J * K) @ block_diagonal  # [L, J]
        scores[head] += reduced @ w["cross_scale"][head]
    return scores


def twin_reference(t, h, cross, mask, w, heads, top_k):
    """The long-term interest [d] of one target: walk down the heads' lists, then attend."""
    scores = twin_scores(t, h, cross, w, heads)
    lists = [[j for j in np.argsort(-scores[i], kind="stable") if mask[j]] for i in range(heads)]
    kept: list[int] = []
    for rank in range(len(h)):
        for ranked in lists:
            if rank < len(ranked) and ranked[rank] not in kept and len(kept) < top_k:
                kept.append(ranked[rank])
    if not kept:
        return np.zeros(D)
    full = h if cross is None else np.concatenate([h, cross.reshape(len(h), -1)], axis=1)
    values = heads_of(full[kept] @ w["value_kernel"], heads)
    parts = [reference.softmax(scores[i][kept]) @ values[:, i] for i in range(heads)]
    return np.concatenate(parts) @ w["output_kernel"]


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("top_k", [4, 50])
@pytest.mark.parametrize("crossed", [False, True])
def test_equals_numpy(heads: int, top_k: int, crossed: bool) -> None:
    encoder = TWINEncoder(top_k, heads, 3)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK}
    inputs |= {"cross": CROSS} if crossed else {}
    built(encoder, **inputs)
    w = weights_by_name(encoder)
    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        cross = CROSS[b].astype("float64") if crossed else None
        expected = twin_reference(t, h, cross, MASK[b], w, heads, top_k)
        assert_close(outputs[b, n, 0], expected)
        newest = MASK[b] & (np.arange(L) < 3)
        expected = target_attention(t, h, w, heads, newest, prefix="short_term/")
        assert_close(outputs[b, n, 1], expected)


def test_room_for_all_is_plain_target_attention() -> None:
    encoder = built(TWINEncoder(50, 2), target=TARGET, history=HISTORY, mask=MASK)
    w = weights_by_name(encoder)
    outputs = to_numpy(run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        expected = target_attention(TARGET[b, n], HISTORY[b], w, 2, MASK[b]) @ w["output_kernel"]
        assert_close(outputs[b, n, 0], expected)


def test_cross_features_change_what_is_found() -> None:
    """Not only how it is weighted: they are part of the search."""
    encoder = built(TWINEncoder(2, 1), target=TARGET, history=HISTORY, cross=CROSS)
    pushed = CROSS.copy()
    kernel = to_numpy(encoder.cross_kernel)[0, 0] * to_numpy(encoder.cross_scale)[0, 0]
    pushed[:, 7, 0] = 1e3 * kernel / (kernel @ kernel)
    scores = encoder.search_scores(TARGET, encoder.project_events(HISTORY), pushed)
    index, _ = encoder.select(scores, np.ones((3, L), bool))
    assert (to_numpy(index)[..., 0] == 7).all()


def test_cross_scores_are_one_number_per_event_not_per_head() -> None:
    """The trap of the public port: a term that all events of a head share is inert."""
    encoder = built(TWINEncoder(4, 2), target=TARGET, history=HISTORY, cross=CROSS)
    keys = encoder.project_events(HISTORY)
    scores = to_numpy(encoder.search_scores(TARGET, keys, CROSS))
    without = to_numpy(encoder.search_scores(TARGET, keys))
    added = scores - without
    assert added.shape == (3, N, 2, L)
    assert np.ptp(added, axis=-1).min() > 0.1
    np.testing.assert_allclose(added[:, 0], added[:, 1], atol=1e-5)  # whatever the target


def test_a_constant_added_to_all_events_is_inert() -> None:
    encoder = built(TWINEncoder(4, 2), target=TARGET, history=HISTORY, cross=CROSS, mask=MASK)
    shifted = CROSS + np.float32(0.7)
    weights = to_numpy(encoder.value_kernel).copy()
    weights[D:] = 0.0  # the values read the cross features too
    encoder.value_kernel.assign(weights)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK}
    expected = run(encoder, **inputs, cross=CROSS)
    assert_close(run(encoder, **inputs, cross=shifted), expected, 1e-4)


def test_keys_kept_per_item_are_those_computed_on_the_fly() -> None:
    encoder = built(TWINEncoder(4, 2), target=TARGET, history=HISTORY)
    items = np.random.default_rng(0).normal(size=(20, D)).astype("float32")
    ids = np.random.default_rng(1).integers(0, 20, (3, L))
    table = to_numpy(encoder.project_events(items[None]))[0]
    assert_close(
        encoder.search_scores(TARGET, table[ids]),
        encoder.search_scores(TARGET, encoder.project_events(items[ids])),
    )


def test_gradients_flow_through_the_attention_alone() -> None:
    encoder = built(TWINEncoder(2, 1, 1), target=TARGET, history=HISTORY)

    def loss(t, h):
        return keras.ops.sum(keras.ops.sin(encoder(t, h)[:, :, 0]))

    of_history = gradients(encoder, loss, [TARGET, HISTORY])[-1]
    index, _ = encoder.select(
        encoder.search_scores(TARGET, encoder.project_events(HISTORY)), np.ones((3, L), bool)
    )
    for b in range(3):
        found = set(to_numpy(index)[b].ravel().tolist())
        assert set(np.flatnonzero(np.abs(of_history[b]).max(axis=1)).tolist()) == found


def test_top_events_never_prefers_padding() -> None:
    """Masking by a product would put padding (0) above negative scores."""
    scores = np.array([[[-3.0, -1.0, -2.0, 0.0]]], "float32")
    index, valid = top_events(scores, np.array([[[True, True, True, False]]]), 3)
    assert to_numpy(index).tolist() == [[[1, 2, 0]]]
    assert to_numpy(valid).all()


def test_ties_go_to_the_newer_event() -> None:
    index, _ = top_events(np.zeros((1, 1, 6), "float32"), np.ones((1, 1, 6), bool), 3)
    assert to_numpy(index).tolist() == [[[0, 1, 2]]]


def test_round_robin_is_the_walk_down_the_ranked_lists() -> None:
    rng = np.random.default_rng(0)
    for heads, length, count in ((1, 7, 3), (2, 9, 5), (4, 12, 6), (3, 8, 8), (4, 40, 2)):
        scores = rng.normal(size=(2, 3, heads, length)).round(1).astype("float32")
        mask = rng.random((2, length)) < 0.8
        index, valid = round_robin_events(scores, mask, count)
        for b, n in itertools.product(range(2), range(3)):
            masked = np.where(mask[b], scores[b, n], -np.inf)
            lists = [
                sorted(range(length), key=lambda j, h=h: (-masked[h, j], j)) for h in range(heads)
            ]
            walked: list[int] = []
            for rank in range(length):
                for ranked in lists:
                    if ranked[rank] not in walked and mask[b, ranked[rank]]:
                        walked.append(ranked[rank])
            kept = to_numpy(index)[b, n].tolist()
            assert len(set(kept)) == count
            found = [j for j, seen in zip(kept, to_numpy(valid)[b, n], strict=True) if seen]
            assert found == walked[:count] == [j for j in kept if mask[b, j]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e(TARGET, HISTORY), "built with `cross`"),
        (lambda e: e(TARGET, HISTORY, cross=CROSS[:, :, :2]), "`cross` must have shape"),
        (lambda e: e(TARGET, HISTORY, cross=CROSS[:, :4]), "`cross` must have shape"),
        (lambda e: TWINEncoder(top_k=0), "`top_k` must be an integer"),
        (lambda e: TWINEncoder()(TARGET, HISTORY, cross=CROSS[..., 0]), "`cross` must have shape"),
        (
            lambda e: TWINEncoder()(TARGET, keras.KerasTensor((3, None, D))),
            "length of `history` must be known",
        ),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    encoder = TWINEncoder(num_heads=2)
    encoder.build(TARGET.shape, HISTORY.shape, CROSS.shape)
    randomise(encoder)
    with pytest.raises(ValueError, match=message):
        call(encoder)


def test_cross_needs_an_encoder_built_for_it() -> None:
    encoder = built(TWINEncoder(4, 2), target=TARGET, history=HISTORY)
    with pytest.raises(ValueError, match="built without `cross`"):
        encoder(TARGET, HISTORY, cross=CROSS)
