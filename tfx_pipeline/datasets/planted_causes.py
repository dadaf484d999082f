"""Which past events are the planted causes of an impression of a generated log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_CLICKED_ROW = 2  # of the table ``action``: row 1 is an exposure alone


def planted_causes(
    inputs: Mapping[str, NDArray], windows: Mapping[str, Sequence[int]]
) -> NDArray[np.bool_]:
    """The clicks on a candidate's own niche within the windows that the generator counted.

    Args:
        inputs: Model inputs of a generated dataset (``build_model_inputs``, or parsed Examples):
            ``history_author_id``, ``history_action``, ``history_length`` and
            ``candidate_author_id``. Histories may be cut to their newest events.
        windows: ``facts["planted_windows"]`` of the dataset: events back, the end excluded.

    Returns:
        bool [B, N, L], True where event l moved the click probability of candidate n.

    Example:
        >>> inputs = {"history_author_id": np.array([[5, 7, 5]]), "history_length": np.array([3]),
        ...           "history_action": np.array([[2, 2, 3]]),
        ...           "candidate_author_id": np.array([[5]])}
        >>> planted_causes(inputs, {"near": [1, 9]}).tolist()
        [[[False, False, True]]]
    """
    history = np.asarray(inputs["history_author_id"])
    place = np.arange(history.shape[1])
    counted = place < np.asarray(inputs["history_length"])[:, None]
    counted &= np.asarray(inputs["history_action"]) >= _CLICKED_ROW
    counted &= np.any([(place >= first) & (place < end) for first, end in windows.values()], axis=0)
    same = np.asarray(inputs["candidate_author_id"])[:, :, None] == history[:, None, :]
    return same & counted[:, None, :]
