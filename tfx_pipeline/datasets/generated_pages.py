"""The pages of a generated log: who was shown what, when, and why it was clicked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from laser_features.time import MS_PER_DAY, MS_PER_HOUR

SCENARIOS = ("double_column_feed", "single_column_video", "search")
SCENARIO_SHARE = (0.5, 0.35, 0.15)
END_MS = 1_767_225_600_000  # 1 January 2026, UTC
EVENT_GAP_MS = 4_000


@dataclass(frozen=True)
class Pages:
    """Every page shown: [P] per page, [P, N] per slot."""

    user: NDArray
    time_ms: NDArray
    scenario: NDArray
    item: NDArray
    clicked: NDArray
    logit: NDArray
    recent_part: NDArray
    long_part: NDArray
    far_part: NDArray | None = None  # of ``long_part``, what lies farthest back


def page_times(rng: np.random.Generator, user: NDArray, fresh: NDArray, width: int) -> NDArray:
    """Times of pages, sorted by user: minutes within a session, hours between sessions."""
    gaps = width * EVENT_GAP_MS + 2_000 + rng.exponential(60_000, len(user))
    gaps += np.where(fresh, rng.exponential(8 * MS_PER_HOUR, len(user)), 0)
    total = np.cumsum(gaps.astype(np.int64))
    last = np.append(np.flatnonzero(np.diff(user)), len(user) - 1)
    end = END_MS - rng.integers(MS_PER_HOUR, 2 * MS_PER_DAY, len(last))
    return total - np.repeat(total[last] - end, np.diff(np.concatenate([[-1], last])))


def sigmoid(logit: NDArray) -> NDArray:
    """The probability of a logit."""
    return 1 / (1 + np.exp(-logit))
