# Over 400 lines: the public store; nearly all of it is the documentation of its calls.
"""The public class ``SeqVault``: the interface of the store, which delegates to its subpackages."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from seqvault.disk.files import Files
from seqvault.disk.item_file import to_table
from seqvault.errors import InvalidRequestError, SchemaError
from seqvault.item_batch import ItemBatch
from seqvault.memory.attached_state import AttachedState
from seqvault.memory.forks import watch_forks
from seqvault.memory.store_state import State
from seqvault.merge.bulk_loader import bulk_load
from seqvault.merge.merger import Merger
from seqvault.progress import Progress, no_progress
from seqvault.read.framed_answer import framed_answers
from seqvault.read.packed_answer import pack_batch
from seqvault.read.planned_read import Reader
from seqvault.read.read_request import USERS_A_PAGE, ReadRequest, page_of
from seqvault.schema import Schema
from seqvault.sequence_batch import SequenceBatch
from seqvault.upkeep import recovery
from seqvault.upkeep import snapshot as snapshots
from seqvault.upkeep.fingerprint import fingerprint
from seqvault.upkeep.stats import stats
from seqvault.upkeep.verify import verify
from seqvault.write.event_columns import check_source, to_columns
from seqvault.write.group_commit import AppendLog
from seqvault.write.item_writer import put_items

CLOSE_SECONDS = 10.0  # that `close` waits for a merge to give up


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

    def __init__(self, state: State) -> None:
        """Use ``SeqVault.open`` or ``SeqVault.attach``."""
        self.path, self.read_only = state.path, state.read_only
        self._files, self._state = state.files, state
        self._reader = Reader(state)
        self._log: AppendLog | None = None

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
        share: bool = False,
    ) -> "SeqVault":
        """Opens the store at ``path``; with a ``schema`` it is created if not there.

        Args:
            path: a directory.
            schema: fields of an event. For an existing store: the store's own, or one
                that extends it by new fields at the end or by wider types, which
                then becomes the store's. None takes the store's.
            read_only: open a view of what is on disk now (and at each ``refresh``); another process
                may be writing.
            retention_ms: events older than this are not returned, and are dropped when a merge
                rewrites them; 0: no limit. None: the setting of the store.
            max_events: a merge that rewrites a user keeps only that many of the newest events; 0:
                all. None: the setting of the store.
            files, clock: file layer and seconds since 1970, for tests.
            share: let other processes of this user on this host ``attach``; for a writer.

        Raises:
            StoreNotFoundError: no store there and no schema given.
            StoreLockedError: it is open for writing elsewhere.
            SchemaError: the store has another schema, which the one given does not extend.
            NewerFormatError: a newer version of seqvault wrote it.
            DamagedFileError: a file is not what was written.
        """
        for name, value in (("retention_ms", retention_ms), ("max_events", max_events)):
            if value is not None and value < 0:
                raise InvalidRequestError(f"{name} must be 0 (no limit) or more; got {value}.")
        if share and read_only:
            raise InvalidRequestError("only a store that is open for writing can be shared.")
        state = State(os.path.abspath(os.fspath(path)), files or Files(), read_only, clock)
        store = cls(state)
        try:
            if share:
                state.share()
            if read_only:
                recovery.open_for_reading(store._state)
            else:
                store._state.lock_fd = recovery.lock_for_writing(store._files, store.path, schema)
                writer, spares = recovery.open_for_writing(
                    store._state, schema, retention_ms, max_events
                )
                store._log = AppendLog(store._state, writer, spares)
            if schema is not None and schema != store.schema:
                raise SchemaError(
                    f"the store at {store.path} has the schema {store.schema.to_json()}, the one "
                    f"given is {schema.to_json()}. Open it without a schema, or with its own."
                )
            store._reader.prepare()
            watch_forks(store._state)
            state.announce()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def attach(
        cls,
        path: str | os.PathLike[str],
        files: Files | None = None,
        clock: Callable[[], float] = time.time,
    ) -> "SeqVault":
        """Opens a store for reading that another process has open with ``share=True``.

        Index and events in memory are read where that process keeps them: there is one copy,
        however many processes attach, and every read sees all that was acknowledged before it
        began. Use it for several processes on one host; the item table alone is copied when it
        is first read. Reads raise ``WriterGoneError`` once that process ends or closes the store.

        Args:
            path: the store's directory.
            files, clock: file layer and seconds since 1970, for tests.

        Raises:
            NotSharedError: no process of this user on this host shares it.
            StoreNotFoundError: there is no store.

        Example:
            >>> import tempfile, pyarrow as pa
            >>> from seqvault import Schema, SeqVault
            >>> path = tempfile.mkdtemp() + "/vault"
            >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
            >>> with SeqVault.open(path, schema, share=True) as writer:
            ...     reader = SeqVault.attach(path)
            ...     _ = writer.append({"user_id": [7], "timestamp": [1000], "item_id": [5]})
            ...     reader.read([7], before=None, last_n=1)["item_id"].tolist()
            [[5]]
        """
        where = os.path.abspath(os.fspath(path))
        store = cls(AttachedState(where, files or Files(), clock))
        try:
            store._reader.prepare()
            watch_forks(store._state)
        except BaseException:
            store.close()
            raise
        return store

    @property
    def schema(self) -> Schema:
        """Fields of an event, as new events must have them."""
        return self._state.schema

    @property
    def shared(self) -> bool:
        """Whether other processes can ``attach`` to this object's store."""
        return self._state.shared is not None

    def close(self) -> None:
        """Closes the store; everything appended is already durable.

        A merge, bulk load, snapshot or item write in progress aborts with ``StoreClosedError`` and
        leaves the store as it was before. Later calls raise it, too. In a forked child process this
        only releases the child's memory.
        """
        state = self._state
        if state.closed or state.forked:
            state.closed = True
            return
        state.closing.set()
        # One that does not notice, for instance a bulk load whose source has nothing to give, is
        # not waited for longer: from then on it can neither publish nor remove anything.
        waited = [
            lock
            for lock in (state.merging, state.writing_items)
            if lock.acquire(timeout=CLOSE_SECONDS)
        ]
        try:
            if self._log is not None:
                self._log.close(CLOSE_SECONDS)
            state.give_up_lock()
        finally:
            for lock in waited:
                lock.release()

    def __enter__(self) -> "SeqVault":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> bool:
        """Makes a read-only store see later writes; returns whether there were any.

        Meanwhile reads use the previous state, also after an error. Call it periodically in readers
        of a store that another process writes; one open for writing, or attached, needs none.
        """
        self._state.check_open()
        if not self.read_only or isinstance(self._state, AttachedState):
            return False
        with self._state.merging:
            return recovery.refresh(self._state)

    # ---- writing

    def append(self, events: Any, source: str = "", offset: int = -1) -> int:
        """Stores events; durable and visible to every later read when it returns.

        Args:
            events: Arrow table or record batch, pandas data frame or dict of arrays
                with ``user_id``, ``timestamp`` (int64, ms) and all fields. Any order;
                events of one user and time keep their order.
            source: name of the events' origin, for instance a log partition.
            offset: position in the source. Events of a source at an offset that was
                stored before are left out, so that a replay changes nothing. A source needs one.

        Returns:
            The number of events stored.

        Raises:
            InvalidRequestError: and its kinds; nothing was stored.
            DiskFullError: nothing was stored; try again when there is room.
            ReadOnlyError: the store was opened with ``read_only=True``.
            StoreFailedError: a write failed before after which no write can be trusted.
            StoreClosedError: it was closed.
        """
        self._state.check_writable()
        assert self._log is not None
        check_source(source, offset)
        columns = to_columns(events, self.schema)
        with self._state.writing("append events", to_log=True):
            return self._log.append(columns, source, offset)

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
        request = ReadRequest.of(
            self.schema, user_ids, before, last_n, scenarios, actions, fields, version
        )
        return self._state.whole(lambda: self._reader.read(request))

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
        """Reads as ``read`` does, without padding: use it where most histories are short.

        Returns:
            int32 [B] lengths, int64 [B] version, and by field name flat arrays of one
            user's events behind the other's.
        """
        request = ReadRequest.of(
            self.schema, user_ids, before, last_n, scenarios, actions, fields, version
        )
        return self._state.whole(lambda: self._reader.read_ragged(request))

    def read_packed(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
    ) -> bytes:
        """Reads as ``read`` does and returns bytes; ``unpack_batch`` decodes them, in any
        process."""
        request = ReadRequest.of(
            self.schema, user_ids, before, last_n, scenarios, actions, fields, version
        )
        return self._state.whole(lambda: pack_batch(self._reader, request))

    def read_framed(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
        ends: Sequence[int] | np.ndarray | None = None,
        numbers: Sequence[int] = (0,),
    ) -> tuple[np.ndarray, np.ndarray]:
        """``read`` as frames of the read protocol, see ``docs/seqvault/protocol.md``.

        Several requests that ask for the same of other users are answered by one read.

        Args:
            user_ids, before, last_n, scenarios, actions, fields, version: as of ``read``.
            ends: of each request the first user behind its own; None: it is one.
            numbers: of the requests.

        Returns:
            uint8 frames, one behind the other, and int64 [Q] where each ends.
        """
        request = ReadRequest.of(
            self.schema, user_ids, before, last_n, scenarios, actions, fields, version
        )
        last = np.array([len(request.users)] if ends is None else ends, np.int64)
        mine = np.array(numbers, np.uint64)
        return self._state.whole(lambda: framed_answers(self._reader, request, last, mine))

    def answer_bytes(
        self,
        user_ids: Any,
        before: Any,
        last_n: int,
        scenarios: Sequence[int] | None = None,
        actions: Sequence[int] | None = None,
        fields: Sequence[str] | None = None,
        version: np.ndarray | None = None,
        packed: bool = False,
    ) -> int:
        """Bounds the bytes that the answer of ``read_ragged`` (or ``read_packed``) can take.

        Use it to make room for an answer before it is built, as the server does. It follows
        from the numbers of events that the users have; no event is read for it.

        Args:
            user_ids, before, last_n, scenarios, actions, fields, version: as of ``read``.
            packed: bound the answer of ``read_packed``.
        """
        request = ReadRequest.of(
            self.schema, user_ids, before, last_n, scenarios, actions, fields, version
        )
        return self._state.whole(lambda: self._reader.answer_bytes(request, packed))

    # ---- merging

    def merge(
        self,
        hold_small: bool = False,
        bytes_per_second: float | None = None,
        progress: Progress = no_progress,
    ) -> dict[str, int]:
        """Merges logged events into segments and rewrites segments that are mostly dead.

        Args:
            hold_small: leave a user's new events in the log while they are few, to write
                them together with later ones. Their number and age are bounded.
            bytes_per_second: the most that is written to the disk; None: no limit.
            progress: told of events done and in all, see ``seqvault.progress``.

        Returns:
            Counts: ``users`` and ``events`` written, ``bytes`` of the new segment.

        Raises:
            DiskFullError: the store is as it was.
        """
        with self._state.merging, self._state.writing("merge"), self._state.watching_merge():
            return self._merger(bytes_per_second).merge(hold_small, progress=progress)

    def _merger(self, bytes_per_second: float | None = None) -> Merger:
        self._state.check_writable()
        assert self._log is not None
        return Merger(self._state, self._log, self._reader, bytes_per_second)

    def bulk_load(self, source: Any) -> int:
        """Loads history straight into segments, bypassing the log; durable when it returns.

        Use it for large amounts: it is much faster than ``append``, which waits meanwhile. After an
        error or a crash, either all events are stored or none.

        Args:
            source: path or paths of Parquet files, or Arrow tables or record batches,
                one or an iterable of them. Best sorted by (user_id, timestamp).

        Returns:
            The number of events loaded.
        """
        self._state.check_writable()
        with self._state.merging, self._state.writing("load events"):
            assert self._log is not None
            return bulk_load(self._state, self._log, self._merger(), source)

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
        self._state.check_writable()
        checked = to_table(table)
        with self._state.writing_items, self._state.writing("store items"):
            return put_items(self._state, checked)

    def read_items(self, ids: Any, fields: Sequence[str] | None = None) -> ItemBatch:
        """Reads the side information of items; an unknown id is marked in ``found``.

        Args:
            ids: int64 of any shape.
            fields: which fields; None: all.

        Returns:
            ``ItemBatch`` with arrays of the ids' shape (plus ``[d]`` for vectors).

        Raises:
            UnknownFieldError: items have no such field.
            WrongTypeError: ids are not integers.
        """
        self._state.check_open()
        return self._state.items.read(ids, fields)

    def item_bytes(self, count: int, fields: Sequence[str] | None = None) -> int:
        """About how many bytes ``read_items`` of so many ids takes; a string counts as 64."""
        return count * self._state.items.width(fields)

    @property
    def item_schema(self) -> pa.Schema | None:
        """Arrow schema of the item table, None before the first ``put_items``."""
        return self._state.items.schema

    # ---- care

    def verify(self, progress: Progress = no_progress) -> dict[str, int]:
        """Reads and verifies the checksum of every byte that the store relies on.

        Args:
            progress: told of bytes of segments done and in all, see ``seqvault.progress``.

        Returns:
            Counts: ``segments``, ``records``, ``events``, ``items``, ``bytes``.

        Raises:
            DamagedFileError: names the file and the place.
        """
        self._state.check_open()
        self._state.check_own("way to verify files")
        return verify(self._state, self._reader, progress)

    def user_ids(self, after: int | None = None, limit: int = USERS_A_PAGE) -> np.ndarray:
        """Lists the ids of the store's users, page by page.

        Args:
            after: only larger ids: the last one of the page before; None: from the first.
            limit: the most ids, at least 1.

        Returns:
            int64 [N], ascending; N below ``limit`` on the last page. Users whose events have
            all become too old are among them.

        Raises:
            InvalidRequestError: ``after`` is not an int64, or ``limit`` is out of range.

        Example:
            >>> import tempfile, pyarrow as pa
            >>> from seqvault import Schema, SeqVault
            >>> schema = Schema.from_arrow(pa.schema([("item_id", pa.int64())]))
            >>> with SeqVault.open(tempfile.mkdtemp() + "/vault", schema=schema) as vault:
            ...     _ = vault.append({"user_id": [9, 7], "timestamp": [1, 2], "item_id": [5, 6]})
            ...     vault.user_ids(limit=1).tolist(), vault.user_ids(after=7).tolist()
            ([7], [9])
        """
        self._state.check_open()
        least, most = page_of(after, limit)

        def page() -> np.ndarray:
            # those that are there never change
            keys = self._state.look_up(lambda version: version.index.users.keys)
            rest = keys if after is None else keys[keys > least]
            if len(rest) > most:
                rest = np.partition(rest, most - 1)[:most]
            return np.sort(rest)

        return self._state.whole(page)

    @property
    def events_in_log(self) -> int:
        """Number of events that are not in a segment yet."""
        return self._state.events_in_log

    def stats(self) -> dict[str, Any]:
        """Sizes and counts of the store, as plain numbers."""
        self._state.check_open()
        self._state.check_own("statistics")
        return stats(self._state)

    def fingerprint(self) -> str:
        """Hashes everything that reads can return: segments, events of the log, items, schemas.

        Two stores with equal fingerprints answer every read alike. The converse does not hold: a
        merge may change the fingerprint, as it packs the same events into other files. The first
        call reads every segment, at the speed of the disk; later ones only new segments.
        """
        self._state.check_open()
        self._state.check_own("fingerprint")
        return fingerprint(self._state)

    def snapshot(self, path: str | os.PathLike[str], progress: Progress = no_progress) -> None:
        """Makes a complete copy of the store as of now at ``path``, a new directory.

        The log is merged first. Files are linked where the file system allows it, so
        that a snapshot next to the store costs next to nothing.

        Args:
            path: where to.
            progress: told of events merged, then of bytes of segments copied, done and in
                all, see ``seqvault.progress``.

        Raises:
            InvalidRequestError: there is something at ``path`` already.
        """
        self._state.check_writable()
        target = os.path.abspath(os.fspath(path))
        if self._state.files.exists(target):
            raise InvalidRequestError(f"{target} exists already; name a new directory.")
        with self._state.merging, self._state.writing("take a snapshot"):
            self._merger().merge(progress=progress)
            with self._state.writing_items:
                snapshots.snapshot(self._state, target, progress)
