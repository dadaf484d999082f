"""Sequence-level merge: events of the log become records of their users in a new segment."""

# mypy: disable-error-code="no-untyped-def"

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from seqvault import merge_policy as policy
from seqvault import segment as segment_files
from seqvault.append_log import AppendLog
from seqvault.errors import DiskFullError
from seqvault.events import NO_BOUND, to_bits
from seqvault.reader import Found, Reader
from seqvault.segment import BASE, EXTENT, TAIL, Packed, Segment
from seqvault.state import State, add_segment

PART_EVENTS = 1 << 16  # packed at a time
RECORD_BYTES = 256  # a small record's own, about


@dataclass(frozen=True)
class MergePlan:
    """Whom a merge writes, ascending by user id, and how.

    Args:
        users, kinds, arrivals: int64 [U], see ``segment.Packed``.
        work: int64 [U], about how many events are packed.
        bytes: about how large the segment becomes, rather more.
        rewrite: segments that nothing needs afterwards.
        held: int64, slots of users whose events stay in the log.
        wal_start: first log file that is needed afterwards.
    """

    users: np.ndarray
    kinds: np.ndarray
    arrivals: np.ndarray
    work: np.ndarray
    bytes: int
    rewrite: list[int]
    held: np.ndarray
    wal_start: int


class Merger:
    """Merges the log into segments. Callers hold ``state.merging``.

    Args:
        state: the store.
        log: where new events come from.
        reader: unpacks the records that are written anew.
        bytes_per_second: the most that is written; None: no limit.
    """

    def __init__(
        self,
        state: State,
        log: AppendLog,
        reader: Reader,
        bytes_per_second: float | None = None,
    ) -> None:
        self._state, self._log, self._reader = state, log, reader
        self._rate = bytes_per_second

    def merge(self, hold: bool = False, tidy: bool = False) -> dict[str, int]:
        """Writes what is in the log into one new segment.

        Args:
            hold: leave few new events of a user in the log, see ``merge_policy``.
            tidy: write users with too many records anew, though nothing is new of them.
        """
        end, limit, sources = self._log.rotate()
        plan = self._plan(limit, end, hold, tidy)
        if not len(plan.users):
            return {"users": 0, "events": 0, "bytes": 0}
        self.check_room(plan.bytes)
        written = {"users": 0, "events": 0}

        def parts() -> Iterator[Packed]:
            for first, last in slices(plan.work, PART_EVENTS):
                part = slice(first, last)
                packed = self._pack(plan.users[part], plan.kinds[part], plan.arrivals[part], limit)
                written["users"] += len(packed.users)
                written["events"] += int(packed.counts.sum())
                yield packed

        number = self._state.manifest.next_file
        fresh = self.write(number, parts())
        self._publish(fresh, plan, end, limit, sources)
        return {**written, "bytes": fresh.size}

    def check_room(self, size: int) -> None:
        """Raises ``DiskFullError`` unless about ``size`` bytes can be written."""
        free = self._state.files.free_bytes(self._state.path)
        if free < size:
            raise DiskFullError(
                f"a merge needs about {size} bytes in {self._state.path}, there are {free}: "
                "nothing was changed. Free some space and call again; reads go on meanwhile."
            )

    def write(self, number: int, parts: Iterable[Packed]) -> Segment:
        """Writes a segment file, which is not part of the store yet."""
        state = self._state
        path = segment_files.path_of(state.path, number)
        try:
            segment_files.write(
                state.files, state.path, number, len(state.schemas) - 1,
                2 + len(state.schema.fields), self._slowed(parts),
            )  # fmt: skip
        except BaseException:
            state.discard(path + ".tmp", path)
            raise
        return Segment(state.files, state.path, number)

    def _slowed(self, parts: Iterable[Packed]) -> Iterator[Packed]:
        """The parts, no faster than the rate."""
        start, done = time.monotonic(), 0
        for part in parts:
            yield part
            done += len(part.data)
            if self._rate:
                time.sleep(max(0.0, start + done / self._rate - time.monotonic()))

    def _plan(self, limit: int, end: int, hold: bool, tidy: bool) -> MergePlan:
        """Decides about the first ``limit`` events in memory, of log files before ``end``."""
        state = self._state
        with state.lock:
            memtable = state.memtable
            in_memory, files = memtable.slots[:limit], memtable.files[:limit]
            keys = state.index.users.keys
            arrived = state.index.arrivals[: len(keys)].copy()
        # only merges change what follows, so readers and appends need not wait
        waiting = policy.waiting_in(in_memory, files)
        rewrite = worn_segments(state)
        everybody = np.arange(len(keys), dtype=np.int64)
        starts, segments, _, lengths, counts = state.index.extents(everybody)
        # users of whom nothing is left are carried on, for their arrival numbers
        spent = [state.segments[n].users[state.segments[n].counts == 0] for n in rewrite]
        with state.lock:
            carried = state.index.users.find(np.concatenate([np.empty(0, np.int64), *spent]))
        extents = np.diff(starts)
        owner = np.repeat(everybody, extents)
        worn = np.isin(segments, rewrite)
        forced = np.union1d(np.unique(owner[worn]), carried).astype(np.int64)
        if tidy:
            forced = np.union1d(forced, np.flatnonzero(extents > 1 + policy.MAX_EXTENTS))
        write = policy.to_write(waiting, files, end, hold) | np.isin(waiting.slots, forced)
        touched, held = waiting.only(write), waiting.only(~write)
        slots = np.union1d(touched.slots, forced).astype(np.int64)
        tail = np.zeros(len(keys), np.int64)
        tail[touched.slots] = touched.counts
        stored = np.bincount(owner, weights=counts, minlength=len(keys)).astype(np.int64)
        base = np.zeros(len(keys), np.int64)
        oldest = starts[:-1][extents > 0]
        base[extents > 0] = counts[oldest]
        kinds = policy.kinds_of(extents, stored, base, tail)
        # a worn record is written anew: only with the base, if it is not the base itself
        kinds[forced[kinds[forced] == EXTENT]] = TAIL
        kinds[kinds == TAIL] = np.where(extents[kinds == TAIL] > 1, TAIL, BASE)
        kinds[carried] = BASE
        kinds[owner[oldest[worn[oldest]]]] = BASE
        slots = slots[np.argsort(keys[slots])]
        kinds = kinds[slots]
        older = np.where(kinds == BASE, stored[slots], 0)
        older = np.where(kinds == TAIL, stored[slots] - base[slots], older)
        size = np.bincount(owner, weights=lengths, minlength=len(keys))[slots]
        width = 16 + sum(dtype.itemsize for dtype in state.schema.columns.values())
        most = int(size[kinds != EXTENT].sum()) + int(tail.sum()) * width
        return MergePlan(
            keys[slots], kinds, arrived[slots], older + tail[slots],
            most + RECORD_BYTES * len(slots), rewrite, held.slots,
            int(held.files.min()) if len(held.files) else end,
        )  # fmt: skip

    def _publish(
        self, fresh: Segment, plan: MergePlan, end: int, limit: int, sources: dict[str, int]
    ) -> None:
        """Makes the new segment part of the store and removes what it replaces."""
        state, old = self._state, self._state.manifest
        segments = [*(n for n in old.segments if n not in plan.rewrite), fresh.number]
        covers = {**old.covers, str(fresh.number): end}
        state.publish(
            replace(
                old,
                segments=segments,
                wal_start=plan.wal_start,
                next_file=fresh.number + 1,
                edition=old.edition + 1,
                sources=sources,
                covers={
                    number: file
                    for number, file in covers.items()
                    if int(number) in segments and file > plan.wal_start
                },
            )
        )
        memtable = state.memtable  # rows before the limit do not change
        held = np.flatnonzero(np.isin(memtable.slots[:limit], plan.held))
        rest = memtable.part(held)
        with state.lock:
            kept = {n: s for n, s in state.segments.items() if n not in plan.rewrite}
            state.segments = {**kept, fresh.number: fresh}
            state.schema_of[fresh.number] = fresh.schema_id
            add_segment(state.index, fresh)
            rest.extend(state.memtable, limit)
            state.memtable = rest
        state.count_stored()
        state.discard(*(segment_files.path_of(state.path, number) for number in plan.rewrite))
        self._log.retire(plan.wal_start)

    def _pack(
        self, users: np.ndarray, kinds: np.ndarray, arrivals: np.ndarray, limit: int
    ) -> Packed:
        """Packs users' events in memory with those of the records that it will replace."""
        found = self._reader.find(users, limit)
        keep = np.repeat(kinds != EXTENT, np.diff(found.starts))
        oldest = found.starts[:-1][(kinds == TAIL) & (np.diff(found.starts) > 0)]
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
        return self.pack(found, kinds, arrivals)

    def pack(self, found: Found, kinds: np.ndarray, arrivals: np.ndarray) -> Packed:
        """Packs all events found, one record for each user.

        Args:
            found: records and events in memory of users, ascending by id.
            kinds, arrivals: int64 [U], see ``segment.Packed``.
        """
        rows = len(found.users)
        every = np.full(rows, NO_BOUND, np.int64)
        most = np.full(rows, self._state.manifest.max_events or NO_BOUND, np.int64)
        plan = self._reader.plan(found, every, most, np.full(rows, -1, np.int64), [])
        starts = np.concatenate([[0], np.cumsum(plan.counts)])
        total = int(starts[-1])
        columns = np.empty((2 + len(self._state.schema.fields), total), np.int64)
        names = ("timestamp", "", *self._state.schema.names)
        unpacked = self._reader.unpack(plan, names, starts[:-1], total)
        for c, name in enumerate(names):
            _oldest_first(to_bits(unpacked[name]), starts, columns[c])
        return segment_files.pack(found.users, starts, columns, kinds, arrivals)


@njit(nogil=True, cache=True)
def _oldest_first(values, starts, out):
    """Turns each user's events, newest first in ``values``, around."""
    for b in range(len(starts) - 1):
        turned = starts[b] + starts[b + 1] - 1
        for i in range(starts[b], starts[b + 1]):
            out[i] = values[turned - i]


def worn_segments(state: State) -> list[int]:
    """Numbers of segments most of whose bytes are no longer in use."""
    live, oldest = state.index.live_bytes(), state.oldest()
    return [
        number
        for number, segment in state.segments.items()
        if live.get(number, 0) - int(segment.lengths[segment.last_times < oldest].sum())
        < (1 - policy.DEAD_SHARE) * int(segment.lengths.sum())
    ]


def slices(work: np.ndarray, budget: int) -> Iterable[tuple[int, int]]:
    """Cuts users into runs of about ``budget`` work each."""
    first, done = 0, np.cumsum(work)
    while first < len(work):
        start = done[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(done, start + budget, side="right")))
        yield first, last
        first = last
