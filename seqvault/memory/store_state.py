"""The state of an open store and the locks that guard it."""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import numpy as np

from seqvault.disk import item_file, segment
from seqvault.disk.files import Files, SyncError, disk_full_is_typed
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.disk.wal import LogSyncError
from seqvault.errors import (
    ForkedStoreError,
    ReadOnlyError,
    SeqVaultError,
    StoreClosedError,
    StoreFailedError,
)
from seqvault.memory.field_layout import Layouts
from seqvault.memory.held_version import HeldVersion
from seqvault.memory.index import Index
from seqvault.memory.index_scans import live_bytes
from seqvault.memory.item_table import Items
from seqvault.memory.kernel_view import ReadView
from seqvault.memory.key_table import Empty, grown
from seqvault.memory.memtable import Memtable
from seqvault.memory.shared_memory import SharedMemory
from seqvault.memory.version import Version
from seqvault.schema import Schema

Found = TypeVar("Found")
Appended = tuple[int, str, int]  # number of events, their source, their offset there


class State(HeldVersion):
    """The state of an open store: manifest, segments, index, items and the events of the log.

    Four locks, taken in this order where several are needed: ``merging``, ``writing_items``,
    the log's own (see ``group_commit``), ``owner``, ``lock``.

    Args:
        path: the store's directory.
        files: the file layer.
        read_only: whether writes are refused.
        clock: seconds since 1970.
    """

    def __init__(
        self, path: str, files: Files, read_only: bool, clock: Callable[[], float]
    ) -> None:
        # ---- fixed when the store is opened
        self.path, self.files, self.read_only, self.clock = path, files, read_only, clock
        self._process = os.getpid()
        self.empty: Empty = np.empty  # takes memory for index and memtable
        self.shared: SharedMemory | None = None  # told of changes, for readers elsewhere
        self._shares: SharedMemory | None = None  # the same, before readers are let in

        # ---- one long change at a time
        self.merging = threading.Lock()  # a merge, bulk load, snapshot or refresh
        self.writing_items = threading.Lock()  # an item write or a snapshot
        self.merge_error: BaseException | None = None  # of the last merge; None: it went well

        # ---- guarded by ``owner``: whether this object may still change files. Every publish
        # and every unlink happens in ``owned``, so that none comes after ``close``, in a
        # forked child, or once somebody else has the store.
        self.owner = threading.RLock()
        self.closing = threading.Event()  # ``close`` has begun: long calls give up
        self.closed = False
        self.forked = False  # this is a child of the process that opened the store
        self.failed: BaseException | None = None  # after it the state on disk is unknown
        self.lock_fd = -1
        self._next_file = 1  # a number that no segment or item file ever had

        # ---- guarded by ``lock``, which is held for short moments only
        self.lock = threading.Lock()
        # What ordinary reads go by, made of the version by the next read. It holds on to files
        # and memory, so it goes when the version does.
        self.view: ReadView | None = None
        self.sources: dict[str, int] = {}
        self.stored_events = self.live_bytes = 0

    # ---- the version

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Holds ``lock``, and makes what changes in the block visible as a whole."""
        with self.lock:
            if self.shared is None:
                yield
                return
            self.shared.begin()
            try:
                yield
            finally:
                self.shared.end(self.version)

    def look_up(self, find: Callable[[Version], Found]) -> Found:
        """What ``find`` finds in the version as of one moment; it must be short."""
        self.check_open()
        with self.lock:
            return find(self.version)

    def whole(self, read: Callable[[], Found]) -> Found:
        """What ``read`` returns, which looks up and then reads what it found."""
        return read()

    def share(self) -> None:
        """Makes index and memtable readable by other processes; before ``load``."""
        memory = SharedMemory()
        self.empty, self._shares = memory.arrays.empty, memory

    def announce(self) -> None:
        """Lets other processes in, if the store is shared, once all is loaded."""
        if self._shares is not None:
            with self.lock:
                self._shares.announce(self.files, self.path, self.version)
                self.shared = self._shares

    @property
    def events_in_log(self) -> int:
        """How many events are not in a segment yet."""
        return self.memtable.size

    def check_own(self, what: str) -> None:
        """Raises if the version is only what reads need of it."""

    def load(self, manifest: Manifest, opened: Mapping[int, Segment] | None = None) -> np.ndarray:
        """Loads the files that the manifest names, but not the log.

        Args:
            manifest: as it is on disk.
            opened: segments by number that need not be opened again.

        Returns:
            int64 by slot: log files before this number have no events of the user that are not
            in segments. Empty if the log has no files with such events.
        """
        for number in manifest.segments:
            if not self.files.exists(segment.path_of(self.path, number)):
                raise FileNotFoundError(
                    f"segment {number} of {self.path} is missing; restore it from a snapshot."
                )
        schemas = [Schema.from_json(entry) for entry in manifest.schemas]
        layouts, index, items = Layouts(schemas), Index(self.empty), Items()
        segments, covered = {}, np.empty(0, np.int64)
        for number in manifest.segments:
            one = (opened or {}).get(number) or Segment(self.files, self.path, number)
            one.check_schema(layouts.columns_in)
            segments[number] = one
            slots = index.add_records(number, *one.footer()[:-1])
            if manifest.covers:
                covered = grown(covered, len(index.users), 0)
                covered[slots] = manifest.covers.get(str(number), 0)
        for number in manifest.items:
            items.apply(item_file.load(self.files, self.path, number, items.schema), number)
        self.version = Version(
            manifest=manifest,
            schemas=schemas,
            layouts=layouts,
            index=index,
            memtable=Memtable(schemas[-1], self.empty),
            items=items,
            segments=segments,
            schema_of={number: one.schema_id for number, one in segments.items()},
        )
        self.view, self.sources = None, dict(manifest.sources)
        self._next_file = manifest.next_file
        self.count_stored()
        return covered

    def replace(self, **parts: Any) -> None:
        """Replaces the current version by a copy with these parts changed.

        The caller holds ``lock``.
        """
        self.version, self.view = replace(self.version, **parts), None

    def adopt(self, fresh: "State") -> None:
        """Atomically takes over what another state has loaded."""
        with self.changing():
            self.version, self.view = fresh.version, None
            self.sources = fresh.sources
            self.stored_events, self.live_bytes = fresh.stored_events, fresh.live_bytes

    def stage(self, columns: dict[str, np.ndarray], file: int, waiting: int = 0) -> None:
        """Copies events of the log file ``file`` into the memtable, not yet visible to readers.

        They follow the first ``waiting`` staged events; other staged events are dropped.
        """
        with self.changing():
            self.memtable.unstage(waiting)
            self.memtable.stage(self.index.add_users(columns["user_id"]), columns, file)

    def show(self, appends: Sequence[Appended]) -> None:
        """Makes the first staged events visible: those of these appends, in their order."""
        with self.changing():
            self.memtable.show(sum(count for count, _, _ in appends), self.index.arrivals)
            for _, source, offset in appends:
                if source:
                    self.sources[source] = max(self.sources.get(source, -1), offset)

    def count_stored(self) -> None:
        """Sums for ``stats``; to be called where nothing else changes the index."""
        _, self.stored_events, self.live_bytes = live_bytes(
            self.index, len(self.index.users), self.numbers()
        )

    def numbers(self) -> np.ndarray:
        """int64 [S] numbers of the segments, ascending."""
        return np.array(sorted(self.segments), np.int64)

    def oldest(self) -> int:
        """Time from which on events are kept, ms."""
        return self.version.oldest(self.clock())

    # ---- changing files

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Guarantees ownership of the store during the block, which publishes or removes files.

        ``close`` waits for the block, so it must be short.

        Raises:
            StoreClosedError, ForkedStoreError: the store is not this object's any more.
            StoreFailedError: the same, because the lock file was replaced.
        """
        with self.owner:
            self.check_owned()
            yield

    def check_owned(self) -> None:
        """Raises as ``owned`` does."""
        self.check_open()
        if os.getpid() != self._process:
            raise self._ended()
        if not self.files.holds(self.lock_fd, f"{self.path}/LOCK"):
            self.fail(OSError(errno.ESTALE, "its LOCK file is another one now"))

    def take_number(self) -> int:
        """A number for a new segment or item file."""
        with self.owner:
            self._next_file += 1
            return self._next_file - 1

    def publish(
        self, change: Callable[[Manifest], Manifest], show: Callable[[], None] | None = None
    ) -> None:
        """Makes ``change`` of the present manifest the store's manifest.

        Args:
            change: takes the present manifest; the numbers of the edition and of the next file are
                set here.
            show: makes the change visible to readers, under ``lock``.

        Raises:
            OSError: the manifest was not replaced; nothing has changed.
            StoreFailedError: whether it was replaced is unknown, or readers see only a part of it,
                or another process has written one.
        """
        with self.owned():
            old = self.manifest
            if Manifest.load(self.files, self.path).edition != old.edition:
                self.fail(OSError(errno.ESTALE, "another process has written its manifest"))
            new = replace(change(old), edition=old.edition + 1, next_file=self._next_file)
            try:
                new.save(self.files, self.path)
                with self.changing():
                    self.version = replace(self.version, manifest=new)
                    if show is not None:
                        show()
            except BaseException as error:
                edition = -1
                with suppress(Exception):
                    edition = Manifest.load(self.files, self.path).edition
                if edition != old.edition or getattr(error, "errno", 0) == errno.EIO:
                    self.fail(error)
                raise

    def discard(self, *paths: str) -> None:
        """Removes unneeded files; those that cannot be removed now are removed at the next open."""
        for path in paths:
            with suppress(OSError, SeqVaultError), self.owned():
                self.files.unlink(path)

    # ---- failing and ending

    @contextmanager
    def watching_merge(self) -> Iterator[None]:
        """Records the outcome of a merge, for callers that wait for it."""
        try:
            yield
        except BaseException as error:
            self.merge_error = error
            raise
        self.merge_error = None

    @contextmanager
    def writing(self, what: str, to_log: bool = False) -> Iterator[None]:
        """Turns disk errors into typed ones; after a failed sync, writes are refused.

        Args:
            what: the call does, for the message.
            to_log: it writes to the log, so that any EIO counts. Other calls write files of
                their own, which they can give up and write again.
        """
        try:
            with disk_full_is_typed(what):
                yield
        except OSError as error:
            if error.errno == errno.EIO and (to_log or isinstance(error, SyncError)):
                self.mark_failed(error)
            raise

    @contextmanager
    def all_or_failed(self) -> Iterator[None]:
        """After a failed sync of the log the store accepts no more writes."""
        try:
            yield
        except LogSyncError as error:
            self.fail(error.__cause__ or error)

    def mark_failed(self, error: BaseException) -> None:
        """Refuses writes from now on, because the on-disk state is unknown; keeps the first
        cause."""
        self.failed = self.failed or error

    def fail(self, error: BaseException) -> NoReturn:
        """``mark_failed``, and raises ``StoreFailedError``."""
        self.mark_failed(error)
        self.check_writable()
        raise error

    def give_up_lock(self) -> None:
        """Releases the writer's lock; nothing is published or removed from now on."""
        with self.owner:
            self.closed = True
            if self._shares is not None:
                self._shares.close(self.files, self.path)
            if self.lock_fd >= 0:
                self.files.unlock(self.lock_fd)
                self.lock_fd = -1

    def check_not_closing(self) -> None:
        """Raises ``StoreClosedError`` once ``close`` has begun, so that long calls give up."""
        if self.closing.is_set():
            raise StoreClosedError(
                f"the store at {self.path} was closed meanwhile; nothing of this call was stored."
            )

    def check_open(self) -> None:
        """Raises ``StoreClosedError`` after ``close``, ``ForkedStoreError`` in a child."""
        if self.closed or self.forked:
            raise self._ended()

    def _ended(self) -> SeqVaultError:
        if self.closed:
            return StoreClosedError(f"the store at {self.path} was closed; open it again.")
        return ForkedStoreError(
            f"the store at {self.path} was opened by process {self._process}, this one "
            f"({os.getpid()}) was forked from it. Close it before the fork, or open it again here "
            "with read_only=True."
        )

    def check_writable(self) -> None:
        """Raises unless writes are possible."""
        self.check_open()
        if self.read_only:
            raise ReadOnlyError(
                f"the store at {self.path} was opened with read_only=True; open it without."
            )
        if self.failed is not None:
            raise StoreFailedError(
                f"an earlier write to {self.path} failed ({self.failed}); reads go on, but to "
                "write again the store must be reopened."
            ) from self.failed

    # ---- around a fork; see ``memory.forks``

    def after_fork_in_child(self) -> None:
        """Makes a read-only store usable in the child, and any other refuse all calls."""
        self.lock = threading.Lock()
        self.merging, self.writing_items = threading.Lock(), threading.Lock()
        self.owner = threading.RLock()
        if self.read_only:
            self._process = os.getpid()
            return
        self.forked = True
        if self.lock_fd >= 0:  # or the parent's lock would last as long as the child
            with suppress(OSError):
                self.files.close(self.lock_fd)
            self.lock_fd = -1
