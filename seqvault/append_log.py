"""Appends: a queue of callers behind the log, one sync for all who wait (group commit)."""

import threading
from contextlib import suppress

import numpy as np

from seqvault import wal
from seqvault.errors import LimitError
from seqvault.files import disk_full_is_typed
from seqvault.state import State

LOG_EVENTS = 1 << 26  # not in segments yet; more are refused


class AppendLog:
    """Writes appends to the log and makes them visible once they are durable.

    Args:
        state: the store, loaded.
        writer: the log file to go on with.
    """

    def __init__(self, state: State, writer: wal.WalWriter) -> None:
        self._state, self._writer = state, writer
        self._log = threading.Condition()  # guards the log and the queue behind it
        self._queue: list[tuple[dict[str, np.ndarray], str, int]] = []
        self._in_flight: list[tuple[dict[str, np.ndarray], str, int]] = []
        self._syncing = False
        self._written = self._applied = 0  # appends handed to the log, and visible

    def append(self, columns: dict[str, np.ndarray], source: str, offset: int) -> int:
        """Logs checked events; returns how many when they are durable and visible.

        Args:
            columns: as ``to_columns`` returns them.
            source, offset: as of ``SeqVault.append``.
        """
        count = len(columns["user_id"])
        if count == 0:
            return 0
        payload = b"".join(column.tobytes() for column in columns.values())
        if len(payload) >= 1 << 30:
            raise LimitError(
                f"events of one append take {len(payload)} bytes; the limit is {1 << 30}. "
                "Split them, or use bulk_load."
            )
        if self._state.memtable.size + count > LOG_EVENTS:
            raise LimitError(
                f"{self._state.memtable.size} events are in the log, the limit is {LOG_EVENTS}; "
                "call merge(), then append again."
            )
        with self._log:
            self._state.check_writable()
            if source and offset <= self._sources_in_queue(source):
                # still in the queue: durable when everything before us is
                ticket = self._written
                count = 0
            else:
                self._make_room(len(payload))
                with disk_full_is_typed("append events"):
                    self._writer.write(len(self._state.schemas) - 1, source, offset, count, payload)
                self._queue.append((columns, source, offset))
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
            if self._writer.position > wal.FIRST:
                self._start_file()
            with self._state.lock:
                return self._writer.number, self._state.memtable.size, dict(self._state.sources)

    def close(self) -> None:
        """Waits for the sync under way and seals the log."""
        with self._log:
            while self._syncing:
                self._log.wait()
            self._state.closed = True
            if self._state.failed is None:
                with suppress(OSError):  # without a seal the next open repairs the file
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
            for columns, source, offset in batch:
                self._state.apply(columns, source, offset)
            self._applied = upto
            self._in_flight = []
        else:
            # what a failed sync left on the disk nobody knows: no retry
            self._state.failed = error
        self._log.notify_all()
        if error is not None:
            self._state.check_writable()

    def _make_room(self, size: int) -> None:
        """Starts a new log file if the present one has no room for ``size`` bytes."""
        if self._writer.position + size <= wal.FILE_SIZE or self._writer.position <= wal.FIRST:
            return
        self._drain()
        self._start_file()

    def _start_file(self) -> None:
        """Seals the log file and starts the next; nothing may be waiting."""
        with disk_full_is_typed("start a log file"):
            fresh = wal.WalWriter(self._state.files, self._state.path, self._writer.number + 1)
            try:
                self._writer.seal()
                fresh.begin()
            except BaseException as error:
                self._state.failed = error
                fresh.discard()
                raise
            self._writer.close()
            self._writer = fresh
