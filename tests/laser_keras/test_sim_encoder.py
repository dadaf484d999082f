"""``SIMEncoder``, ``SoftSearch``, ``HardSearch``: what is found, and how the search learns."""

import itertools

import keras
import laser_reference as reference
import numpy as np
import pytest
from encoder_tools import HISTORY, MASK, TARGET, D, L, N, target_attention
from layer_tools import assert_close, built, gradients, run, to_numpy, weights_by_name

from laser_keras import (
    CombinedEncoder,
    DINEncoder,
    HardSearch,
    SequenceRanker,
    SIMEncoder,
    SoftSearch,
)

MATCH = np.random.default_rng(3).random((3, N, L)) < 0.5


def parts(encoder: keras.layers.Layer) -> dict[str, np.ndarray]:
    return {k.replace("kernel_0", "kernel"): v for k, v in weights_by_name(encoder).items()}


def test_hard_search_equals_a_filter() -> None:
    encoder = SIMEncoder("hard", top_k=3, recent_events=2)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK, "category_match": MATCH}
    built(encoder, **inputs)
    w = parts(encoder)
    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        found = [j for j in range(L) if MATCH[b, n, j] and MASK[b, j]][:3]  # the newest
        chosen = np.isin(np.arange(L), found)
        expected = target_attention(t, h, w, 2, chosen, prefix="long_term/")
        assert_close(outputs[b, n, 0], expected)
        newest = MASK[b] & (np.arange(L) < 2)
        expected = target_attention(t, h, w, 2, newest, prefix="short_term/")
        assert_close(outputs[b, n, 1], expected)


def test_hard_search_without_a_match_is_a_zero_vector() -> None:
    encoder = SIMEncoder("hard", top_k=3)
    none = np.zeros_like(MATCH)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK, "category_match": none}
    built(encoder, **inputs)
    assert not to_numpy(run(encoder, **inputs))[:, :, 0].any()
    _, found = HardSearch(3)(none)
    assert not to_numpy(found).any()


def test_soft_search_equals_a_full_sort() -> None:
    encoder = SIMEncoder("soft", 4, 2, 3)
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK}
    built(encoder, **inputs)
    w = parts(encoder)
    outputs = to_numpy(run(encoder, **inputs))
    for b, n in itertools.product(range(2), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        scores = (h @ w["search/event_kernel"]) @ (t @ w["search/target_kernel"])
        order = [j for j in np.argsort(-scores) if MASK[b, j]]
        chosen = np.isin(np.arange(L), order[:4])
        expected = target_attention(t, h, w, 2, chosen, prefix="long_term/")
        assert_close(outputs[b, n, 0], expected)


def test_auxiliary_logit_equals_numpy() -> None:
    search = SoftSearch(4, 5, (6, 4))
    inputs = {"target": TARGET, "history": HISTORY, "mask": MASK}
    built(search, **inputs)
    w = {name.replace("click_kernel", "k"): v for name, v in weights_by_name(search).items()}
    _, _, logits = run(search, **inputs)
    for b, n in itertools.product(range(3), range(N)):
        t, h = TARGET[b, n].astype("float64"), HISTORY[b].astype("float64")
        scores = (h @ w["event_kernel"]) @ (t @ w["target_kernel"])
        pooled = (scores * MASK[b]) @ h / max(MASK[b].sum(), 1)
        x = np.concatenate([pooled, t])
        for i in range(2):
            x = np.maximum(x @ w[f"k_{i}"] + w[f"click_bias_{i}"], 0)
        expected = (x @ w["k_2"] + w["click_bias_2"])[0]
        np.testing.assert_allclose(to_numpy(logits)[b, n], expected, rtol=1e-4, atol=1e-5)


def test_the_search_learns_from_the_auxiliary_loss_alone() -> None:
    encoder = built(SIMEncoder("soft", 4, 2, 3), target=TARGET, history=HISTORY, mask=MASK)
    names = [weight.path.split("/", 1)[-1] for weight in encoder.trainable_weights]

    def of_tokens(t, h):
        return keras.ops.sum(keras.ops.sin(encoder(t, h, mask=MASK)))

    def of_search(t, h):
        (logits,) = encoder.auxiliary_logits(t, h, MASK)
        return keras.ops.sum(keras.ops.sin(logits))

    for loss, moved in ((of_tokens, False), (of_search, True)):
        found = gradients(encoder, loss, [TARGET, HISTORY])
        for name, gradient in zip(names, found):
            assert (np.abs(gradient).max() > 0) == (name.startswith("search/") == moved), name


def test_fit_of_a_ranker_trains_the_search() -> None:
    """The loss of ``fit`` is the ranking loss plus the cross entropy of the auxiliary logits."""
    rng = np.random.default_rng(0)
    inputs = {
        "history": rng.normal(size=(3, L, 6)).astype("float32"),
        "history_mask": MASK,
        "history_age": rng.integers(0, 10**6, (3, L)).astype("int32"),
        "target": rng.normal(size=(3, N, 5)).astype("float32"),
    }
    labels = rng.integers(0, 2, (3, N)).astype("float32")
    weights = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], "float32")
    encoder = CombinedEncoder([SIMEncoder("soft", 4, 2, 3), DINEncoder()])
    ranker = SequenceRanker(encoder, dim=D, num_tokens=8, mixer_dim=16)
    # No axis is averaged before the weights apply.
    ranker.compile("sgd", keras.losses.BinaryCrossentropy(axis=()))
    ranker(inputs)
    search = encoder.encoders[0].search_layer
    before = [to_numpy(w).copy() for w in search.trainable_weights]
    scores = to_numpy(ranker(inputs)).astype("float64")
    tokens = ranker.tokenizer(
        inputs["history"], inputs["target"], age=inputs["history_age"], mask=MASK
    )
    (logits,) = encoder.auxiliary_logits(tokens["target"], tokens["history"], MASK)
    p = reference.sigmoid(to_numpy(logits).astype("float64"))

    def entropy(probability):
        each = -labels * np.log(probability) - (1 - labels) * np.log(1 - probability)
        return (each * weights).mean()

    expected = entropy(p) + entropy(scores)
    loss = ranker.compute_loss(inputs, labels, ranker(inputs), weights)
    np.testing.assert_allclose(float(to_numpy(loss)), expected, rtol=1e-4)
    ranker.fit(inputs, labels, sample_weight=weights, epochs=1, verbose=0)
    after = [to_numpy(w) for w in search.trainable_weights]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_evaluation_has_no_auxiliary_loss() -> None:
    encoder = SIMEncoder("hard")
    assert encoder.auxiliary_logits(TARGET, HISTORY, MASK) == []
    assert not encoder.has_auxiliary_loss and SIMEncoder("soft").has_auxiliary_loss


@pytest.mark.parametrize("search", ["soft", "hard"])
def test_what_is_found_is_a_set(search: str) -> None:
    """Another order of the same events changes nothing (but which are the newest)."""
    encoder = SIMEncoder(search, 50, 2, 50)
    inputs = {"target": TARGET, "history": HISTORY}
    extra = {"category_match": MATCH} if search == "hard" else {}
    built(encoder, **inputs, **extra)
    order = np.random.default_rng(1).permutation(L)
    shuffled = {"target": TARGET, "history": HISTORY[:, order]}
    extra_shuffled = {"category_match": MATCH[..., order]} if search == "hard" else {}
    expected = run(encoder, **inputs, **extra)
    assert_close(run(encoder, **shuffled, **extra_shuffled), expected, 1e-4)


def test_room_for_all_is_full_attention() -> None:
    encoder = built(SIMEncoder("soft", 50), target=TARGET, history=HISTORY, mask=MASK)
    w = parts(encoder)
    outputs = to_numpy(run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    for b, n in itertools.product(range(3), range(N)):
        expected = target_attention(TARGET[b, n], HISTORY[b], w, 2, MASK[b], prefix="long_term/")
        assert_close(outputs[b, n, 0], expected)


def test_the_short_term_window_has_its_full_length() -> None:
    """A public port's ``[-50:-1]`` loses the newest event."""
    encoder = built(SIMEncoder("soft", 3, 2, 4), target=TARGET, history=HISTORY)
    before = to_numpy(run(encoder, target=TARGET, history=HISTORY))[:, :, 1]
    for event, inside in ((0, True), (3, True), (4, False)):
        changed = HISTORY.copy()
        changed[:, event] += 1.0
        after = to_numpy(run(encoder, target=TARGET, history=changed))[:, :, 1]
        assert (np.abs(after - before).max() > 0) == inside


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SIMEncoder("hard")(TARGET, HISTORY), "`category_match` belongs to the hard"),
        (lambda: SIMEncoder()(TARGET, HISTORY, category_match=MATCH), "`category_match` belongs"),
        (
            lambda: SIMEncoder("hard")(TARGET, HISTORY, category_match=MATCH[:, :1]),
            "`category_match` must have shape",
        ),
        (
            lambda: SIMEncoder("hard")(TARGET, HISTORY, category_match=MATCH.astype("float32")),
            "`category_match` must be boolean",
        ),
        (lambda: SIMEncoder("fuzzy"), "`search` must be one of"),
        (lambda: HardSearch(0), "`top_k` must be an integer"),
        (lambda: HardSearch()(MATCH[0]), "`category_match` must have shape"),
        (lambda: HardSearch()(MATCH, mask=MASK[:, :3]), "`mask` must have shape"),
        (lambda: SoftSearch(hidden_units=(0,)), "`hidden_units` must be an integer"),
        (lambda: SoftSearch(units=0), "`units` must be an integer"),
        (lambda: SoftSearch()(TARGET[0], HISTORY), "`target` must have shape"),
        (
            lambda: SoftSearch()(TARGET, keras.KerasTensor((3, None, D))),
            "length of `history` must be known",
        ),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
