"""The optional inputs of encoders, beside target, history and mask."""

import inspect
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from laser_keras.checks import known_size
from laser_keras.sequence import reverse_valid
from laser_keras.types import Shape, Tensor

EXTRAS = ("similarity", "age", "cross", "category_match", "global_features")
"""Names of all optional inputs that encoders of this package know."""

_RANK_PER_CANDIDATE = {"similarity": 4, "category_match": 3}
"""Rank of an input [B, N, L, ...] that has a value for each candidate and event."""


def extras_for(encoder: keras.layers.Layer, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of ``given`` that are arguments of the encoder's ``call``.

    >>> from laser_keras import HSTUEncoder
    >>> extras_for(HSTUEncoder(), {"age": 1, "similarity": 2})
    {'age': 1}
    """
    parts = getattr(encoder, "encoders", None) or [encoder]
    arguments = {name for part in parts for name in inspect.signature(part.call).parameters}
    return {name: value for name, value in given.items() if name in arguments}


def gives_gates(encoder: keras.layers.Layer) -> bool:
    """Whether an encoder takes ``return_gates`` with the arguments it was made with.

    >>> from laser_keras import DINEncoder
    >>> gives_gates(DINEncoder()), gives_gates(DINEncoder(unit="activation_unit"))
    (True, False)
    """
    takes = "return_gates" in inspect.signature(encoder.call).parameters
    return takes and bool(getattr(encoder, "has_gates", True))


def newest_events(
    inputs: Mapping[str, Tensor | None], count: int, order: str
) -> dict[str, Tensor | None]:
    """The inputs of an encoder cut down to the ``count`` newest events, in the same order.

    Args:
        inputs: ``history`` [B, L, d] and ``mask`` [B, L] or None, and any of ``EXTRAS``.
        count: Integer, events to keep; all if there are fewer.
        order: ``"newest_first"`` or ``"oldest_first"``, of the inputs.

    >>> import numpy as np
    >>> history = np.arange(4).reshape(1, 4, 1)
    >>> kept = newest_events({"history": history, "mask": None}, 2, "oldest_first")
    >>> keras.ops.convert_to_numpy(kept["history"]).ravel().tolist()
    [2, 3]
    """

    def newest(by_event: Tensor) -> Tensor:
        if order == "newest_first":
            return by_event[:, :count]
        return ops.flip(reverse_valid(by_event, inputs["mask"])[:, :count], axis=1)

    kept = dict(inputs)
    for name, value in inputs.items():
        axis = None if value is None else _event_axis(name, len(value.shape))
        if axis == 1:
            kept[name] = newest(value)
        elif axis == 2:
            kept[name] = ops.swapaxes(newest(ops.swapaxes(value, 1, 2)), 1, 2)
    return kept


def newest_shape(name: str, shape: Shape, count: int) -> Shape:
    """The shape of input ``name`` after ``newest_events``; an unknown length stays unknown.

    >>> newest_shape("similarity", (2, 3, 50, 1), 20)
    (2, 3, 20, 1)
    """
    axis = _event_axis(name, len(shape))
    length = None if axis is None else known_size(shape[axis])
    if axis is None or length is None:
        return shape
    return (*shape[:axis], min(length, count), *shape[axis + 1 :])


def _event_axis(name: str, rank: int) -> int | None:
    """Which axis of an input counts events; None for one that has no such axis."""
    if name == "global_features":
        return None
    return 2 if rank == _RANK_PER_CANDIDATE.get(name) else 1
