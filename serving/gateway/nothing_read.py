"""Substitutes for store reads while the store is down: no history, no side information."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from laser_features import FeatureSpec


class EmptyHistory:
    """Histories without events.

    Args:
        users: How many.

    Example:
        >>> history = EmptyHistory(2)
        >>> history.lengths.tolist(), history["item_id"].shape
        ([0, 0], (2, 0))
    """

    def __init__(self, users: int) -> None:
        self._users = users

    @property
    def lengths(self) -> NDArray:
        """Zeros [users]."""
        return np.zeros(self._users, np.int64)

    def __getitem__(self, field: str) -> NDArray:
        return np.zeros((self._users, 0), np.int64)


class UnknownItems:
    """A store of items that knows none.

    Args:
        spec: Says which fields hold several values.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec = spec

    def read_items(self, ids: Any, fields: Any = None) -> UnknownRows:
        """Rows that are not found."""
        return UnknownRows(self._spec, len(ids))


class UnknownRows:
    """Side information that was not found."""

    def __init__(self, spec: FeatureSpec, count: int) -> None:
        self._spec = spec
        self.found = np.zeros(count, bool)

    def __getitem__(self, field: str) -> NDArray:
        several = self._spec.item_fields[field].values
        shape = (len(self.found),) if several is None else (len(self.found), several)
        return np.zeros(shape, np.int64)
