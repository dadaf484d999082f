"""KuaiRand: a short-video exposure log (Gao et al., CIKM 2022), from CSV or prepared Parquet.

Every exposure is an event of its user's history, with what the user did: facts from after an
exposure may describe an old event, never the candidate itself. Impressions are the exposures from
25 April 2022 on. The logged ``date`` (Beijing time) decides the split: training to 4 May,
evaluation from 5 to 8 May. Item statistics that upstream publishes are not used: they are taken
over the whole period and would leak its end into its beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laser_features import FeatureSpec
from laser_features.ids import hash_strings
from laser_features.time import MS_PER_HOUR
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.id_tables import id_table
from tfx_pipeline.datasets.reading import (
    checked_ms,
    column,
    find_file,
    find_files,
    read_csv,
    read_parquet,
    seconds_to_ms,
    strings,
)

FIRST_TRAIN_DATE = 20220425
FIRST_EVAL_DATE = 20220505
END_DATE = 20220509
# Published column names, and what the prepared Parquet form calls them.
PREPARED_NAMES = {
    "video_id": "item_id",
    "tab": "scenario",
    "is_click": "label",
    "video_duration": "duration_ms",
    "server_width": "width",
    "server_height": "height",
}
# From weakest to strongest; the number is the event's action, 0 is a mere exposure.
FEEDBACK = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate")
ACTIVE_DEGREES = (
    "full_active",
    "high_active",
    "middle_active",
    "low_active",
    "single_low_active",
    "2_14_day_new",
    "30day_retention",
    "day_new",
    "UNKNOWN",
)
USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
PROFILE_CODES = tuple(f"onehot_feat{index}" for index in range(12))
PROFILE_FLAGS = tuple(f"onehot_feat{index}" for index in range(12, 18))
_PLAY_BOUNDARIES_MS = [1_000, 3_000, 5_000, 7_000, 10_000, 18_000, 30_000, 60_000, 120_000]
_PERCENT_BOUNDARIES = [2, 10, 25, 50, 75, 100, 150]
_LOG_TYPES = {
    "user_id": pa.int64(),
    "video_id": pa.int64(),
    "date": pa.int32(),
    "time_ms": pa.int64(),
    "tab": pa.int8(),
    **dict.fromkeys(FEEDBACK, pa.int8()),
    "play_time_ms": pa.float64(),
    "duration_ms": pa.float64(),
}
_VIDEO_TYPES = {
    "video_id": pa.int64(),
    "author_id": pa.int64(),
    "video_type": pa.string(),
    "upload_type": pa.string(),
    "video_duration": pa.float64(),
    "server_width": pa.float64(),
    "server_height": pa.float64(),
    "music_type": pa.float64(),
    "tag": pa.string(),
}
_USER_TYPES = {
    "user_id": pa.int64(),
    "user_active_degree": pa.string(),
    "is_live_streamer": pa.float64(),
    "is_video_author": pa.float64(),
    **dict.fromkeys((*USER_COUNTS, *PROFILE_CODES, *PROFILE_FLAGS), pa.float64()),
}


@dataclass(frozen=True)
class _Log:
    """Exposures, one array element each; ``candidate`` marks those that are impressions."""

    user_id: NDArray
    timestamp: NDArray
    item_id: NDArray
    date: NDArray
    scenario: NDArray
    action: NDArray
    play_time_ms: NDArray
    play_percent: NDArray
    candidate: NDArray
    labels: dict[str, NDArray]


def is_kuairand(folder: Path) -> bool:
    """Whether the folder holds the published CSV files."""
    return any(folder.glob("log_standard_*.csv")) or any(folder.glob("data/log_standard_*.csv"))


def read_kuairand_csv(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read the published CSV files of KuaiRand-Pure or KuaiRand-1K.

    Needs ``log_standard_*.csv``, ``user_features_*.csv`` and ``video_features_basic_*.csv``;
    ``log_random_*.csv`` is read if it is there. All may lie in a folder ``data``.

    Raises:
        DatasetError: A file or column is missing or unreadable.
    """
    paths = find_files(folder, "log_standard_*.csv")
    paths += sorted(paths[0].parent.glob("log_random_*.csv"))
    logs = []
    for done, path in enumerate(paths, start=1):
        logs.append(read_csv(path, _LOG_TYPES))
        progress("read log files", done, len(paths))
    log = _renamed(pa.concat_tables(logs))
    items = _renamed(read_csv(find_file(folder, "video_features_basic_*.csv"), _VIDEO_TYPES))
    users = read_csv(find_file(folder, "user_features_*.csv"), _USER_TYPES)
    date = column(log, "date", np.int32)
    times = checked_ms(column(log, "time_ms", np.int64), f"time_ms of {paths[0].name}")
    in_split = (date >= FIRST_TRAIN_DATE) & (date < END_DATE)
    source = f"KuaiRand, CSV files in {folder.name}"
    return _tables(_log(log, times, in_split), items, users, source)


def read_kuairand_parquet(folder: Path, progress: Progress = no_progress) -> DatasetTables:
    """Read the prepared Parquet form: ``events``, ``items`` and ``users.parquet``.

    Times there are seconds; rows with ``is_candidate`` are impressions, the others history whose
    order is real while its times may be invented.

    Raises:
        DatasetError: A file or column is missing or unreadable.
    """
    types = {**_LOG_TYPES, "timestamp": pa.int64(), "is_candidate": pa.int8()}
    columns = [PREPARED_NAMES.get(name, name) for name in types if name != "time_ms"]
    log = read_parquet(find_file(folder, "events.parquet"), columns)
    progress("read log files", 1, 1)
    item_columns = [PREPARED_NAMES.get(name, name) for name in _VIDEO_TYPES]
    items = read_parquet(find_file(folder, "items.parquet"), item_columns)
    users = read_parquet(find_file(folder, "users.parquet"), list(_USER_TYPES))
    times = seconds_to_ms(column(log, "timestamp", np.int64), "events.parquet: timestamp")
    candidate = column(log, "is_candidate", np.int8) == 1
    source = f"KuaiRand, Parquet files in {folder.name}"
    return _tables(_log(log, times, candidate), items, users, source)


def _renamed(table: pa.Table) -> pa.Table:
    return table.rename_columns([PREPARED_NAMES.get(name, name) for name in table.column_names])


def _log(log: pa.Table, times: NDArray, candidate: NDArray) -> _Log:
    action = np.zeros(log.num_rows, np.int8)
    for strength, name in enumerate(FEEDBACK, start=1):
        action[column(log, PREPARED_NAMES.get(name, name), np.int8) == 1] = strength
    play = column(log, "play_time_ms", np.float64)
    duration = column(log, "duration_ms", np.float64)
    percent = np.where((play >= 0) & (duration > 0), 100 * play / np.maximum(duration, 1), -1)
    return _Log(
        user_id=column(log, "user_id", np.int64),
        timestamp=times,
        item_id=column(log, "item_id", np.int64),
        date=column(log, "date", np.int32),
        scenario=column(log, "scenario", np.int8),
        action=action,
        play_time_ms=np.minimum(play, 2**31 - 1).astype(np.int32),
        play_percent=np.minimum(percent, 1000).astype(np.int16),
        candidate=candidate,
        labels={
            "click": column(log, "label", np.int8),
            "long_view": column(log, "long_view", np.int8),
            "like": column(log, "is_like", np.int8),
        },
    )


def _tables(log: _Log, videos: pa.Table, users: pa.Table, source: str) -> DatasetTables:
    items = _items(videos)
    profiles = _profiles(users)
    spec = _spec(log, items, profiles)
    events = pa.table(
        {
            "user_id": log.user_id,
            "timestamp": log.timestamp,
            "item_id": log.item_id,
            "scenario": log.scenario,
            "action": log.action,
            "play_time_ms": log.play_time_ms,
            "play_percent": log.play_percent,
        }
    )
    events = events.filter(pa.array(~_logged_again(log)))
    shown = log.candidate
    impressions = {
        "user_id": log.user_id[shown],
        "timestamp": log.timestamp[shown],
        "item_id": log.item_id[shown],
        "scenario": log.scenario[shown],
        **{name: values[shown] for name, values in log.labels.items()},
    }
    rows, known = _positions(profiles["user_id"], impressions["user_id"])
    for name, values in profiles.items():
        if name != "user_id":
            impressions[name] = np.where(known, values[rows], values.dtype.type(-1))
    return DatasetTables(
        spec=spec,
        events=events,
        items=pa.table(items),
        impressions=pa.table(impressions),
        splits=_splits(log),
        source=source,
    )


def _logged_again(log: _Log) -> NDArray[np.bool_]:
    """Exposures that the log holds once more, at the same time or soon after.

    Such a pair agrees in its play time to the millisecond. A history keeps the last one only: had
    it the first, the impression of the second would find its own outcome there.
    """
    keys = (log.user_id, log.item_id, log.action, log.play_time_ms)
    order = np.lexsort((log.timestamp, *keys))
    same = np.all([np.diff(key[order]) == 0 for key in keys], axis=0)
    gap = np.diff(log.timestamp[order])
    # Where the play time is not known, only the very same time tells.
    repeated = same & (gap <= np.where(log.play_time_ms[order][1:] >= 0, MS_PER_HOUR, 0))
    again = np.zeros(len(order), bool)
    again[order[:-1][repeated]] = True
    return again


def _splits(log: _Log) -> dict[str, tuple[int, int]]:
    """Time ranges that follow the logged dates: evaluation begins with its first row."""
    times, dates = log.timestamp[log.candidate], log.date[log.candidate]
    evaluation = times[dates >= FIRST_EVAL_DATE]
    start, end = int(times.min(initial=2**62)), int(times.max(initial=0)) + 1
    # Without any row of the last days the empty split is reported when the dataset is written.
    cut = int(evaluation.min()) if len(evaluation) else end
    return {"train": (start, cut), "eval": (cut, end)}


def _items(videos: pa.Table) -> dict[str, NDArray]:
    width = column(videos, "width", np.float64, 0)
    height = column(videos, "height", np.float64, 0)
    orientation = np.select([width > height, width == height], [0, 1], 2)
    orientation[(width <= 0) | (height <= 0)] = -1
    tags = [_tags(text) for text in strings(videos, "tag")]
    return {
        "item_id": column(videos, "item_id", np.int64),
        "author_id": column(videos, "author_id", np.int64),
        "tag": np.array([first for first, _ in tags], np.int16),
        "second_tag": np.array([second for _, second in tags], np.int16),
        "upload_type": hash_strings(strings(videos, "upload_type")),
        "is_ad": (strings(videos, "video_type") == "AD").astype(np.int8),
        "music_type": column(videos, "music_type", np.int8),
        "orientation": orientation.astype(np.int8),
        "duration_ms": column(videos, "duration_ms", np.int32),
    }


def _tags(text: str) -> tuple[int, int]:
    """The first two tags of a list like ``39,68``; -1 where there is none."""
    tags = [int(part) for part in text.split(",") if part.strip().isdigit()]
    first, second = [*tags, -1, -1][:2]
    return first, second


def _profiles(users: pa.Table) -> dict[str, NDArray]:
    degrees = {name: code for code, name in enumerate(ACTIVE_DEGREES)}
    flags = np.zeros(users.num_rows, np.int8)
    for bit, name in enumerate(PROFILE_FLAGS):
        flags |= (column(users, name, np.int8) == 1).astype(np.int8) << bit
    unknown = column(users, PROFILE_FLAGS[0], np.int8) < 0
    return {
        "user_id": column(users, "user_id", np.int64),
        "active_degree": np.array(
            [degrees.get(name, -1) for name in strings(users, "user_active_degree")], np.int8
        ),
        # Upstream writes -124 where it does not know.
        "is_live_streamer": np.maximum(column(users, "is_live_streamer", np.int8), -1),
        "is_video_author": np.maximum(column(users, "is_video_author", np.int8), -1),
        **{name: column(users, name, np.int32) for name in USER_COUNTS},
        **{name: column(users, name, np.int16) for name in PROFILE_CODES},
        "profile_flags": np.where(unknown, np.int8(-1), flags),
    }


def _positions(keys: NDArray, wanted: NDArray) -> tuple[NDArray, NDArray]:
    """Where each wanted key lies among ``keys``, and whether it is there at all."""
    order = np.argsort(keys, kind="stable")
    places = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    rows = order[places]
    return rows, keys[rows] == wanted


def _spec(log: _Log, items: dict[str, NDArray], profiles: dict[str, NDArray]) -> FeatureSpec:
    codes = {name: {"type": "int16", "table": name} for name in PROFILE_CODES}
    counts = {name: {"type": "int32", "table": name, "quantiles": 16} for name in USER_COUNTS}
    all_items = np.concatenate([items["item_id"], log.item_id])
    tags = np.concatenate([items["tag"], items["second_tag"]])
    return FeatureSpec.from_dict(
        {
            "name": "kuairand",
            "history": {"max_length": 100},
            "tables": {
                "item": id_table(all_items, 16),
                "user": id_table(log.user_id, 16),
                "author": id_table(items["author_id"], 8),
                "tag": id_table(tags, 8),
                "upload_type": {"rows": 64, "width": 4, "ids": "vocabulary"},
                "flag": {"rows": 3, "width": 2, "ids": "direct"},
                "music_type": {"rows": 32, "width": 2, "ids": "direct"},
                "orientation": {"rows": 4, "width": 2, "ids": "direct"},
                "duration": {"rows": 34, "width": 8, "ids": "direct"},
                "scenario": {"rows": 17, "width": 8, "ids": "direct"},
                "action": {"rows": len(FEEDBACK) + 2, "width": 8, "ids": "direct"},
                "play_time": {"rows": 12, "width": 4, "ids": "direct"},
                "play_percent": {"rows": 10, "width": 4, "ids": "direct"},
                "hour": {"rows": 25, "width": 4, "ids": "direct"},
                "weekday": {"rows": 8, "width": 4, "ids": "direct"},
                "active_degree": {"rows": len(ACTIVE_DEGREES) + 1, "width": 4, "ids": "direct"},
                "profile_flags": {"rows": 65, "width": 4, "ids": "direct"},
                **{name: {"rows": 18, "width": 4, "ids": "direct"} for name in USER_COUNTS},
                **{name: id_table(profiles[name], 4) for name in PROFILE_CODES},
            },
            "event": {
                "item_id": {"type": "int64", "table": "item"},
                "scenario": {"type": "int8", "table": "scenario"},
                "action": {"type": "int8", "table": "action"},
                "play_time_ms": {
                    "type": "int32",
                    "table": "play_time",
                    "boundaries": _PLAY_BOUNDARIES_MS,
                },
                "play_percent": {
                    "type": "int16",
                    "table": "play_percent",
                    "boundaries": _PERCENT_BOUNDARIES,
                },
            },
            "item": {
                "author_id": {"type": "int64", "table": "author"},
                "tag": {"type": "int16", "table": "tag"},
                "second_tag": {"type": "int16", "table": "tag"},
                "upload_type": {"type": "int64", "table": "upload_type"},
                "is_ad": {"type": "int8", "table": "flag"},
                "music_type": {"type": "int8", "table": "music_type"},
                "orientation": {"type": "int8", "table": "orientation"},
                "duration_ms": {"type": "int32", "table": "duration", "quantiles": 32},
            },
            "user": {
                "user_id": {"type": "int64", "table": "user"},
                "active_degree": {"type": "int8", "table": "active_degree"},
                "is_live_streamer": {"type": "int8", "table": "flag"},
                "is_video_author": {"type": "int8", "table": "flag"},
                "profile_flags": {"type": "int8", "table": "profile_flags"},
                **counts,
                **codes,
            },
            "context": {
                "scenario": {"type": "int8", "table": "scenario"},
                "hour": {"derive": "hour_of_day", "utc_offset_hours": 8, "table": "hour"},
                "weekday": {"derive": "day_of_week", "utc_offset_hours": 8, "table": "weekday"},
            },
            "label": {
                "click": {"type": "int8"},
                "long_view": {"type": "int8"},
                "like": {"type": "int8"},
            },
        }
    )
