"""Bootstrap intervals of differences between systems that scored the same impressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """A mean difference with its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class ScoredRun:
    """AUC and gAUC of one run under any weighting of users.

    Everything that needs a sort is done once; a resample costs a few passes over the impressions.

    Args:
        users: [I] numbers from 0 on, of each impression.
        labels: [I] 0 or 1.
        scores: [I].
    """

    def __init__(self, users: NDArray, labels: NDArray, scores: NDArray) -> None:
        order = np.argsort(scores, kind="stable")
        ranked = np.asarray(scores)[order]
        self._user, self._clicked = np.asarray(users)[order], np.asarray(labels)[order] > 0
        # The group of equal scores that each impression belongs to.
        self._tie = np.concatenate([[0], np.cumsum(np.diff(ranked) != 0)])
        self._user_auc, self._user_weight = _by_user(self._user, self._clicked, self._tie)

    def auc(self, weights: NDArray) -> float:
        """AUC where an impression counts as often as its user, ties counted half.

        Args:
            weights: [U] how often each user was drawn.
        """
        weight = weights[self._user]
        positive = np.bincount(self._tie, weights=weight * self._clicked)
        negative = np.bincount(self._tie, weights=weight * ~self._clicked)
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum()
        return float((positive * (below + 0.5 * negative)).sum() / pairs) if pairs else np.nan

    def gauc(self, weights: NDArray) -> float:
        """Mean AUC of the drawn users, weighted with their impressions."""
        weight = self._user_weight * weights
        return float((weight * self._user_auc).sum() / weight.sum()) if weight.any() else np.nan


def paired_difference(
    system: Sequence[ScoredRun],
    baseline: Sequence[ScoredRun],
    users: int,
    metric: str,
    resamples: int = 300,
    seed: int = 0,
) -> Difference:
    """Mean difference over seeds, and its interval by resampling users and seeds.

    Args:
        system: Its runs, one per seed.
        baseline: The baseline's runs with the same seeds, in the same order.
        users: Number of users.
        metric: ``auc`` or ``gauc``.
        resamples: Draws; with one seed only users are drawn.
        seed: Of the draws: equal calls give equal intervals.

    Raises:
        ValueError: The runs are not paired.
    """
    if len(system) != len(baseline) or not system:
        raise ValueError(f"{len(system)} runs against {len(baseline)}; give one of each per seed")
    everyone = np.ones(users)
    one = [getattr(run, metric)(everyone) for run in system]
    other = [getattr(run, metric)(everyone) for run in baseline]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, users, users), minlength=users).astype(float)
        seeds, counts = np.unique(rng.integers(0, len(system), len(system)), return_counts=True)
        gaps = [
            getattr(system[i], metric)(weights) - getattr(baseline[i], metric)(weights)
            for i in seeds
        ]
        drawn.append(np.average(gaps, weights=counts))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Difference(float(np.mean(np.subtract(one, other))), float(low), float(high))


def _by_user(user: NDArray, clicked: NDArray, tie: NDArray) -> tuple[NDArray, NDArray]:
    """AUC of each user, and its impressions (0 for users of one class, who have none)."""
    order = np.lexsort((tie, user))
    user, clicked, tie = user[order], clicked[order], tie[order]
    changed = np.concatenate([[True], (np.diff(user) != 0) | (np.diff(tie) != 0)])
    group = np.cumsum(changed) - 1
    of_group = user[changed]
    positive = np.bincount(group, weights=clicked)
    negative = np.bincount(group, weights=~clicked)
    users = int(user.max()) + 1
    all_positive = np.bincount(user, weights=clicked, minlength=users)
    all_negative = np.bincount(user, weights=~clicked, minlength=users)
    before = np.cumsum(negative) - negative
    first = np.searchsorted(of_group, np.arange(users))
    below = before - before[np.minimum(first, len(before) - 1)][of_group]
    wins = np.bincount(of_group, weights=positive * (below + 0.5 * negative), minlength=users)
    pairs = all_positive * all_negative
    mixed = pairs > 0
    auc = np.divide(wins, pairs, out=np.zeros(users), where=mixed)
    return auc, np.where(mixed, all_positive + all_negative, 0)
