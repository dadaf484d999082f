"""The adapter for what a rank gateway logged: ``laser-serving gateway --impression_log``.

A folder with ``features.yaml``, ``items.parquet``, ``labels.yaml``, the log's files in
``impressions`` and ``events.parquet``, or a SeqVault in place of the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.seqvault_example_gen.open_store import open_store
from laser_features import FeatureSpec, FeatureSpecError, Field
from seqvault.errors import SeqVaultError
from seqvault.progress import Progress, no_progress
from tfx_pipeline.datasets.dataset_tables import DatasetTables
from tfx_pipeline.datasets.label_rules import LabelRules
from tfx_pipeline.datasets.own_tables import newest_fifth
from tfx_pipeline.datasets.prepared_dataset import check_table
from tfx_pipeline.datasets.reading import checked_ms, find_file, read_parquet
from tfx_pipeline.errors import DatasetError

FOLDER = "impressions"
_USERS_A_LOOK, _USERS_A_READ = 4096, 16
_EVENTS_OF_USER = 1 << 14
"""Newest events of a user that are taken from a store."""


def is_impression_log(folder: Path) -> bool:
    """Whether the folder holds a log of what was shown."""
    return (folder / FOLDER).is_dir()


def read_logged_impressions(
    folder: Path, progress: Progress = no_progress, store: str | Path | None = None
) -> DatasetTables:
    """Join a log of what was shown with the events that followed.

    Impressions whose window was still open at the newest event are left out: their labels are not
    known yet. So are those older than the events that are taken of their user. The newest fifth
    of the others evaluates.

    Args:
        folder: See above.
        progress: Called with stage, work done and whole work.
        store: A SeqVault (folder or address) with the events, in place of ``events.parquet``. The
            newest 16,384 of each logged user are taken.

    Raises:
        DatasetError: A file is missing or unreadable, a line of the log is no impression of this
            spec, or no impression's window is closed.
    """
    if (folder / "impressions.parquet").is_file():
        raise DatasetError(
            f"{folder} has impressions.parquet and a folder {FOLDER}: keep one of the two"
        )
    try:
        spec = FeatureSpec.load(folder / "features.yaml")
    except FeatureSpecError as error:
        raise DatasetError(str(error)) from error
    rules = LabelRules.load(folder / "labels.yaml", spec)
    items = read_parquet(find_file(folder, "items.parquet"), spec.item_schema().names)
    impressions, torn = read_log(folder / FOLDER, spec)
    times = checked_ms(impressions["timestamp"].to_numpy(), f"{folder / FOLDER}: time_ms")
    known_from = np.full(len(times), -1)
    if store is None:
        path = find_file(folder, "events.parquet")
        schema = spec.event_schema()
        events = check_table(read_parquet(path, schema.names), schema, "events")
    else:
        events, known_from = _events_of_store(store, spec, impressions, progress)
    newest = int(pc.max(events["timestamp"]).as_py())
    is_closed = times + rules.window_ms <= newest
    is_known = times > known_from
    if not is_closed.any():
        raise DatasetError(
            f"all {len(times):,} impressions of {folder / FOLDER} are newer than "
            f"{rules.within_minutes:g} minutes before the newest event, so their labels are not "
            "known: wait, or lower within_minutes in labels.yaml"
        )
    if not (is_closed & is_known).any():
        raise DatasetError(
            f"all impressions of {folder / FOLDER} whose labels could be known are older than the "
            f"newest {_EVENTS_OF_USER:,} events of their users in {store}: give events.parquet"
        )
    kept = is_closed & is_known
    # Labelled first: an event belongs to the newest impression, whether that is due or not.
    impressions = rules.label(impressions, events, spec).filter(pa.array(kept))
    return DatasetTables(
        spec=spec,
        events=events,
        items=items,
        impressions=impressions,
        splits=newest_fifth(times[kept]),
        source=f"impressions logged in {folder.name}",
        facts={
            "impressions_not_due": int((~is_closed).sum()),
            "impressions_too_old": int((is_closed & ~is_known).sum()),
            "lines_cut_off": torn,
        },
    )


def read_log(folder: Path, spec: FeatureSpec) -> tuple[pa.Table, int]:
    """The impressions of all files, without labels, and how many lines were cut off.

    Only the last line of a file may be: of one that is being written, or whose writer was killed.

    Raises:
        DatasetError: There are none, or a line is no impression of this spec.
    """
    rows: dict[str, list[Any]] = {
        name: [] for name in (*spec.impression_schema().names, "request_id")
    }
    for label in spec.labels:
        del rows[label]
    torn = 0
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in _lines(path):
            if not line.endswith(b"\n"):
                torn += 1
                continue
            try:
                _take(json.loads(line), rows, spec)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DatasetError(
                    f"{path}, line {number}, is no impression of {spec.name!r} "
                    f"({type(error).__name__}: {error}): remove it, or give the feature spec that "
                    "the gateway had"
                ) from error
    if not rows["item_id"]:
        raise DatasetError(f"{folder} holds no impressions: are its files *.jsonl of a gateway?")
    schema = spec.impression_schema()
    types = {name: pa.int64() if name == "request_id" else schema.field(name).type for name in rows}
    try:
        columns = {name: pa.array(rows[name], kind) for name, kind in types.items()}
    except (pa.ArrowException, OverflowError) as error:
        raise DatasetError(f"{folder}: values do not fit the feature spec ({error})") from error
    return pa.table(columns), torn


def _take(request: Mapping[str, Any], rows: dict[str, list[Any]], spec: FeatureSpec) -> None:
    """Append one request's impressions."""
    items = [_whole(each, "item_id") for each in request["item_id"]]
    fields, candidate = request["fields"], request["candidate"]
    if not isinstance(fields, Mapping) or not isinstance(candidate, Mapping):
        raise TypeError("fields and candidate are objects")
    unknown = (set(fields) - set(spec.request_fields)) | (
        set(candidate) - set(spec.candidate_fields)
    )
    if unknown:
        raise ValueError(f"the spec has no {sorted(unknown)}")
    taken: dict[str, list[Any]] = {
        "user_id": [_whole(request["user_id"], "user_id")] * len(items),
        "timestamp": [_whole(request["time_ms"], "time_ms")] * len(items),
        "request_id": [_whole(request["request_id"], "request_id")] * len(items),
        "item_id": items,
    }
    for name, field in spec.request_fields.items():
        taken[name] = [_given(fields.get(name), field)] * len(items)
    for name, field in spec.candidate_fields.items():
        given = candidate.get(name, [None] * len(items))
        taken[name] = [_given(each, field) for each in given]
    if wrong := [name for name, each in taken.items() if len(each) != len(items)]:
        raise ValueError(f"{wrong} have not one value for each item")
    for name, each in taken.items():
        rows[name].extend(each)


def _given(value: Any, field: Field) -> Any:
    if value is None:
        return field.missing
    return value if field.is_float else _whole(value, field.name)


def _whole(value: Any, name: str) -> int:
    """An integer as it is; nothing else is taken for one."""
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r}, not an integer")
    return value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error})") from error


def _events_of_store(
    store: str | Path, spec: FeatureSpec, impressions: pa.Table, progress: Progress
) -> tuple[pa.Table, NDArray[np.int64]]:
    """The newest events of the logged users, and a time for each impression.

    From that time on, itself excluded, all events of the impression's user are there.
    """
    users, user_of = np.unique(impressions["user_id"].to_numpy(), return_inverse=True)
    names = [name for name in spec.event_schema().names if name != "user_id"]
    parts: list[pa.Table] = []
    known_from = np.full(len(users), -1)
    try:
        with closing(open_store(store)) as vault:
            # The store may be written to meanwhile. An event that comes after its user was read
            # must not be missed because one of a user read later says that its time is over.
            newest = max(
                int(vault.read(some, None, 1, fields=["timestamp"])["timestamp"].max())
                for some in np.array_split(users, -(-len(users) // _USERS_A_LOOK))
            )
            for first in range(0, len(users), _USERS_A_READ):
                some = users[first : first + _USERS_A_READ]
                read = vault.read(some, newest + 1, _EVENTS_OF_USER, fields=names)
                oldest = np.where(read.mask[:, -1], read["timestamp"][:, -1], -1)
                known_from[first : first + len(some)] = oldest
                # Oldest first, as they came: those of one millisecond keep their order.
                columns = {"user_id": np.repeat(some, read.lengths)[::-1]}
                columns |= {name: read[name][read.mask][::-1] for name in names}
                parts.append(pa.table(columns).cast(spec.event_schema()))
                progress("read events", first + len(some), len(users))
    except (SeqVaultError, OSError) as error:
        raise DatasetError(f"{store} cannot be read ({error})") from error
    events = pa.concat_tables(parts)
    if events.num_rows == 0:
        raise DatasetError(f"{store} has no event of the {len(users):,} users of the log")
    return events, known_from[user_of]
