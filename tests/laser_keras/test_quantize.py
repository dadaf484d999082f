"""Kernels of int8: what is rounded, by how much, and that it is saved and loaded."""

import io
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import layer_cases
import numpy as np
import pytest
from keras import ops, tree
from layer_tools import assert_close, built, long_on, randomise, run, to_numpy

import laser_keras
from laser_keras import (
    CombinedEncoder,
    DINEncoder,
    FeedForward,
    LaserRanker,
    PoolingEncoder,
    SequenceEncoder,
    SequenceRanker,
    TransformerEncoder,
)
from laser_keras.layers.kernel_layer import KernelLayer
from laser_keras.quantizable import Quantizable, int8_kernel

WITHOUT_KERNELS = ("Dice", "HardSearch", "MultiResolutionFusion", "PoolingEncoder")
CASES = [
    name
    for name, case in layer_cases.CASES.items()
    if isinstance(case.make(), Quantizable) and name not in WITHOUT_KERNELS
]
# Of each kind of layer one: kernels of its own, of layers inside, and per token.
SHORT = ("SegmentedTargetAttention", "LaserEncoder", "RankMixer")
EACH_LAYER = pytest.mark.parametrize(
    "name",
    [*SHORT, *long_on(("jax", "tensorflow"), [each for each in CASES if each not in SHORT])],
)


def test_a_kernel_by_hand() -> None:
    layer = FeedForward(1, activation="linear")
    layer.build((None, 2))
    layer.hidden_kernel.assign([[127.0, 0.5], [-1.6, -0.26]])
    layer.output_kernel.assign([[1.0, 0.0], [0.0, 1.0]])
    layer.quantize("int8")
    # Scales 1 and 1/254: 127, -1.6 -> -2; and 0.5, -0.26 * 254 = -66.04 -> -66.
    assert to_numpy(layer.hidden_kernel).tolist() == [[127, 127], [-2, -66]]
    assert_close(layer._kernel_scales["hidden_kernel"], [[1.0, 1 / 254]], 1e-7)
    assert_close(layer(np.array([[1.0, 10.0]], "float32")), [[107.0, 0.5 - 660 / 254]], 1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (1, 3), (4, 5, 3), (2, 3, 6, 5)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_no_number_moves_by_more_than_half_its_scale(
    shape: tuple[int, ...], dtype: str, size: float
) -> None:
    kernel = np.random.default_rng(len(shape)).normal(0, size, shape).astype(dtype)
    kernel[..., 0] = 0.0
    integers, scales = int8_kernel(kernel)
    assert integers.dtype == np.int8 and scales.dtype == dtype
    assert scales.shape == (*shape[:-2], 1, shape[-1])
    assert np.abs(integers.astype("int32")).max() == 127
    assert not integers[..., 0].any()
    exact = kernel.astype("float64")
    moved = np.abs(exact - integers.astype("float64") * scales.astype("float64"))
    rounding = 2 * 127 * np.finfo(dtype).eps  # of the scale and of the quotient, in steps
    assert np.all(moved <= scales.astype("float64") * (0.5 + rounding))


def restored(layer: keras.layers.Layer, original: list[tuple[str, np.ndarray]]) -> list[np.ndarray]:
    """The float weights that a quantised layer stands for, in the order of its ``original`` ones.

    Every kernel is found rounded, all else as it was.
    """
    values = {weight.path: to_numpy(weight) for weight in layer.weights}
    found = []
    for path, before in original:
        scales = values.get(f"{path}_scale")
        kernel = "kernel" in path.rsplit("/", 1)[-1] and "lora" not in path
        # TWIN's numbers of a cross feature, and the head, which has but one output, stay float.
        assert (scales is not None) == (
            kernel and not path.endswith(("cross_kernel", "head/kernel"))
        )
        if scales is None:
            np.testing.assert_array_equal(values[path], before)
            found.append(before)
            continue
        assert values[path].dtype == np.int8
        value = values[path].astype("float32") * scales
        assert np.all(np.abs(value - before) <= scales * (0.5 + 1e-4))
        found.append(value)
    return found


def leaves(outputs: Any) -> list[np.ndarray]:
    return [to_numpy(value) for value in tree.flatten(outputs)]


def original_of(layer: keras.layers.Layer) -> list[tuple[str, np.ndarray]]:
    return [(weight.path, to_numpy(weight)) for weight in layer.weights]


@EACH_LAYER
def test_a_quantised_layer_is_the_layer_of_the_rounded_kernels(name: str) -> None:
    case = layer_cases.CASES[name]
    layer = built(case.make(), **case.inputs)
    original = original_of(layer)
    layer.quantize("int8")
    assert layer.quantization_mode == "int8"
    plain = case.make()
    run(plain, **case.inputs)
    plain.set_weights(restored(layer, original))
    outputs = leaves(run(layer, **case.inputs))
    for actual, expected in zip(outputs, leaves(run(plain, **case.inputs)), strict=True):
        assert_close(actual.astype("float32"), expected.astype("float32"), 1e-6)
    assert not any(weight.dtype == "int8" for weight in layer.trainable_weights)
    # A layer of this configuration has the same weights, in the same order.
    revived = type(layer).from_config(layer.get_config())
    run(revived, **case.inputs)
    assert revived.get_config() == layer.get_config()
    assert kinds(revived) == kinds(layer)
    revived.set_weights(layer.get_weights())
    for actual, expected in zip(leaves(run(revived, **case.inputs)), outputs, strict=True):
        np.testing.assert_array_equal(actual, expected)


def kinds(layer: keras.layers.Layer) -> list[tuple]:
    return [(w.name, w.shape, w.dtype, w.trainable) for w in layer.weights]


def placeholders(case: layer_cases.Case, inputs: Mapping[str, Any], prefix: str = "") -> dict:
    return {
        name: placeholders(case, value, f"{name}_")
        if isinstance(value, Mapping)
        else keras.Input(
            batch_shape=(value.shape[0] if case.whole_shape else None, *value.shape[1:]),
            dtype=str(value.dtype),
            name=prefix + name,
        )
        for name, value in inputs.items()
    }


@EACH_LAYER
def test_a_model_of_a_quantised_layer_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    case = layer_cases.CASES[name]
    inputs = placeholders(case, case.inputs)
    layer = case.make()
    model = keras.Model(inputs, layer(**inputs))
    randomise(model)
    layer.quantize("int8")
    expected = leaves(run(model, inputs=case.inputs))
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert kinds(revived) == kinds(model)
    second = type(model).from_config(model.get_config())
    second.load_weights(tmp_path / "model.weights.h5")
    for loaded in (revived, second):
        for actual, value in zip(leaves(run(loaded, inputs=case.inputs)), expected, strict=True):
            np.testing.assert_array_equal(actual, value)


INPUTS = {
    "target": np.random.default_rng(0).normal(size=(2, 3, 8)).astype("float32"),
    "history": np.random.default_rng(1).normal(size=(2, 12, 8)).astype("float32"),
    "history_mask": np.arange(12) < np.array([[12], [7]]),
}
OF_ENCODER = {"target": INPUTS["target"], "history": INPUTS["history"]}
SIZES: dict[str, Any] = {"num_tokens": 8, "mixer_dim": 16, "recency": "none"}


def laser_ranker(**kwargs: Any) -> LaserRanker:
    return LaserRanker(8, segment_size=4, num_recent_segments=2, **SIZES, **kwargs)


def combined_ranker(**kwargs: Any) -> SequenceRanker:
    encoder = CombinedEncoder([DINEncoder(), PoolingEncoder(), TransformerEncoder()])
    return SequenceRanker(encoder, 8, **SIZES, mixer="mlp", **kwargs)


RANKERS = {"laser": laser_ranker, "combined": combined_ranker}


@pytest.mark.parametrize("kind", RANKERS)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16"])
def test_a_quantised_ranker_is_saved_and_loaded(kind: str, policy: str, tmp_path: Path) -> None:
    ranker = built(RANKERS[kind](dtype=policy), inputs=INPUTS)
    before = to_numpy(run(ranker, inputs=INPUTS))
    ranker.quantize("int8")
    assert ranker.dtype_policy.name == f"int8_from_{policy}"
    assert ranker.head.dtype_policy.name == policy
    assert [w.dtype for w in ranker.weights].count("int8") > 10
    expected = to_numpy(run(ranker, inputs=INPUTS))
    assert 0 < np.abs(expected - before).max() < 0.02
    ranker.save(tmp_path / "ranker.keras")
    ranker.save_weights(tmp_path / "ranker.weights.h5")
    revived = keras.saving.load_model(tmp_path / "ranker.keras")
    second = type(ranker).from_config(ranker.get_config())
    run(second, inputs=INPUTS)
    second.load_weights(tmp_path / "ranker.weights.h5")
    for loaded in (revived, second):
        assert kinds(loaded) == kinds(ranker)
        np.testing.assert_array_equal(to_numpy(run(loaded, inputs=INPUTS)), expected)


def test_a_ranker_forgets_what_was_compiled_for_the_float_kernels() -> None:
    ranker = built(laser_ranker(), inputs=INPUTS)
    before = ranker.predict(INPUTS, verbose=0)
    ranker.quantize("int8")
    after = ranker.predict(INPUTS, verbose=0)
    assert np.abs(after - before).max() > 0
    assert_close(after, ranker(INPUTS), 1e-5)


def test_the_bytes_of_kernels_are_a_quarter() -> None:
    ranker = LaserRanker(128, num_tokens=16, mixer_dim=128)
    wide = {
        "target": np.zeros((1, 2, 128), "float32"),
        "history": np.zeros((1, 60, 128), "float32"),
        "history_mask": np.ones((1, 60), bool),
        "history_age": np.ones((1, 60), "int32"),
    }
    run(ranker, inputs=wide)

    def size(model: keras.Model) -> int:
        return sum(to_numpy(weight).nbytes for weight in model.weights if "kernel" in weight.name)

    before = size(ranker)
    ranker.quantize("int8")
    assert 0.25 * before < size(ranker) < 0.3 * before


def test_what_is_not_a_kernel_is_still_trained() -> None:
    ranker = built(laser_ranker(), inputs=INPUTS)
    ranker.quantize("int8")
    before = {weight.path: to_numpy(weight) for weight in ranker.weights}
    ranker.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    ranker.fit(INPUTS, np.ones((2, 3), "float32"), verbose=0)
    changed = {
        weight.path for weight in ranker.weights if (to_numpy(weight) != before[weight.path]).any()
    }
    assert changed == {weight.path for weight in ranker.trainable_weights}
    assert not any("kernel" in path for path in changed if "head" not in path)
    assert any("bias" in path for path in changed)


@pytest.mark.parametrize("lora_first", [True, False])
def test_lora_trains_beside_kernels_of_int8(lora_first: bool, tmp_path: Path) -> None:
    ranker = built(laser_ranker(), inputs=INPUTS)
    if lora_first:
        ranker.encoder.enable_lora(2)
        randomise(ranker)
        original = original_of(ranker)
        ranker.quantize("int8")
        plain = laser_ranker(lora_rank=2)
        run(plain, inputs=INPUTS)
        plain.set_weights(restored(ranker, original))
        assert_close(run(ranker, inputs=INPUTS), run(plain, inputs=INPUTS), 1e-6)
    else:
        ranker.quantize("int8")
        before = to_numpy(run(ranker, inputs=INPUTS))
        ranker.encoder.enable_lora(2)
        assert_close(run(ranker, inputs=INPUTS), before, 1e-6)
    factors = [weight for weight in ranker.encoder.trainable_weights if "lora" in weight.name]
    assert len(factors) == 2 * sum(
        weight.dtype == "int8" and len(weight.shape) == 2 for weight in ranker.encoder.weights
    )
    randomise(ranker)
    expected = to_numpy(run(ranker, inputs=INPUTS))
    ranker.save(tmp_path / "ranker.keras")
    revived = keras.saving.load_model(tmp_path / "ranker.keras")
    assert kinds(revived) == kinds(ranker)
    np.testing.assert_array_equal(to_numpy(run(revived, inputs=INPUTS)), expected)


def test_parts_quantised_by_themselves() -> None:
    ranker = built(laser_ranker(), inputs=INPUTS)
    whole = copy_of(ranker)
    ranker.mixer.quantize("int8")
    with pytest.raises(ValueError, match=r"only a part is quantised.* Received: int8 in mixer"):
        ranker.get_config()
    with pytest.raises(ValueError, match=r"called once"):
        ranker.mixer.quantize("int8")
    ranker.quantize("int8")  # the rest
    whole.quantize("int8")
    np.testing.assert_array_equal(
        to_numpy(run(ranker, inputs=INPUTS)), to_numpy(run(whole, inputs=INPUTS))
    )
    # A layer with a configuration of its own keeps it.
    ranker = built(combined_ranker(), inputs=INPUTS)
    ranker.encoder.encoders[0].quantize("int8")
    revived = SequenceRanker.from_config(ranker.get_config())
    run(revived, inputs=INPUTS)
    assert kinds(revived) == kinds(ranker)


def copy_of(ranker: LaserRanker) -> LaserRanker:
    second = LaserRanker.from_config(ranker.get_config())
    run(second, inputs=INPUTS)
    second.set_weights(ranker.get_weights())
    return second


def test_keras_quantises_the_layers_of_a_functional_model() -> None:
    inputs = keras.Input((8,))
    outputs = FeedForward(2, name="one")(keras.layers.LayerNormalization()(inputs))
    model = keras.Model(inputs, outputs)
    with pytest.warns(UserWarning, match="LayerNormalization does not have"):
        model.quantize("int8")
    assert model.get_layer("one").quantization_mode == "int8"


def test_what_cannot_be_quantised_is_refused() -> None:
    layer = built(FeedForward(), inputs=INPUTS["target"])
    for mode in ("int4", "float8"):
        with pytest.raises(ValueError, match=rf"`mode` must be 'int8'. Received: {mode!r}"):
            layer.quantize(mode)
    with pytest.raises(ValueError, match=r"after the layer is built. Received: a layer not built"):
        FeedForward().quantize("int8")
    with pytest.raises(ValueError, match=r"after the layer is built. Received: a layer not built"):
        laser_ranker().quantize("int8")
    with pytest.raises(ValueError, match=r"mode|config"):  # Keras's own words, in some versions
        layer.quantize("gptq")
    by_hand = types.SimpleNamespace(mode="int8", weight_quantizer="by hand")
    with pytest.raises(ValueError, match="`config` must not have a `weight_quantizer`"):
        Quantizable.quantize(layer, "int8", config=by_hand)
    layer.quantize("int8")
    with pytest.raises(ValueError, match=r"called once.* Received: a layer of int8 already"):
        layer.quantize("int8")
    half = built(FeedForward(dtype="mixed_float16"), inputs=INPUTS["target"])
    with pytest.raises(ValueError, match=r"float32 or bfloat16. Received: mixed_float16"):
        half.quantize("int8")
    partly = built(SequenceRanker(DINEncoder(dtype="mixed_float16"), 8, **SIZES), inputs=INPUTS)
    with pytest.raises(ValueError, match=r"float32 or bfloat16. Received: mixed_float16"):
        partly.quantize("int8")
    assert not any(weight.dtype == "int8" for weight in partly.weights)
    with pytest.raises(ValueError, match=r"a dtype policy of int8. Received: int4_from_float32"):
        FeedForward(dtype="int4_from_float32")
    fusion = laser_keras.MultiResolutionFusion(2)
    fusion.build((None, 2, 8), (None, 2, 3, 8))
    with pytest.raises(NotImplementedError, match="reaches no kernel"):
        fusion.quantize("int8")


class OfMine(KernelLayer):
    """Multiplies by its kernel without ``effective``."""

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_kernel("kernel", (input_shape[-1], 3))

    def call(self, inputs: Any) -> Any:
        return ops.matmul(inputs, self.kernel)


def test_a_kernel_that_is_read_as_it_is_stays_as_it_is() -> None:
    layer = built(OfMine(), inputs=INPUTS["target"])
    with pytest.raises(ValueError, match="must end `build` with `finish_build`"):
        layer.quantize("int8")
    assert layer.kernel.dtype == "float32"


@keras.saving.register_keras_serializable(package="test_quantize")
class EncoderOfMine(SequenceEncoder):
    """Of layers of this package and of Keras."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.attention = laser_keras.TargetAttention(dtype=self.dtype_policy)
        self.norm = keras.layers.LayerNormalization(dtype=self.float_policy)
        self.dense = keras.layers.Dense(8, dtype=self.float_policy)

    def build(self, target_shape: Any, history_shape: Any) -> None:
        self.attention.build((None, None, 8), (None, None, 8))
        self.norm.build((None, None, 8))
        self.dense.build((None, None, 8))

    def encode(self, target: Any, history: Any, mask: Any, training: bool | None) -> Any:
        read = self.attention(target, history, mask=mask)
        return ops.expand_dims(self.dense(self.norm(read)), 2)


def test_an_encoder_of_ones_own_keeps_what_is_not_of_this_package(tmp_path: Path) -> None:
    ranker = built(SequenceRanker(EncoderOfMine(), 8, **SIZES), inputs=INPUTS)
    ranker.quantize("int8")
    assert ranker.encoder.attention.query_kernel.dtype == "int8"
    assert ranker.encoder.dense.kernel.dtype == "float32"
    ranker.save(tmp_path / "ranker.keras")
    revived = keras.saving.load_model(tmp_path / "ranker.keras")
    np.testing.assert_array_equal(
        to_numpy(run(revived, inputs=INPUTS)), to_numpy(run(ranker, inputs=INPUTS))
    )


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's")
def test_a_quantised_ranker_is_exported(tmp_path: Path) -> None:
    import tensorflow as tf

    ranker = built(laser_ranker(), inputs=INPUTS)
    ranker.quantize("int8")
    ranker.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    scores = served.serve({name: tf.constant(value) for name, value in INPUTS.items()})
    assert_close(scores, ranker(INPUTS), 1e-6)
    kept = [variable.dtype.name for variable in served.variables]
    assert kept.count("int8") == [weight.dtype for weight in ranker.weights].count("int8")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's dictionaries")
@pytest.mark.parametrize("kind", RANKERS)
def test_a_state_dictionary_fits_what_was_made_or_became_int8(kind: str) -> None:
    import torch

    ranker, became = (built(RANKERS[kind](), inputs=INPUTS) for _ in range(2))
    names = set(ranker.state_dict())
    ranker.quantize("int8")
    became.quantize("int8")
    made = type(ranker).from_config(ranker.get_config())
    made(INPUTS)
    randomise(became, 1)
    assert {name for name in names if "kernel" in name} <= set(ranker.state_dict())
    assert sum(p.dtype == torch.int8 for p in ranker.parameters()) == [
        weight.dtype for weight in ranker.weights
    ].count("int8")
    file = io.BytesIO()
    torch.save(ranker.state_dict(), file)
    # A combined encoder's parts are built before it when they come from a configuration: their
    # names then differ, of int8 or not.
    for second in [became] if kind == "combined" else [made, became]:
        file.seek(0)
        second.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert torch.equal(second(INPUTS), ranker(INPUTS))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="modules are PyTorch's")
def test_the_float_kernels_are_let_go() -> None:
    ranker = built(laser_ranker(), inputs=INPUTS)
    ranker.quantize("int8")
    kernels = {w.path: w for w in ranker.weights if "kernel" in w.name}
    for module in ranker.modules():
        for path, parameter in getattr(module, "_torch_params", {}).items():
            if path in kernels:
                assert parameter is kernels[path].value
