"""Group commit: concurrent appends share one sync of the log."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from seqvault.disk import wal
from seqvault.disk.wal import SPARE, SPARE_FILES
from seqvault.errors import (
    DiskFullError,
    ForkedStoreError,
    LimitError,
    SeqVaultError,
    StoreClosedError,
)
from seqvault.memory.store_state import Appended, State

LOG_EVENTS = 1 << 26  # not in segments yet; more are refused
MAX_APPEND = 1 << 30  # bytes of one append
RECORD_BYTES = 256  # a small record's own, about


class AppendLog:
    """Writes appends to the log and makes them visible once they are durable.

    Args:
        state: the store, loaded.
        writer: the log file to go on with.
        spares: paths of files that are not part of the log any more, to be used again.
    """

    def __init__(self, state: State, writer: wal.WalWriter, spares: list[str]) -> None:
        self._state, self._writer, self._spares = state, writer, spares
        self._log = threading.Condition()  # guards the log and the queue behind it
        self._queue: list[Appended] = []
        self._in_flight: list[Appended] = []
        self._syncing = False
        self._written = self._applied = 0  # appends handed to the log, and visible

    def append(self, columns: dict[str, np.ndarray], source: str, offset: int) -> int:
        """Logs checked events; returns how many when they are durable and visible.

        Args:
            columns: as ``to_columns`` returns them.
            source, offset: as of ``SeqVault.append``.
        """
        count = len(columns["user_id"])
        if count == 0 and not source:
            return 0  # nothing, from nowhere: no mark to move
        size = sum(column.nbytes for column in columns.values())
        if size >= MAX_APPEND:
            raise LimitError(
                f"events of one append take {size} bytes; the limit is {MAX_APPEND}. "
                "Split them, or use bulk_load."
            )
        if self._state.memtable.size + count > LOG_EVENTS:
            raise self._log_is_full()
        self._check_room_for_merge(count, size)
        schema_id = len(self._state.schemas) - 1
        frame = wal.prepare(schema_id, source, offset, count, tuple(columns.values()))
        with self._log:
            self._state.check_writable()
            if source and offset <= self._sources_in_queue(source):
                # still in the queue: durable when everything before us is
                ticket = self._written
                count = 0
            else:
                self._make_room(len(frame.frame))
                # copied into the memtable before the wait; behind those who wait already, over
                # what a write that failed here left there
                waiting = sum(events for events, _, _ in self._in_flight + self._queue)
                self._state.stage(columns, self._writer.number, waiting)
                self._writer.write(frame)
                self._queue.append((count, source, offset))
                self._written += 1
                ticket = self._written
            while self._applied < ticket:
                if self._state.failed is not None or self._state.closed:
                    self._state.check_writable()
                if self._syncing:
                    self._log.wait()
                else:
                    self._sync_queue()
        return count

    def _check_room_for_merge(self, count: int, size: int) -> None:
        """Raises ``DiskFullError`` unless a merge would find room behind the append.

        Otherwise a full disk could not recover: only a merge frees log files. A merge
        writes the new events, and of users with a base at most twice as many with them, see
        ``merge_policy.FOLD_AT``.
        """
        state = self._state
        events = state.memtable.size + count
        width = 16 + sum(dtype.itemsize for dtype in state.schema.columns.values())
        users = min(events, len(state.index.users) + count)
        reserve = 3 * events * width + RECORD_BYTES * users
        free = state.files.free_bytes(state.path)
        if free < reserve + size:
            raise DiskFullError(
                f"no room on the disk to append events: {free} bytes are free in {state.path}, and "
                f"{reserve} of them are kept for the merge that frees the log. Nothing was stored. "
                "Free some space and call again; reads and merges go on meanwhile."
            )

    def _log_is_full(self) -> LimitError:
        error = self._state.merge_error
        why = (
            f"the last merge failed ({type(error).__name__}: {error})"
            if error is not None
            else "a merge is under way"
            if self._state.merging.locked()
            else "they wait for a merge, see merge()"
        )
        return LimitError(
            f"{self._state.memtable.size} events are in the log, the limit is {LOG_EVENTS}: {why}. "
            "Nothing was stored; retry after the next merge."
        )

    def rotate(self) -> tuple[int, int, dict[str, int]]:
        """Starts a new log file, so that the events of earlier ones can be merged.

        Returns:
            The new file's number, how many events in memory are of files before it,
            and the highest offset per source among them.
        """
        with self._log:
            self._state.check_writable()
            self._drain()
            if self._writer.position > wal.FIRST or self._writer.sealed:
                self._start_file()
            with self._state.lock:
                return self._writer.number, self._state.memtable.size, dict(self._state.sources)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Blocks appends for the duration of the block; none is in progress inside it."""
        with self._log:
            self._drain()
            yield

    def retire(self, start: int) -> None:
        """Recycles a few log files before ``start`` as spares and removes the others.

        The manifest must not need them any more.
        """
        state = self._state
        old = [
            wal.path_of(state.path, int(name[:-4]))
            for name in sorted(state.files.list_directory(f"{state.path}/wal"))
            if name.endswith(".wal") and int(name[:-4]) < start
        ]
        with self._log, suppress(StoreClosedError, ForkedStoreError):
            for path in old:
                if not self._keep(path):
                    state.discard(path)

    def _keep(self, path: str) -> bool:
        """Keeps a log file as a spare, unless there are enough."""
        if len(self._spares) >= SPARE_FILES:
            return False
        files, spare = self._state.files, path.removesuffix(".wal") + SPARE
        if wal.size_of(files, path) > 2 * wal.FILE_SIZE:
            return False
        with self._state.owned():
            files.rename(path, spare)
        self._spares.append(spare)
        return True

    def close(self, seconds: float) -> None:
        """Syncs what was written and seals the log.

        If a bulk load blocks the log for longer than ``seconds``, it is left unsealed.
        """
        if not self._log.acquire(timeout=seconds):
            return  # whoever has it finds the store closed, and the next open repairs the file
        try:
            with suppress(SeqVaultError):
                self._drain()  # who waits already is told that all is well
            self._state.closed = True
            if self._state.failed is None:
                with suppress(OSError):  # without a seal the next open repairs the file
                    self._writer.seal()
            self._writer.close()
            self._log.notify_all()
        finally:
            self._log.release()

    def _drain(self) -> None:
        """Waits until nothing written is unsynced."""
        while self._syncing or self._queue:
            if self._syncing:
                self._log.wait()
            else:
                self._sync_queue()

    def _sources_in_queue(self, source: str) -> int:
        marks = [self._state.sources.get(source, -1)]
        waiting = self._in_flight + self._queue
        return max(marks + [offset for _, name, offset in waiting if name == source])

    def _sync_queue(self) -> None:
        """Syncs the log for all waiting callers, then makes their events visible."""
        writer, batch, upto = self._writer, self._queue, self._written
        self._queue, self._in_flight, self._syncing = [], batch, True
        self._log.release()
        error: BaseException | None = None
        try:
            writer.sync()
            # Whoever opens the store elsewhere takes its lock before reading the log: if it is
            # ours still, these events will be read there.
            self._state.check_owned()
        except BaseException as caught:
            error = caught
        finally:
            self._log.acquire()
            self._syncing = False
        if error is None:
            try:
                self._state.show(batch)
            except BaseException as caught:  # on the disk but not seen: the next open tells right
                error = caught
        if error is None:
            self._applied = upto
            self._in_flight = []
        else:
            # after a failed fsync the on-disk state is unknown: never retry
            self._state.mark_failed(error.__cause__ or error)
        self._log.notify_all()
        if error is not None:
            self._state.check_writable()

    def _make_room(self, size: int) -> None:
        """Starts a new log file if the present one has no room for ``size`` bytes."""
        writer = self._writer
        fits = writer.position + size <= wal.FILE_SIZE or writer.position <= wal.FIRST
        if fits and not writer.sealed:
            return
        self._drain()
        self._start_file()

    def _start_file(self) -> None:
        """Seals the log file and starts the next; nothing may be waiting."""
        with self._state.owned():  # or somebody else might have the spare file by now
            spare = self._spares.pop() if self._spares else ""
            files, number = self._state.files, self._writer.number + 1
            fresh = wal.WalWriter(files, self._state.path, number, spare)
            try:
                with self._state.all_or_failed():
                    self._writer.seal()
                    fresh.begin()
                    self._writer.hand_over()
            except BaseException:
                fresh.discard()
                raise
        self._writer.close()
        self._writer = fresh
