"""The read path: find a user's records and events in memory, plan, fetch, unpack."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqvault.codec.chunks import BAD_BLOCK, BAD_HEADER, BLOCK, OK, PADDING
from seqvault.codec.plan_kernel import plan_read
from seqvault.codec.records import blocks_before
from seqvault.codec.unpack_kernel import unpack_columns
from seqvault.disk.files import Files
from seqvault.errors import DamagedFileError
from seqvault.memory.store_state import State
from seqvault.memory.version import Version
from seqvault.read.fast_read import DirectReader
from seqvault.read.found import Found, Plan, of_numbers
from seqvault.read.matching_events import newest_matching
from seqvault.read.ragged import Ragged
from seqvault.read.read_request import MAX_LAST_N, ReadRequest
from seqvault.sequence_batch import SequenceBatch

LONG_RECORD = 1 << 15  # bytes; of longer ones only the blocks needed are read
BUFFER_BYTES = 1 << 24  # of records that a thread keeps room for


class Reader:
    """Answers reads of a store. Any number of threads may use one.

    Args:
        state: what there is to read.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._local = threading.local()
        # a file layer that wants to see each call gets each call
        plain = type(state.files).preadv is Files.preadv
        self._direct = DirectReader(state) if plain else None

    def prepare(self) -> None:
        """Does work ahead of time that the first read after opening would otherwise do."""
        if self._direct:
            self._direct.prepare()

    def read(self, request: ReadRequest) -> SequenceBatch:
        """See ``SeqVault.read``."""
        if request.plain and self._direct:
            batch = self._direct.read(request)
            if batch is not None:
                return batch
        plan, answer = self._plan_request(self.find(request.users, request), request)
        rows, width = len(request.users), request.last_n
        row_starts = np.arange(rows, dtype=np.int64) * width
        flat = self.unpack(plan, request.names, row_starts, rows * width)
        columns = {name: values.reshape(rows, width) for name, values in flat.items()}
        return SequenceBatch(request.users, plan.counts.astype(np.int32), columns, answer)

    def read_ragged(
        self, request: ReadRequest
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See ``SeqVault.read_ragged``."""
        answer = self.direct_ragged(request)
        if answer is not None:
            return answer.lengths, answer.version, answer.columns()
        return self.ragged_of(self.find(request.users, request), request)

    def direct_ragged(self, request: ReadRequest, in_frame: bool = False) -> Ragged | None:
        """``read_ragged`` by one kernel, see ``DirectReader``; None: that cannot do it."""
        if not request.plain or self._direct is None:
            return None
        return self._direct.read_ragged(request, in_frame)

    def ragged_of(
        self, found: Found, request: ReadRequest
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """``read_ragged`` of what ``find`` found for the users of the request."""
        plan, seen = self._plan_request(found, request)
        row_starts = np.cumsum(plan.counts) - plan.counts
        columns = self.unpack(plan, request.names, row_starts, int(plan.counts.sum()))
        return plan.counts.astype(np.int32), seen, columns

    def _plan_request(self, found: Found, request: ReadRequest) -> tuple[Plan, np.ndarray]:
        """Plans a read; also the version of the answer."""
        wanted = np.full(len(request.users), request.last_n, np.int64)
        seen = request.versions()
        plan = self.plan(found, request.bounds(), wanted, seen, request.filters)
        answer = found.version if request.version is None else np.minimum(seen, found.version)
        return plan, answer

    def find(self, users: np.ndarray, request: ReadRequest | None = None) -> Found:
        """Looks up these users, as a consistent snapshot.

        Args:
            users: int64 [B].
            request: what is wanted of them: only those events in memory are found that it can
                want. None: all are.
        """
        state = self._state

        def look(version: Version) -> tuple[Any, ...]:
            index, memtable = version.index, version.memtable
            slots = index.users.find(users)
            newest = memtable.newest(slots, memtable.size)
            arrived = np.where(slots >= 0, index.arrivals[np.maximum(slots, 0)], 0)
            return version, index.extents(slots), newest, arrived

        version, (starts, segments, offsets, lengths, counts), newest, arrived = state.look_up(look)
        memtable = version.memtable
        if request is not None and request.plain:
            mem_starts, mem_rows = memtable.newest_before(newest, request.bounds(), request.last_n)
        elif request is not None:
            mem_starts, mem_rows = newest_matching(memtable, newest, request)
        else:
            mem_starts, mem_rows = memtable.chains(newest)
        return Found(
            store=version,
            oldest=version.oldest(state.clock()),
            users=users,
            starts=starts,
            segments=segments,
            offsets=offsets,
            lengths=lengths,
            counts=counts,
            schema_ids=of_numbers(segments, version.schema_of),
            open_segments=version.segments,
            mem_starts=mem_starts,
            mem_rows=mem_rows,
            mem_columns=memtable.columns,
            mem_arrivals=memtable.arrivals,
            version=arrived,
        )

    def answer_bytes(self, request: ReadRequest, packed: bool) -> int:
        """The most bytes that an answer to the request can take, from counts of events.

        Nothing is read from the disk for it.
        """
        if self._direct is not None and not packed:
            return self._direct.answer_bytes(request)
        state = self._state

        def look(version: Version) -> tuple[Any, ...]:
            memtable = version.memtable
            slots = version.index.users.find(request.users)
            waiting = memtable.count(memtable.newest(slots, memtable.size))
            return version, version.index.extents(slots), waiting

        version, (starts, _, _, lengths, counts), waiting = state.look_up(look)
        width = version.layouts.of(request.names).width
        if packed:  # whole blocks, of every record
            most = np.minimum(lengths, (request.last_n + 2 * BLOCK) * lengths // counts + 1)
            mine = np.minimum(waiting, request.last_n) * (width + 16)
            return int(most.sum() + mine.sum()) + 64 * len(request.users)
        sums = np.concatenate([[0], np.cumsum(counts)])
        events = np.minimum(sums[starts[1:]] - sums[starts[:-1]] + waiting, request.last_n)
        return int(events.sum()) * width + 16 * len(request.users)

    def fetch(
        self, found: Found, before: np.ndarray | None, last_n: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Reads records into one buffer.

        Of a long record, if ``before`` is given, only the blocks that hold the
        ``last_n`` events before it.

        Returns:
            The buffer, and [R] where each record starts, how many bytes are left out
            behind its directory, and the first block that is there.
        """
        segments, offsets, lengths = found.segments, found.offsets, found.lengths
        many = len(segments)
        shifts, first_blocks = np.zeros(many, np.int64), np.zeros(many, np.int64)
        sizes = lengths.copy()
        heads: dict[int, np.ndarray] = {}
        if before is not None:
            for r in np.flatnonzero(lengths > LONG_RECORD).tolist():
                row = int(np.searchsorted(found.starts, r, side="right")) - 1
                blocks = -(-int(found.counts[r]) // BLOCK)
                size = 16 + 12 * blocks
                segment = found.open_segments[int(segments[r])]
                head = self._state.files.read_all(segment.fd, size, int(offsets[r]))
                if len(head) != size:
                    raise DamagedFileError(f"{segment.path} is shorter than its footer says.")
                wanted = min(last_n[row], MAX_LAST_N)
                start, _ = blocks_before(head, 0, 0, blocks, before[row], wanted)
                if start > 0:
                    first_blocks[r] = start
                    shifts[r] = int(head[8 + 12 * start :][:4].view("<u4")[0]) - size
                    if not 0 <= shifts[r] < lengths[r] - size:
                        shifts[r] = first_blocks[r] = 0  # damaged: read it whole and be told
                        continue
                    sizes[r] = lengths[r] - shifts[r]
                    heads[r] = head
        ends = np.cumsum(sizes)
        starts = ends - sizes
        total = int(ends[-1]) if many else 0
        data = self._buffer(total + PADDING)
        targets = starts.copy()
        for r, head in heads.items():
            data[starts[r] : starts[r] + len(head)] = head
            targets[r] += len(head)
            sizes[r] -= len(head)
            offsets = offsets.copy() if offsets is found.offsets else offsets
            offsets[r] += len(head) + shifts[r]
        open_segments = found.open_segments
        fds = of_numbers(segments, {n: open_segments[n].fd for n in np.unique(segments).tolist()})
        short = self._state.files.read_many(fds, offsets, sizes, data, targets)
        if short >= 0:
            path = found.open_segments[int(segments[short])].path
            raise DamagedFileError(f"{path} is shorter than its footer says.")
        # kernels find a record's directory, and how far they may read, by this number
        said = data[starts[:, None] + np.arange(8, 12)].view("<u4")[:, 0]
        wrong = np.flatnonzero(said != found.counts)
        if len(wrong):
            self.check_status(BAD_HEADER, int(wrong[0]), found)
        return data, starts, shifts, first_blocks

    def _buffer(self, size: int) -> np.ndarray:
        """Room for records, this thread's until its next read.

        Fresh memory of this size would be mapped, and its pages faulted in, each time.
        """
        kept: np.ndarray | None = getattr(self._local, "buffer", None)
        if kept is None or len(kept) < size:
            kept = np.empty(max(size, 1 << 20), np.uint8)
            if size <= BUFFER_BYTES:
                self._local.buffer = kept
        return kept[:size]

    def plan(
        self,
        found: Found,
        before: np.ndarray,
        last_n: np.ndarray,
        version: np.ndarray,
        filters: Sequence[tuple[str, np.ndarray]],
    ) -> Plan:
        """Fetches records and decides which event goes where.

        Args:
            found: what there is.
            before, last_n, version: int64 [B], the request; version -1 is the present.
            filters: fields and their wanted values, ascending.
        """
        whole = bool(filters) or bool((version >= 0).any())
        data, records, shifts, first_blocks = self.fetch(found, None if whole else before, last_n)
        rows, many = len(found.users), len(records)
        layouts, schema = found.store.layouts, found.store.schema
        record_columns = layouts.columns_in[found.schema_ids]
        filter_columns = np.empty((len(filters), many), np.int64)
        mem_keep = np.ones(len(found.mem_rows), np.bool_)
        for f, (name, wanted) in enumerate(filters):
            column = layouts.columns_of(name)[found.schema_ids]
            default = np.isin(schema.field(name).default, wanted)
            filter_columns[f] = np.where(column < 0, -1 if default else -2, column)
            mem_keep &= np.isin(found.mem_columns[name][found.mem_rows], wanted)
        if (version >= 0).any():
            limits = np.repeat(version, np.diff(found.mem_starts))
            mem_keep &= (limits < 0) | (found.mem_arrivals[found.mem_rows] < limits)
        filter_starts = np.zeros(len(filters) + 1, np.int64)
        filter_values = np.empty(0, np.int64)
        if filters:
            filter_starts[1:] = np.cumsum([len(wanted) for _, wanted in filters])
            filter_values = np.concatenate([wanted for _, wanted in filters])
        most = int(((found.counts + (BLOCK - 1)) // BLOCK).sum())
        block_arrays = tuple(np.empty((10, most), np.int64))
        dest = np.empty((most, BLOCK), np.int32)
        mem_dest = np.full(len(found.mem_rows), -1, np.int32)
        counts = np.zeros(rows, np.int64)
        blocks, status, record = plan_read(  # type: ignore[call-arg]
            data, records, found.lengths, shifts, first_blocks, record_columns,
            found.starts, found.users,
            found.mem_starts, found.mem_columns["timestamp"][found.mem_rows], mem_keep,
            before, np.full(rows, found.oldest, np.int64), last_n, version,
            filter_columns, filter_starts, filter_values,
            *block_arrays, dest, mem_dest, counts,
        )  # fmt: skip
        self.check_status(status, record, found)
        return Plan(
            found=found,
            data=data,
            blocks=blocks,
            block_arrays=block_arrays,
            dest=dest,
            mem_dest=mem_dest,
            counts=counts,
        )

    def check_status(self, status: int, record: int, found: Found) -> None:
        """Raises ``DamagedFileError`` for what a kernel found wrong with a record."""
        if status == OK:
            return
        segment = found.open_segments[int(found.segments[record])]
        what = {BAD_HEADER: "header", BAD_BLOCK: "checksum"}.get(status, "content")
        raise DamagedFileError(
            f"{segment.path} is damaged: the {what} of the record at byte "
            f"{int(found.offsets[record])} is wrong. Restore it from a snapshot or a replica."
        )

    def unpack(
        self, plan: Plan, names: Sequence[str], row_starts: np.ndarray, places: int
    ) -> dict[str, np.ndarray]:
        """Flat arrays of ``places`` values per field; "" is the arrival number."""
        found = plan.found
        layout = found.store.layouts.of(tuple(names))
        sizes = layout.sizes
        padded = (sizes * places + 63) & ~63
        ends = padded.cumsum()
        out = np.zeros(int(ends[-1] if len(ends) else 0) + PADDING, np.uint8)
        outputs = ends - padded
        status, record = unpack_columns(  # type: ignore[call-arg]
            plan.data, plan.blocks, *plan.block_arrays, plan.dest,
            found.schema_ids, layout.columns_of, layout.defaults, sizes, outputs, row_starts, out,
        )  # fmt: skip
        self.check_status(status, record, found)
        wanted = plan.mem_dest
        if len(wanted):
            wanted = np.flatnonzero(wanted >= 0)
            row_of = np.repeat(np.arange(len(found.users)), np.diff(found.mem_starts))[wanted]
            target = row_starts[row_of] + plan.mem_dest[wanted]
            rows = found.mem_rows[wanted]
        columns = {}
        for name, dtype, first in zip(names, layout.dtypes, outputs.tolist(), strict=True):
            values = out[first : first + dtype.itemsize * places].view(dtype)
            if len(wanted):
                source = found.mem_arrivals if name == "" else found.mem_columns[name]
                values[target] = source[rows]
            columns[name] = values
        return columns
