"""The inputs of a ranker: their names, what is checked about them, and their serving signature."""

from collections.abc import Mapping
from typing import Any

import keras

from laser_keras.checks import check_agrees, check_float
from laser_keras.encoders.extras import EXTRAS

_REQUIRED = ("history", "history_mask", "history_age", "target")
_ENCODER_EXTRAS = tuple(name for name in EXTRAS if name != "age")
_RANK_WITH_CANDIDATES = {"target": 3, "candidate": 3, "category_match": 3, "similarity": 4}
_OPTIONAL = ("candidate", "context", *_ENCODER_EXTRAS)


def check_names(owner: str, inputs: Mapping[str, Any], age_needed: bool) -> None:
    """Raise ``ValueError`` unless all required and no unknown inputs are there."""
    required = [name for name in _REQUIRED if name != "history_age" or age_needed]
    missing = sorted(set(required) - set(inputs))
    unexpected = sorted(set(inputs) - set(_REQUIRED) - set(_OPTIONAL))
    if missing or unexpected:
        raise ValueError(
            f"{owner}: `inputs` must hold {required} and optionally {list(_OPTIONAL)}. "
            f"Missing: {missing}. Unexpected: {unexpected}"
        )


def check_features(owner: str, inputs: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless ``candidate`` and ``context`` fit the target."""
    target = tuple(inputs["target"].shape)
    for name, expected, layout in (
        ("candidate", (*target[:-1], None), "[B, N, e] or [B, e], as `target`"),
        ("context", (target[0], None), "[B, e]"),
    ):
        if name in inputs:
            check_float(owner, name, inputs[name].dtype)  # ids would pass as magnitudes
            check_agrees(owner, name, tuple(inputs[name].shape), expected, layout)


def encoder_extras(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder may take beside target, history and mask, by its argument's name."""
    named = {"age" if name == "history_age" else name: value for name, value in inputs.items()}
    return {name: named[name] for name in EXTRAS if name in named}


def input_specs(inputs: Mapping[str, Any]) -> dict[str, list]:
    """Shape and dtype of each input, ready for JSON; an axis of unknown size is None."""
    return {
        name: [
            [size if isinstance(size, int) else None for size in value.shape],
            keras.backend.standardize_dtype(value.dtype),
        ]
        for name, value in inputs.items()
    }


def serving_signature(specs: Mapping[str, Any]) -> dict[str, keras.InputSpec]:
    """The inputs of a call, with any batch size and number of candidates (their second axis)."""
    signature = {}
    for name, (shape, dtype) in specs.items():
        free = 2 if len(shape) == _RANK_WITH_CANDIDATES.get(name) else 1
        signature[name] = keras.InputSpec(dtype, (*[None] * free, *shape[free:]))
    return signature
