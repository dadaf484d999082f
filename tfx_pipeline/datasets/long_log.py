"""Logs whose clicks follow from what lies hundreds and thousands of events back.

A user has a pool of niches and lives through eras: in each, a few niches of the pool are shown
again and again, several at once, beside niches of other eras, near misses of the same topic and
popular noise; a slot may repeat what was shown before. A click depends on the item's quality, the
scenario, the place on the page, how often the item was shown lately without a click, the topic of
the very last clicks, and on clicks on the same niche in two windows of events back: from
``NEAR_EVENTS`` to ``FAR_EVENTS`` and from there to ``END_EVENTS``. The three presets differ in how
those clicks count:

* ``long``: each adds less than the one before it, as interests do;
* ``counts``: in proportion to their number, which a mean over matches cannot tell;
* ``presence``: one is as good as many, which a sum over matches must learn to cap.
"""

from __future__ import annotations

from collections.abc import Callable

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

NEAR_EVENTS, FAR_EVENTS, END_EVENTS = 100, 1000, 4000
EFFECTS: dict[str, Callable[[NDArray], NDArray]] = {
    "long": lambda clicks: np.tanh(0.3 * clicks),
    "counts": lambda clicks: np.minimum(clicks, 16.0) / 16.0,
    "presence": lambda clicks: (clicks > 0).astype(np.float64),
}
"""By preset, from the number of clicks on a niche within a window to an effect within 0 and 1."""
_POOL, _AT_ONCE, _ERA_PAGES = 40, 3, 50
# Of a page's slots: a niche of the era, any niche of the pool, a neighbour of an era's niche; the
# rest is what is popular.
_SLOT_SHARE = (0.4, 0.2, 0.15)
_REPEATED, _REMEMBERED = 0.1, 30
_RECENT_DECAY, _RECENT_WEIGHT = 0.6, 0.8
# Of the two windows' effects; the counts' effect is far from its end as a rule.
_WEIGHTS = {"long": (1.5, 2.5), "counts": (4.0, 6.0), "presence": (1.5, 2.5)}
_TIRED_WEIGHT, _POSITION_WEIGHT = 1.0, 0.1
_SCENARIO_BIAS = (-2.8, -2.4, -2.1)


def planted_windows(settings: GeneratorSettings) -> dict[str, list[int]]:
    """Which past events are counted: from the first number of events back, below the second.

    0 is the newest event before the request. Windows begin and end with pages.
    """
    near, far, end = (_pages(events, settings.candidates) for events in _windows())
    width = settings.candidates
    return {"near": [near * width, far * width], "far": [far * width, end * width]}


def simulate_long(
    rng: np.random.Generator,
    settings: GeneratorSettings,
    catalogue: Catalogue,
    progress: Progress,
) -> Pages:
    """Page after page, all users at once; shorter life cycles join later and all end together."""
    users, width, effect = settings.users, settings.candidates, EFFECTS[settings.preset]
    near_weight, far_weight = _WEIGHTS[settings.preset]
    lengths = np.exp(rng.uniform(np.log(settings.min_events), np.log(settings.max_events), users))
    page_counts = -np.sort(-np.ceil(lengths / width).astype(np.int64))
    steps = int(page_counts[0])
    pool = rng.integers(0, NICHES, (users, _POOL))
    era = _new_eras(rng, pool)
    scenario = np.zeros(users, np.int8)
    recent = np.zeros((users, TOPICS))
    near, far = np.zeros((users, NICHES), np.int32), np.zeros((users, NICHES), np.int32)
    unclicked = np.zeros((users, settings.items), np.uint8)
    remembered = np.zeros((users, _REMEMBERED), np.int64)
    clicks: list[tuple[NDArray, NDArray]] = []  # of each page: users and niches
    shown: list[tuple[NDArray, NDArray]] = []  # of each page: users and items not clicked
    near_pages, far_pages, end_pages = (_pages(events, width) for events in _windows())
    parts: list[dict[str, NDArray]] = []
    for step in range(steps):
        # Users are sorted by length: those who have begun come first.
        active = int(np.searchsorted(-page_counts, -(steps - step), side="right"))
        begun = np.arange(active)
        changed = rng.random(active) < 1 / _ERA_PAGES
        era[begun[changed]] = _new_eras(rng, pool[begun[changed]])
        fresh = (rng.random(active) < 0.2) | (page_counts[:active] == steps - step)
        drawn = rng.choice(len(SCENARIOS), active, p=SCENARIO_SHARE).astype(np.int8)
        scenario[:active] = np.where(fresh, drawn, scenario[:active])
        # What was clicked so many pages ago enters a window or leaves it.
        _count(near, clicks, step - 1 - near_pages, 1)
        _count(near, clicks, step - 1 - far_pages, -1)
        _count(far, clicks, step - 1 - far_pages, 1)
        _count(far, clicks, step - 1 - end_pages, -1)
        _count(unclicked, shown, step - 1, 1)
        _count(unclicked, shown, step - 1 - near_pages, -1)

        item = _show(rng, catalogue, era[:active], pool[:active], width)
        again = rng.random(item.shape) < (_REPEATED if step else 0.0)
        place = rng.integers(0, _REMEMBERED, item.shape)
        item = np.where(again, np.take_along_axis(remembered[:active], place, axis=1), item)
        remembered[:active] = np.concatenate([item, remembered[:active]], axis=1)[:, :_REMEMBERED]
        niche, rows = catalogue.niche[item], begun[:, None]
        recent_part = _RECENT_WEIGHT * np.tanh(recent[rows, niche // NICHES_PER_TOPIC])
        recent_part -= _TIRED_WEIGHT * np.tanh(0.5 * unclicked[rows, item])
        near_part = near_weight * effect(near[rows, niche])
        far_part = far_weight * effect(far[rows, niche])
        logit = np.array(_SCENARIO_BIAS)[scenario[:active]][:, None] + catalogue.quality[item]
        logit = logit - _POSITION_WEIGHT * np.arange(width) + recent_part + near_part + far_part
        clicked = rng.random(item.shape) < sigmoid(logit)

        recent[:active] *= _RECENT_DECAY
        who, slots = np.nonzero(clicked)
        clicks.append((who, niche[who, slots]))
        np.add.at(recent, (who, niche[who, slots] // NICHES_PER_TOPIC), 0.5)
        who, slots = np.nonzero(~clicked)
        shown.append((who, item[who, slots]))
        parts.append(
            {
                "user": begun,
                "fresh": fresh,
                "scenario": scenario[:active].copy(),
                "item": item.astype(np.int32),
                "clicked": clicked,
                "logit": logit.astype(np.float32),
                "recent_part": recent_part.astype(np.float32),
                "long_part": (near_part + far_part).astype(np.float32),
                "far_part": far_part.astype(np.float32),
            }
        )
        progress("generate", step + 1, steps)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["user"], kind="stable")
    joined = {name: values[order] for name, values in joined.items()}
    fresh = joined.pop("fresh")
    return Pages(time_ms=page_times(rng, joined["user"], fresh, width), **joined)


def _windows() -> tuple[int, int, int]:
    return NEAR_EVENTS, FAR_EVENTS, END_EVENTS


def _pages(events: int, width: int) -> int:
    return -(-events // width)


def _count(counts: NDArray, pages: list[tuple[NDArray, NDArray]], page: int, sign: int) -> None:
    """Add what one page holds to the counts by user and niche, or item; or take it away."""
    if page < 0:
        return
    rows, columns = pages[page]
    if sign > 0:
        np.add.at(counts, (rows, columns), 1)
    else:
        np.subtract.at(counts, (rows, columns), 1)


def _new_eras(rng: np.random.Generator, pool: NDArray) -> NDArray:
    """Different niches of each user's pool, [users, AT_ONCE]."""
    place = np.argsort(rng.random(pool.shape), axis=1)[:, :_AT_ONCE]
    return np.take_along_axis(pool, place, axis=1)


def _show(
    rng: np.random.Generator, catalogue: Catalogue, era: NDArray, pool: NDArray, width: int
) -> NDArray:
    """The items of one page for each user, [users, N]."""
    shape = (len(era), width)
    kind = np.searchsorted(np.cumsum(_SLOT_SHARE), rng.random(shape), side="right")
    current = np.take_along_axis(era, rng.integers(0, _AT_ONCE, shape), axis=1)
    other = np.take_along_axis(pool, rng.integers(0, _POOL, shape), axis=1)
    nearby = current // NICHES_PER_TOPIC * NICHES_PER_TOPIC
    nearby = nearby + rng.integers(0, NICHES_PER_TOPIC, shape)
    niche = np.choose(np.minimum(kind, 2), [current, other, nearby])
    chance = rng.random(shape)
    return np.where(kind == 3, catalogue.draw_popular(chance), catalogue.draw(niche, chance))
