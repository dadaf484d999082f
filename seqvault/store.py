"""SeqVault itself: the one file that knows all the parts."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seqvault import items as item_files
from seqvault import segment as segment_files
from seqvault import wal
from seqvault.codec import kernels
from seqvault.errors import (
    DamagedFileError,
    InvalidRequestError,
    LimitError,
    ReadOnlyError,
    SchemaError,
    StoreClosedError,
    StoreFailedError,
    StoreLockedError,
    StoreNotFoundError,
    WrongTypeError,
)
from seqvault.events import NO_BOUND, check_times, to_bits, to_columns
from seqvault.files import Files, disk_full_is_typed
from seqvault.index import Index, for_kernel
from seqvault.item_batch import ItemBatch
from seqvault.items import Items
from seqvault.manifest import NAME as MANIFEST_NAME
from seqvault.manifest import Manifest
from seqvault.memtable import Memtable
from seqvault.schema import Schema
from seqvault.segment import Segment
from seqvault.sequence_batch import SequenceBatch

MAX_LAST_N = 1 << 20
MAX_READ_EVENTS = 1 << 28  # cells of one answer
MAX_EXTENTS = 2  # beside the base
FOLD_AT = 4  # fold when the tail reaches 1/4 of the base
MERGE_EVENTS = 1 << 19  # events packed at a time
LOAD_EVENTS = 1 << 21  # events of a bulk load held in memory
LONG_RECORD = 1 << 15  # bytes; of longer ones only the blocks needed are read
BUFFER_BYTES = 1 << 24  # of records that a thread keeps room for
LOG_EVENTS = 1 << 26  # not in segments yet; more are refused
DEAD_SHARE = 0.5  # of a segment; more is rewritten


@dataclass(frozen=True)
class _Found:
    """What a read needs, taken under the lock; none of it changes afterwards."""

    users: np.ndarray
    starts: np.ndarray
    segments: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    open_segments: dict[int, Segment]
    schema_ids: np.ndarray
    mem_starts: np.ndarray
    mem_rows: np.ndarray
    mem_columns: dict[str, np.ndarray]
    mem_arrivals: np.ndarray
    version: np.ndarray


@dataclass(frozen=True)
class _Layout:
    """Types, sizes, defaults and columns (per schema) of the fields of a read."""

    dtypes: list[np.dtype[Any]]
    sizes: np.ndarray
    defaults: np.ndarray
    columns_of: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """Which stored event goes where: what ``unpack_column`` needs for each field."""

    found: _Found
    data: np.ndarray
    blocks: int
    block_arrays: tuple[np.ndarray, ...]
    dest: np.ndarray
    mem_dest: np.ndarray
    counts: np.ndarray


class SeqVault:
    """A store of users' event histories in one directory.

    Any number of threads may use one object; one object in one process may have the
    store open for writing, others open it with ``read_only=True``.

    Example:
        >>> import tempfile, pyarrow as pa
        >>> from seqvault import Schema, SeqVault
        >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
        >>> with SeqVault.open(tempfile.mkdtemp() + "/vault", schema=schema) as vault:
        ...     _ = vault.append({"user_id": [7, 7], "timestamp": [1000, 2000], "item_id": [5, 6]})
        ...     batch = vault.read([7, 8], before=2001, last_n=3)
        ...     print(batch["item_id"].tolist(), batch.lengths.tolist())
        [[6, 5, 0], [0, 0, 0]] [2, 0]
    """

    def __init__(
        self, path: str, files: Files, read_only: bool, clock: Callable[[], float]
    ) -> None:
        """Use ``SeqVault.open``."""
        self._clock = clock
        self.path = path
        self.read_only = read_only
        self._files = files
        self._lock_fd = -1
        self._closed = False
        self._failed: BaseException | None = None
        self._state = threading.Lock()  # guards everything that readers look at
        self._merging = threading.Lock()  # one merge, item write or snapshot at a time
        self._local = threading.local()
        self._log = threading.Condition()  # guards the log and the queue behind it
        self._queue: list[tuple[dict[str, np.ndarray], str, int]] = []
        self._in_flight: list[tuple[dict[str, np.ndarray], str, int]] = []
        self._syncing = False
        self._written = self._applied = 0  # appends handed to the log, and visible
        self._writer: wal.WalWriter | None = None

    # ---- opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        schema: Schema | None = None,
        read_only: bool = False,
        retention_ms: int | None = None,
        max_events: int | None = None,
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> "SeqVault":
        """Opens the store at ``path``; with a ``schema`` it is created if not there.

        Args:
            path: a directory.
            schema: fields of an event. For an existing store: the store's own, or one
                that extends it by new fields at the end or by wider integers, which
                then becomes the store's. None takes the store's.
            read_only: see what is on disk as of now (and of each ``refresh``) while
                another process may be writing.
            retention_ms: events older than this are not read, and dropped when a merge
                rewrites them; 0: kept for ever. None: as the store has it.
            max_events: a merge that rewrites a user keeps only that many of the newest
                events; 0: all. None: as the store has it.
            files, clock: file layer and seconds since 1970, for tests.

        Raises:
            StoreNotFoundError: no store there and no schema given.
            StoreLockedError: it is open for writing elsewhere.
            SchemaError: the store has another schema, which the one given does not extend.
            NewerFormatError, DamagedFileError: see there.
        """
        for name, value in (("retention_ms", retention_ms), ("max_events", max_events)):
            if value is not None and value < 0:
                raise InvalidRequestError(f"{name} must be 0 (no limit) or more; got {value}.")
        store = cls(os.path.abspath(os.fspath(path)), files or Files(), read_only, clock)
        try:
            if read_only:
                store._load_for_reading()
            else:
                store._load_for_writing(schema, retention_ms, max_events)
            if schema is not None and schema != store.schema:
                raise SchemaError(
                    f"the store at {store.path} has the schema {store.schema.to_json()}, the one "
                    f"given is {schema.to_json()}. Open it without a schema, or with its own."
                )
        except BaseException:
            store.close()
            raise
        return store

    def _load_for_writing(
        self, schema: Schema | None, retention_ms: int | None, max_events: int | None
    ) -> None:
        if schema is None and not self._files.exists(f"{self.path}/{MANIFEST_NAME}"):
            raise StoreNotFoundError(
                f"no SeqVault store at {self.path}; create one with a schema "
                "(SeqVault.open(path, schema=...) or `seqvault init`)."
            )
        with disk_full_is_typed(f"open {self.path}"):
            for folder in ("", "/segments", "/wal", "/items"):
                self._files.make_directory(self.path + folder)
            try:
                self._lock_fd = self._files.lock(f"{self.path}/LOCK")
            except BlockingIOError:
                raise StoreLockedError(
                    f"the store at {self.path} is already open for writing; close it there, or "
                    "open it here with read_only=True."
                ) from None
            if not self._files.exists(f"{self.path}/{MANIFEST_NAME}"):
                assert schema is not None
                Manifest(schemas=[schema.to_json()]).save(self._files, self.path)
            self._load(self._configured(schema, retention_ms, max_events))
            last, end, data = self._replay()
            number = max(last + 1, self._manifest.wal_start)
            if data is not None and end == wal.FIRST:
                number = last  # a file without events is begun anew
            elif data is not None and not wal.is_sealed(data, end, last):
                wal.repair(self._files, self.path, last, data, end)
            self._remove_strangers(last)
            self._writer = wal.WalWriter(self._files, self.path, number)
            self._writer.begin()

    def _configured(
        self, schema: Schema | None, retention_ms: int | None, max_events: int | None
    ) -> Manifest:
        """The manifest, with a schema and limits that are new put into force."""
        old = Manifest.load(self._files, self.path)
        new = replace(
            old,
            retention_ms=old.retention_ms if retention_ms is None else retention_ms,
            max_events=old.max_events if max_events is None else max_events,
        )
        present = Schema.from_json(old.schemas[-1])
        if schema is not None and schema != present:
            schema.check_extends(present)
            new = replace(new, schemas=[*old.schemas, schema.to_json()])
        if new != old:
            new = replace(new, edition=old.edition + 1)
            new.save(self._files, self.path)
        return new

    def _load_for_reading(self) -> None:
        for _ in range(20):  # the writer may publish while we look
            manifest = Manifest.load(self._files, self.path)
            try:
                self._load(manifest)
                self._replay()
            except (FileNotFoundError, DamagedFileError):
                if Manifest.load(self._files, self.path).edition == manifest.edition:
                    raise
                continue
            if Manifest.load(self._files, self.path).edition == manifest.edition:
                return
        raise StoreFailedError(f"{self.path} changes faster than it can be opened; try again.")

    def _load(self, manifest: Manifest) -> None:
        """Builds the state in memory from the files the manifest names, but the log."""
        for number in manifest.segments:
            if not self._files.exists(segment_files.path_of(self.path, number)):
                raise FileNotFoundError(
                    f"segment {number} of {self.path} is missing; restore it from a snapshot."
                )
        schemas = [Schema.from_json(entry) for entry in manifest.schemas]
        index, items = Index(), Items()
        segments = {}
        known = getattr(self, "_segments", {})
        for number in manifest.segments:
            segment = known.get(number) or Segment(self._files, self.path, number)
            segments[number] = segment
            index.add_records(
                number, segment.users, segment.offsets, segment.lengths, segment.counts,
                segment.kinds, segment.arrivals,
            )  # fmt: skip
        for number in manifest.items:
            items.apply(item_files.load(self._files, self.path, number), number)
        with self._state:
            self._manifest, self._schemas = manifest, schemas
            self.schema = schemas[-1]
            self._column_of = self._column_table()
            self._layouts: dict[tuple[str, ...], _Layout] = {}
            self._columns_in = np.array([2 + len(schema.fields) for schema in schemas])
            self._schema_of = {n: segment.schema_id for n, segment in segments.items()}
            self._index, self._segments, self._items = index, segments, items
            self._memtable = Memtable(self.schema)
            self._sources = dict(manifest.sources)
        self._count_stored()

    def _count_stored(self) -> None:
        """Sums for ``stats``; to be called where nothing else changes the index."""
        everybody = np.arange(len(self._index.users), dtype=np.int64)
        _, _, _, lengths, counts = self._index.extents(everybody)
        self._stored = (int(counts.sum()), int(lengths.sum()))

    def _replay(self) -> tuple[int, int, np.ndarray | None]:
        """Takes in the log; returns the last file's number, sound length and bytes."""
        names = []
        if self._files.exists(f"{self.path}/wal"):  # copies may lack empty directories
            names = self._files.list_directory(f"{self.path}/wal")
        numbers = sorted(int(name[:-4]) for name in names if name.endswith(".wal"))
        numbers = [number for number in numbers if number >= self._manifest.wal_start]
        if numbers and numbers != list(range(self._manifest.wal_start, numbers[-1] + 1)):
            raise DamagedFileError(
                f"log files of {self.path} are missing: there are {numbers}, the first must be "
                f"{self._manifest.wal_start}. Restore the store from a snapshot or a replica."
            )
        end, data = 0, None
        for number in numbers:
            data = wal.read_file(self._files, self.path, number)
            end = wal.FIRST
            path = wal.path_of(self.path, number)
            for frame in wal.scan(data, number, path, sealed=number != numbers[-1]):
                self._apply(self._decode_frame(frame, path), frame.source, frame.offset)
                end = frame.end
        return (numbers[-1] if numbers else 0), end, data

    def _decode_frame(self, frame: wal.Frame, path: str) -> dict[str, np.ndarray]:
        if frame.schema_id >= len(self._schemas):
            raise DamagedFileError(f"{path} names a schema that the manifest does not have.")
        schema = self._schemas[frame.schema_id]
        columns, position = {}, 0
        for name in ("user_id", "timestamp", *schema.names):
            dtype = schema.dtype(name)
            size = frame.count * dtype.itemsize
            columns[name] = np.frombuffer(frame.payload[position : position + size], dtype)
            position += size
        for field in self.schema.fields:  # the frame may be older than the schema in force
            if field.name not in columns:
                columns[field.name] = np.full(frame.count, field.default, field.dtype)
        return columns

    def _remove_strangers(self, last_log: int) -> None:
        """Removes what a crash left behind: files that the manifest does not name."""
        keep = {
            "segments": {f"{n:010d}.seg" for n in self._manifest.segments},
            "items": {f"{n:010d}.items" for n in self._manifest.items},
            "wal": {f"{n:010d}.wal" for n in range(self._manifest.wal_start, last_log + 1)},
        }
        for folder, names in keep.items():
            for name in self._files.list_directory(f"{self.path}/{folder}"):
                if name not in names and name.split(".")[0].isdigit():
                    self._files.unlink(f"{self.path}/{folder}/{name}")

    def close(self) -> None:
        """Closes the store; everything appended is already durable."""
        if self._closed:
            return
        with self._log:
            while self._syncing:
                self._log.wait()
            self._closed = True
            if self._writer is not None:
                if self._failed is None:
                    with suppress(OSError):  # without a seal the next open repairs the file
                        self._writer.seal()
                self._writer.close()
                self._writer = None
        if self._lock_fd >= 0:
            self._files.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> "SeqVault":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the store at {self.path} was closed; open it again.")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise ReadOnlyError(
                f"the store at {self.path} was opened with read_only=True; open it without."
            )
        if self._failed is not None:
            raise StoreFailedError(
                f"an earlier write to {self.path} failed ({self._failed}); reads go on, but to "
                "write again the store must be reopened."
            ) from self._failed

    def refresh(self) -> bool:
        """Read-only stores: sees what has been written since; True if anything was."""
        self._check_open()
        if not self.read_only:
            return False
        before = (self._manifest.edition, self._memtable.size)
        self._load_for_reading()
        return before != (self._manifest.edition, self._memtable.size)

    # ---- writing

    def append(self, events: Any, source: str = "", offset: int = -1) -> int:
        """Stores events; durable and visible to every later read when it returns.

        Args:
            events: Arrow table or record batch, pandas data frame or dict of arrays
                with ``user_id``, ``timestamp`` (int64, ms) and all fields. Any order;
                events of one user and time keep their order.
            source: name of what the events come from, for instance a log partition.
            offset: position in the source. Events of a source at an offset that was
                stored before are left out, so that a replay changes nothing.

        Returns:
            The number of events stored.

        Raises:
            InvalidRequestError: and its kinds; nothing was stored.
            DiskFullError: nothing was stored; try again when there is room.
            ReadOnlyError, StoreFailedError, StoreClosedError: see there.
        """
        self._check_writable()
        columns = to_columns(events, self.schema)
        count = len(columns["user_id"])
        if count == 0:
            return 0
        payload = b"".join(column.tobytes() for column in columns.values())
        if len(payload) >= 1 << 30:
            raise LimitError(
                f"events of one append take {len(payload)} bytes; the limit is {1 << 30}. "
                "Split them, or use bulk_load."
            )
        if self._memtable.size + count > LOG_EVENTS:
            raise LimitError(
                f"{self._memtable.size} events are in the log, the limit is {LOG_EVENTS}; call "
                "merge(), then append again."
            )
        with self._log:
            self._check_writable()
            assert self._writer is not None
            if source and offset <= self._sources_in_queue(source):
                # still in the queue: durable when everything before us is
                ticket = self._written
                count = 0
            else:
                self._rotate(len(payload))
                with disk_full_is_typed("append events"):
                    self._writer.write(len(self._schemas) - 1, source, offset, count, payload)
                self._queue.append((columns, source, offset))
                self._written += 1
                ticket = self._written
            while self._applied < ticket:
                if self._failed is not None:
                    self._check_writable()
                if self._syncing:
                    self._log.wait()
                else:
                    self._sync_queue()
        return count

    def _sources_in_queue(self, source: str) -> int:
        marks = [self._sources.get(source, -1)]
        waiting = self._in_flight + self._queue
        return max(marks + [offset for _, name, offset in waiting if name == source])

    def _sync_queue(self) -> None:
        """Syncs the log for everybody who waits, then makes their events visible."""
        assert self._writer is not None
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
                self._apply(columns, source, offset)
            self._applied = upto
            self._in_flight = []
        else:
            # what a failed sync left on the disk nobody knows: no retry
            self._failed = error
        self._log.notify_all()
        if error is not None:
            self._check_writable()

    def _rotate(self, size: int) -> None:
        """Starts a new log file if the present one has no room for ``size`` bytes."""
        assert self._writer is not None
        if self._writer.position + size <= wal.FILE_SIZE or self._writer.position <= wal.FIRST:
            return
        while self._syncing or self._queue:
            if self._syncing:
                self._log.wait()
            else:
                self._sync_queue()
        self._start_log_file()

    def _start_log_file(self) -> None:
        """Seals the log file and starts the next; nothing may be waiting."""
        assert self._writer is not None
        with disk_full_is_typed("start a log file"):
            fresh = wal.WalWriter(self._files, self.path, self._writer.number + 1)
            try:
                self._writer.seal()
                fresh.begin()
            except BaseException as error:
                self._failed = error
                fresh.discard()
                raise
            self._writer.close()
            self._writer = fresh

    def _apply(self, columns: dict[str, np.ndarray], source: str, offset: int) -> None:
        with self._state:
            slots = self._index.add_users(columns["user_id"])
            self._memtable.append(slots, columns, self._index.arrivals)
            if source:
                self._sources[source] = max(self._sources.get(source, -1), offset)

    # ---- reading

    def read(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
    ) -> SequenceBatch:
        """Reads the newest events of each user strictly before a time.

        Args:
            user_ids: int64 [B]; an unknown user has an empty history.
            before: int64 milliseconds, one for all or [B]. None: no bound.
            last_n: L, the most events per user, at least 1.
            scenarios, actions: keep only events whose scenario (action) is one of
                these; the fields are those with that role in the schema.
            fields: which fields to return; None: ``timestamp`` and all.
            version: ``SequenceBatch.version`` of an earlier read of these users, to
                see what that read saw.

        Returns:
            ``SequenceBatch`` with [B, L] arrays, newest first, 0 behind the end.

        Raises:
            InvalidRequestError: and its kinds (unknown field, wrong type, a time in
                seconds, last_n below 1).
            LimitError: the answer would be too large.
            DamagedFileError: a record's checksum does not fit.
        """
        plan, names, answer = self._plan_request(
            user_ids, before, last_n, scenarios, actions, fields, version
        )
        rows = len(plan.counts)
        row_starts = np.arange(rows, dtype=np.int64) * int(last_n)
        flat = self._unpack(plan, names, row_starts, rows * int(last_n))
        columns = {name: values.reshape(rows, int(last_n)) for name, values in flat.items()}
        return SequenceBatch(plan.found.users, plan.counts.astype(np.int32), columns, answer)

    def read_ragged(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """``read`` without padding, as it goes over a network.

        Returns:
            int32 [B] lengths, int64 [B] version, and by field name flat arrays of one
            user's events behind the other's.
        """
        plan, names, answer = self._plan_request(
            user_ids, before, last_n, scenarios, actions, fields, version
        )
        row_starts = np.cumsum(plan.counts) - plan.counts
        columns = self._unpack(plan, names, row_starts, int(plan.counts.sum()))
        return plan.counts.astype(np.int32), answer, columns

    def _plan_request(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None,
        actions: Sequence[int] | None,
        fields: Sequence[str] | None,
        version: np.ndarray | None,
    ) -> tuple[_Plan, tuple[str, ...], np.ndarray]:
        """Checks a read and plans it; also the fields and the version of the answer."""
        self._check_open()
        users = ids_of(user_ids, "user_ids")
        rows = len(users)
        if isinstance(last_n, bool) or not isinstance(last_n, int | np.integer) or last_n < 1:
            raise InvalidRequestError(f"last_n must be a whole number of at least 1; got {last_n}.")
        if last_n > MAX_LAST_N or rows * last_n > MAX_READ_EVENTS:
            raise LimitError(
                f"a read of {rows} users times last_n={last_n} is beyond the limit of "
                f"{MAX_LAST_N} events a user and {MAX_READ_EVENTS} a call; ask for less."
            )
        names = self.schema.select(fields)
        bound = bounds_of(before, rows)
        seen = np.full(rows, -1, np.int64)
        if version is not None:
            seen = ids_of(version, "version")
            if len(seen) != rows or (seen < 0).any():
                raise InvalidRequestError(
                    f"version must be the {rows} numbers of an earlier read of these users."
                )
        filters = self._filters(scenarios, actions)
        found = self._find(users)
        wanted = np.empty(rows, np.int64)
        wanted[:] = last_n
        plan = self._plan(found, bound, wanted, seen, filters)
        answer = found.version if version is None else np.minimum(seen, found.version)
        return plan, names, answer

    def _filters(
        self, scenarios: Sequence[int] | None, actions: Sequence[int] | None
    ) -> list[tuple[str, np.ndarray]]:
        filters = []
        for role, wanted in (("scenario", scenarios), ("action", actions)):
            if wanted is None:
                continue
            field = self.schema.with_role(role)
            if field is None:
                raise InvalidRequestError(
                    f"{role}s were given but no field has the role {role!r}; set "
                    f"seqvault.role={role} in the metadata of one, or leave {role}s out."
                )
            filters.append((field.name, np.unique(ids_of(wanted, f"{role}s"))))
        return filters

    def _find(self, users: np.ndarray, mem_limit: int | None = None) -> _Found:
        with self._state:
            slots = self._index.users.find(users)
            starts, segments, offsets, lengths, counts = self._index.extents(slots)
            limit = self._memtable.size if mem_limit is None else mem_limit
            mem_starts, mem_rows = self._memtable.rows(slots, limit)
            version = np.where(slots >= 0, self._index.arrivals[np.maximum(slots, 0)], 0)
            schema_ids = np.array([self._schema_of[n] for n in segments.tolist()], np.int64)
            return _Found(
                users, starts, segments, offsets, lengths, counts, self._segments, schema_ids,
                mem_starts, mem_rows, dict(self._memtable.columns), self._memtable.arrivals,
                version,
            )  # fmt: skip

    def _fetch(
        self, found: _Found, before: np.ndarray | None, last_n: np.ndarray
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
                blocks = -(-int(found.counts[r]) // kernels.BLOCK)
                size = 16 + 12 * blocks
                segment = found.open_segments[int(segments[r])]
                head = self._files.read_all(segment.fd, size, int(offsets[r]))
                if len(head) != size:
                    raise DamagedFileError(f"{segment.path} is shorter than its footer says.")
                entries = head[12 : 12 + 12 * blocks].view([("first", "<i8"), ("end", "<u4")])
                stop = int(np.searchsorted(entries["first"], before[row]))
                start = stop - 1 - -(-int(min(last_n[row], MAX_LAST_N)) // kernels.BLOCK)
                if start > 0:
                    first_blocks[r] = start
                    shifts[r] = int(entries["end"][start - 1]) - size
                    if not 0 <= shifts[r] < lengths[r] - size:
                        shifts[r] = first_blocks[r] = 0  # damaged: read it whole and be told
                        continue
                    sizes[r] = lengths[r] - shifts[r]
                    heads[r] = head
        ends = np.cumsum(sizes)
        starts = ends - sizes
        total = int(ends[-1]) if many else 0
        data = self._buffer(total + kernels.PADDING)
        targets = starts.copy()
        for r, head in heads.items():
            data[starts[r] : starts[r] + len(head)] = head
            targets[r] += len(head)
            sizes[r] -= len(head)
            offsets = offsets.copy() if offsets is found.offsets else offsets
            offsets[r] += len(head) + shifts[r]
        fds = np.array([found.open_segments[n].fd for n in segments.tolist()], np.int64)
        short = self._files.read_many(fds, offsets, sizes, data, targets)
        if short >= 0:
            path = found.open_segments[int(segments[short])].path
            raise DamagedFileError(f"{path} is shorter than its footer says.")
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

    def _layout(self, names: tuple[str, ...]) -> "_Layout":
        """What is the same for all reads of these fields."""
        known = self._layouts.get(names)
        if known is None:
            dtypes = [
                np.dtype("int64") if name == "" else self.schema.dtype(name) for name in names
            ]
            defaults = np.zeros(len(names), np.uint64)
            for c, name in enumerate(names):
                if name in self.schema.names and self.schema.field(name).default:
                    value = np.array([self.schema.field(name).default]).astype(dtypes[c])
                    defaults[c] = to_bits(value).view(np.uint64)[0]
            rows, table = self._column_of
            known = _Layout(
                dtypes,
                np.array([dtype.itemsize for dtype in dtypes], np.int64),
                defaults,
                table[[rows[name] for name in names]],
            )
            self._layouts[names] = known
        return known

    def _column_table(self) -> tuple[dict[str, int], np.ndarray]:
        """Rows of a table by field name ("" is the arrival number), and the table: the
        field's column in records of each schema, -1 where they lack it."""
        names = ("timestamp", "", *self.schema.names)
        table = np.empty((len(names), len(self._schemas)), np.int64)
        for s, schema in enumerate(self._schemas):
            known = ("timestamp", "", *schema.names)
            table[:, s] = [known.index(name) if name in known else -1 for name in names]
        return {name: row for row, name in enumerate(names)}, table

    def _plan(
        self,
        found: _Found,
        before: np.ndarray,
        last_n: np.ndarray,
        version: np.ndarray,
        filters: Sequence[tuple[str, np.ndarray]],
    ) -> _Plan:
        whole = bool(filters) or bool((version >= 0).any())
        data, records, shifts, first_blocks = self._fetch(found, None if whole else before, last_n)
        rows, many = len(found.users), len(records)
        record_columns = self._columns_in[found.schema_ids]
        filter_columns = np.empty((len(filters), many), np.int64)
        mem_keep = np.ones(len(found.mem_rows), np.bool_)
        for f, (name, wanted) in enumerate(filters):
            column = self._column_of[1][self._column_of[0][name]][found.schema_ids]
            default = np.isin(self.schema.field(name).default, wanted)
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
        most = int(((found.counts + (kernels.BLOCK - 1)) // kernels.BLOCK).sum())
        block_arrays = tuple(np.empty((10, most), np.int64))
        dest = np.empty((most, kernels.BLOCK), np.int32)
        mem_dest = np.full(len(found.mem_rows), -1, np.int32)
        counts = np.zeros(rows, np.int64)
        blocks, status, record = kernels.plan_read(  # type: ignore[call-arg]
            data, records, found.lengths, shifts, first_blocks, record_columns,
            found.starts, found.users,
            found.mem_starts, found.mem_columns["timestamp"][found.mem_rows], mem_keep,
            before, np.full(rows, self._oldest(), np.int64), last_n, version,
            filter_columns, filter_starts, filter_values,
            *block_arrays, dest, mem_dest, counts,
        )  # fmt: skip
        self._check_status(status, record, found)
        return _Plan(found, data, blocks, block_arrays, dest, mem_dest, counts)

    def _oldest(self) -> int:
        """Time from which on events are kept."""
        keep = self._manifest.retention_ms
        return max(0, int(self._clock() * 1000) - keep) if keep else 0

    def _check_status(self, status: int, record: int, found: _Found) -> None:
        if status == kernels.OK:
            return
        segment = found.open_segments[int(found.segments[record])]
        what = {kernels.BAD_HEADER: "header", kernels.BAD_BLOCK: "checksum"}.get(status, "content")
        raise DamagedFileError(
            f"{segment.path} is damaged: the {what} of the record at byte "
            f"{int(found.offsets[record])} is wrong. Restore it from a snapshot or a replica."
        )

    def _unpack(
        self, plan: _Plan, names: Sequence[str], row_starts: np.ndarray, places: int
    ) -> dict[str, np.ndarray]:
        """Flat arrays of ``places`` values per field; "" is the arrival number."""
        found, layout = plan.found, self._layout(tuple(names))
        sizes = layout.sizes
        padded = (sizes * places + 63) & ~63
        ends = padded.cumsum()
        out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
        outputs = ends - padded
        status, record = kernels.unpack_columns(  # type: ignore[call-arg]
            plan.data, plan.blocks, *plan.block_arrays, plan.dest,
            layout.columns_of[:, found.schema_ids], layout.defaults, sizes, outputs,
            row_starts, out,
        )  # fmt: skip
        self._check_status(status, record, found)
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

    # ---- merging

    def merge(self) -> dict[str, int]:
        """Moves what is in the log into segments and tidies segments up.

        Returns:
            Counts: ``users`` and ``events`` written, ``bytes`` of the new segment.

        Raises:
            DiskFullError: the store is as it was.
        """
        self._check_writable()
        with self._merging, disk_full_is_typed("merge"):
            return self._merge()

    def _merge(self) -> dict[str, int]:
        with self._log:
            self._check_writable()
            while self._syncing or self._queue:
                if self._syncing:
                    self._log.wait()
                else:
                    self._sync_queue()
            assert self._writer is not None
            if self._writer.position > wal.FIRST:
                self._start_log_file()
            wal_start = self._writer.number
            with self._state:
                limit = self._memtable.size
                sources = dict(self._sources)
                in_memory = self._memtable.slots[:limit]
                keys = self._index.users.keys
                arrived = self._index.arrivals[: len(keys)].copy()
        # only merges change what follows, so readers and appends need not wait
        touched, tails = np.unique(in_memory, return_counts=True)
        rewrite = self._worn_segments()
        starts, segments, _, _, counts = self._index.extents(np.arange(len(keys), dtype=np.int64))
        # users of whom nothing is left are carried on, for their arrival numbers
        spent = [self._segments[n].users[self._segments[n].counts == 0] for n in rewrite]
        with self._state:
            carried = self._index.users.find(np.concatenate([np.empty(0, np.int64), *spent]))
        owner = np.repeat(np.arange(len(keys)), np.diff(starts))
        worn = np.unique(owner[np.isin(segments, rewrite)])
        worn = np.union1d(worn, carried)
        slots = np.union1d(touched, worn).astype(np.int64)
        if not len(slots):
            return {"users": 0, "events": 0, "bytes": 0}
        tail = np.zeros(len(keys), np.int64)
        tail[touched] = tails
        extents = np.diff(starts)
        stored = np.bincount(owner, weights=counts, minlength=len(keys)).astype(np.int64)
        base = np.zeros(len(keys), np.int64)
        base[extents > 0] = counts[starts[:-1][extents > 0]]
        kinds = np.where(extents > MAX_EXTENTS, segment_files.TAIL, segment_files.EXTENT)
        kinds[FOLD_AT * (stored - base + tail) >= base] = segment_files.BASE
        kinds[worn.astype(np.int64)] = segment_files.BASE
        users = keys[slots]
        order = np.argsort(users)
        users, slots = users[order], slots[order]
        kinds, arrived = kinds[slots], arrived[slots]
        work = np.where(kinds == segment_files.BASE, stored[slots], 0) + tail[slots]
        number = self._manifest.next_file
        written = {"users": 0, "events": 0}

        def parts() -> Iterable[segment_files.Packed]:
            for first, last in _slices(work, MERGE_EVENTS):
                part = slice(first, last)
                packed = self._pack_users(users[part], kinds[part], arrived[part], limit)
                written["users"] += len(packed.users)
                written["events"] += int(packed.counts.sum())
                yield packed

        path = segment_files.path_of(self.path, number)
        try:
            size = segment_files.write(
                self._files, self.path, number, len(self._schemas) - 1,
                2 + len(self.schema.fields), parts(),
            )  # fmt: skip
        except BaseException:
            self._discard(path + ".tmp", path)
            raise
        fresh = Segment(self._files, self.path, number)
        manifest = replace(
            self._manifest,
            segments=[*(n for n in self._manifest.segments if n not in rewrite), number],
            wal_start=wal_start,
            next_file=number + 1,
            edition=self._manifest.edition + 1,
            sources=sources,
        )
        self._publish(manifest)
        with self._state:
            self._segments = {
                **{n: s for n, s in self._segments.items() if n not in rewrite},
                number: fresh,
            }
            self._schema_of[number] = fresh.schema_id
            self._index.add_records(
                number, fresh.users, fresh.offsets, fresh.lengths, fresh.counts, fresh.kinds,
                fresh.arrivals,
            )  # fmt: skip
            self._memtable = self._memtable.rest(limit, self._index.arrivals)
        self._count_stored()
        for worn_number in rewrite:
            self._discard(segment_files.path_of(self.path, worn_number))
        for name in self._files.list_directory(f"{self.path}/wal"):
            if name.endswith(".wal") and int(name[:-4]) < wal_start:
                self._discard(f"{self.path}/wal/{name}")
        return {**written, "bytes": size}

    def _worn_segments(self) -> list[int]:
        """Numbers of segments most of whose bytes are no longer in use."""
        live, oldest = self._index.live_bytes(), self._oldest()
        return [
            number
            for number, segment in self._segments.items()
            if live.get(number, 0) - int(segment.lengths[segment.last_times < oldest].sum())
            < (1 - DEAD_SHARE) * int(segment.lengths.sum())
        ]

    def _publish(self, manifest: Manifest) -> None:
        """Makes the manifest the store's. A failed sync leaves unknown what is on disk."""
        try:
            manifest.save(self._files, self.path)
        except BaseException as error:
            self._failed = error
            raise
        self._manifest = manifest

    def _discard(self, *paths: str) -> None:
        """Removes files that nothing needs; what cannot go now goes at the next open."""
        for path in paths:
            with suppress(OSError):
                self._files.unlink(path)

    def _pack_users(
        self, users: np.ndarray, kinds: np.ndarray, arrivals: np.ndarray, limit: int
    ) -> segment_files.Packed:
        """Packs users' events in memory with those of the records that it will replace."""
        found = self._find(users, limit)
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
        most = np.full(rows, self._manifest.max_events or NO_BOUND, np.int64)
        plan = self._plan(found, every, most, np.full(rows, -1, np.int64), [])
        starts = np.concatenate([[0], np.cumsum(plan.counts)])
        total = int(starts[-1])
        columns = np.empty((2 + len(self.schema.fields), total), np.int64)
        # the plan is newest first: turn each user's events around
        backward = np.repeat(starts[:-1] + starts[1:] - 1, plan.counts) - np.arange(total)
        names = ("timestamp", "", *self.schema.names)
        unpacked = self._unpack(plan, names, starts[:-1], total)
        for c, name in enumerate(names):
            columns[c] = to_bits(unpacked[name])[backward]
        return segment_files.pack(users, starts, columns, kinds, arrivals)

    def bulk_load(self, source: Any) -> int:
        """Loads life-cycle history past the log; durable when it returns.

        Much faster than ``append`` for large amounts. A crash in the middle may leave
        a first part of the events stored.

        Args:
            source: path or paths of Parquet files, or Arrow tables or record batches,
                one or an iterable of them. Best sorted by (user_id, timestamp).

        Returns:
            The number of events loaded.
        """
        self._check_writable()
        total = 0
        with self._merging, disk_full_is_typed("load events"):
            for batch in batches_of(source):
                columns = to_columns(batch, self.schema)
                if len(columns["user_id"]):
                    self._apply(columns, "", -1)
                total += len(columns["user_id"])
                if self._memtable.size >= LOAD_EVENTS:
                    self._merge()
            self._merge()
        return total

    # ---- items

    def put_items(self, table: Any) -> int:
        """Stores side information of items; durable when it returns.

        Args:
            table: Arrow table, record batch, pandas data frame or dict with
                ``item_id`` (int64, each once) and columns of integers, floats,
                strings or fixed-size lists of floats. Known items are replaced. All
                calls must give the same columns.

        Returns:
            The version number of the item table from now on.

        Raises:
            InvalidRequestError: and its kinds; nothing was stored.
            DiskFullError: nothing was stored.
        """
        self._check_writable()
        checked = item_files.to_table(table)
        with self._merging, disk_full_is_typed("store items"):
            self._items.check(checked)
            manifest = self._manifest
            number = manifest.next_file
            listed = [*manifest.items, number]
            stored = checked
            if len(manifest.items) >= 8:  # one file again, so that opening stays quick
                whole = Items()
                for old in manifest.items:
                    whole.apply(item_files.load(self._files, self.path, old), old)
                whole.apply(checked, number)
                listed, table_now = [number], whole.to_table()
                assert table_now is not None
                stored = table_now
            try:
                item_files.save(self._files, self.path, number, stored)
            except BaseException:
                self._discard(item_files.path_of(self.path, number) + ".tmp")
                raise
            self._publish(
                replace(manifest, items=listed, next_file=number + 1, edition=manifest.edition + 1)
            )
            with self._state:
                self._items.apply(checked, number)
            for old in manifest.items:
                if old not in listed:
                    self._discard(item_files.path_of(self.path, old))
        return number

    def read_items(self, ids: Any, fields: Sequence[str] | None = None) -> ItemBatch:
        """Reads side information.

        Args:
            ids: int64 of any shape.
            fields: which fields; None: all.

        Returns:
            ``ItemBatch`` with arrays of the ids' shape (plus ``[d]`` for vectors).

        Raises:
            UnknownFieldError, WrongTypeError: see there.
        """
        self._check_open()
        with self._state:
            return self._items.read(ids, fields)

    @property
    def item_schema(self) -> pa.Schema | None:
        """Arrow schema of the item table, None before the first ``put_items``."""
        return self._items.schema

    # ---- care

    def verify(self) -> dict[str, int]:
        """Reads and checks every byte that the store relies on.

        Returns:
            Counts: ``segments``, ``records``, ``events``, ``items``, ``bytes``.

        Raises:
            DamagedFileError: names the file and the place.
        """
        self._check_open()
        with self._state:
            segments, manifest = dict(self._segments), self._manifest
        checked = {"segments": 0, "records": 0, "events": 0, "items": 0, "bytes": 0}
        for number, segment in segments.items():
            again = Segment(self._files, self.path, number)  # header, footer and trailer
            there = np.flatnonzero(again.counts)
            for first, last in _slices(again.lengths[there], 1 << 24):
                rows, part = last - first, there[first:last]
                found = _Found(
                    again.users[part], np.arange(rows + 1), np.full(rows, number),
                    again.offsets[part], again.lengths[part],
                    again.counts[part], {number: again},
                    np.full(rows, again.schema_id), np.zeros(rows + 1, np.int64),
                    np.empty(0, np.int64), self._memtable.columns, self._memtable.arrivals,
                    np.zeros(rows, np.int64),
                )  # fmt: skip
                every = np.full(rows, NO_BOUND, np.int64)
                plan = self._plan(found, every, every, np.full(rows, -1, np.int64), [])
                if not self._oldest() and (plan.counts != again.counts[part]).any():
                    raise DamagedFileError(f"{again.path}: records do not hold what they say.")
                checked["records"] += rows
                checked["events"] += int(plan.counts.sum())
            checked["segments"] += 1
            checked["bytes"] += segment.size
        for number in manifest.items:
            checked["items"] += len(item_files.load(self._files, self.path, number))
        for number in range(manifest.wal_start, 1 << 62):
            try:
                data = wal.read_file(self._files, self.path, number)
            except FileNotFoundError:
                break
            later = self._files.exists(wal.path_of(self.path, number + 1))
            path = wal.path_of(self.path, number)
            for _ in wal.scan(data, number, path, sealed=later):
                pass
        return checked

    @property
    def events_in_log(self) -> int:
        """Number of events that are not in a segment yet."""
        return self._memtable.size

    def stats(self) -> dict[str, Any]:
        """Sizes and counts of the store, as plain numbers."""
        self._check_open()
        with self._state:
            index, memtable = self._index, self._memtable
            on_disk = sum(segment.size for segment in self._segments.values())
            stored, live = self._stored
            return {
                "path": self.path,
                "users": len(index.users),
                "events": stored + memtable.size,
                "events_in_log": memtable.size,
                "segments": len(self._segments),
                "segment_bytes": on_disk,
                "live_bytes": live,
                "bytes_per_event": on_disk / stored if stored else 0.0,
                "index_bytes": index.bytes,
                "memtable_bytes": memtable.bytes,
                "items": len(self._items),
                "items_version": self._items.version,
                "sources": dict(self._sources),
                "fields": list(self.schema.names),
            }

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Makes a complete copy of the store as of now at ``path``, a new directory.

        The log is merged first. Files are linked where the file system allows it, so
        that a snapshot next to the store costs next to nothing.

        Raises:
            InvalidRequestError: there is something at ``path`` already.
        """
        self._check_writable()
        target = os.path.abspath(os.fspath(path))
        if self._files.exists(target):
            raise InvalidRequestError(f"{target} exists already; name a new directory.")
        with self._merging, disk_full_is_typed("take a snapshot"):
            self._merge()
            for folder in ("", "/segments", "/wal", "/items"):
                self._files.make_directory(target + folder)
            manifest = self._manifest
            for number in manifest.segments:
                self._copy(segment_files.path_of(self.path, number),
                           segment_files.path_of(target, number))  # fmt: skip
            for number in manifest.items:
                self._copy(item_files.path_of(self.path, number),
                           item_files.path_of(target, number))  # fmt: skip
            for folder in ("/segments", "/items"):
                self._files.sync_directory(target + folder)
            manifest.save(self._files, target)

    def _copy(self, old: str, new: str) -> None:
        try:
            self._files.link(old, new)
        except OSError:
            source = self._files.open_read(old)
            try:
                self._files.publish(
                    new, self._files.read_all(source, self._files.size(source), 0).tobytes()
                )
            finally:
                self._files.close(source)


def ids_of(values: Any, what: str) -> np.ndarray:
    """int64 [B] of ids, checked."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InvalidRequestError(f"{what} must be a flat list of ids; received {array.ndim} axes.")
    if array.size and array.dtype.kind not in "iu":
        raise WrongTypeError(f"{what} have type {array.dtype}; expected int64.")
    if array.dtype == np.uint64 and array.size and array.max() > NO_BOUND:
        raise InvalidRequestError(f"{what} has {array.max()}, beyond int64.")
    return for_kernel(array)


def bounds_of(before: Any, rows: int) -> np.ndarray:
    """int64 [B] of the bound on time; None is no bound."""
    if before is None:
        return np.full(rows, NO_BOUND, np.int64)
    array = np.asarray(before)
    if array.dtype.kind not in "iu":
        raise WrongTypeError(f"before has type {array.dtype}; expected int64 milliseconds.")
    if array.ndim > 1 or (array.ndim == 1 and len(array) != rows):
        raise InvalidRequestError(
            f"before has shape {array.shape}; expected one time, or one for each of {rows} users."
        )
    bound = np.empty(rows, np.int64)
    bound[:] = array
    check_times(bound, "before")
    return bound


def _slices(work: np.ndarray, budget: int) -> Iterable[tuple[int, int]]:
    """Cuts users into runs of about ``budget`` work each."""
    first, done = 0, np.cumsum(work)
    while first < len(work):
        start = done[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(done, start + budget, side="right")))
        yield first, last
        first = last


def batches_of(source: Any) -> Iterable[Any]:
    """Batches of events from Parquet paths, tables or batches."""
    if isinstance(source, str | os.PathLike):
        file = pq.ParquetFile(os.fspath(source))
        yield from file.iter_batches(batch_size=1 << 18)
    elif isinstance(source, pa.Table | pa.RecordBatch | dict) or hasattr(source, "columns"):
        yield source
    elif isinstance(source, Iterable):
        for one in source:
            yield from batches_of(one)
    else:
        raise WrongTypeError(
            f"bulk_load takes Parquet paths or Arrow batches; received {type(source).__name__}."
        )
