"""Sequence-level merge: events of the log become records of their users in a new segment."""

# mypy: disable-error-code="no-untyped-def"

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from seqvault.codec.bits import to_bits
from seqvault.disk import segment as segment_files
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import BASE, EXTENT, TAIL, Packed, Segment
from seqvault.errors import DiskFullError
from seqvault.memory import index_scans
from seqvault.memory.store_state import State
from seqvault.merge import merge_policy as policy
from seqvault.progress import Progress, no_progress
from seqvault.read.found import Found, of_numbers
from seqvault.read.planned_read import Reader
from seqvault.times import NO_BOUND
from seqvault.write.group_commit import RECORD_BYTES, AppendLog

PART_EVENTS = 1 << 16  # packed at a time
MANY = 1 << 40  # more than there are


@dataclass(frozen=True)
class MergePlan:
    """What a merge will write: users in ascending order and the kind of record of each.

    Args:
        users, kinds, arrivals: int64 [U], see ``segment.Packed``.
        slots: int64 [U], the users' places in the index.
        work: int64 [U], about how many events are packed.
        bytes: about how large the segment becomes, rather more.
        rewrite: segments that nothing needs afterwards.
        held: int64, slots of users whose events stay in the log.
        wal_start: first log file that is needed afterwards.
    """

    users: np.ndarray
    kinds: np.ndarray
    arrivals: np.ndarray
    slots: np.ndarray
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
        reader: unpacks the records that are rewritten.
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

    def merge(
        self, hold: bool = False, tidy: bool = False, progress: Progress = no_progress
    ) -> dict[str, int]:
        """Writes what is in the log into one new segment.

        Args:
            hold: leave few new events of a user in the log, see ``merge_policy``.
            tidy: also rewrite users with too many records, even without new events.
            progress: told of events, as they were counted beforehand, after each part.
        """
        end, limit, sources = self._log.rotate()
        plan = self._plan(limit, end, hold, tidy)
        if plan.rewrite and not self._has_room(plan.bytes):
            plan = self._plan(limit, end, hold, tidy, rewriting=False)  # what frees the log
        if not len(plan.users):
            return {"users": 0, "events": 0, "bytes": 0}
        self.check_room(plan.bytes)
        written = {"users": 0, "events": 0}
        done = np.cumsum(plan.work)

        def parts() -> Iterator[Packed]:
            for first, last in slices(plan.work, PART_EVENTS):
                self._state.check_not_closing()
                part = slice(first, last)
                found = self._find(plan.users[part], plan.slots[part], plan.kinds[part], limit)
                packed = self.pack(found, plan.kinds[part], plan.arrivals[part])
                written["users"] += len(packed.users)
                written["events"] += int(packed.counts.sum())
                yield packed
                progress("events", int(done[last - 1]), int(done[-1]))

        fresh = self.write(parts())
        self._publish(fresh, plan, end, limit, sources)
        return {**written, "bytes": fresh.size}

    def check_room(self, size: int) -> None:
        """Raises ``DiskFullError`` unless about ``size`` bytes can be written."""
        if not self._has_room(size):
            free = self._state.files.free_bytes(self._state.path)
            raise DiskFullError(
                f"a merge needs about {size} bytes in {self._state.path}, there are {free}: "
                "nothing was changed. Free some space and call again; reads go on meanwhile."
            )

    def _has_room(self, size: int) -> bool:
        return self._state.files.free_bytes(self._state.path) >= size

    def write(self, parts: Iterable[Packed]) -> Segment:
        """Writes a segment file; it is not yet part of the store."""
        state = self._state
        number = state.take_number()
        path = segment_files.path_of(state.path, number)
        temporary = state.files.temporary_of(path)
        try:
            segment_files.write(
                state.files, temporary, number, len(state.schemas) - 1,
                2 + len(state.schema.fields), self._slowed(parts),
            )  # fmt: skip
            with state.owned():
                state.files.rename(temporary, path)
                state.files.sync_names(f"{state.path}/segments")
            return Segment(state.files, state.path, number)
        except BaseException:
            with suppress(OSError):  # the name is unique to this merge
                state.files.unlink(temporary)
            state.discard(path)
            raise

    def _slowed(self, parts: Iterable[Packed]) -> Iterator[Packed]:
        """Yields the parts, limited to the rate."""
        start, done = time.monotonic(), 0
        for part in parts:
            yield part
            done += len(part.data)
            if self._rate:
                self._state.closing.wait(max(0.0, start + done / self._rate - time.monotonic()))
            self._state.check_not_closing()

    def _plan(
        self, limit: int, end: int, hold: bool, tidy: bool, rewriting: bool = True
    ) -> MergePlan:
        """Decides about the first ``limit`` events in memory, of log files before ``end``.

        Without ``rewriting`` segments that are mostly dead stay.
        """
        state = self._state
        with state.lock:
            memtable, users = state.memtable, len(state.index.users)
        # only merges change what follows, so readers and appends need not wait
        files = memtable.files[:limit]
        waiting = policy.waiting_in(memtable.slots[:limit], files)
        rewrite = mostly_dead_segments(state, users) if rewriting else []
        flags = self._flags(rewrite, users, tidy)
        forced = np.flatnonzero(flags)
        write = policy.to_write(waiting, files, end, hold) | (flags[waiting.slots] > 0)
        touched, held = waiting.only(write), waiting.only(~write)
        slots = np.union1d(touched.slots, forced).astype(np.int64)
        tail = np.zeros(len(slots), np.int64)
        tail[np.searchsorted(slots, touched.slots)] = touched.counts
        extents, stored, base, size = index_scans.summaries(state.index, slots)
        kinds = policy.kinds_of(extents, stored, base, tail)
        # records in mostly dead segments are rewritten: with the base only if that is in one
        kinds[(flags[slots] > 0) & (kinds == EXTENT)] = TAIL
        kinds[(kinds == TAIL) & (extents <= 1)] = BASE
        kinds[(flags[slots] & index_scans.BASE_DEAD) > 0] = BASE
        older = np.where(kinds == BASE, stored, np.where(kinds == TAIL, stored - base, 0))
        width = 16 + sum(dtype.itemsize for dtype in state.schema.columns.values())
        most = int(size[kinds != EXTENT].sum()) + int(tail.sum()) * width
        arrived, keys = self._arrived(slots, limit)
        order = np.argsort(keys)
        return MergePlan(
            keys[order], kinds[order], arrived[order], slots[order], (older + tail)[order],
            most + RECORD_BYTES * len(slots), rewrite, held.slots,
            int(held.files.min()) if len(held.files) else end,
        )  # fmt: skip

    def _flags(self, rewrite: list[int], users: int, tidy: bool) -> np.ndarray:
        """uint8 by slot, not 0 for users who must be written though nothing is new."""
        state = self._state
        if not rewrite and not tidy:
            return np.zeros(users, np.uint8)
        numbers = state.numbers()
        most = 1 + policy.MAX_EXTENTS if tidy else MANY
        flags = index_scans.flag_users(state.index, users, numbers, np.isin(numbers, rewrite), most)
        # users of whom nothing is left are carried on, for their arrival numbers
        footers = [state.segments[number].footer() for number in rewrite]
        spent = [footer.users[footer.counts == 0] for footer in footers]
        with state.lock:
            carried = state.index.users.find(np.concatenate([np.empty(0, np.int64), *spent]))
        flags[carried] |= index_scans.BASE_DEAD
        return flags

    def _arrived(self, slots: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """How many events had arrived for each user when the log was cut; their ids."""
        state = self._state
        with state.lock:
            arrived, keys = state.index.arrivals[slots], state.index.users.keys[slots]
            newer = state.memtable.slots[limit : state.memtable.size]
        place = np.searchsorted(slots, newer)
        known = place < len(slots)
        known[known] = slots[place[known]] == newer[known]
        return arrived - np.bincount(place[known], minlength=len(slots)), keys

    def _publish(
        self, fresh: Segment, plan: MergePlan, end: int, limit: int, sources: dict[str, int]
    ) -> None:
        """Makes the new segment part of the store and removes what it replaces.

        A crash in or behind each step leaves:

        1. (``write``) the segment has its name: the store as it was; the next open removes
           the segment, which no manifest names.
        2. The manifest names the segment: the store as it is after the merge, whatever comes
           of the steps below. Until the manifest is synced it may be either of the two.
        3. Memory follows: readers see the segment and no longer the events of the log that are
           in it. Nothing of this step is on disk.
        4. The segments that were replaced are removed: the next open removes the rest.
        5. Log files that are no longer needed become spare ones or are removed: as 4.
        """
        state, footer = self._state, fresh.footer()

        def with_segment(old: Manifest) -> Manifest:
            segments = [*(n for n in old.segments if n not in plan.rewrite), fresh.number]
            covers = {**old.covers, str(fresh.number): end}
            return replace(
                old,
                segments=segments,
                wal_start=plan.wal_start,
                wal_last=max(old.wal_last, end),
                sources=sources,
                covers={
                    number: file
                    for number, file in covers.items()
                    if int(number) in segments and file > plan.wal_start
                },
            )

        def show() -> None:
            kept = {n: s for n, s in state.segments.items() if n not in plan.rewrite}
            state.index.add_records(fresh.number, *footer[:-1])
            rest.extend(state.memtable, limit)
            state.replace(
                segments={**kept, fresh.number: fresh},
                schema_of={**state.schema_of, fresh.number: fresh.schema_id},
                memtable=rest,
            )

        memtable = state.memtable  # rows before the limit do not change
        waits = np.zeros(len(memtable.heads), np.bool_)
        waits[plan.held] = True
        rest = memtable.part(np.flatnonzero(np.take(waits, memtable.slots[:limit])))
        try:
            state.publish(with_segment, show)
        except BaseException:
            if state.failed is None:  # no manifest names it
                state.discard(fresh.path)
            raise
        state.count_stored()
        state.discard(*(segment_files.path_of(state.path, number) for number in plan.rewrite))
        self._log.retire(plan.wal_start)

    def _find(self, users: np.ndarray, slots: np.ndarray, kinds: np.ndarray, limit: int) -> Found:
        """Users' events in memory and the records that their new one replaces.

        It holds the lock, which readers need, only briefly: only merges change records, and rows
        below the limit never change.
        """
        state = self._state
        version = state.version
        memtable = version.memtable
        starts, numbers, offsets, lengths, counts = state.index.extents(slots)
        with state.lock:
            newest = memtable.newest(slots, limit)
        mem_starts, mem_rows = memtable.chains(newest)
        keep = np.repeat(kinds != EXTENT, np.diff(starts))
        oldest = starts[:-1][(kinds == TAIL) & (np.diff(starts) > 0)]
        keep[oldest] = False
        numbers = numbers[keep]
        return Found(
            store=version,
            oldest=state.oldest(),
            users=users,
            starts=np.concatenate([[0], np.cumsum(keep)])[starts],
            segments=numbers,
            offsets=offsets[keep],
            lengths=lengths[keep],
            counts=counts[keep],
            schema_ids=of_numbers(numbers, version.schema_of),
            open_segments=version.segments,
            mem_starts=mem_starts,
            mem_rows=mem_rows,
            mem_columns=memtable.columns,
            mem_arrivals=memtable.arrivals,
            version=np.zeros(len(users), np.int64),
        )

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
    """Reverses each user's events, which are newest first in ``values``."""
    for b in range(len(starts) - 1):
        turned = starts[b] + starts[b + 1] - 1
        for i in range(starts[b], starts[b + 1]):
            out[i] = values[turned - i]


def mostly_dead_segments(state: State, users: int) -> list[int]:
    """Numbers of segments most of whose bytes are no longer in use."""
    numbers = state.numbers()
    live, _, _ = index_scans.live_bytes(state.index, users, numbers)
    in_use = dict(zip(numbers.tolist(), live.tolist(), strict=True))
    oldest = state.oldest()
    return [
        number
        for number, segment in state.segments.items()
        if in_use[number] - (segment.expired_bytes(oldest) if oldest else 0)
        < (1 - policy.DEAD_SHARE) * segment.record_bytes
    ]


def slices(work: np.ndarray, budget: int) -> Iterable[tuple[int, int]]:
    """Cuts users into runs of about ``budget`` work each."""
    first, done = 0, np.cumsum(work)
    while first < len(work):
        start = done[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(done, start + budget, side="right")))
        yield first, last
        first = last
