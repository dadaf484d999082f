"""The optional inputs of encoders, beside target, history and mask."""

import inspect
from collections.abc import Mapping
from typing import Any

import keras

EXTRAS = ("similarity", "age", "cross", "category_match", "global_features")
"""Names of all optional inputs that encoders of this package know."""


def extras_for(encoder: keras.layers.Layer, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of ``given`` that are arguments of the encoder's ``call``.

    >>> from laser_keras import HSTUEncoder
    >>> extras_for(HSTUEncoder(), {"age": 1, "similarity": 2})
    {'age': 1}
    """
    parts = getattr(encoder, "encoders", None) or [encoder]
    arguments = {name for part in parts for name in inspect.signature(part.call).parameters}
    return {name: value for name, value in given.items() if name in arguments}
