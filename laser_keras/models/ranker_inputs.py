"""The inputs of a ranker: their names, what is checked about them, and their serving signature."""

from collections.abc import Mapping
from typing import Any

import keras

from laser_keras.checks import check_agrees, check_float
from laser_keras.encoders.extras import EXTRAS, gives_gates

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


def check_gates(owner: str, encoder: keras.layers.Layer) -> None:
    """Raise ``ValueError`` unless the encoder can return its gates."""
    if not gives_gates(encoder):
        raise ValueError(
            f"{owner}: `return_gates` needs an encoder with gates or weights per event, "
            "such as LaserEncoder or DINEncoder. "
            f"Received: {type(encoder).__name__}"
        )


def encoder_extras(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoder may take beside target, history and mask, by its argument's name."""
    named = {"age" if name == "history_age" else name: value for name, value in inputs.items()}
    return {name: named[name] for name in EXTRAS if name in named}


def weights_per_candidate(
    owner: str, loss: Any, y: Any, y_pred: Any, weights: Any
) -> tuple[Any, Any, Any]:
    """Labels, scores and weights as Keras wants them where each candidate has a weight.

    Keras averages over the last axis before weights apply: candidates get one of their own. Losses
    over the whole list of a request say so (``per_list``) and stay as they are.
    """
    shape = getattr(weights, "shape", ())
    if len(shape) != 2 or len(y_pred.shape) != 2 or getattr(loss, "per_list", False):
        return y, y_pred, weights
    check_agrees(owner, "sample_weight", tuple(shape), tuple(y_pred.shape), "[B, N] or [B]")
    return keras.ops.expand_dims(y, -1), keras.ops.expand_dims(y_pred, -1), weights


def input_specs(inputs: Mapping[str, Any]) -> dict[str, list]:
    """Shape and dtype of each input, ready for JSON; an axis of unknown size is None."""
    return {
        name: [
            [size if isinstance(size, int) else None for size in value.shape],
            keras.backend.standardize_dtype(value.dtype),
        ]
        for name, value in inputs.items()
    }


def serving_signature(
    specs: Mapping[str, Any], embedding: keras.layers.Layer | None = None
) -> dict[str, keras.InputSpec]:
    """The inputs of a call, with any batch size and number of candidates (their second axis)."""
    per_candidate = (
        {
            name
            for name, (shape, _) in specs.items()
            if len(shape) == _RANK_WITH_CANDIDATES.get(name)
        }
        if embedding is None
        else _embedded_per_candidate(specs, embedding)
    )
    signature = {}
    for name, (shape, dtype) in specs.items():
        free = 2 if name in per_candidate else 1
        signature[name] = keras.InputSpec(dtype, (*[None] * free, *shape[free:]))
    return signature


def _embedded_per_candidate(specs: Mapping[str, Any], embedding: keras.layers.Layer) -> set[str]:
    """The raw inputs whose second axis is the number of candidates.

    Those that have the target's number there are freed. One of them counts if the embedding, given
    that number by it alone, still knows the number of candidates of one of its outputs.
    """

    def outputs(free: set[str]) -> Mapping[str, Any]:
        given = {
            name: keras.KerasTensor((shape[0], None, *shape[2:]) if name in free else shape, dtype)
            for name, (shape, dtype) in specs.items()
        }
        result: Mapping[str, Any] = embedding(given)
        return result

    def can_be_free(name: str) -> bool:
        try:
            outputs({name})
        except ValueError:  # a width, on which weights depend
            return False
        return True

    candidates = outputs(set())["target"].shape[1]
    free = {
        name
        for name, (shape, _) in specs.items()
        if len(shape) > 1 and shape[1] is not None and shape[1] == candidates and can_be_free(name)
    }
    return {
        name
        for name in free
        if any(
            len(value.shape) == _RANK_WITH_CANDIDATES.get(key) and value.shape[1] is not None
            for key, value in outputs(free - {name}).items()
        )
    }
