"""``return_gates``: which past events opened the gates, and what the segments weighed."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from layer_tools import BACKEND, assert_close, built, randomise, run, to_numpy, weights_by_name

from laser_keras import (
    DINEncoder,
    HSTUEncoder,
    LaserEncoder,
    LaserRanker,
    LONGEREncoder,
    PoolingEncoder,
    SegmentedTargetAttention,
    SequenceRanker,
    SIMEncoder,
    STCAEncoder,
    TargetAttention,
    TransformerEncoder,
    TWINEncoder,
)

RNG = np.random.default_rng(0)
TARGET = RNG.normal(size=(3, 2, 8)).astype("float32")
HISTORY = RNG.normal(size=(3, 11, 8)).astype("float32")
MASK = np.arange(11) < np.array([[11], [5], [0]])
SIZES = {"key_dim": 3, "segment_size": 4}


@pytest.mark.parametrize("order", ["auto", "project", "absorb"])
@pytest.mark.parametrize("gate", ["sigmoid", "softmax"])
def test_gates_equal_numpy_and_change_nothing_else(order: str, gate: str) -> None:
    layer = SegmentedTargetAttention(2, implementation=order, gate=gate, **SIZES)
    built(layer, target=TARGET, history=HISTORY, mask=MASK)
    segments, gates = run(layer, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    assert_close(segments, run(layer, target=TARGET, history=HISTORY, mask=MASK))
    w = weights_by_name(layer)
    q = (TARGET @ w["query_kernel"]).reshape(3, 2, 2, 3)
    k = (HISTORY @ w["key_kernel"]).reshape(3, 11, 2, 3)
    scores = np.einsum("bnhk,blhk->bnhl", q, k) / np.sqrt(3)
    opened = 1 / (1 + np.exp(-scores)) if gate == "sigmoid" else np.exp(scores)
    expected = np.where(MASK[:, None, None], opened, 0)
    if gate == "softmax":
        padded = np.pad(expected, ((0, 0),) * 3 + ((0, 1),)).reshape(3, 2, 2, 3, 4)
        totals = np.repeat(padded.sum(-1), 4, axis=-1)[..., :11]
        expected = expected / np.where(totals > 0, totals, 1)
    assert_close(gates, expected)


def test_gates_of_a_single_target_and_of_symbols() -> None:
    layer = built(SegmentedTargetAttention(2, **SIZES), target=TARGET, history=HISTORY, mask=MASK)
    _, gates = run(layer, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    _, single = run(layer, target=TARGET[:, 1], history=HISTORY, mask=MASK, return_gates=True)
    assert_close(single, gates[:, 1])
    inputs = keras.Input((None, 8)), keras.Input((11, 8))
    segments, promised = layer(*inputs, return_gates=True)
    assert segments.shape == (None, None, 3, 8) and promised.shape == (None, None, 2, 11)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gates_stand_with_their_events_in_either_order(side: str) -> None:
    newest = built(
        LaserEncoder(num_recent_segments=2, **SIZES), target=TARGET, history=HISTORY, mask=MASK
    )
    oldest = LaserEncoder(num_recent_segments=2, order="oldest_first", **SIZES)
    oldest.build(TARGET.shape, HISTORY.shape)
    oldest.set_weights(newest.get_weights())
    _, expected = newest(TARGET, HISTORY, mask=MASK, return_gates=True)
    history, gates, mask = HISTORY[:, ::-1], to_numpy(expected["gates"])[..., ::-1], MASK[:, ::-1]
    if side == "right":  # padding after the newest event
        shifts = 11 - MASK.sum(axis=1)
        history = np.stack([np.roll(row, -s, axis=0) for row, s in zip(history, shifts)])
        gates = np.stack([np.roll(row, -s, axis=-1) for row, s in zip(gates, shifts)])
        mask = np.stack([np.roll(row, -s) for row, s in zip(mask, shifts)])
    _, found = oldest(TARGET, history, mask=mask, return_gates=True)
    assert_close(found["gates"], gates)
    assert_close(found["segment_weights"], expected["segment_weights"])


@pytest.mark.parametrize("implementation", ["project", "absorb"])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_weights_of_target_attention_equal_numpy(implementation: str, score: str) -> None:
    layer = TargetAttention(2, key_dim=3, score=score, implementation=implementation)
    built(layer, target=TARGET, history=HISTORY, mask=MASK)
    outputs, weights = run(layer, target=TARGET, history=HISTORY, mask=MASK, return_weights=True)
    assert_close(outputs, run(layer, target=TARGET, history=HISTORY, mask=MASK))
    kernels = weights_by_name(layer)
    query = (TARGET @ kernels["query_kernel"]).reshape(3, 2, 2, 3)
    keys = (HISTORY @ kernels["key_kernel"]).reshape(3, 11, 2, 3)
    scores = np.einsum("bnhe,blhe->bnhl", query, keys) / np.sqrt(3)
    valid = MASK[:, None, None]
    expected = np.exp(scores) if score == "softmax" else 1 / (1 + np.exp(-scores))
    expected = np.where(valid, expected, 0)
    if score == "softmax":
        expected = expected / np.maximum(expected.sum(-1, keepdims=True), 1e-9)
    assert_close(weights, expected)
    _, single = run(layer, target=TARGET[:, 1], history=HISTORY, mask=MASK, return_weights=True)
    assert_close(single, weights[:, 1])


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
def test_din_returns_the_weights_of_its_attention(order: str) -> None:
    encoder = built(DINEncoder(order=order), target=TARGET, history=HISTORY, mask=MASK)
    tokens, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    assert_close(tokens, run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    _, expected = encoder._attention(TARGET, HISTORY, mask=MASK, return_weights=True)
    assert_close(found["gates"], expected)
    single, _ = run(encoder, target=TARGET[:, 0], history=HISTORY, mask=MASK, return_gates=True)
    assert_close(single, tokens[:, 0])
    symbols = keras.Input((None, 8)), keras.Input((11, 8))
    promised, events = encoder(*symbols, return_gates=True)
    assert promised.shape == (None, None, 1, 8)
    assert events["gates"].shape == (None, None, 2, 11)
    unit = DINEncoder(unit="activation_unit")
    with pytest.raises(ValueError, match="needs unit='target_attention'"):
        unit(TARGET, HISTORY, return_gates=True)


@pytest.mark.parametrize("order", ["newest_first", "oldest_first"])
@pytest.mark.parametrize("top_k", [4, 50])
def test_twin_returns_the_weights_of_the_events_it_kept(order: str, top_k: int) -> None:
    encoder = built(TWINEncoder(top_k, 2, 3, order=order), target=TARGET, history=HISTORY)
    tokens, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    assert_close(tokens, run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    gates = to_numpy(found["gates"])
    # What the weights sum up to is the long-term interest.
    w = weights_by_name(encoder)
    values = (HISTORY @ w["value_kernel"]).reshape(3, 11, 2, 4)
    interest = np.einsum("bnhl,blhe->bnhe", gates, values).reshape(3, 2, 8) @ w["output_kernel"]
    assert_close(tokens[:, :, 0], interest, 1e-5)
    assert not gates[~np.broadcast_to(MASK[:, None, None], gates.shape)].any()
    kept = (gates > 0).any(axis=2).sum(axis=-1)
    assert (kept == np.minimum(MASK.sum(axis=1), top_k)[:, None]).all()
    single, of_one = run(
        encoder, target=TARGET[:, 0], history=HISTORY, mask=MASK, return_gates=True
    )
    assert_close(single, tokens[:, 0])
    assert_close(of_one["gates"], gates[:, 0])
    symbols = keras.Input((None, 8)), keras.Input((11, 8))
    promised, events = encoder(*symbols, return_gates=True)
    assert promised.shape == (None, None, 2, 8)
    assert events["gates"].shape == (None, None, 2, 11)


WEIGHING = {
    "din": lambda **k: DINEncoder(**k),
    "twin": lambda **k: TWINEncoder(4, 2, 3, **k),
    "sim": lambda **k: SIMEncoder("soft", 4, 2, 3, **k),
    "hstu": lambda **k: HSTUEncoder(**k),
    "stca": lambda **k: STCAEncoder(num_heads=2, **k),
    "longer": lambda **k: LONGEREncoder(4, 2, 1, 2, **k),
    "transformer": lambda **k: TransformerEncoder(2, ffn_expansion=2, **k),
    "transformer_parallel": lambda **k: TransformerEncoder(mode="parallel", **k),
    "transformer_shared": lambda **k: TransformerEncoder(append_target=False, **k),
    "base": lambda **k: TransformerEncoder(recent_events=4, **k),
}


@pytest.mark.parametrize("name", sorted(WEIGHING))
def test_weights_of_every_encoder(name: str) -> None:
    encoder = built(WEIGHING[name](), target=TARGET, history=HISTORY, mask=MASK)
    tokens, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    assert_close(tokens, run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    gates = to_numpy(found["gates"])
    assert gates.shape == (3, 2, 2, 11)
    assert not gates[~np.broadcast_to(MASK[:, None, None], gates.shape)].any()
    assert (gates >= 0).all()
    assert gates[0].any()
    single, of_one = run(
        encoder, target=TARGET[:, 0], history=HISTORY, mask=MASK, return_gates=True
    )
    assert_close(single, tokens[:, 0])
    assert_close(of_one["gates"], gates[:, 0])
    symbols = keras.Input((None, 8)), keras.Input((11, 8))
    promised, events = encoder(*symbols, return_gates=True)
    assert promised.shape == (None, None, *tokens.shape[2:])
    assert events["gates"].shape == (None, None, 2, 11)


@pytest.mark.parametrize("name", sorted(WEIGHING))
def test_weights_come_in_the_order_of_the_events(name: str) -> None:
    newest = built(WEIGHING[name](), target=TARGET, history=HISTORY, mask=MASK)
    oldest = built(WEIGHING[name](order="oldest_first"), target=TARGET, history=HISTORY)
    for mine, theirs in zip(oldest.weights, newest.weights, strict=True):
        mine.assign(theirs)
    _, expected = newest(TARGET, HISTORY, mask=MASK, return_gates=True)
    # The same events, the oldest first and so padded on the left.
    history, mask = HISTORY[:, ::-1].copy(), MASK[:, ::-1].copy()
    _, found = oldest(TARGET, history, mask=mask, return_gates=True)
    assert_close(found["gates"], to_numpy(expected["gates"])[..., ::-1])


def test_sim_weighs_the_events_it_found() -> None:
    encoder = built(SIMEncoder("soft", 4, 2, 3), target=TARGET, history=HISTORY, mask=MASK)
    _, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    gates = to_numpy(found["gates"])
    kept = to_numpy(encoder.search_layer(TARGET, HISTORY, mask=MASK)[0])
    for n in range(2):
        assert set(np.flatnonzero(gates[0, n].any(axis=0))) == set(kept[0, n])
    assert_close(gates.sum(axis=-1), np.broadcast_to([[[1.0]], [[1.0]], [[0.0]]], (3, 2, 2)))


def test_longer_gives_the_events_of_a_merged_token_its_weight() -> None:
    encoder = built(LONGEREncoder(4, 2, 1, 2), target=TARGET, history=HISTORY, mask=MASK)
    _, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    gates = to_numpy(found["gates"])
    for first in (0, 4, 8):
        of_token = gates[0, ..., first : first + 4]
        assert_close(of_token, np.broadcast_to(of_token[..., :1], of_token.shape))
    # Two tokens hold the five valid events of the second history.
    assert gates[1, ..., :5].all()
    assert_close(gates[1, ..., 1:4], np.repeat(gates[1, ..., :1], 3, axis=-1))


def test_hstu_that_appends_the_target_has_no_weights() -> None:
    encoder = HSTUEncoder(read_out="target_position")
    with pytest.raises(ValueError, match="needs read_out='target_attention'"):
        run(encoder, target=TARGET, history=HISTORY, return_gates=True)


def test_weights_of_segments_sum_to_one_where_there_are_any() -> None:
    encoder = LaserEncoder(num_layers=3, num_recent_segments=2, **SIZES)
    built(encoder, target=TARGET, history=HISTORY, mask=MASK)
    tokens, found = run(encoder, target=TARGET, history=HISTORY, mask=MASK, return_gates=True)
    assert_close(tokens, run(encoder, target=TARGET, history=HISTORY, mask=MASK))
    weights = to_numpy(found["segment_weights"])
    assert weights.shape == (3, 2, 3, 2, 3)
    expected = np.broadcast_to([[[[1.0]]], [[[1.0]]], [[[0.0]]]], (3, 2, 3, 2))
    assert_close(weights.sum(-1), expected)
    assert not weights[1, ..., 2].any()  # a segment of padding


def small_ranker() -> LaserRanker:
    sizes = {"num_recent_segments": 2, "num_tokens": 8, "mixer_dim": 16}
    return LaserRanker(8, recency="none", **sizes, **SIZES)


def ranker_inputs(candidates: int = 2) -> dict[str, np.ndarray]:
    target = np.random.default_rng(candidates).normal(size=(3, candidates, 8))
    return {"history": HISTORY, "history_mask": MASK, "target": target.astype("float32")}


def test_a_ranker_returns_them_with_its_scores() -> None:
    ranker = LaserRanker(
        8, num_recent_segments=2, num_tokens=8, mixer_dim=16, recency="none", **SIZES
    )
    inputs = ranker_inputs()
    found = ranker(inputs, return_gates=True)
    assert_close(found["scores"], ranker(inputs))
    assert tuple(found["gates"].shape) == (3, 2, 2, 11)
    symbolic = {n: keras.Input(v.shape[1:], dtype=v.dtype.name) for n, v in inputs.items()}
    promised = ranker(symbolic, return_gates=True)
    assert promised["gates"].shape == (None, 2, 2, 11)
    assert promised["segment_weights"].shape == (None, 2, 2, 2, 3)
    other = SequenceRanker(PoolingEncoder(), 8, num_tokens=4, mixer_dim=16, recency="none")
    with pytest.raises(ValueError, match="`return_gates` needs an encoder with gates"):
        other(inputs, return_gates=True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is TensorFlow's")
def test_gates_are_a_signature_of_their_own(tmp_path: Path) -> None:
    import tensorflow as tf

    ranker = LaserRanker(
        8, num_recent_segments=2, num_tokens=8, mixer_dim=16, recency="none", **SIZES
    )
    ranker(ranker_inputs())
    randomise(ranker)
    specs = [
        {
            "history": keras.InputSpec(dtype="float32", shape=(None, 11, 8)),
            "history_mask": keras.InputSpec(dtype="bool", shape=(None, 11)),
            "target": keras.InputSpec(dtype="float32", shape=(None, None, 8)),
        }
    ]

    def gates(inputs: Any) -> Any:
        return ranker(inputs, return_gates=True)

    archive = keras.export.ExportArchive()
    archive.track(ranker)
    archive.add_endpoint("serve", ranker.__call__, input_signature=specs)
    archive.add_endpoint("gates", gates, input_signature=specs)
    archive.write_out(str(tmp_path / "model"), verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    for candidates in (1, 5):
        inputs = ranker_inputs(candidates)
        request = {name: tf.constant(value) for name, value in inputs.items()}
        found, expected = served.gates(request), ranker(inputs, return_gates=True)
        assert_close(served.serve(request), expected["scores"], 1e-4)
        for name, value in expected.items():
            assert_close(found[name], value, 1e-4)
