"""MovieLens ratings (Harper and Konstan, 2015), from the published CSV files or Parquet.

A rating is an event and an impression; the label is a rating of at least 4. Users choose what to
rate, so this is not an exposure log: use it to see the mechanics, not to compare deep
models. The split is in time, the newest fifth of all ratings: most of its users are new.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laser_features import FeatureSpec
from laser_features.ids import hash_strings
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.id_tables import id_table
from tfx_pipeline.datasets.reading import (
    column,
    find_file,
    read_csv,
    read_parquet,
    seconds_to_ms,
    strings,
)

LIKED_RATING = 4.0
TRAIN_SHARE = 0.8
_YEAR = re.compile(r"\((\d{4})\)\s*$")


def read_movielens_csv(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read ``ratings.csv`` and ``movies.csv`` as published.

    Raises:
        DatasetError: A file or column is missing or unreadable.
    """
    types = {
        "userId": pa.int64(),
        "movieId": pa.int64(),
        "rating": pa.float64(),
        "timestamp": pa.int64(),
    }
    ratings = read_csv(find_file(folder, "ratings.csv"), types)
    ratings = ratings.rename_columns(["user_id", "item_id", "rating", "timestamp"])
    progress("read ratings", 1, 1)
    movie_types = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
    movies = read_csv(find_file(folder, "movies.csv"), movie_types)
    movies = movies.rename_columns(["item_id", "title", "genres"])
    return _tables(ratings, movies, "ratings.csv", f"MovieLens, CSV files in {folder.name}")


def read_movielens_parquet(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read the same ratings from ``events.parquet`` and ``items.parquet`` (times in seconds).

    Raises:
        DatasetError: A file or column is missing or unreadable.
    """
    columns = ["user_id", "item_id", "rating", "timestamp"]
    ratings = read_parquet(find_file(folder, "events.parquet"), columns)
    progress("read ratings", 1, 1)
    movies = read_parquet(find_file(folder, "items.parquet"), ["item_id", "title", "genres"])
    return _tables(ratings, movies, "events.parquet", f"MovieLens, Parquet files in {folder.name}")


def _tables(ratings: pa.Table, movies: pa.Table, file: str, source: str) -> DatasetTables:
    times = seconds_to_ms(column(ratings, "timestamp", np.int64), f"{file}: timestamp")
    user_id = column(ratings, "user_id", np.int64)
    item_id = column(ratings, "item_id", np.int64)
    rating = column(ratings, "rating", np.float64)
    keys = {"user_id": user_id, "timestamp": times, "item_id": item_id}
    # In half stars, 1 to 10: an id without fractions.
    events = pa.table({**keys, "rating": np.round(2 * rating).astype(np.int8)})
    impressions = pa.table({**keys, "like": (rating >= LIKED_RATING).astype(np.int8)})
    items = _items(movies)
    cut = int(np.sort(times)[int(TRAIN_SHARE * len(times))])
    return DatasetTables(
        spec=_spec(user_id, np.concatenate([item_id, items["item_id"]])),
        events=events,
        items=pa.table(items),
        impressions=impressions,
        splits={"train": (int(times.min()), cut), "eval": (cut, int(times.max()) + 1)},
        source=source,
    )


def _items(movies: pa.Table) -> dict[str, NDArray]:
    genres = [[*text.split("|"), "", "", ""][:3] for text in strings(movies, "genres")]
    years = [_YEAR.search(title) for title in strings(movies, "title")]
    return {
        "item_id": column(movies, "item_id", np.int64),
        **{
            name: hash_strings([_known_genre(listed[place]) for listed in genres])
            for place, name in enumerate(("genre", "second_genre", "third_genre"))
        },
        "year": np.array([int(year[1]) if year else -1 for year in years], np.int16),
    }


def _known_genre(name: str) -> str:
    return "" if name == "(no genres listed)" else name


def _spec(user_id: NDArray, item_id: NDArray) -> FeatureSpec:
    genre = {"type": "int64", "table": "genre"}
    return FeatureSpec.from_dict(
        {
            "name": "movielens",
            "history": {"max_length": 200},
            "tables": {
                "item": id_table(item_id, 16),
                "user": id_table(user_id, 16),
                # 19 genres hashed into enough rows that they do not meet.
                "genre": {"rows": 4096, "width": 8, "ids": "hash"},
                "rating": {"rows": 12, "width": 4, "ids": "direct"},
                "year": {"rows": 18, "width": 4, "ids": "direct"},
                "hour": {"rows": 25, "width": 4, "ids": "direct"},
                "weekday": {"rows": 8, "width": 4, "ids": "direct"},
            },
            "event": {
                "item_id": {"type": "int64", "table": "item"},
                "rating": {"type": "int8", "table": "rating"},
            },
            "item": {
                "genre": genre,
                "second_genre": genre,
                "third_genre": genre,
                "year": {"type": "int16", "table": "year", "quantiles": 16},
            },
            "user": {"user_id": {"type": "int64", "table": "user"}},
            "context": {
                "hour": {"derive": "hour_of_day", "table": "hour"},
                "weekday": {"derive": "day_of_week", "table": "weekday"},
            },
            "label": {"like": {"type": "int8"}},
        }
    )
