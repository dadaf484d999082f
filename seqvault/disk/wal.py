"""The write-ahead log (WAL): makes appends durable before they are in a segment."""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from seqvault.codec.primitives import checksum, crc32c
from seqvault.disk.files import Files, SyncError
from seqvault.errors import DamagedFileError

FILE_MAGIC = b"SEQVLOG\x02"
FRAME_MAGIC = 0x4D524656  # "VFRM"
EVENTS, SEAL, NEXT = 1, 2, 3
FRAME = np.dtype(
    [("magic", "<u4"), ("check", "<u4"), ("length", "<u4"), ("kind", "<u2"), ("schema", "<u2"),
     ("life", "<u8"), ("durable", "<u8"), ("offset", "<i8"), ("count", "<u4"), ("source", "<u4"),
     ("body_check", "<u4"), ("zero", "<u4")]
)  # fmt: skip
HEAD = struct.Struct("<HHQQqIIII")  # of a frame, behind its length
FILE_SIZE = 16 << 20
ZEROS_AHEAD = 4 << 20  # bytes of a new file written at a time, before frames come there
SPARE_FILES = 2  # log files kept to be used again
SPARE = ".spare"  # what their names end in
FIRST = 32  # bytes of the file header
_ROOM_FOR_HEAD = bytes(FRAME.itemsize)
_MAGIC = FRAME_MAGIC.to_bytes(4, "little")


class LogSyncError(SyncError):
    """A sync of the log failed: the on-disk state is unknown, so there is no retry."""


@dataclass(frozen=True)
class Frame:
    """One logged append.

    Args:
        schema_id: the schema of its columns.
        source, offset: where the events came from, "" and -1 if not said.
        count: number of events.
        payload: user ids, times and fields, one array behind the other.
        start: offset in the file of the frame.
        end: offset in the file behind the frame.
    """

    schema_id: int
    source: str
    offset: int
    count: int
    payload: memoryview
    start: int
    end: int


def path_of(directory: str, number: int) -> str:
    """Path of a log file."""
    return f"{directory}/wal/{number:010d}.wal"


def _file_header(number: int, life: int) -> bytes:
    body = FILE_MAGIC + number.to_bytes(8, "little") + life.to_bytes(8, "little")
    return body + checksum(body).to_bytes(8, "little")


def life_of(data: np.ndarray, number: int) -> int:
    """The file's generation, which all of its frames carry; -1 if its header is damaged.

    A new random number each time a file is reused, so that stale frames of its previous use, which
    remain behind the new ones, are never read as current.
    """
    life = int.from_bytes(data[16:24].tobytes(), "little")
    return life if data[:FIRST].tobytes() == _file_header(number, life) else -1


@dataclass(frozen=True)
class Append:
    """A frame of events without the header fields that depend on its place in the log.

    It is made before the log is locked.

    Args:
        schema_id: the schema of the columns.
        source, offset: where they came from.
        count: number of events.
        frame: uint8, room for the header, then the body, zeros up to a multiple of 8.
        length: bytes of the body: the source's name and the columns.
        check: CRC of the body with the zeros.
    """

    schema_id: int
    source: bytes
    offset: int
    count: int
    frame: np.ndarray
    length: int
    check: int


def prepare(
    schema_id: int, source: str, offset: int, count: int, columns: Sequence[np.ndarray]
) -> Append:
    """Serialises events into a frame, column after column."""
    name = source.encode()
    length = len(name) + sum(column.nbytes for column in columns)
    parts = (_ROOM_FOR_HEAD, name, *map(np.ascontiguousarray, columns), bytes(-length % 8))
    frame = np.frombuffer(bytearray().join(parts), np.uint8)  # type: ignore[arg-type]
    check = int(crc32c(frame, FRAME.itemsize, len(frame)))
    return Append(schema_id, name, offset, count, frame, length, check)


def empty_frame() -> Append:
    """A frame without events: a seal, or the mark that a next file exists."""
    return Append(0, b"", -1, 0, np.zeros(FRAME.itemsize, np.uint8), 0, checksum(b""))


def encode(kind: int, life: int, durable: int, append: Append) -> np.ndarray:
    """Fills in the header of a frame; returns the frame, a multiple of 8 bytes."""
    rest = append.length.to_bytes(4, "little") + HEAD.pack(
        kind, append.schema_id, life, durable, append.offset, append.count,
        len(append.source), append.check, 0,
    )  # fmt: skip
    head = _MAGIC + checksum(rest).to_bytes(4, "little") + rest
    append.frame[: FRAME.itemsize] = np.frombuffer(head, np.uint8)
    return append.frame


def _frame_at(data: np.ndarray, position: int, life: int) -> np.void | None:
    """The header of a whole and sound frame at ``position``, or None."""
    body = position + FRAME.itemsize
    if body > len(data):
        return None
    head = data[position:body].view(FRAME)[0]
    if head["magic"] != FRAME_MAGIC or head["life"] != life:
        return None
    if checksum(data[position + 8 : body]) != head["check"]:
        return None
    end = body + -(-int(head["length"]) // 8) * 8
    if end > len(data) or checksum(data[body:end]) != head["body_check"]:
        return None
    return head


def scan(
    data: np.ndarray, number: int, path: str, sealed: bool, start: int = FIRST
) -> Iterator[Frame]:
    """Frames of a log file, in order.

    In an unsealed file, stops without an error at the first invalid frame if nothing proves that it
    was acknowledged: that is an append torn by a crash.

    Args:
        sealed: whether the file must be whole and end in a seal.

    Raises:
        DamagedFileError: a frame that was acknowledged cannot be read.
    """
    life = life_of(data, number)
    if life < 0:
        # it was synced before the file got its name
        raise DamagedFileError(f"{path} is damaged: its header is wrong; restore it.")
    position = start
    while True:
        head = _frame_at(data, position, life)
        if head is None:
            if sealed or _durable_beyond(data, position, life):
                raise DamagedFileError(
                    f"{path} is damaged at byte {position}: events that were acknowledged cannot "
                    "be read. Restore the store from a snapshot or a replica."
                )
            return
        body = position + FRAME.itemsize
        payload = body + int(head["source"])
        length = int(head["length"])
        end = position + -(-(FRAME.itemsize + length) // 8) * 8
        if head["kind"] == SEAL:
            return
        if head["kind"] != EVENTS or payload > body + length:
            raise malformed(path, position, "is of no kind that there is, or longer than it says")
        try:
            source = data[body:payload].tobytes().decode()
        except UnicodeDecodeError:
            raise malformed(path, position, "has a source whose name is not UTF-8") from None
        yield Frame(
            int(head["schema"]),
            source,
            int(head["offset"]),
            int(head["count"]),
            memoryview(data[payload : body + length]),  # type: ignore[arg-type]
            position,
            end,
        )
        position = end


def malformed(path: str, position: int, what: str) -> DamagedFileError:
    """The error for a frame with a valid checksum and invalid content."""
    return DamagedFileError(
        f"{path} is damaged at byte {position}: the frame there {what}, though its checksum "
        "fits. Restore the store from a snapshot or a replica."
    )


def is_sealed(data: np.ndarray, end: int, number: int) -> bool:
    """Whether the file ends in a seal behind its last frame at ``end``."""
    head = _frame_at(data, end, life_of(data, number))
    return head is not None and int(head["kind"]) == SEAL


def goes_on(data: np.ndarray, end: int, number: int) -> bool:
    """Whether the file has the mark of a next file behind its seal at ``end``."""
    head = _frame_at(data, end + FRAME.itemsize, life_of(data, number))
    return is_sealed(data, end, number) and head is not None and int(head["kind"]) == NEXT


def _places_of_magic(data: np.ndarray) -> Iterator[int]:
    """Where frames may start, in order."""
    words = data[: len(data) // 8 * 8].view("<u4")[::2]
    for word in np.flatnonzero(words == FRAME_MAGIC):
        yield int(word) * 8


def _durable_beyond(data: np.ndarray, position: int, life: int) -> bool:
    """Whether a later sound frame says that the log was synced beyond ``position``."""
    for place in _places_of_magic(data):
        if place > position:
            head = _frame_at(data, place, life)
            if head is not None and int(head["durable"]) > position:
                return True
    return False


class WalWriter:
    """Appends frames to one log file. Not thread-safe: the store serialises it.

    The file is there under its name from ``begin`` on, so that a log never has two
    files without a seal. Frames go to places that were written before, by zeros or by
    frames of an earlier life: then syncing them changes nothing about the file itself,
    and the file system needs no commit of its journal.

    Args:
        files, directory: where the log is.
        number: of the file.
        spare: path of a file that is not part of the log any more, to be used again.
    """

    def __init__(self, files: Files, directory: str, number: int, spare: str = "") -> None:
        self._files, self._directory, self.number = files, directory, number
        self.path = path_of(directory, number)
        self._life = int.from_bytes(os.urandom(8), "little")
        self._origin = spare or files.temporary_of(self.path)
        self.fd = files.open_write(spare) if spare else files.create(self._origin)
        try:
            self._written = files.size(self.fd)  # all of it was written before
            self.position = 0
            self._zeros_up_to(FIRST)
            self.position = files.write_all(self.fd, _file_header(number, self._life), 0)
            files.sync(self.fd)
        except BaseException:
            self.discard()
            raise
        self.durable = self.position
        self.sealed = False

    def begin(self) -> None:
        """Renames the file into the log; the previous file must be sealed."""
        self._files.rename(self._origin, self.path)
        try:
            self._files.sync_directory(f"{self._directory}/wal")
        except OSError as error:
            raise LogSyncError(error.errno, error.strerror, self.path) from error

    def discard(self) -> None:
        """Deletes a file whose ``begin`` was not called."""
        self._files.close(self.fd)
        with suppress(OSError):
            self._files.unlink(self._origin)

    def write(self, append: Append) -> None:
        """Writes a frame; it is durable after the next ``sync``."""
        self._put(EVENTS, append)

    def _put(self, kind: int, append: Append) -> None:
        self._zeros_up_to(self.position + len(append.frame))
        frame = encode(kind, self._life, self.durable, append)
        self.position = self._files.write_all(self.fd, frame, self.position)

    def _zeros_up_to(self, end: int) -> None:
        """Extends the zero-filled region some way beyond ``end``."""
        if end > self._written:
            upto = max(end, min(FILE_SIZE, self._written + ZEROS_AHEAD))
            self._written = self._files.write_all(
                self.fd, bytes(upto - self._written), self._written
            )

    def sync(self) -> None:
        """Makes all frames written so far durable."""
        position = self.position
        try:
            self._files.fdatasync(self.fd)
        except OSError as error:
            raise LogSyncError(error.errno, error.strerror, self.path) from error
        self.durable = position

    def seal(self) -> None:
        """Ends the file; nothing can follow."""
        if self.sealed:
            return
        position = self.position
        try:
            self._put(SEAL, empty_frame())
            self._files.truncate(self.fd, self.position)
        except BaseException:
            self.position = position  # the next frame takes the place of the seal
            raise
        self.sync()
        self.sealed = True

    def hand_over(self) -> None:
        """Marks, durably, behind the seal that the next file exists.

        Only after this may the next file take frames: from here on, its loss is detected.
        """
        position = self.position
        try:
            self._put(NEXT, empty_frame())
        finally:
            self.position = position
        self.sync()

    def close(self) -> None:
        """Closes the file, which stays as it is."""
        self._files.close(self.fd)


def repair(files: Files, directory: str, number: int, data: np.ndarray, end: int) -> None:
    """Replaces a log file that a crash left open by its sound part, sealed.

    The copy also guarantees that what was read is on disk, in case the crash followed a failed
    sync.
    """
    life = life_of(data, number)
    seal = encode(SEAL, life, end, empty_frame())
    files.publish(path_of(directory, number), [data[:end], seal])


def read_file(files: Files, directory: str, number: int) -> np.ndarray:
    """All bytes of a log file.

    Raises:
        FileNotFoundError: it is not there.
    """
    fd = files.open_read(path_of(directory, number))
    try:
        return files.read_all(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def size_of(files: Files, path: str) -> int:
    """Bytes of a file."""
    fd = files.open_read(path)
    try:
        return files.size(fd)
    finally:
        files.close(fd)
