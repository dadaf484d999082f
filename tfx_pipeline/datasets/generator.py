"""A generated exposure log whose clicks depend on short and on long history.

Which users there are and why they click is the preset's matter: ``demo_log`` and ``long_log``. The
probabilities are known, so the AUC that a perfect model could reach is known too.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laser_features import FeatureSpec
from laser_features.time import MS_PER_DAY
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.demo_log import simulate_demo
from tfx_pipeline.datasets.generated_items import (
    CONTENT,
    NICHES,
    NICHES_PER_TOPIC,
    TOPICS,
    Catalogue,
    make_catalogue,
)
from tfx_pipeline.datasets.generated_pages import END_MS, EVENT_GAP_MS, Pages, sigmoid
from tfx_pipeline.datasets.generator_settings import GeneratorSettings
from tfx_pipeline.datasets.id_tables import id_table
from tfx_pipeline.datasets.long_log import EFFECTS, planted_windows, simulate_long
from tfx_pipeline.ranking_metrics import auc

EVAL_SHARE = 0.2
REQUEST_DAYS = 10
_DWELL_BOUNDARIES_MS = [1_000, 3_000, 7_000, 15_000, 30_000, 60_000]


def generate(settings: GeneratorSettings, progress: Progress = no_progress) -> DatasetTables:
    """Generate users, items, events and impressions; see the module's text for the rules.

    The facts hold the evaluation split's AUC of the planted truth, of the truth without its long
    part and of the truth without any history, and the share of clicks.
    """
    rng = np.random.default_rng(settings.seed)
    catalogue = make_catalogue(rng, settings.items)
    simulate = simulate_demo if settings.preset == "demo" else simulate_long
    pages = simulate(rng, settings, catalogue, progress)
    chosen, splits = _choose_requests(rng, settings, pages)
    spec = _spec(settings)
    return DatasetTables(
        spec=spec,
        events=_events(rng, pages),
        items=_items(catalogue, spec),
        impressions=_impressions(pages, chosen),
        splits=splits,
        source=_source(settings),
        facts=_facts(settings, pages, chosen, splits["eval"]),
    )


def _choose_requests(
    rng: np.random.Generator, settings: GeneratorSettings, pages: Pages
) -> tuple[NDArray, dict[str, tuple[int, int]]]:
    """Pages of the last days, in the order of time, and the two splits."""
    start = END_MS - REQUEST_DAYS * MS_PER_DAY
    eligible = np.flatnonzero(pages.time_ms >= start)
    if len(eligible) > settings.requests:
        eligible = rng.choice(eligible, settings.requests, replace=False)
    chosen = eligible[np.argsort(pages.time_ms[eligible], kind="stable")]
    cut = int(pages.time_ms[chosen[int((1 - EVAL_SHARE) * len(chosen))]])
    return chosen, {"train": (start, cut), "eval": (cut, END_MS)}


def _events(rng: np.random.Generator, pages: Pages) -> pa.Table:
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


def _items(catalogue: Catalogue, spec: FeatureSpec) -> pa.Table:
    content = pa.FixedSizeListArray.from_arrays(pa.array(catalogue.content.ravel()), CONTENT)
    return pa.table(
        {
            "item_id": np.arange(len(catalogue.niche)),
            "category_id": (catalogue.niche // NICHES_PER_TOPIC).astype(np.int64),
            "author_id": catalogue.niche.astype(np.int64),
            "duration_ms": catalogue.duration_ms,
            "content": content,
        },
        schema=spec.item_schema(),
    )


def _impressions(pages: Pages, chosen: NDArray) -> pa.Table:
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


def _source(settings: GeneratorSettings) -> str:
    preset = "" if settings.preset == "demo" else f" by preset {settings.preset}"
    return f"generated{preset}, seed {settings.seed}"


def _facts(
    settings: GeneratorSettings, pages: Pages, chosen: NDArray, evaluation: tuple[int, int]
) -> dict[str, object]:
    rows = chosen[pages.time_ms[chosen] >= evaluation[0]]
    clicked = pages.clicked[rows].ravel()
    logit, long = pages.logit[rows].ravel(), pages.long_part[rows].ravel()
    recent = pages.recent_part[rows].ravel()
    facts: dict[str, object] = {
        "eval_click_rate": round(float(clicked.mean()), 4),
        "eval_auc_of_truth": round(auc(clicked, sigmoid(logit)), 4),
        "eval_auc_without_long_history": round(auc(clicked, logit - long), 4),
        "eval_auc_without_history": round(auc(clicked, logit - long - recent), 4),
    }
    if settings.preset in EFFECTS:
        assert pages.far_part is not None
        far = pages.far_part[rows].ravel()
        facts["eval_auc_without_far_history"] = round(auc(clicked, logit - far), 4)
        facts["planted_windows"] = planted_windows(settings)
    return facts


def _spec(settings: GeneratorSettings) -> FeatureSpec:
    # The demo's spec is as it always was; ``long`` and its kin declare what the systems can use.
    more: dict[str, object] = {}
    if settings.preset in EFFECTS:
        more["interactions"] = {
            "similarity": ["content"],
            "category": "author_id",
            "cross": ["action", "dwell_ms", "scenario"],
        }
    return FeatureSpec.from_dict(
        {
            "name": "generated" if settings.preset == "demo" else f"generated_{settings.preset}",
            "history": {"max_length": settings.max_history},
            "tables": {
                "item": id_table(np.arange(settings.items), 16),
                "category": id_table(np.arange(TOPICS), 8),
                "author": id_table(np.arange(NICHES), 16),
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
                "content": {"type": "float32", "shape": [CONTENT]},
            },
            "user": {"user_id": {"type": "int64", "table": "user"}},
            "context": {
                "scenario": {"type": "int8", "table": "scenario"},
                "hour": {"derive": "hour_of_day", "table": "hour"},
            },
            "candidate": {"position": {"type": "int16", "table": "position"}},
            "label": {"click": {"type": "int8"}},
            **more,
        }
    )
