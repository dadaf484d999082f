"""Sequence-level merge: events of the log become records of their users in a new segment."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from seqvault import segment as segment_files
from seqvault.append_log import AppendLog
from seqvault.events import NO_BOUND, to_bits
from seqvault.reader import Reader
from seqvault.segment import Segment
from seqvault.state import State, add_segment

MAX_EXTENTS = 2  # beside the base
FOLD_AT = 4  # fold when the tail reaches 1/4 of the base
MERGE_EVENTS = 1 << 19  # events packed at a time
DEAD_SHARE = 0.5  # of a segment; more is rewritten


@dataclass(frozen=True)
class MergePlan:
    """Whom a merge writes, ascending by user id, and how.

    Args:
        users, kinds, arrivals: int64 [U], see ``segment.Packed``.
        work: int64 [U], about how many events are packed.
        rewrite: segments that nothing needs afterwards.
    """

    users: np.ndarray
    kinds: np.ndarray
    arrivals: np.ndarray
    work: np.ndarray
    rewrite: list[int]


class Merger:
    """Merges the log into segments. Callers hold ``state.merging``.

    Args:
        state: the store.
        log: where new events come from.
        reader: unpacks the records that are written anew.
    """

    def __init__(self, state: State, log: AppendLog, reader: Reader) -> None:
        self._state, self._log, self._reader = state, log, reader

    def merge(self) -> dict[str, int]:
        """See ``SeqVault.merge``."""
        wal_start, limit, sources = self._log.rotate()
        plan = self._plan(limit)
        if not len(plan.users):
            return {"users": 0, "events": 0, "bytes": 0}
        state, number = self._state, self._state.manifest.next_file
        written = {"users": 0, "events": 0}

        def parts() -> Iterable[segment_files.Packed]:
            for first, last in slices(plan.work, MERGE_EVENTS):
                part = slice(first, last)
                packed = self._pack(plan.users[part], plan.kinds[part], plan.arrivals[part], limit)
                written["users"] += len(packed.users)
                written["events"] += int(packed.counts.sum())
                yield packed

        path = segment_files.path_of(state.path, number)
        try:
            size = segment_files.write(
                state.files, state.path, number, len(state.schemas) - 1,
                2 + len(state.schema.fields), parts(),
            )  # fmt: skip
        except BaseException:
            state.discard(path + ".tmp", path)
            raise
        fresh = Segment(state.files, state.path, number)
        self._publish(fresh, plan.rewrite, wal_start, limit, sources)
        return {**written, "bytes": size}

    def _plan(self, limit: int) -> MergePlan:
        """Whom to write, and how, so that the first ``limit`` events in memory are stored."""
        state = self._state
        with state.lock:
            in_memory = state.memtable.slots[:limit]
            keys = state.index.users.keys
            arrived = state.index.arrivals[: len(keys)].copy()
        # only merges change what follows, so readers and appends need not wait
        touched, tails = np.unique(in_memory, return_counts=True)
        rewrite = self._worn_segments()
        starts, segments, _, _, counts = state.index.extents(np.arange(len(keys), dtype=np.int64))
        # users of whom nothing is left are carried on, for their arrival numbers
        spent = [state.segments[n].users[state.segments[n].counts == 0] for n in rewrite]
        with state.lock:
            carried = state.index.users.find(np.concatenate([np.empty(0, np.int64), *spent]))
        owner = np.repeat(np.arange(len(keys)), np.diff(starts))
        worn = np.union1d(np.unique(owner[np.isin(segments, rewrite)]), carried).astype(np.int64)
        slots = np.union1d(touched, worn).astype(np.int64)
        tail = np.zeros(len(keys), np.int64)
        tail[touched] = tails
        extents = np.diff(starts)
        stored = np.bincount(owner, weights=counts, minlength=len(keys)).astype(np.int64)
        base = np.zeros(len(keys), np.int64)
        base[extents > 0] = counts[starts[:-1][extents > 0]]
        kinds = np.where(extents > MAX_EXTENTS, segment_files.TAIL, segment_files.EXTENT)
        kinds[FOLD_AT * (stored - base + tail) >= base] = segment_files.BASE
        kinds[worn] = segment_files.BASE
        slots = slots[np.argsort(keys[slots])]
        kinds = kinds[slots]
        work = np.where(kinds == segment_files.BASE, stored[slots], 0) + tail[slots]
        return MergePlan(keys[slots], kinds, arrived[slots], work, rewrite)

    def _worn_segments(self) -> list[int]:
        """Numbers of segments most of whose bytes are no longer in use."""
        live, oldest = self._state.index.live_bytes(), self._state.oldest()
        return [
            number
            for number, segment in self._state.segments.items()
            if live.get(number, 0) - int(segment.lengths[segment.last_times < oldest].sum())
            < (1 - DEAD_SHARE) * int(segment.lengths.sum())
        ]

    def _publish(
        self,
        fresh: Segment,
        rewrite: list[int],
        wal_start: int,
        limit: int,
        sources: dict[str, int],
    ) -> None:
        """Makes the new segment part of the store and removes what it replaces."""
        state, old = self._state, self._state.manifest
        state.publish(
            replace(
                old,
                segments=[*(n for n in old.segments if n not in rewrite), fresh.number],
                wal_start=wal_start,
                next_file=fresh.number + 1,
                edition=old.edition + 1,
                sources=sources,
            )
        )
        with state.lock:
            kept = {n: s for n, s in state.segments.items() if n not in rewrite}
            state.segments = {**kept, fresh.number: fresh}
            state.schema_of[fresh.number] = fresh.schema_id
            add_segment(state.index, fresh)
            state.memtable = state.memtable.rest(limit, state.index.arrivals)
        state.count_stored()
        for number in rewrite:
            state.discard(segment_files.path_of(state.path, number))
        self._log.retire(wal_start)

    def _pack(
        self, users: np.ndarray, kinds: np.ndarray, arrivals: np.ndarray, limit: int
    ) -> segment_files.Packed:
        """Packs users' events in memory with those of the records that it will replace."""
        found = self._reader.find(users, limit)
        keep = np.repeat(kinds != segment_files.EXTENT, np.diff(found.starts))
        oldest = found.starts[:-1][(kinds == segment_files.TAIL) & (np.diff(found.starts) > 0)]
        keep[oldest] = False
        found = replace(
            found,
            starts=np.concatenate([[0], np.cumsum(keep)])[found.starts],
            segments=found.segments[keep],
            offsets=found.offsets[keep],
            lengths=found.lengths[keep],
            counts=found.counts[keep],
            schema_ids=found.schema_ids[keep],
        )
        rows = len(users)
        every = np.full(rows, NO_BOUND, np.int64)
        most = np.full(rows, self._state.manifest.max_events or NO_BOUND, np.int64)
        plan = self._reader.plan(found, every, most, np.full(rows, -1, np.int64), [])
        starts = np.concatenate([[0], np.cumsum(plan.counts)])
        total = int(starts[-1])
        columns = np.empty((2 + len(self._state.schema.fields), total), np.int64)
        # the plan is newest first: turn each user's events around
        backward = np.repeat(starts[:-1] + starts[1:] - 1, plan.counts) - np.arange(total)
        names = ("timestamp", "", *self._state.schema.names)
        unpacked = self._reader.unpack(plan, names, starts[:-1], total)
        for c, name in enumerate(names):
            columns[c] = to_bits(unpacked[name])[backward]
        return segment_files.pack(users, starts, columns, kinds, arrivals)


def slices(work: np.ndarray, budget: int) -> Iterable[tuple[int, int]]:
    """Cuts users into runs of about ``budget`` work each."""
    first, done = 0, np.cumsum(work)
    while first < len(work):
        start = done[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(done, start + budget, side="right")))
        yield first, last
        first = last
