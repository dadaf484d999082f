"""Bad arguments and inputs are refused by name, rather than accepted or left to the backend."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import layer_cases
import numpy as np
import pytest
from test_layer_contracts import is_float, symbolic

import laser_keras


def changed(value: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """``change`` made to a float array or to those of a mapping."""
    if isinstance(value, Mapping):
        return {name: changed(part, change) for name, part in value.items()}
    return change(value) if is_float(value) else value


CHECKED = ("target", "history", "inputs", "similarity", "cross", "global_features")
PAIRS = [
    (name, argument)
    for name, case in layer_cases.CASES.items()
    for argument in CHECKED
    if argument in (case.inputs["inputs"] if name == "LaserRanker" else case.inputs)
]


def call_changed(name: str, arguments: Sequence[str], change: Callable[..., np.ndarray]) -> None:
    """Call a built layer with ``change`` made to some of the arguments it was built for."""
    case = layer_cases.CASES[name]
    layer = case.make()
    layer(**symbolic(case))
    of_model = name == "LaserRanker"
    inputs = dict(case.inputs["inputs"] if of_model else case.inputs)
    for argument in set(arguments) & set(inputs):
        inputs[argument] = changed(inputs[argument], change)
    layer(**({"inputs": inputs} if of_model else inputs))


@pytest.mark.parametrize("name", sorted({name for name, _ in PAIRS}))
def test_another_width_than_that_of_the_build_is_refused(name: str) -> None:
    message = "`(target|history|inputs).*` must have shape .*, as wide as when the layer was built"
    with pytest.raises(ValueError, match=message):
        call_changed(name, ("target", "history", "inputs"), lambda v: v[..., :-2])


@pytest.mark.parametrize(("name", "argument"), PAIRS)
def test_integers_where_floats_are_due_are_refused(name: str, argument: str) -> None:
    message = rf"`{argument}\S*` must be a float tensor. Received dtype: int32"
    with pytest.raises(ValueError, match=message):
        call_changed(name, (argument,), lambda v: v.astype("int32"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: laser_keras.SegmentedTargetAttention(gate_bias="x"), "`gate_bias` .*: 'x'"),
        (lambda: laser_keras.SegmentedTargetAttention(gate_bias=np.nan), "`gate_bias` .*: nan"),
        (lambda: laser_keras.SegmentedTargetAttention(gamma=[1]), r"`gamma` .*: \[1\]"),
        (lambda: laser_keras.SegmentedTargetAttention(gamma=True), "`gamma` .*: True"),
        (lambda: laser_keras.SegmentedTargetAttention(epsilon=-1.0), "`epsilon` .* 0. .*: -1.0"),
        (lambda: laser_keras.GlobalStackedTargetAttention(epsilon=-1), "`epsilon` .* 0. .*: -1"),
        (lambda: laser_keras.GlobalStackedTargetAttention(scale="a"), "`scale` .*: 'a'"),
        (lambda: laser_keras.RankMixer(4, 8, epsilon=-1.0), "`epsilon` .*: -1.0"),
        (lambda: laser_keras.Dice(epsilon=None), "`epsilon` .*: None"),
        (lambda: laser_keras.PerTokenMixtureOfExperts(penalty=-1.0), "`penalty` .*: -1.0"),
        (lambda: laser_keras.PerTokenMixtureOfExperts(active_budget="x"), "`active_budget` .*'x'"),
        (lambda: laser_keras.RandomSuffix(alpha="x"), "`alpha` must be a positive number. .*'x'"),
    ],
)
def test_numbers_that_are_none_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}$"):
        make()


def booleans() -> list[tuple[type, str]]:
    """Every public class, and each of its constructor's arguments whose default is a Boolean."""
    classes = [getattr(laser_keras, name) for name in laser_keras.__all__]
    return [
        (each, argument.name)
        for each in classes
        if inspect.isclass(each)
        for argument in inspect.signature(each.__init__).parameters.values()
        if isinstance(argument.default, bool)
    ]


BOOLEANS = booleans()


@pytest.mark.parametrize(("make", "name"), BOOLEANS)
@pytest.mark.parametrize("value", ["false", "no", 0, None])
def test_text_and_numbers_are_no_booleans(make: Callable[..., Any], name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be True or False. Received: {value!r}$"):
        make(**{name: value})


def test_booleans_of_numpy_are_taken() -> None:
    assert len(BOOLEANS) >= 9
    assert laser_keras.STCAEncoder(norm_fused=np.False_).norm_fused is False


def test_numbers_of_numpy_become_python_numbers() -> None:
    layer = laser_keras.SegmentedTargetAttention(epsilon=np.float32(0.5), gate_bias=-1)
    assert (type(layer.epsilon), layer.epsilon) == (float, 0.5)
    assert layer.gate_bias == -1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: laser_keras.segment_mask(m, 0), "`segment_size` must be an integer .*: 0"),
        (lambda m: laser_keras.segment_mask(m.astype(int), 2), "`mask` must be boolean .*: int"),
        (lambda m: laser_keras.segment_mask(m[0], 2), r"`mask` must have shape \[B, L\].*\(5,\)"),
        (
            lambda m: laser_keras.reverse_valid(np.ones((2, 5, 3), "float32"), m[:1]),
            r"`mask` must have shape \[B, L\] .*\(2, 5\). Received shape: \(1, 5\)",
        ),
        (lambda m: laser_keras.reverse_valid(m, m.astype(int)), "`mask` must be boolean .*: int"),
    ],
)
def test_masks_that_do_not_fit_are_refused(call: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 5), bool))


def test_a_mixer_without_a_batch_is_refused() -> None:
    for inputs in (np.ones(9, "float32"), np.float32(1)):
        with pytest.raises(ValueError, match=r"`inputs` must have shape \[..., E\] with a batch"):
            laser_keras.RankMixer(4, 8)(inputs)


def test_features_that_do_not_belong_together_are_refused() -> None:
    layer = laser_keras.FeatureMLP(4)
    a, b = np.ones((2, 3, 5), "float32"), np.ones((2, 3, 4), "float32")
    assert layer({"a": a, "b": b}).shape[-1] == 4
    with pytest.raises(ValueError, match=r"`inputs\['b'\]` must .*\(2, 3, 4\). .*: \(1, 3, 4\)"):
        layer({"a": a, "b": b[:1]})
    with pytest.raises(ValueError, match=r"`inputs` must be .*\['a', 'b'\]. Received: .*\['a'\]"):
        layer({"a": a})
    with pytest.raises(ValueError, match=r"`inputs` must be a mapping .*Received: "):
        layer(np.ones((2, 9), "float32"))
