"""Ordinary reads: one look-up under the lock, then one kernel that reads and unpacks."""

import threading

import numpy as np

from seqvault.codec.bundles import RECORD_WIDTH, ROW_WIDTH, bundle
from seqvault.codec.chunks import OK, PADDING
from seqvault.codec.frame_kernel import fields_from
from seqvault.codec.read_kernel import NO_ROOM, RAGGED_ALIGN, read_rows
from seqvault.memory.field_layout import Layout, Layouts
from seqvault.memory.index import find_rows
from seqvault.memory.kernel_view import ReadView
from seqvault.memory.store_state import State
from seqvault.memory.version import Version
from seqvault.read.kept_room import KeptRoom
from seqvault.read.ragged import Ragged
from seqvault.read.read_request import ReadRequest
from seqvault.sequence_batch import SequenceBatch

MAX_BUFFER = 1 << 24  # bytes of one user's records
MAX_ANSWER = (1 << 31) - PADDING  # bytes of an answer that NumPy can take for one record
_Found = tuple[ReadView, int]  # what to read from, time from which on events are kept
_INT64, _INT32 = np.dtype(np.int64), np.dtype(np.int32)


class _Room(threading.local):
    """The buffers that a thread reuses between reads.

    Attributes:
        words: bundle of the rows and records found and the bytes of a user's records.
    """

    def __init__(self) -> None:
        self.rows = np.empty((64, ROW_WIDTH), np.int64)
        self.records = np.empty((256, RECORD_WIDTH), np.int64)
        self.buffer = np.empty(1 << 18, np.uint8)
        self.words = bundle((self.rows, self.records, self.buffer))
        self.kept = KeptRoom()

    def grow(self, rows: int = 0, records: int = 0, buffer: int = 0) -> None:
        """Makes room for at least so many rows, records or bytes of records."""
        if rows > len(self.rows):
            self.rows = np.empty((2 * rows, ROW_WIDTH), np.int64)
        if records > len(self.records):
            self.records = np.empty((2 * records, RECORD_WIDTH), np.int64)
        if buffer > len(self.buffer):
            self.buffer = np.empty(2 * buffer, np.uint8)
        self.words = bundle((self.rows, self.records, self.buffer))


class DirectReader:
    """Answers reads without filters and versions. Any number of threads may use one.

    Anything unusual (damage, a short file, a very long record or answer) falls back to the
    ``Reader``, which diagnoses it.

    Args:
        state: what there is to read.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._room = _Room()

    def prepare(self) -> None:
        """Prepares reads of all fields, so that the first read is not slower."""
        state = self._state

        def first(version: Version) -> None:
            self._view_of(version)
            version.layouts.of(version.schema.select(None))

        state.look_up(first)
        _ = self._room.words  # its first use makes this thread's room

    def read(self, request: ReadRequest) -> SequenceBatch | None:
        """See ``SeqVault.read``; None: the general ``Reader`` must answer."""
        rows, width = len(request.users), request.last_n
        found, layout, version, _ = self._find(request)
        if rows * width * layout.width > MAX_ANSWER:
            return None
        shape = layout.shape(rows, width)
        out = self._room.kept.take(shape.size + PADDING)
        lengths = self._fill(request, found, layout, rows * width, False, out)
        if lengths is None:
            return None
        return SequenceBatch(request.users, lengths, shape.columns(out), version)

    def read_ragged(self, request: ReadRequest, in_frame: bool = False) -> Ragged | None:
        """See ``SeqVault.read_ragged``; None: the general ``Reader`` must answer.

        Args:
            request: what to read.
            in_frame: leave room before the fields for what stands there in a frame of the answer.
        """
        found, layout, version, events = self._find(request)
        starts, size = layout.places(events, RAGGED_ALIGN)
        head = fields_from(len(request.users), len(layout.described)) if in_frame else 0
        out = self._room.kept.take(head + size + PADDING)
        lengths = self._fill(request, found, layout, events, True, out[head:])
        return None if lengths is None else Ragged(layout, out, head + starts, lengths, version)

    def answer_bytes(self, request: ReadRequest) -> int:
        """See ``SeqVault.answer_bytes``; filters and a version only make an answer smaller."""
        _, layout, _, events = self._find(request)
        return events * layout.width + 16 * len(request.users)

    def _find(self, request: ReadRequest) -> tuple[_Found, Layout, np.ndarray, int]:
        """Looks the users up, as of one moment, with the thread's room to note what is found.

        Returns:
            What ``_fill`` reads from, the layout of the fields, int64 [B] the version of
            the answer, and how many events it can have at most.
        """
        state, room, users, width = self._state, self._room, request.users, request.last_n
        rows = len(users)
        version = np.empty(rows, _INT64)
        if rows > len(room.rows):
            room.grow(rows=rows)

        def find(store: Version) -> tuple[_Found, Layouts, int]:
            view = self._view_of(store)
            many, events = find_rows(users, view.words, room.words, width, version)
            if many > len(room.records):
                room.grow(records=many)
                many, events = find_rows(users, view.words, room.words, width, version)
            return (view, store.oldest(state.clock())), store.layouts, events

        found, layouts, events = state.look_up(find)
        return found, layouts.of(request.names), version, events

    def _view_of(self, version: Version) -> ReadView:
        """What there is to read now; in ``State.look_up``."""
        state, view = self._state, self._state.view
        index, memtable, segments = version.index, version.memtable, version.segments
        if view is None or not view.is_of(index, memtable, segments):
            view = state.view = ReadView(index, memtable, segments)
        return view

    def _fill(
        self, request: ReadRequest, found: _Found, layout: Layout, places: int, ragged: bool,
        out: np.ndarray,
    ) -> np.ndarray | None:  # fmt: skip
        """Reads and unpacks what was found; int32 [B] events of each row, None: cannot do."""
        (view, oldest), users = found, request.users
        room, lengths = self._room, np.empty(len(users), _INT32)
        while True:
            status, need = read_rows(
                users, request.before, view.words, layout.words, room.words, request.last_n, oldest,
                places, ragged, out, lengths,
            )  # fmt: skip
            if status == OK:
                return lengths
            if status != NO_ROOM or need > MAX_BUFFER:
                return None
            room.grow(buffer=need)
