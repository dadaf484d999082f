"""State dictionaries of PyTorch: a second instance loads them, strictly."""

import io
from collections.abc import Callable

import keras
import layer_cases
import numpy as np
import pytest

import laser_keras
from laser_keras.portable_state import renamed

torch_only = pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's dictionaries")

LAYERS = [name for name, case in layer_cases.CASES.items() if case.trains and "_" not in name]


def inputs_of_ranker() -> dict[str, np.ndarray]:
    return layer_cases.CASES["LaserRanker"].inputs["inputs"]


def make_din(**kwargs: object) -> keras.Model:
    encoder = laser_keras.DINEncoder()  # named by Keras, with a number of its own
    return laser_keras.SequenceRanker(encoder, dim=8, num_tokens=4, mixer_dim=16, **kwargs)


@torch_only
@pytest.mark.parametrize("make", [layer_cases.CASES["LaserRanker"].make, make_din])
def test_a_second_ranker_loads_the_first_ones_file(make: Callable[..., keras.Model]) -> None:
    import torch

    inputs = inputs_of_ranker()
    first, second, named = make(), make(), make(name="another")
    outputs = [model(inputs).detach().numpy() for model in (first, second, named)]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-6
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    for model in (second, named):
        file.seek(0)
        model.load_state_dict(torch.load(file, weights_only=True), strict=True)
        np.testing.assert_array_equal(model(inputs).detach().numpy(), outputs[0])


@torch_only
@pytest.mark.parametrize("name", LAYERS)
def test_a_second_layer_loads_the_first_ones_state(name: str) -> None:
    case = layer_cases.CASES[name]
    first, second = case.make(), case.make()
    first(**case.inputs)
    second(**case.inputs)
    second.load_state_dict(first.state_dict(), strict=True)
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@torch_only
def test_it_loads_inside_a_module_and_still_refuses_what_does_not_fit() -> None:
    import torch

    make = layer_cases.CASES["LaserRanker"].make
    first, second = make(), make()
    first(inputs_of_ranker())
    second(inputs_of_ranker())
    state = torch.nn.ModuleList([first]).state_dict()
    torch.nn.ModuleList([second]).load_state_dict(state)
    state = first.state_dict()
    state.pop(next(reversed(state)))
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict(state)


def test_numbers_are_matched_in_their_order() -> None:
    saved = [f"_torch_params.a/dense_{i}/kernel" for i in (10, 9)]
    own = [f"_torch_params.a_1/dense_{i}/kernel" for i in (11, 12)]
    assert renamed(saved, own) == {saved[1]: own[0], saved[0]: own[1]}
    assert renamed(saved[:1], own) == {}
