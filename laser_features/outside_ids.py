"""Counts ids outside their ``direct`` table, which are treated as missing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from laser_features.ids import MISSING_ID

_EXAMPLES = 3


@dataclass
class OutsideIds:
    """Counts of ids that ``build_model_inputs`` fills in: all, and those outside their table.

    Missing ids (-1) and padding do not count. Side information counts once per distinct item of
    a call, everything else once per event, candidate or request.

    Attributes:
        ids: By model input, the ids that were looked at.
        outside: By model input, those outside [0, rows - 2]; only inputs that have some.
        examples: By model input, a few of them.

    Example:
        >>> counted = OutsideIds()
        >>> counted.count("request_city", 10, np.array([-1, 3, 8, 9, 70]))
        >>> counted.ids, counted.outside, counted.examples
        ({'request_city': 4}, {'request_city': 2}, {'request_city': [9, 70]})
    """

    ids: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[int]] = field(default_factory=dict)

    def count(self, name: str, rows: int, ids: NDArray) -> None:
        """Add the ids of one input.

        Args:
            name: The model input.
            rows: Of its table.
            ids: Raw integer ids, padding left out.
        """
        values = np.asarray(ids).astype(np.int64, copy=False)
        known = int(np.count_nonzero(values != MISSING_ID))
        self.ids[name] = self.ids.get(name, 0) + known
        # As unsigned numbers negative ids lie above every table; -1 + 1 is row 0, inside.
        beyond = (values + 1).view(np.uint64) >= np.uint64(rows)
        number = int(np.count_nonzero(beyond))
        if number:
            self.outside[name] = self.outside.get(name, 0) + number
            shown = self.examples.setdefault(name, [])
            shown += [int(value) for value in values[beyond][: _EXAMPLES - len(shown)]]
