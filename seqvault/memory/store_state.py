"""What an open store consists of at one moment, and the locks that guard it."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import numpy as np

from seqvault.disk import item_file as item_files
from seqvault.disk import segment as segment_files
from seqvault.disk.files import Files, disk_full_is_typed
from seqvault.disk.manifest import Manifest
from seqvault.disk.segment import Segment
from seqvault.disk.wal import LogSyncError
from seqvault.errors import ReadOnlyError, StoreClosedError, StoreFailedError
from seqvault.memory.field_layout import Layouts
from seqvault.memory.index import Index, grown
from seqvault.memory.index_scans import live_bytes
from seqvault.memory.item_table import Items
from seqvault.memory.kernel_view import ReadView
from seqvault.memory.memtable import Memtable
from seqvault.schema import Schema

Appended = tuple[int, str, int]  # number of events, their source, their offset there


class State:
    """The manifest and all that it names, loaded, with the events of the log.

    Args:
        path: the store's directory.
        files: the file layer.
        read_only: whether writes are refused.
        clock: seconds since 1970.

    Attributes:
        lock: guards everything that readers look at; held for short moments only.
        merging: held by whoever changes the manifest: one merge, bulk load, item write
            or snapshot at a time.
        view: what ordinary reads go by. It holds on to files and memory, so whoever replaces
            segments or the memtable sets it to None; the next read makes another.
        failed: the error after which nobody knows what is on the disk.
    """

    def __init__(
        self, path: str, files: Files, read_only: bool, clock: Callable[[], float]
    ) -> None:
        self.path, self.files, self.read_only, self.clock = path, files, read_only, clock
        self.closed = False
        self.failed: BaseException | None = None
        self.lock = threading.Lock()
        self.merging = threading.Lock()
        self.manifest: Manifest
        self.schemas: list[Schema]
        self.layouts: Layouts
        self.index: Index
        self.segments: dict[int, Segment] = {}
        self.schema_of: dict[int, int]
        self.memtable: Memtable
        self.view: ReadView | None = None
        self.items: Items
        self.sources: dict[str, int]
        self.stored_events = self.live_bytes = 0

    @property
    def schema(self) -> Schema:
        """The schema in force."""
        return self.schemas[-1]

    def load(self, manifest: Manifest) -> np.ndarray:
        """Takes in the files that the manifest names, but not the log.

        Returns:
            int64 by slot: log files before this number have no events of the user that are not
            in segments. Empty if the log has no files with such events.
        """
        for number in manifest.segments:
            if not self.files.exists(segment_files.path_of(self.path, number)):
                raise FileNotFoundError(
                    f"segment {number} of {self.path} is missing; restore it from a snapshot."
                )
        schemas = [Schema.from_json(entry) for entry in manifest.schemas]
        layouts, index, items = Layouts(schemas), Index(), Items()
        segments, covered = {}, np.empty(0, np.int64)
        for number in manifest.segments:
            segment = self.segments.get(number) or Segment(self.files, self.path, number)
            segment.check_schema(layouts.columns_in)
            segments[number] = segment
            slots = index.add_records(number, *segment.footer()[:-1])
            if manifest.covers:
                covered = grown(covered, len(index.users), 0)
                covered[slots] = manifest.covers.get(str(number), 0)
        for number in manifest.items:
            items.apply(item_files.load(self.files, self.path, number, items.schema), number)
        with self.lock:
            self.manifest, self.schemas, self.layouts = manifest, schemas, layouts
            self.schema_of = {n: segment.schema_id for n, segment in segments.items()}
            self.index, self.segments, self.items = index, segments, items
            self.memtable = Memtable(self.schema)
            self.view = None
            self.sources = dict(manifest.sources)
        self.count_stored()
        return covered

    def stage(self, columns: dict[str, np.ndarray], file: int, waiting: int = 0) -> None:
        """Lays down events of the log file with the number ``file``; nobody sees them yet.

        Behind the first ``waiting`` events that are staged already; others are given up.
        """
        with self.lock:
            self.memtable.unstage(waiting)
            self.memtable.stage(self.index.add_users(columns["user_id"]), columns, file)

    def show(self, appends: Sequence[Appended]) -> None:
        """Makes the first staged events visible: those of these appends, in their order."""
        with self.lock:
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
        keep = self.manifest.retention_ms
        return max(0, round(self.clock() * 1000) - keep) if keep else 0

    def publish(self, manifest: Manifest) -> None:
        """Makes the manifest the store's.

        Raises:
            OSError: it is not the store's; everything is as it was.
            StoreFailedError: it may or may not be.
        """
        try:
            manifest.save(self.files, self.path)
        except BaseException as error:
            edition = -1
            with suppress(Exception):
                edition = Manifest.load(self.files, self.path).edition
            if edition != self.manifest.edition:
                self.fail(error)
            raise
        self.manifest = manifest

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """Types the errors of the disk; after others than a full one writes are refused."""
        try:
            with disk_full_is_typed(what):
                yield
        except OSError as error:
            if error.errno == errno.EIO:
                self.failed = self.failed or error
            raise

    @contextmanager
    def all_or_failed(self) -> Iterator[None]:
        """After a failed sync of the log the store accepts no more writes."""
        try:
            yield
        except LogSyncError as error:
            self.fail(error.__cause__ or error)

    def fail(self, error: BaseException) -> NoReturn:
        """Accepts no more writes, because nobody knows what is on the disk."""
        self.failed = self.failed or error
        self.check_writable()
        raise error

    def discard(self, *paths: str) -> None:
        """Removes files that nothing needs; what cannot go now goes at the next open."""
        for path in paths:
            with suppress(OSError):
                self.files.unlink(path)

    def check_open(self) -> None:
        """Raises ``StoreClosedError`` after ``close``."""
        if self.closed:
            raise StoreClosedError(f"the store at {self.path} was closed; open it again.")

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
