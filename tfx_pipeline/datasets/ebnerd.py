"""EB-NeRD: news impressions of Ekstra Bladet (RecSys Challenge 2024), Parquet as published.

A folder holds ``articles.parquet`` and, per split (``train``, ``validation``), a folder with
``behaviors.parquet`` and ``history.parquet``; a single pair beside the articles works too.

An impression is an article in view; the label says whether it was clicked. Events are what users
read: the published click histories, article pages in the behaviours, and clicks in impressions
whose page view is recorded nowhere else, with reading time and scroll depth. An event carries the
time at which reading began, so that it is never older than the impression it came from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from laser_features import FeatureSpec
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.first_rows import first_rows
from tfx_pipeline.datasets.id_tables import id_table
from tfx_pipeline.datasets.reading import column, read_parquet, strings, timestamps_ms
from tfx_pipeline.errors import DatasetError

TRAIN_SHARE = 0.8  # of a folder without a validation split, by time
_BEHAVIORS = [
    "impression_id",
    "user_id",
    "impression_time",
    "article_ids_inview",
    "article_ids_clicked",
]
_BEHAVIORS_OPTIONAL = [
    "article_id",
    "read_time",
    "scroll_percentage",
    "next_read_time",
    "next_scroll_percentage",
    "device_type",
    "is_sso_user",
    "is_subscriber",
    "gender",
    "age",
]
_HISTORY = ["user_id", "impression_time_fixed", "article_id_fixed"]
_HISTORY_OPTIONAL = ["read_time_fixed", "scroll_percentage_fixed"]
_ARTICLES = ["article_id", "published_time", "category"]
_ARTICLES_OPTIONAL = ["subcategory", "article_type", "premium", "sentiment_score"]
_READ_BOUNDARIES_SECONDS = [5, 10, 20, 30, 60, 120, 300, 600]
_SCROLL_BOUNDARIES_PERCENT = [20, 40, 60, 80, 100]
_AGE_BOUNDARIES_MINUTES = [30, 60, 120, 240, 480, 720, 1_440, 2_880, 5_760, 11_520, 43_200, 525_600]
# What the log tells of one view: who, when, which article, for how long, how far.
_VIEW = ("user_id", "timestamp", "item_id", "read_seconds", "scroll_percent")


def read_ebnerd(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read the published files.

    Raises:
        DatasetError: A file or column is missing or unreadable.
    """
    articles = read_parquet(folder / "articles.parquet", _ARTICLES, _ARTICLES_OPTIONAL)
    folders = _split_folders(folder)
    views, impressions = [], []
    for done, part in enumerate(folders, start=1):
        behaviors = read_parquet(part / "behaviors.parquet", _BEHAVIORS, _BEHAVIORS_OPTIONAL)
        history = read_parquet(part / "history.parquet", _HISTORY, _HISTORY_OPTIONAL)
        views += [_history_views(history), _page_views(behaviors), _clicks(behaviors)]
        impressions.append(_impressions(behaviors, done))
        progress("read splits", done, len(folders))
    items = _items(articles)
    shown = pa.concat_tables(impressions)
    return DatasetTables(
        spec=_spec(items, shown),
        events=_events(views),
        items=pa.table(items),
        impressions=shown,
        splits=_splits(impressions),
        source=f"EB-NeRD, Parquet files in {folder.name}",
    )


def _split_folders(folder: Path) -> list[Path]:
    """The split folders in the order of time, or the folder itself."""
    found = [folder / name for name in ("train", "validation") if (folder / name).is_dir()]
    found = found or [folder]
    for part in found:
        for name in ("behaviors.parquet", "history.parquet"):
            if not (part / name).is_file():
                raise DatasetError(f"{part} has no {name}; add the missing file")
    return found


def _history_views(history: pa.Table) -> dict[str, NDArray]:
    """The click histories, one view per element of the lists."""
    lengths = pc.fill_null(pc.list_value_length(history["article_id_fixed"]), 0).to_numpy()
    user_id = np.repeat(column(history, "user_id", np.int64), lengths)
    lists: dict[str, pa.ChunkedArray] = {}
    for name in history.column_names:
        if name == "user_id":
            continue
        lists[name] = pc.list_flatten(history[name])
        if len(lists[name]) != len(user_id):
            raise DatasetError(
                f"history.parquet: {name} has {len(lists[name])} values where article_id_fixed "
                f"has {len(user_id)}; get the file again"
            )
    table = pa.table(lists)
    return {
        "user_id": user_id,
        "timestamp": timestamps_ms(table["impression_time_fixed"], "impression_time_fixed"),
        "item_id": column(table, "article_id_fixed", np.int64),
        "read_seconds": _optional(table, "read_time_fixed", 2**15 - 1),
        "scroll_percent": _optional(table, "scroll_percentage_fixed", 100),
    }


def _page_views(behaviors: pa.Table) -> dict[str, NDArray]:
    """Impressions on an article's page: the user was reading that article."""
    views = {
        "user_id": column(behaviors, "user_id", np.int64),
        "timestamp": _impression_time(behaviors),
        "item_id": _optional(behaviors, "article_id", 2**62),
        "read_seconds": _optional(behaviors, "read_time", 2**15 - 1),
        "scroll_percent": _optional(behaviors, "scroll_percentage", 100),
    }
    on_article = views["item_id"] >= 0
    return {name: values[on_article] for name, values in views.items()}


def _clicks(behaviors: pa.Table) -> dict[str, NDArray]:
    """Clicked articles, at the time of the impression."""
    lengths = pc.fill_null(pc.list_value_length(behaviors["article_ids_clicked"]), 0).to_numpy()
    rows = np.repeat(np.arange(behaviors.num_rows), lengths)
    clicked = pa.table({"id": pc.list_flatten(behaviors["article_ids_clicked"])})
    return {
        "user_id": column(behaviors, "user_id", np.int64)[rows],
        "timestamp": _impression_time(behaviors)[rows],
        "item_id": column(clicked, "id", np.int64),
        "read_seconds": _optional(behaviors, "next_read_time", 2**15 - 1)[rows],
        "scroll_percent": _optional(behaviors, "next_scroll_percentage", 100)[rows],
    }


def _events(views: list[dict[str, NDArray]]) -> pa.Table:
    """All views once. Histories and page views come first: a click is kept only if the same user
    has no recorded view of that article, which is the same reading at its exact time."""
    recorded = [view for place, view in enumerate(views) if place % 3 < 2]
    clicks = [view for place, view in enumerate(views) if place % 3 == 2]
    pages = {name: np.concatenate([view[name] for view in recorded]) for name in _VIEW}
    clicked = {name: np.concatenate([view[name] for view in clicks]) for name in _VIEW}
    fresh = ~np.isin(_pairs(clicked), _pairs(pages))
    events = {name: np.concatenate([pages[name], clicked[name][fresh]]) for name in _VIEW}
    first = first_rows(events["user_id"], events["timestamp"], events["item_id"])
    types = {"read_seconds": np.int16, "scroll_percent": np.int8}
    return pa.table({name: events[name][first].astype(types.get(name, np.int64)) for name in _VIEW})


def _pairs(view: dict[str, NDArray]) -> NDArray:
    # User and article ids are 32-bit in the published files: one int64 holds both.
    return (view["user_id"] << 32) | view["item_id"]


def _impressions(behaviors: pa.Table, part: int) -> pa.Table:
    lengths = pc.fill_null(pc.list_value_length(behaviors["article_ids_inview"]), 0).to_numpy()
    rows = np.repeat(np.arange(behaviors.num_rows), lengths)
    shown = pa.table({"id": pc.list_flatten(behaviors["article_ids_inview"])})
    item_id = column(shown, "id", np.int64)
    clicks = pc.fill_null(pc.list_value_length(behaviors["article_ids_clicked"]), 0).to_numpy()
    clicked_rows = np.repeat(np.arange(behaviors.num_rows), clicks)
    clicked = pa.table({"id": pc.list_flatten(behaviors["article_ids_clicked"])})
    clicked_pairs = (clicked_rows << 32) | column(clicked, "id", np.int64)
    on_article = (_optional(behaviors, "article_id", 2**62) >= 0).astype(np.int8)
    # Impression ids are counted per split; the split's number keeps them apart.
    request_id = column(behaviors, "impression_id", np.int64) + (part << 40)
    return pa.table(
        {
            "user_id": column(behaviors, "user_id", np.int64)[rows],
            "timestamp": _impression_time(behaviors)[rows],
            "item_id": item_id,
            "request_id": request_id[rows],
            "click": np.isin((rows << 32) | item_id, clicked_pairs).astype(np.int8),
            "on_article": on_article[rows],
            **{
                name: _optional(behaviors, name, 126).astype(np.int8)[rows]
                for name in ("device_type", "is_sso_user", "is_subscriber", "gender", "age")
            },
        }
    )


def _impression_time(behaviors: pa.Table) -> NDArray:
    return timestamps_ms(behaviors["impression_time"], "behaviors.parquet: impression_time")


def _items(articles: pa.Table) -> dict[str, NDArray]:
    if "subcategory" in articles.column_names:
        lists = articles["subcategory"]
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        flat = column(pa.table({"id": pc.list_flatten(lists)}), "id", np.int64)
        padded = np.append(flat, -1)
        subcategory = np.where(lengths > 0, padded[np.minimum(starts, len(flat))], -1)
    else:
        subcategory = np.full(articles.num_rows, -1)
    article_type = np.zeros(articles.num_rows, object)
    if "article_type" in articles.column_names:
        article_type = strings(articles, "article_type")
    published = timestamps_ms(articles["published_time"], "articles.parquet: published_time")
    score = _optional(articles, "sentiment_score", 1, scale=100)
    return {
        "item_id": column(articles, "article_id", np.int64),
        "category": column(articles, "category", np.int64),
        "subcategory": subcategory.astype(np.int64),
        "article_type": np.unique(article_type.astype(str), return_inverse=True)[1].astype(np.int8),
        "premium": _optional(articles, "premium", 1).astype(np.int8),
        "sentiment_percent": score.astype(np.int8),
        "published_ms": published,
    }


def _optional(table: pa.Table, name: str, largest: int, scale: int = 1) -> NDArray[np.int64]:
    """A column as whole numbers within [-1, largest * scale]; all -1 if it is absent."""
    if name not in table.column_names:
        return np.full(table.num_rows, -1, np.int64)
    if pa.types.is_floating(table[name].type):
        values = column(table, name, np.float64)
        values = np.where(values >= 0, np.round(values * scale), -1)
    else:
        values = column(table, name, np.int64)
    return np.clip(values, -1, largest * scale).astype(np.int64)


def _splits(impressions: list[pa.Table]) -> dict[str, tuple[int, int]]:
    times = [part["timestamp"].to_numpy() for part in impressions]
    start, end = min(part.min() for part in times), max(part.max() for part in times) + 1
    cut = times[1].min() if len(times) == 2 else np.sort(times[0])[int(TRAIN_SHARE * len(times[0]))]
    return {"train": (int(start), int(cut)), "eval": (int(cut), int(end))}


def _spec(items: dict[str, NDArray], shown: pa.Table) -> FeatureSpec:
    flag = {"type": "int8", "table": "flag"}
    return FeatureSpec.from_dict(
        {
            "name": "ebnerd",
            "history": {"max_length": 200},
            "tables": {
                "item": id_table(items["item_id"], 16),
                "user": id_table(shown["user_id"].to_numpy(), 16),
                "category": id_table(items["category"], 8),
                "subcategory": id_table(items["subcategory"], 8),
                "article_type": {"rows": 64, "width": 4, "ids": "direct"},
                "flag": {"rows": 3, "width": 2, "ids": "direct"},
                "sentiment": {"rows": 6, "width": 2, "ids": "direct"},
                "read": {"rows": 10, "width": 4, "ids": "direct"},
                "scroll": {"rows": 7, "width": 4, "ids": "direct"},
                "article_age": {
                    "rows": len(_AGE_BOUNDARIES_MINUTES) + 2,
                    "width": 8,
                    "ids": "direct",
                },
                "device": {"rows": 8, "width": 4, "ids": "direct"},
                "gender": {"rows": 4, "width": 2, "ids": "direct"},
                "age": {"rows": 128, "width": 4, "ids": "direct"},
                "hour": {"rows": 25, "width": 4, "ids": "direct"},
                "weekday": {"rows": 8, "width": 4, "ids": "direct"},
            },
            "event": {
                "item_id": {"type": "int64", "table": "item"},
                "read_seconds": {
                    "type": "int16",
                    "table": "read",
                    "boundaries": _READ_BOUNDARIES_SECONDS,
                },
                "scroll_percent": {
                    "type": "int8",
                    "table": "scroll",
                    "boundaries": _SCROLL_BOUNDARIES_PERCENT,
                },
            },
            "item": {
                "category": {"type": "int64", "table": "category"},
                "subcategory": {"type": "int64", "table": "subcategory"},
                "article_type": {"type": "int8", "table": "article_type"},
                "premium": flag,
                "sentiment_percent": {
                    "type": "int8",
                    "table": "sentiment",
                    "boundaries": [50, 70, 85, 95],
                },
                "published_ms": {"type": "int64"},
            },
            "user": {
                "user_id": {"type": "int64", "table": "user"},
                "is_sso_user": flag,
                "is_subscriber": flag,
                "gender": {"type": "int8", "table": "gender"},
                "age": {"type": "int8", "table": "age"},
            },
            "context": {
                "device_type": {"type": "int8", "table": "device"},
                "on_article": flag,
                "hour": {"derive": "hour_of_day", "table": "hour"},
                "weekday": {"derive": "day_of_week", "table": "weekday"},
            },
            "candidate": {
                "article_age": {
                    "derive": "age_minutes",
                    "of": "published_ms",
                    "table": "article_age",
                    "boundaries": _AGE_BOUNDARIES_MINUTES,
                }
            },
            "label": {"click": {"type": "int8"}},
        }
    )
