"""Rules for item ids and times: which are accepted, reported or refused."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from laser_features import FeatureSpec, OutsideIds, RequestError

_MISSING = -1


class ItemRules:
    """Rules for ids and times of requests and events.

    An item id of -1 means missing and is refused; so are other negative ids, unless the item
    table hashes them. An id beyond a direct table has no row: it is accepted and reported.

    Args:
        spec: The feature spec.
        max_ahead_seconds: How far beyond this machine's clock a time may lie.
    """

    def __init__(self, spec: FeatureSpec, max_ahead_seconds: float) -> None:
        table = spec.tables[spec.event_fields["item_id"].table or ""]
        self._hashed = table.ids == "hash"
        self._last = table.rows - 2 if table.ids == "direct" else None
        self._max_ahead_seconds = max_ahead_seconds
        self._direct = {
            name: spec.tables[field.table].rows
            for name, field in spec.event_fields.items()
            if field.table is not None
            and spec.tables[field.table].ids == "direct"
            and field.boundaries is None
            and field.quantiles is None
        }

    def check_ids(self, ids: NDArray, where: str) -> None:
        """Raise unless every id can be one.

        Args:
            ids: Item ids [n].
            where: ``"candidates[{}]"``, for the message.

        Raises:
            RequestError: Names the first that cannot.
        """
        wrong = ids == _MISSING if self._hashed else ids < 0
        if wrong.any():
            first = int(np.argmax(wrong))
            advice = "-1 means missing" if ids[first] == _MISSING else "ids are not negative"
            raise RequestError(f"{where.format(first)} is {ids[first]}; {advice}")

    def beyond_table(self, ids: NDArray) -> NDArray[np.bool_]:
        """Which ids have no row in the item table."""
        if self._last is None:
            return np.zeros(len(ids), bool)
        return ids > self._last

    def outside_tables(self, events: Mapping[str, NDArray]) -> dict[str, int]:
        """How many ids of events lie outside their direct table, by field; only where some do.

        Args:
            events: Columns [n] by field.
        """
        counted = OutsideIds()
        for name, rows in self._direct.items():
            counted.count(name, rows, events[name])
        return counted.outside

    def check_times(self, times: NDArray, where: str) -> None:
        """Raise unless every time is at most a little ahead of now.

        Args:
            times: Milliseconds [n].
            where: ``"events[{}].timestamp"``, for the message.

        Raises:
            RequestError: Names the first that is not.
        """
        limit = (time.time() + self._max_ahead_seconds) * 1e3
        late = times > limit
        if late.any():
            first = int(np.argmax(late))
            ahead = (times[first] / 1e3 - time.time()) / 86_400
            raise RequestError(
                f"{where.format(first)} is {times[first]}, {ahead:.1f} days from now; times may be "
                f"at most {self._max_ahead_seconds:g} s ahead"
            )
