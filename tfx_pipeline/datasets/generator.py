"""A generated exposure log whose clicks depend on short and on long history.

Users return to a few interests again and again, and now and then swap one for another. They come
in sessions, each about one interest, in one of three scenarios. A page shows some items; whether
one is clicked depends, besides its quality and the scenario, on the topic of the user's very last
clicks (the session) and on clicks on the same niche at least ``LONG_LAG_EVENTS`` events back (the
life cycle). When a user returns to an old interest, only that far past tells. The probabilities
are known, so the AUC that a perfect model could reach is known too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laser_features import FeatureSpec
from laser_features.time import MS_PER_DAY, MS_PER_HOUR
from tfx_pipeline.datasets.dataset_tables import DatasetTables, Progress, no_progress
from tfx_pipeline.datasets.id_tables import id_table
from tfx_pipeline.errors import DatasetError
from tfx_pipeline.ranking_metrics import auc

SCENARIOS = ("double_column_feed", "single_column_video", "search")
LONG_LAG_EVENTS = 100
EVAL_SHARE = 0.2
REQUEST_DAYS = 10
END_MS = 1_767_225_600_000  # 1 January 2026, UTC
EVENT_GAP_MS = 4_000
_TOPICS, _NICHES_PER_TOPIC, _INTERESTS, _CONTENT = 40, 25, 6, 16
_NICHES = _TOPICS * _NICHES_PER_TOPIC
_SCENARIO_SHARE = (0.5, 0.35, 0.15)
_SCENARIO_BIAS = (-3.0, -2.3, -2.0)
# Of a page's slots: the session's niche, another interest of the user, the session's topic; the
# rest is what is popular.
_SLOT_SHARE = (0.35, 0.20, 0.15)
_SESSION_PAGES = 4  # mean
_DRIFT = 0.01  # chance per page that one interest is swapped for a new one
_RECENT_DECAY = 0.6  # per page
_LONG_HALF_LIFE_EVENTS = 800
_RECENT_WEIGHT, _LONG_WEIGHT = 1.4, 2.6
_DWELL_BOUNDARIES_MS = [1_000, 3_000, 7_000, 15_000, 30_000, 60_000]


@dataclass(frozen=True)
class GeneratorSettings:
    """Size and seed of a generated dataset; the defaults are the demo's.

    Attributes:
        users: Number of users.
        items: Number of items.
        min_events: Shortest life cycle.
        max_events: Longest life cycle; lengths are log-uniform between the two.
        requests: Most requests to keep; they lie in the last days.
        candidates: Items on a page, N.
        max_history: The spec's history length.
        seed: Equal settings give equal tables.

    Raises:
        DatasetError: A number is out of range.
    """

    users: int = 1500
    items: int = 20_000
    min_events: int = 50
    max_events: int = 4000
    requests: int = 20_000
    candidates: int = 10
    max_history: int = 1000
    seed: int = 7

    def __post_init__(self) -> None:
        for name in ("users", "items", "min_events", "requests", "candidates", "max_history"):
            if getattr(self, name) < 1:
                raise DatasetError(f"generator: {name} is {getattr(self, name)}; give at least 1")
        if self.max_events < self.min_events:
            raise DatasetError(
                f"generator: max_events is {self.max_events}, below min_events {self.min_events}"
            )
        if self.items < _NICHES:
            raise DatasetError(f"generator: items is {self.items}; give at least {_NICHES}")


@dataclass(frozen=True)
class _Catalogue:
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


@dataclass(frozen=True)
class _Pages:
    """Every page shown: [P] per page, [P, N] per slot."""

    user: NDArray
    time_ms: NDArray
    scenario: NDArray
    item: NDArray
    clicked: NDArray
    logit: NDArray
    recent_part: NDArray
    long_part: NDArray


def generate(settings: GeneratorSettings, progress: Progress = no_progress) -> DatasetTables:
    """Generate users, items, events and impressions; see the module's text for the rules.

    The facts hold the evaluation split's AUC of the planted truth, of the truth without its long
    part and of the truth without any history, and the share of clicks.
    """
    rng = np.random.default_rng(settings.seed)
    catalogue = _catalogue(rng, settings.items)
    pages = _simulate(rng, settings, catalogue, progress)
    chosen, splits = _choose_requests(rng, settings, pages)
    spec = _spec(settings)
    return DatasetTables(
        spec=spec,
        events=_events(rng, pages),
        items=_items(catalogue, spec),
        impressions=_impressions(pages, chosen),
        splits=splits,
        source=f"generated, seed {settings.seed}",
        facts=_facts(pages, chosen, splits["eval"]),
    )


def _catalogue(rng: np.random.Generator, items: int) -> _Catalogue:
    # Every niche has an item; the rest spreads unevenly.
    share = rng.dirichlet(np.full(_NICHES, 2.0))
    niche = np.concatenate([np.arange(_NICHES), rng.choice(_NICHES, items - _NICHES, p=share)])
    niche.sort()
    popularity = (1.0 + rng.permutation(items)) ** -0.8
    topic_vectors = rng.normal(size=(_TOPICS, _CONTENT))
    niche_vectors = rng.normal(size=(_NICHES, _CONTENT))
    content = topic_vectors[niche // _NICHES_PER_TOPIC] + 0.8 * niche_vectors[niche]
    content += 0.4 * rng.normal(size=(items, _CONTENT))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    return _Catalogue(
        niche=niche,
        quality=rng.normal(0, 0.6, items),
        duration_ms=np.exp(rng.normal(10, 0.8, items)).astype(np.int32),
        content=content.astype(np.float32),
        popularity_sum=np.cumsum(popularity),
        first=np.searchsorted(niche, np.arange(_NICHES + 1)),
    )


def _simulate(
    rng: np.random.Generator,
    settings: GeneratorSettings,
    catalogue: _Catalogue,
    progress: Progress,
) -> _Pages:
    """Page after page, all users at once; shorter life cycles join later and all end together."""
    users, width = settings.users, settings.candidates
    lengths = np.exp(rng.uniform(np.log(settings.min_events), np.log(settings.max_events), users))
    page_counts = -np.sort(-np.ceil(lengths / width).astype(np.int64))
    steps = int(page_counts[0])
    interests = rng.integers(0, _NICHES, (users, _INTERESTS))
    taste = np.cumsum(rng.dirichlet(np.ones(_INTERESTS), users), axis=1)
    session_niche = interests[:, 0].copy()
    scenario = np.zeros(users, np.int8)
    recent = np.zeros((users, _TOPICS))
    long = np.zeros((users, _NICHES))
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
        interests[begun[drift], place[drift]] = rng.integers(0, _NICHES, int(drift.sum()))
        fresh = rng.random(active) < 1 / _SESSION_PAGES
        fresh |= page_counts[:active] == steps - step
        chosen = (taste[:active] < rng.random((active, 1))).sum(1).clip(max=_INTERESTS - 1)
        session_niche[:active] = np.where(fresh, interests[begun, chosen], session_niche[:active])
        drawn = rng.choice(len(SCENARIOS), active, p=_SCENARIO_SHARE).astype(np.int8)
        scenario[:active] = np.where(fresh, drawn, scenario[:active])

        item = _show(rng, catalogue, session_niche[:active], interests[:active], width)
        niche = catalogue.niche[item]
        scale = growth**step
        recent_part = _RECENT_WEIGHT * np.tanh(recent[begun[:, None], niche // _NICHES_PER_TOPIC])
        long_part = _LONG_WEIGHT * np.tanh(long[begun[:, None], niche] / scale)
        bias = np.array(_SCENARIO_BIAS)[scenario[:active]]
        logit = bias[:, None] + catalogue.quality[item] + recent_part + long_part
        clicked = rng.random(item.shape) < _sigmoid(logit)

        recent[:active] *= _RECENT_DECAY
        rows, slots = np.nonzero(clicked)
        clicked_niche = niche[rows, slots]
        np.add.at(recent, (rows, clicked_niche // _NICHES_PER_TOPIC), 0.5)
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
    return _Pages(time_ms=_times(rng, joined["user"], fresh, width), **joined)


def _show(
    rng: np.random.Generator,
    catalogue: _Catalogue,
    session_niche: NDArray,
    interests: NDArray,
    width: int,
) -> NDArray:
    """The items of one page for each user, [users, N]."""
    shape = (len(session_niche), width)
    kind = np.searchsorted(np.cumsum(_SLOT_SHARE), rng.random(shape), side="right")
    place = rng.integers(0, _INTERESTS, shape)
    other = np.take_along_axis(interests, place, axis=1)
    topic = session_niche // _NICHES_PER_TOPIC * _NICHES_PER_TOPIC
    nearby = topic[:, None] + rng.integers(0, _NICHES_PER_TOPIC, shape)
    niche = np.choose(np.minimum(kind, 2), [session_niche[:, None], other, nearby])
    chance = rng.random(shape)
    return np.where(kind == 3, catalogue.draw_popular(chance), catalogue.draw(niche, chance))


def _times(rng: np.random.Generator, user: NDArray, fresh: NDArray, width: int) -> NDArray:
    """Times of pages, sorted by user: minutes within a session, hours between sessions."""
    gaps = width * EVENT_GAP_MS + 2_000 + rng.exponential(60_000, len(user))
    gaps += np.where(fresh, rng.exponential(8 * MS_PER_HOUR, len(user)), 0)
    total = np.cumsum(gaps.astype(np.int64))
    last = np.append(np.flatnonzero(np.diff(user)), len(user) - 1)
    end = END_MS - rng.integers(MS_PER_HOUR, 2 * MS_PER_DAY, len(last))
    return total - np.repeat(total[last] - end, np.diff(np.concatenate([[-1], last])))


def _choose_requests(
    rng: np.random.Generator, settings: GeneratorSettings, pages: _Pages
) -> tuple[NDArray, dict[str, tuple[int, int]]]:
    """Pages of the last days, in the order of time, and the two splits."""
    start = END_MS - REQUEST_DAYS * MS_PER_DAY
    eligible = np.flatnonzero(pages.time_ms >= start)
    if len(eligible) > settings.requests:
        eligible = rng.choice(eligible, settings.requests, replace=False)
    chosen = eligible[np.argsort(pages.time_ms[eligible], kind="stable")]
    cut = int(pages.time_ms[chosen[int((1 - EVAL_SHARE) * len(chosen))]])
    return chosen, {"train": (start, cut), "eval": (cut, END_MS)}


def _events(rng: np.random.Generator, pages: _Pages) -> pa.Table:
    """Each exposure is an event, a little after its page was asked for."""
    count, width = pages.item.shape
    clicked = pages.clicked.ravel()
    liked = clicked & (rng.random(count * width) < 0.15)
    dwell = np.exp(rng.normal(np.where(clicked, 9.8, 7.0), 0.8))
    slots = 1_000 + EVENT_GAP_MS * np.arange(width)
    return pa.table(
        {
            "user_id": np.repeat(pages.user.astype(np.int64), width),
            "timestamp": (pages.time_ms[:, None] + slots).ravel(),
            "item_id": pages.item.ravel().astype(np.int64),
            "scenario": np.repeat(pages.scenario, width),
            "action": clicked.astype(np.int8) + liked.astype(np.int8),
            "dwell_ms": np.minimum(dwell, 600_000).astype(np.int32),
        }
    )


def _items(catalogue: _Catalogue, spec: FeatureSpec) -> pa.Table:
    content = pa.FixedSizeListArray.from_arrays(pa.array(catalogue.content.ravel()), _CONTENT)
    return pa.table(
        {
            "item_id": np.arange(len(catalogue.niche)),
            "category_id": (catalogue.niche // _NICHES_PER_TOPIC).astype(np.int64),
            "author_id": catalogue.niche.astype(np.int64),
            "duration_ms": catalogue.duration_ms,
            "content": content,
        },
        schema=spec.item_schema(),
    )


def _impressions(pages: _Pages, chosen: NDArray) -> pa.Table:
    width = pages.item.shape[1]
    return pa.table(
        {
            "user_id": np.repeat(pages.user[chosen].astype(np.int64), width),
            "timestamp": np.repeat(pages.time_ms[chosen], width),
            "item_id": pages.item[chosen].ravel().astype(np.int64),
            "request_id": np.repeat(np.arange(len(chosen)), width),
            "scenario": np.repeat(pages.scenario[chosen], width),
            "position": np.tile(np.arange(width, dtype=np.int16), len(chosen)),
            "click": pages.clicked[chosen].ravel().astype(np.int8),
        }
    )


def _facts(pages: _Pages, chosen: NDArray, evaluation: tuple[int, int]) -> dict[str, object]:
    rows = chosen[pages.time_ms[chosen] >= evaluation[0]]
    clicked = pages.clicked[rows].ravel()
    logit, long = pages.logit[rows].ravel(), pages.long_part[rows].ravel()
    recent = pages.recent_part[rows].ravel()
    return {
        "eval_click_rate": round(float(clicked.mean()), 4),
        "eval_auc_of_truth": round(auc(clicked, _sigmoid(logit)), 4),
        "eval_auc_without_long_history": round(auc(clicked, logit - long), 4),
        "eval_auc_without_history": round(auc(clicked, logit - long - recent), 4),
    }


def _sigmoid(logit: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-logit))


def _spec(settings: GeneratorSettings) -> FeatureSpec:
    return FeatureSpec.from_dict(
        {
            "name": "generated",
            "history": {"max_length": settings.max_history},
            "tables": {
                "item": id_table(np.arange(settings.items), 16),
                "category": id_table(np.arange(_TOPICS), 8),
                "author": id_table(np.arange(_NICHES), 16),
                "user": id_table(np.arange(settings.users), 8),
                "duration": {"rows": 18, "width": 4, "ids": "direct"},
                "scenario": {"rows": 5, "width": 4, "ids": "direct"},
                "action": {"rows": 5, "width": 8, "ids": "direct"},
                "dwell": {"rows": len(_DWELL_BOUNDARIES_MS) + 2, "width": 4, "ids": "direct"},
                "position": id_table(np.arange(settings.candidates), 4),
                "hour": {"rows": 25, "width": 4, "ids": "direct"},
            },
            "event": {
                "item_id": {"type": "int64", "table": "item"},
                "scenario": {"type": "int8", "table": "scenario"},
                "action": {"type": "int8", "table": "action"},
                "dwell_ms": {
                    "type": "int32",
                    "table": "dwell",
                    "boundaries": _DWELL_BOUNDARIES_MS,
                },
            },
            "item": {
                "category_id": {"type": "int64", "table": "category"},
                "author_id": {"type": "int64", "table": "author"},
                "duration_ms": {"type": "int32", "table": "duration", "quantiles": 16},
                "content": {"type": "float32", "shape": [_CONTENT]},
            },
            "user": {"user_id": {"type": "int64", "table": "user"}},
            "context": {
                "scenario": {"type": "int8", "table": "scenario"},
                "hour": {"derive": "hour_of_day", "table": "hour"},
            },
            "candidate": {"position": {"type": "int16", "table": "position"}},
            "label": {"click": {"type": "int8"}},
        }
    )
