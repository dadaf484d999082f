"""Appends: a queue of callers behind the log, one sync for all who wait (group commit)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from seqvault.disk import wal
from seqvault.disk.wal import SPARE, SPARE_FILES
from seqvault.errors import LimitError
from seqvault.memory.store_state import Appended, State

LOG_EVENTS = 1 << 26  # not in segments yet; more are refused
MAX_APPEND = 1 << 30  # bytes of one append


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
            raise LimitError(
                f"{self._state.memtable.size} events are in the log, the limit is {LOG_EVENTS}; "
                "call merge(), then append again."
            )
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
                # laid down in memory before the wait; behind those who wait already, over
                # what a write that failed here left there
                waiting = sum(events for events, _, _ in self._in_flight + self._queue)
                self._state.stage(columns, self._writer.number, waiting)
                self._writer.write(frame)
                self._queue.append((count, source, offset))
                self._written += 1
                ticket = self._written
            while self._applied < ticket:
                if self._state.failed is not None:
                    self._state.check_writable()
                if self._syncing:
                    self._log.wait()
                else:
                    self._sync_queue()
        return count

    def rotate(self) -> tuple[int, int, dict[str, int]]:
        """Starts a new log file, so that all before it can become a segment.

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
        """Lets appends wait until the block is left; none is under way then."""
        with self._log:
            self._drain()
            yield

    def retire(self, start: int) -> None:
        """Keeps a few log files before ``start`` to be used again and removes the others.

        The manifest must not need them any more.
        """
        state = self._state
        old = [
            wal.path_of(state.path, int(name[:-4]))
            for name in sorted(state.files.list_directory(f"{state.path}/wal"))
            if name.endswith(".wal") and int(name[:-4]) < start
        ]
        with self._log:
            for path in old:
                if not self._keep(path):
                    state.discard(path)

    def _keep(self, path: str) -> bool:
        """Makes a log file a spare one, unless there are enough."""
        if len(self._spares) >= SPARE_FILES:
            return False
        files, spare = self._state.files, path.removesuffix(".wal") + SPARE
        if wal.size_of(files, path) > 2 * wal.FILE_SIZE:
            return False
        files.rename(path, spare)
        self._spares.append(spare)
        return True

    def close(self) -> None:
        """Waits for the sync under way and seals the log."""
        with self._log:
            while self._syncing:
                self._log.wait()
            self._state.closed = True
            if self._state.failed is None:
                with suppress(
                    OSError, wal.LogSyncError
                ):  # without a seal the next open repairs the file
                    self._writer.seal()
            self._writer.close()

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
        """Syncs the log for everybody who waits, then makes their events visible."""
        writer, batch, upto = self._writer, self._queue, self._written
        self._queue, self._in_flight, self._syncing = [], batch, True
        self._log.release()
        error: BaseException | None = None
        try:
            writer.sync()
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
            # what a failed sync left on the disk nobody knows: no retry
            self._state.failed = error.__cause__ or error
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
        spare = self._spares.pop() if self._spares else ""
        fresh = wal.WalWriter(self._state.files, self._state.path, self._writer.number + 1, spare)
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
