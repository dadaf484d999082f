"""The catalogue of a generated dataset: items in niches, niches in topics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOPICS, NICHES_PER_TOPIC, CONTENT = 40, 25, 16
NICHES = TOPICS * NICHES_PER_TOPIC


@dataclass(frozen=True)
class Catalogue:
    """Items sorted by niche, with the running sum of their popularity."""

    niche: NDArray
    quality: NDArray
    duration_ms: NDArray
    content: NDArray
    popularity_sum: NDArray
    first: NDArray  # [niches + 1] first item of each niche

    def draw(self, niche: NDArray, chance: NDArray) -> NDArray[np.int64]:
        """An item of each niche, by popularity; ``chance`` is uniform in [0, 1)."""
        sums = np.concatenate([[0.0], self.popularity_sum])
        low, high = sums[self.first[niche]], sums[self.first[niche + 1]]
        drawn = np.searchsorted(self.popularity_sum, low + chance * (high - low), side="right")
        return np.clip(drawn, self.first[niche], self.first[niche + 1] - 1)

    def draw_popular(self, chance: NDArray) -> NDArray[np.int64]:
        """Any item, by popularity."""
        drawn = np.searchsorted(self.popularity_sum, chance * self.popularity_sum[-1], side="right")
        return np.minimum(drawn, len(self.niche) - 1)


def make_catalogue(rng: np.random.Generator, items: int) -> Catalogue:
    """Items with niche, quality, duration, popularity and a content vector near their niche's."""
    # Every niche has an item; the rest spreads unevenly.
    share = rng.dirichlet(np.full(NICHES, 2.0))
    niche = np.concatenate([np.arange(NICHES), rng.choice(NICHES, items - NICHES, p=share)])
    niche.sort()
    popularity = (1.0 + rng.permutation(items)) ** -0.8
    topic_vectors = rng.normal(size=(TOPICS, CONTENT))
    niche_vectors = rng.normal(size=(NICHES, CONTENT))
    content = topic_vectors[niche // NICHES_PER_TOPIC] + 0.8 * niche_vectors[niche]
    content += 0.4 * rng.normal(size=(items, CONTENT))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    return Catalogue(
        niche=niche,
        quality=rng.normal(0, 0.6, items),
        duration_ms=np.exp(rng.normal(10, 0.8, items)).astype(np.int32),
        content=content.astype(np.float32),
        popularity_sum=np.cumsum(popularity),
        first=np.searchsorted(niche, np.arange(NICHES + 1)),
    )
