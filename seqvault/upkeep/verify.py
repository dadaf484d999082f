"""Checks every byte that a store relies on."""

import numpy as np

from seqvault.disk import item_file, wal
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Footer, Segment
from seqvault.errors import DamagedFileError
from seqvault.memory.store_state import State
from seqvault.memory.version import Version
from seqvault.merge.merger import slices
from seqvault.progress import Progress
from seqvault.read.found import Found
from seqvault.read.planned_read import Reader
from seqvault.times import NO_BOUND
from seqvault.upkeep.recovery import decode_frame

VERIFY_BYTES = 1 << 24  # of records checked at a time


def verify(state: State, reader: Reader, progress: Progress) -> dict[str, int]:
    """See ``SeqVault.verify``."""
    version = state.version
    manifest = version.manifest
    checked = {"segments": 0, "records": 0, "events": 0, "items": 0, "bytes": 0}
    total = sum(segment.size for segment in version.segments.values())
    for number, segment in version.segments.items():
        try:
            again = Segment(state.files, state.path, number)  # header and trailer
        except FileNotFoundError:
            if number in state.manifest.segments:
                raise DamagedFileError(
                    f"{segment.path} is missing; restore it from a snapshot or a replica."
                ) from None
            continue  # a merge has replaced it meanwhile
        again.check_schema(version.layouts.columns_in)
        footer = again.footer()
        there = np.flatnonzero(footer.counts)
        for first, last in slices(footer.lengths[there], VERIFY_BYTES):
            part = Footer(*(column[there[first:last]] for column in footer))
            checked["records"] += last - first
            checked["events"] += _verify_records(version, state.clock(), reader, again, part)
            end = int(part.offsets[-1] + part.lengths[-1])
            progress("bytes", checked["bytes"] + end, total)
        checked["segments"] += 1
        checked["bytes"] += segment.size
        progress("bytes", checked["bytes"], total)
    with state.writing_items:  # or a write could remove files that it wrote as one again
        columns = None
        for number in state.manifest.items:
            table = item_file.load(state.files, state.path, number, columns)
            checked["items"], columns = checked["items"] + len(table), table.schema
    _verify_log(state, manifest.wal_start)
    return checked


def _verify_log(state: State, start: int) -> None:
    """Checks the log files from ``start`` on; a merge may retire them meanwhile."""
    for number in range(start, 1 << 62):
        path = wal.path_of(state.path, number)
        try:
            data = wal.read_file(state.files, state.path, number)
            later = state.files.exists(wal.path_of(state.path, number + 1))
            end = wal.FIRST
            for frame in wal.scan(data, number, path, sealed=later):
                decode_frame(frame, state.schemas, path)
                end = frame.end
            following = wal.path_of(state.path, number + 1)
            if wal.goes_on(data, end, number) and not state.files.exists(following):
                raise DamagedFileError(
                    f"{following} is missing: the previous log file "
                    "refers to it. Restore the store from a snapshot or a replica."
                )
        except FileNotFoundError:
            return
        except DamagedFileError:
            if Manifest.load(state.files, state.path).wal_start <= number:
                raise


def _verify_records(
    version: Version, seconds: float, reader: Reader, segment: Segment, part: Footer
) -> int:
    """Checks the records ``part`` of a segment; returns how many events they hold."""
    rows, oldest = len(part.users), version.oldest(seconds)
    found = Found(
        store=version,
        oldest=oldest,
        users=part.users,
        starts=np.arange(rows + 1),
        segments=np.full(rows, segment.number),
        offsets=part.offsets,
        lengths=part.lengths,
        counts=part.counts,
        schema_ids=np.full(rows, segment.schema_id),
        open_segments={segment.number: segment},
        mem_starts=np.zeros(rows + 1, np.int64),
        mem_rows=np.empty(0, np.int64),
        mem_columns=version.memtable.columns,
        mem_arrivals=version.memtable.arrivals,
        version=np.zeros(rows, np.int64),
    )
    every = np.full(rows, NO_BOUND, np.int64)
    plan = reader.plan(found, every, every, np.full(rows, -1, np.int64), [])
    if not oldest and (plan.counts != part.counts).any():
        raise DamagedFileError(f"{segment.path}: records do not match their headers.")
    return int(plan.counts.sum())
