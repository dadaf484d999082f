"""What every public layer owes its user: shapes, dtypes, saving, configuration, compilation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import layer_cases
import numpy as np
import pytest
from layer_tools import BACKEND, assert_close, gradients, randomise, to_numpy

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
    return tuple(outputs.shape)


def symbolic(inputs: dict, batch: int | None, prefix: str = "") -> dict:
    return {
        name: symbolic(value, batch, f"{name}_")
        if isinstance(value, Mapping)
        else keras.Input(
            batch_shape=(batch, *value.shape[1:]), dtype=str(value.dtype), name=prefix + name
        )
        for name, value in inputs.items()
    }


def flat(outputs: Any) -> list[np.ndarray]:
    return [to_numpy(value) for value in tree.flatten(outputs)]


def functional_model(layer: keras.layers.Layer, inputs: dict) -> keras.Model:
    placeholders = symbolic(inputs, None)
    return keras.Model(placeholders, layer(**placeholders))


def test_every_public_layer_has_a_case() -> None:
    layers = {
        name
        for name in laser_keras.__all__
        if isinstance(getattr(laser_keras, name), type)
        and issubclass(getattr(laser_keras, name), keras.layers.Layer)
    }
    tested = {name.split("_")[0] for name in layer_cases.CASES}
    assert layers - {"SequenceRanker"} == tested  # LaserRanker is a SequenceRanker


def test_output_shape_is_what_was_promised(case: layer_cases.Case) -> None:
    layer = case.make()
    assert shapes_of(layer(**case.inputs)) == case.output_shape
    placeholders = symbolic(case.inputs, None)
    promised = shapes_of(case.make()(**placeholders))
    unknown = tree.map_shape_structure(lambda shape: (None, *shape[1:]), case.output_shape)
    assert promised == unknown


def test_weights_are_created_by_build(case: layer_cases.Case) -> None:
    layer = case.make()
    layer(**symbolic(case.inputs, None))
    built = [(w.path.split("/", 1)[-1], w.shape) for w in layer.weights]
    layer(**case.inputs)
    assert [(w.path.split("/", 1)[-1], w.shape) for w in layer.weights] == built
    assert bool(built) == case.trains
    assert len({path for path, _ in built}) == len(built), "weight names must be unique"


def test_config_round_trip(case: layer_cases.Case) -> None:
    layer = case.make(name="under_test")
    config = layer.get_config()
    json.dumps(keras.saving.serialize_keras_object(layer))
    revived = type(layer).from_config(config)
    assert revived.get_config() == config


def test_save_and_load(case: layer_cases.Case, tmp_path: Path) -> None:
    layer = case.make()
    model = functional_model(layer, case.inputs)
    randomise(layer)
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    for a, b in zip(flat(model(case.inputs)), flat(revived(case.inputs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16", "float64"])
def test_dtype_policy_reaches_every_part(case: layer_cases.Case, policy: str) -> None:
    if BACKEND == "jax" and policy == "float64":
        pytest.skip("JAX computes in float32 unless jax_enable_x64 is set")
    layer = case.make(dtype=policy)
    outputs = layer(**case.inputs)
    expected = keras.DTypePolicy(policy)
    for part in layer._flatten_layers():
        assert part.dtype_policy.name == policy, part.name
    for weight in layer.weights:
        if weight.dtype not in ("uint32", "int32"):
            assert weight.dtype == expected.variable_dtype
    wanted = "float32" if isinstance(layer, keras.Model) else expected.compute_dtype
    if isinstance(layer, keras.Model) and policy == "float64":
        wanted = "float64"
    reference = case.make()
    reference(**case.inputs)
    for a, b in zip(reference.weights, layer.weights, strict=True):
        if a.trainable:
            a.assign(keras.ops.cast(b, a.dtype))
    for value, exact in zip(
        tree.flatten(outputs), tree.flatten(reference(**case.inputs)), strict=True
    ):
        assert keras.backend.standardize_dtype(value.dtype) == wanted
        value, exact = to_numpy(keras.ops.cast(value, "float32")), to_numpy(exact)
        assert np.isfinite(value).all()
        if case.searches and policy != "float64":
            continue  # half precision may find other events
        tolerance = {"mixed_float16": 2e-2, "float64": 1e-5}.get(policy, 1e-1)
        assert_close(value, exact, relative=tolerance)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("case", PADDED, indirect=True)
def test_masked_content_never_matters(case: layer_cases.Case, policy: str) -> None:
    layer = case.make(dtype=policy)
    expected = [value.copy() for value in flat(layer(**case.inputs))]
    for filler in (-7.0, np.nan):
        inputs = dict(case.inputs)
        for name, mask in case.masked_by.items():
            inputs[name] = np.where(inputs[mask][..., None], inputs[name], np.float32(filler))
        spoiled = [value.copy() for value in flat(layer(**inputs))]
        if isinstance(layer, laser_keras.SequenceTokenizer):  # keeps the axis: compare valid rows
            hidden = ~case.inputs["mask"]
            expected[0][hidden] = spoiled[0][hidden] = 0
        for a, b in zip(spoiled, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_compiles_and_takes_any_batch(case: layer_cases.Case) -> None:
    if BACKEND == "torch":
        pytest.skip("jit_compile on PyTorch needs a C++ compiler (inductor)")
    layer = case.make()
    model = functional_model(layer, case.inputs)
    model.compile(jit_compile=True)
    expected = flat(layer(**case.inputs))
    predicted = model.predict(case.inputs, verbose=0, batch_size=2)  # batches of 2 and of 1
    for a, b in zip(tree.flatten(predicted), expected, strict=True):
        assert_close(a, b, relative=1e-4)


@pytest.mark.parametrize("case", TRAINED, indirect=True)
def test_trains_one_step_compiled(case: layer_cases.Case) -> None:
    layer = case.make()
    model = functional_model(layer, case.inputs)
    model.compile("sgd", "mse", jit_compile=BACKEND != "torch")
    randomise(layer)
    before = [to_numpy(w).copy() for w in layer.trainable_weights]
    targets = tree.map_structure(
        lambda v: np.zeros_like(v) + 3.0, model.predict(case.inputs, verbose=0)
    )
    loss = model.train_on_batch(case.inputs, targets)
    assert np.isfinite(loss).all()
    after = [to_numpy(w) for w in layer.trainable_weights]
    assert all(np.isfinite(w).all() for w in after)
    moved = [w.path for w, a, b in zip(layer.trainable_weights, after, before) if (a != b).any()]
    assert moved == [w.path for w in layer.trainable_weights]


def test_gradient_equals_finite_differences(case: layer_cases.Case) -> None:
    """Along one random direction in the space of weights and float inputs."""
    layer = case.make()
    names = [
        name
        for name, value in case.inputs.items()
        if not isinstance(value, Mapping) and value.dtype == np.float32
    ]
    outputs = layer(**case.inputs)
    randomise(layer)
    rng = np.random.default_rng(3)
    probes = [rng.normal(size=v.shape).astype("float32") for v in tree.flatten(outputs)]

    def function(*tensors: Any) -> Any:
        inputs = {**case.inputs, **dict(zip(names, tensors, strict=True))}
        found = tree.flatten(layer(**inputs))
        return sum(
            keras.ops.sum(keras.ops.multiply(a, b)) for a, b in zip(found, probes, strict=True)
        )

    values = [case.inputs[name] for name in names]
    found = gradients(layer, function, values)
    weights = layer.trainable_weights
    start = [to_numpy(w).copy() for w in weights]
    directions = [rng.choice([-1.0, 1.0], size=g.shape).astype("float32") for g in found]
    slope = sum(float((g.astype("float64") * d).sum()) for g, d in zip(found, directions))
    step = 1e-3
    losses = []
    for sign in (1, -1):
        for weight, value, direction in zip(weights, start, directions):
            weight.assign(value + sign * step * direction)
        moved = [
            v + np.float32(sign * step) * d for v, d in zip(values, directions[len(weights) :])
        ]
        losses.append(float(to_numpy(function(*moved))))
    # float32: the difference of two losses carries some 1e-4 of their size.
    numeric = (losses[0] - losses[1]) / (2 * step)
    scale = max(abs(slope), abs(numeric), np.sqrt(sum((g**2).sum() for g in found)))
    assert abs(numeric - slope) < 0.03 * scale
