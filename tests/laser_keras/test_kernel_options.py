"""Initialisers, regularisers and constraints of kernels and biases, and LoRA."""

from pathlib import Path
from typing import Any

import keras
import layer_cases
import numpy as np
import pytest
from layer_tools import assert_close, built, randomise, run, to_numpy

from laser_keras import LaserEncoder, LaserRanker, RankMixer, SegmentedTargetAttention
from laser_keras.layers.kernel_layer import KernelLayer

TAKES = [
    name
    for name, case in layer_cases.CASES.items()
    if isinstance(case.make(), KernelLayer)
    and case.trains
    and name not in ("Dice", "RandomSuffix", "CombinedEncoder")  # no kernel of their own
]


@pytest.mark.parametrize("name", TAKES)
def test_options_reach_every_kernel_and_bias(name: str) -> None:
    case = layer_cases.CASES[name]
    layer = case.make(
        kernel_initializer=keras.initializers.Constant(0.25),
        bias_initializer="ones",
        kernel_regularizer=keras.regularizers.L2(0.01),
        kernel_constraint="non_neg",
    )
    run(layer, **case.inputs)
    kernels = [w for w in layer.trainable_weights if "kernel" in w.name]
    assert kernels
    for kernel in kernels:
        if kernel.name == "cross_kernel":  # of TWIN: one number per feature, scaled by its width
            continue
        assert np.all(to_numpy(kernel) == 0.25), kernel.path
        assert kernel.regularizer is not None and kernel.constraint is not None
    of_scores = ("score_bias", "distance_bias", "time_bias")  # numbers by position, not of a layer
    for weight in layer.trainable_weights:
        if "bias" in weight.name and not weight.name.startswith(of_scores):
            assert np.all(to_numpy(weight) == 1.0), weight.path
    revived = type(layer).from_config(layer.get_config())
    assert revived.get_config() == layer.get_config()


def test_kernels_of_one_initialiser_differ_and_a_seed_repeats_them() -> None:
    def weights(seed: int | None) -> list[np.ndarray]:
        layer = SegmentedTargetAttention(
            key_dim=4, kernel_initializer=keras.initializers.GlorotNormal(seed)
        )
        layer.build((None, None, 8), (None, 12, 8))
        return [to_numpy(layer.query_kernel), to_numpy(layer.value_kernel)]

    query, value = weights(None)
    assert (query != value).any()
    np.testing.assert_array_equal(weights(3)[0], weights(3)[0])


INPUTS = {
    "target": np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32"),
    "history": np.random.default_rng(1).normal(size=(2, 12, 8)).astype("float32"),
}


def encoder(**kwargs: Any) -> LaserEncoder:
    return LaserEncoder(segment_size=4, num_recent_segments=2, stacked_ffn_expansion=2, **kwargs)


def test_lora_changes_nothing_until_it_is_trained_and_trains_alone() -> None:
    layer = built(encoder(), **INPUTS)
    before, frozen = to_numpy(layer(**INPUTS)), [w.path for w in layer.weights]
    kernels = [w for w in layer.trainable_weights if "kernel" in w.name]
    layer.enable_lora(2)
    assert_close(layer(**INPUTS), before)
    assert all(not kernel.trainable for kernel in kernels)
    added = [w for w in layer.trainable_weights if w.path not in frozen]
    assert len(added) == 2 * len(kernels)
    for weight in added:
        weight.assign(np.full(weight.shape, 0.1))
    changed = to_numpy(layer(**INPUTS))
    assert np.abs(changed - before).max() > 1e-3
    # The same function with the product added to the kernels.
    plain = built(encoder(), **INPUTS)
    plain.set_weights([to_numpy(w) for w in layer.weights if "lora" not in w.name])
    for kernel in plain.trainable_weights:
        if "kernel" in kernel.name:
            kernel.assign(to_numpy(kernel) + 0.02)  # rank 2 times 0.1 times 0.1
    assert_close(changed, plain(**INPUTS), 1e-4)
    with pytest.raises(ValueError, match="called once, after the layer is built"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match="called once, after the layer is built"):
        encoder().enable_lora(2)


def test_a_ranker_with_lora_is_saved_and_loaded(tmp_path: Path) -> None:
    ranker = LaserRanker(
        8, segment_size=4, num_recent_segments=2, num_tokens=8, mixer_dim=16, recency="none"
    )
    inputs = {**INPUTS, "history_mask": np.ones((2, 12), bool)}
    ranker(inputs)
    ranker.encoder.enable_lora(2)
    randomise(ranker)
    expected = to_numpy(ranker(inputs))
    ranker.save(tmp_path / "ranker.keras")
    revived = keras.saving.load_model(tmp_path / "ranker.keras")
    assert_close(revived(inputs), expected, 1e-6)
    assert [w.trainable for w in revived.encoder.weights] == [
        w.trainable for w in ranker.encoder.weights
    ]


def test_lora_that_reaches_nothing_is_refused() -> None:
    mixer = RankMixer(4, 8)  # its kernels are of a token each
    mixer.build((2, 9))
    with pytest.raises(ValueError, match="`enable_lora` reaches no kernel"):
        mixer.enable_lora(2)


@pytest.mark.parametrize("name", [name for name in TAKES if "Encoder" in name])
def test_lora_reaches_every_kernel_of_an_encoder(name: str) -> None:
    case = layer_cases.CASES[name]
    layer = built(case.make(), **case.inputs)
    before = to_numpy(run(layer, **case.inputs))
    layer.enable_lora(2)
    assert_close(run(layer, **case.inputs), before)
    kernels = {w.path for w in layer.weights if "kernel" in w.name and "lora" not in w.name}
    factors = {w.path.removesuffix("_lora_a") for w in layer.weights if "lora_a" in w.name}
    assert {path for path in kernels if "cross_kernel" not in path} == factors
    revived = type(layer).from_config(layer.get_config())
    run(revived, **case.inputs)
    revived.set_weights(layer.get_weights())
    assert_close(run(revived, **case.inputs), before)
