"""The demo's log: users return to a few interests, session after session.

Users return to a few interests again and again, and now and then swap one for another. They come
in sessions, each about one interest, in one of three scenarios. A page shows some items; whether
one is clicked depends, besides its quality and the scenario, on the topic of the user's very last
clicks (the session) and on clicks on the same niche at least ``LONG_LAG_EVENTS`` events back (the
life cycle). When a user returns to an old interest, only that far past tells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqvault.progress import Progress
from tfx_pipeline.datasets.generated_items import NICHES, NICHES_PER_TOPIC, TOPICS, Catalogue
from tfx_pipeline.datasets.generated_pages import (
    SCENARIO_SHARE,
    SCENARIOS,
    Pages,
    page_times,
    sigmoid,
)
from tfx_pipeline.datasets.generator_settings import GeneratorSettings

LONG_LAG_EVENTS = 100
_INTERESTS = 6
_SCENARIO_BIAS = (-3.0, -2.3, -2.0)
# Of a page's slots: the session's niche, another interest of the user, the session's topic; the
# rest is what is popular.
_SLOT_SHARE = (0.35, 0.20, 0.15)
_SESSION_PAGES = 4  # mean
_DRIFT = 0.01  # chance per page that one interest is swapped for a new one
_RECENT_DECAY = 0.6  # per page
_LONG_HALF_LIFE_EVENTS = 800
_RECENT_WEIGHT, _LONG_WEIGHT = 1.4, 2.6


def simulate_demo(
    rng: np.random.Generator,
    settings: GeneratorSettings,
    catalogue: Catalogue,
    progress: Progress,
) -> Pages:
    """Page after page, all users at once; shorter life cycles join later and all end together."""
    users, width = settings.users, settings.candidates
    lengths = np.exp(rng.uniform(np.log(settings.min_events), np.log(settings.max_events), users))
    page_counts = -np.sort(-np.ceil(lengths / width).astype(np.int64))
    steps = int(page_counts[0])
    interests = rng.integers(0, NICHES, (users, _INTERESTS))
    taste = np.cumsum(rng.dirichlet(np.ones(_INTERESTS), users), axis=1)
    session_niche = interests[:, 0].copy()
    scenario = np.zeros(users, np.int8)
    recent = np.zeros((users, TOPICS))
    long = np.zeros((users, NICHES))
    lag = -(-LONG_LAG_EVENTS // width)
    growth = 2.0 ** (width / _LONG_HALF_LIFE_EVENTS)
    waiting: list[tuple[NDArray, NDArray, NDArray, float]] = []
    parts: list[dict[str, NDArray]] = []
    for step in range(steps):
        # Users are sorted by length: those who have begun come first.
        active = int(np.searchsorted(-page_counts, -(steps - step), side="right"))
        begun = np.arange(active)
        drift = rng.random(active) < _DRIFT
        place = rng.integers(0, _INTERESTS, active)
        interests[begun[drift], place[drift]] = rng.integers(0, NICHES, int(drift.sum()))
        fresh = rng.random(active) < 1 / _SESSION_PAGES
        fresh |= page_counts[:active] == steps - step
        chosen = (taste[:active] < rng.random((active, 1))).sum(1).clip(max=_INTERESTS - 1)
        session_niche[:active] = np.where(fresh, interests[begun, chosen], session_niche[:active])
        drawn = rng.choice(len(SCENARIOS), active, p=SCENARIO_SHARE).astype(np.int8)
        scenario[:active] = np.where(fresh, drawn, scenario[:active])

        item = _show(rng, catalogue, session_niche[:active], interests[:active], width)
        niche = catalogue.niche[item]
        scale = growth**step
        recent_part = _RECENT_WEIGHT * np.tanh(recent[begun[:, None], niche // NICHES_PER_TOPIC])
        long_part = _LONG_WEIGHT * np.tanh(long[begun[:, None], niche] / scale)
        bias = np.array(_SCENARIO_BIAS)[scenario[:active]]
        logit = bias[:, None] + catalogue.quality[item] + recent_part + long_part
        clicked = rng.random(item.shape) < sigmoid(logit)

        recent[:active] *= _RECENT_DECAY
        rows, slots = np.nonzero(clicked)
        clicked_niche = niche[rows, slots]
        np.add.at(recent, (rows, clicked_niche // NICHES_PER_TOPIC), 0.5)
        waiting.append((rows, clicked_niche, np.full(len(rows), 0.4), scale))
        if len(waiting) > lag:
            old_rows, old_niche, amount, old_scale = waiting.pop(0)
            np.add.at(long, (old_rows, old_niche), amount * old_scale)
        parts.append(
            {
                "user": begun,
                "fresh": fresh,
                "scenario": scenario[:active].copy(),
                "item": item.astype(np.int32),
                "clicked": clicked,
                "logit": logit.astype(np.float32),
                "recent_part": recent_part.astype(np.float32),
                "long_part": long_part.astype(np.float32),
            }
        )
        progress("generate", step + 1, steps)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["user"], kind="stable")
    joined = {name: values[order] for name, values in joined.items()}
    fresh = joined.pop("fresh")
    return Pages(time_ms=page_times(rng, joined["user"], fresh, width), **joined)


def _show(
    rng: np.random.Generator,
    catalogue: Catalogue,
    session_niche: NDArray,
    interests: NDArray,
    width: int,
) -> NDArray:
    """The items of one page for each user, [users, N]."""
    shape = (len(session_niche), width)
    kind = np.searchsorted(np.cumsum(_SLOT_SHARE), rng.random(shape), side="right")
    place = rng.integers(0, _INTERESTS, shape)
    other = np.take_along_axis(interests, place, axis=1)
    topic = session_niche // NICHES_PER_TOPIC * NICHES_PER_TOPIC
    nearby = topic[:, None] + rng.integers(0, NICHES_PER_TOPIC, shape)
    niche = np.choose(np.minimum(kind, 2), [session_niche[:, None], other, nearby])
    chance = rng.random(shape)
    return np.where(kind == 3, catalogue.draw_popular(chance), catalogue.draw(niche, chance))
