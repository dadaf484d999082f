"""What every public layer owes its user: shapes, dtypes, saving, configuration, compilation."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import layer_cases
import numpy as np
import pytest
from layer_tools import (
    BACKEND,
    assert_close,
    built,
    float64_enabled,
    gradient_function,
    gradients,
    long_on,
    randomise,
    run,
    to_numpy,
)

import laser_keras

tree = keras.tree


CASES = sorted(layer_cases.CASES)
PADDED = [name for name in CASES if layer_cases.CASES[name].masked_by]
TRAINED = [name for name in CASES if layer_cases.CASES[name].trains]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> layer_cases.Case:
    return layer_cases.CASES[request.param]


def shapes_of(outputs: Any) -> Any:
    if isinstance(outputs, Mapping):
        return {name: tuple(value.shape) for name, value in outputs.items()}
    if isinstance(outputs, (tuple, list)):
        return tuple(tuple(value.shape) for value in outputs)
    return tuple(outputs.shape)


def symbolic(case: layer_cases.Case) -> dict:
    def of(inputs: dict, prefix: str = "") -> dict:
        return {
            name: of(value, f"{name}_")
            if isinstance(value, Mapping)
            else keras.Input(
                batch_shape=(value.shape[0] if case.whole_shape else None, *value.shape[1:]),
                dtype=str(value.dtype),
                name=prefix + name,
            )
            for name, value in inputs.items()
        }

    return of(case.inputs)


def flat(outputs: Any) -> list[np.ndarray]:
    return [to_numpy(value) for value in tree.flatten(outputs)]


def functional_model(layer: keras.layers.Layer, case: layer_cases.Case) -> keras.Model:
    placeholders = symbolic(case)
    return keras.Model(placeholders, layer(**placeholders))


def test_every_public_layer_has_a_case() -> None:
    layers = {
        name
        for name in laser_keras.__all__
        if isinstance(getattr(laser_keras, name), type)
        and issubclass(getattr(laser_keras, name), keras.layers.Layer)
    }
    tested = {name.split("_")[0] for name in layer_cases.CASES}
    # LaserRanker is a SequenceRanker; SequenceEncoder and WeighingEncoder are abstract;
    # FeatureEmbedding has tests of its own.
    untested = {"SequenceRanker", "SequenceEncoder", "WeighingEncoder", "FeatureEmbedding"}
    assert layers - untested == tested


def test_output_shape_is_what_was_promised(case: layer_cases.Case) -> None:
    layer = case.make()
    assert shapes_of(run(layer, **case.inputs)) == case.output_shape
    placeholders = symbolic(case)
    promised = shapes_of(case.make()(**placeholders))
    if not case.whole_shape:
        unknown = tree.map_shape_structure(lambda shape: (None, *shape[1:]), case.output_shape)
        assert promised == unknown


def test_weights_are_created_by_build(case: layer_cases.Case) -> None:
    layer = case.make()
    layer(**symbolic(case))
    created = [(w.path.split("/", 1)[-1], w.shape) for w in layer.weights]
    run(layer, **case.inputs)
    assert [(w.path.split("/", 1)[-1], w.shape) for w in layer.weights] == created
    assert bool(layer.trainable_weights) == case.trains
    assert len({path for path, _ in created}) == len(created), "weight names must be unique"


def test_config_round_trip(case: layer_cases.Case) -> None:
    layer = case.make(name="under_test")
    config = layer.get_config()
    json.dumps(keras.saving.serialize_keras_object(layer))
    revived = type(layer).from_config(config)
    assert revived.get_config() == config


def test_save_and_load(case: layer_cases.Case, tmp_path: Path) -> None:
    layer = case.make()
    model = functional_model(layer, case)
    randomise(layer)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    before, after = layer.weights, revived.layers[-1].weights
    assert [w.name for w in before] == [w.name for w in after]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    (again,) = [part for part in revived.layers if type(part) is type(layer)]
    for a, b in zip(flat(run(layer, **case.inputs)), flat(run(again, **case.inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "float64", *long_on(("jax",), ["mixed_float16", "bfloat16"])]
)
def test_dtype_policy_reaches_every_part(case: layer_cases.Case, policy: str) -> None:
    with float64_enabled() if policy == "float64" else contextlib.nullcontext():
        layer = case.make(dtype=policy)
        outputs = tree.flatten(run(layer, **case.inputs))
        reference = case.make()
        run(reference, **case.inputs)
    expected = keras.DTypePolicy(policy)
    for part in layer._flatten_layers():
        assert part.dtype_policy.name == policy, part.name
    for weight in layer.weights:
        if weight.dtype not in ("uint32", "int32", "int64"):
            assert weight.dtype == expected.variable_dtype
    for a, b in zip(reference.weights, layer.weights, strict=True):
        if a.trainable:
            a.assign(to_numpy(keras.ops.cast(b, "float32")))
    exact_outputs = tree.flatten(run(reference, **case.inputs))
    for value, exact in zip(outputs, exact_outputs, strict=True):
        dtype = keras.backend.standardize_dtype(value.dtype)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(exact.dtype)):
            # A ranker's scores stay float32: half precision cannot hold small probabilities.
            at_least = "float64" if policy == "float64" else "float32"
            assert dtype == (at_least if isinstance(layer, keras.Model) else expected.compute_dtype)
        value, exact = to_numpy(keras.ops.cast(value, "float32")), to_numpy(exact)
        assert np.isfinite(value).all()
        if case.searches and policy != "float64":
            continue  # half precision may find other events
        tolerance = {"mixed_float16": 2e-2, "float64": 1e-5}.get(policy, 1e-1)
        assert_close(value, exact, relative=tolerance)


def spoil(value: np.ndarray, mask: np.ndarray, filler: float) -> np.ndarray:
    """``value`` with something else in its masked events."""
    if value.dtype == bool:  # [B, N, L]
        return np.where(mask[:, None], value, ~value)
    if value.dtype == np.int32:
        return np.where(mask, value, np.int32(2**31 - 1 if np.isnan(filler) else filler))
    extra = (1,) * (value.ndim - mask.ndim)
    return np.where(mask.reshape(*mask.shape, *extra), value, np.float32(filler))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("case", PADDED, indirect=True)
def test_masked_content_never_matters(case: layer_cases.Case, policy: str) -> None:
    layer = case.make(dtype=policy)
    expected = [value.copy() for value in flat(run(layer, **case.inputs))]
    for filler in (-7.0, np.nan):
        inputs = dict(case.inputs)
        for name, mask in case.masked_by.items():
            inputs[name] = spoil(inputs[name], inputs[mask], filler)
        spoiled = [value.copy() for value in flat(run(layer, **inputs))]
        if isinstance(layer, laser_keras.SequenceTokenizer):  # keeps the axis: compare valid rows
            hidden = ~case.inputs["mask"]
            expected[0][hidden] = spoiled[0][hidden] = 0
        if isinstance(layer, laser_keras.SoftSearch | laser_keras.HardSearch):
            for values in (expected, spoiled):  # which events fill up a search does not matter
                values[0] = np.where(values[1], values[0], -1)
        for a, b in zip(spoiled, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", sorted(set(PADDED) & set(TRAINED)), indirect=True)
def test_masked_content_reaches_no_gradient(case: layer_cases.Case) -> None:
    """NaN in padding leaves every gradient as it is, to the weights and to the valid events."""
    layer = built(case.make(), **case.inputs)
    names = [name for name, value in case.inputs.items() if is_float(value)]

    def loss(*tensors: Any) -> Any:
        outputs = layer(**{**case.inputs, **dict(zip(names, tensors, strict=True))})
        if isinstance(layer, laser_keras.SequenceTokenizer):
            outputs = {"target": outputs["target"]}
        return sum(keras.ops.sum(keras.ops.sin(v)) for v in differentiable(outputs))

    of = gradient_function(layer, loss)
    found = []
    for filler in (0.0, np.nan):
        inputs = dict(case.inputs)
        for name, mask in case.masked_by.items():
            inputs[name] = spoil(inputs[name], inputs[mask], filler)
        found.append(of([inputs[name] for name in names]))
    for a, b in zip(*found, strict=True):
        assert_close(b, a)


def is_float(value: Any) -> bool:
    return not isinstance(value, Mapping) and value.dtype == np.float32


def differentiable(outputs: Any) -> list[Any]:
    return [
        value
        for value in tree.flatten(outputs)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))
    ]


def test_compiles_and_takes_any_batch(case: layer_cases.Case) -> None:
    if case.whole_shape:
        pytest.skip("the first axis is not a batch")
    layer = case.make()
    model = functional_model(layer, case)
    # XLA compiles what is trained below, forwards as well. torch.compile needs a C++ compiler
    # (inductor): PyTorch runs its eager mode.
    xla = BACKEND == "jax" or (BACKEND == "tensorflow" and not case.trains)
    model.compile(jit_compile=xla)
    expected = flat(run(layer, **case.inputs))
    # One graph takes batches of 2 and of 1. (JAX has no such graph: it compiles each shape.)
    size = 3 if BACKEND == "jax" else 2
    predicted = model.predict(case.inputs, verbose=0, batch_size=size)
    for a, b in zip(tree.flatten(predicted), expected, strict=True):
        assert_close(a, b, relative=1e-4)


@pytest.mark.parametrize("case", TRAINED, indirect=True)
def test_trains_one_step_compiled(case: layer_cases.Case) -> None:
    layer = case.make()
    model = functional_model(layer, case)
    model.compile(optimizer="sgd", jit_compile=BACKEND != "torch")
    model.compute_loss = lambda x, y, y_pred, sample_weight=None, training=True: (
        sum(keras.ops.mean(keras.ops.square(v - 3.0)) for v in differentiable(y_pred))
        + sum(model.losses)
    )
    randomise(layer)
    before = [to_numpy(w).copy() for w in layer.trainable_weights]
    loss = model.train_on_batch(case.inputs)
    assert np.isfinite(loss).all()
    after = [to_numpy(w) for w in layer.trainable_weights]
    assert all(np.isfinite(w).all() for w in after)
    moved = [w.path for w, a, b in zip(layer.trainable_weights, after, before) if (a != b).any()]
    assert moved == [
        w.path
        for w in layer.trainable_weights
        if not w.name.startswith(case.untrained) or not case.untrained
    ]


def normalises_in_float64() -> bool:
    """Whether this Keras does: 3.15 takes variances in float32, under every policy."""
    x = np.linspace(-1.0, 2.0, 8)[None]
    found = to_numpy(keras.layers.LayerNormalization(epsilon=1e-6, dtype="float64")(x))
    expected = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return bool(np.abs(found - expected).max() < 1e-12)


def has_norm(layer: keras.layers.Layer) -> bool:
    return any(isinstance(p, keras.layers.LayerNormalization) for p in layer._flatten_layers())


@pytest.mark.parametrize("case", TRAINED, indirect=True)
def test_gradient_equals_finite_differences(case: layer_cases.Case) -> None:
    """Along one random direction in the space of weights and float inputs, in float64."""
    with float64_enabled():
        layer = case.make(dtype="float64")
        names = [name for name, value in case.inputs.items() if is_float(value)]
        values = [case.inputs[name].astype("float64") for name in names]
        # In float64 here too: the shapes and dtypes of all calls agree, so JAX compiles one.
        outputs = differentiable(run(layer, **{**case.inputs, **dict(zip(names, values))}))
        randomise(layer)
        rng = np.random.default_rng(3)
        probes = [rng.normal(size=v.shape) for v in outputs]

        def function(*tensors: Any) -> Any:
            found = differentiable(layer(**{**case.inputs, **dict(zip(names, tensors))}))
            return sum(
                keras.ops.sum(keras.ops.multiply(a, keras.ops.convert_to_tensor(b, "float64")))
                for a, b in zip(found, probes, strict=True)
            )

        if any(w.dtype != "float64" for w in layer.trainable_weights):
            pytest.fail("a weight is not float64")
        found = gradients(layer, function, values)
        weights = layer.trainable_weights
        start = [to_numpy(w).copy() for w in weights]
        directions = [rng.choice([-1.0, 1.0], size=g.shape) for g in found]
        slope = sum(float((g * d).sum()) for g, d in zip(found, directions))
        # Rounding to float32 (1e-7) drowns the difference over a step of 1e-6: where a norm does
        # so, the step must be long, and curvature then costs the accuracy. Nowhere else.
        exact = normalises_in_float64() or not has_norm(layer)
        step, bound = (1e-6, 1e-5) if exact else (1e-3, 0.03)
        losses = []
        for sign in (1, -1):
            for weight, value, direction in zip(weights, start, directions):
                weight.assign(value + sign * step * direction)
            inputs = dict(case.inputs)
            for name, value, direction in zip(names, values, directions[len(weights) :]):
                inputs[name] = value + sign * step * direction
            outputs = differentiable(run(layer, **inputs))
            losses.append(
                sum(float((to_numpy(a) * b).sum()) for a, b in zip(outputs, probes, strict=True))
            )
    numeric = (losses[0] - losses[1]) / (2 * step)
    scale = max(abs(slope), abs(numeric), np.sqrt(sum((g**2).sum() for g in found)))
    assert abs(numeric - slope) < bound * scale
