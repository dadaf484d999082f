"""The write-ahead log: what makes an append durable before it is in a segment."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from seqvault.codec.primitives import checksum
from seqvault.errors import DamagedFileError
from seqvault.files import Files

FILE_MAGIC = b"SEQVLOG\x01"
FRAME_MAGIC = 0x4D524656  # "VFRM"
EVENTS, SEAL = 1, 2
FRAME = np.dtype(
    [("magic", "<u4"), ("check", "<u4"), ("length", "<u4"), ("kind", "<u2"), ("schema", "<u2"),
     ("file", "<u8"), ("durable", "<u8"), ("offset", "<i8"), ("count", "<u4"), ("source", "<u4")]
)  # fmt: skip
FILE_SIZE = 16 << 20
FIRST = 24  # bytes of the file header


@dataclass(frozen=True)
class Frame:
    """One logged append.

    Args:
        schema_id: the schema of its columns.
        source, offset: where the events came from, "" and -1 if not said.
        count: number of events.
        payload: user ids, times and fields, one array behind the other.
        end: offset in the file behind the frame.
    """

    schema_id: int
    source: str
    offset: int
    count: int
    payload: memoryview
    end: int


def path_of(directory: str, number: int) -> str:
    """Path of a log file."""
    return f"{directory}/wal/{number:010d}.wal"


def _file_header(number: int) -> bytes:
    body = FILE_MAGIC + number.to_bytes(8, "little")
    return body + checksum(body).to_bytes(8, "little")


def encode(
    kind: int, number: int, durable: int, schema_id: int, source: str, offset: int, count: int,
    payload: bytes,
) -> bytes:  # fmt: skip
    """Bytes of a frame, a multiple of 8."""
    name = source.encode()
    body = name + payload
    head = np.zeros(1, FRAME)
    head["magic"], head["length"], head["kind"] = FRAME_MAGIC, len(body), kind
    head["schema"], head["file"], head["durable"] = schema_id, number, durable
    head["offset"], head["count"], head["source"] = offset, count, len(name)
    whole = head.tobytes() + body
    whole += bytes(-len(whole) % 8)
    return whole[:4] + checksum(memoryview(whole)[8:]).to_bytes(4, "little") + whole[8:]


def _frame_at(data: np.ndarray, position: int, number: int) -> np.void | None:
    """The header of a whole and sound frame at ``position``, or None."""
    if position + FRAME.itemsize > len(data):
        return None
    head = data[position : position + FRAME.itemsize].view(FRAME)[0]
    if head["magic"] != FRAME_MAGIC or head["file"] != number:
        return None
    end = position + -(-(FRAME.itemsize + int(head["length"])) // 8) * 8
    if end > len(data) or checksum(data[position + 8 : end]) != head["check"]:
        return None
    return head


def scan(
    data: np.ndarray, number: int, path: str, sealed: bool, start: int = FIRST
) -> Iterator[Frame]:
    """Frames of a log file, in order.

    Ends quietly at the first bad frame of an unsealed file if nothing shows that it
    was ever acknowledged: that is where a crash cut an append short.

    Args:
        sealed: whether the file must be whole and end in a seal.

    Raises:
        DamagedFileError: a frame that was acknowledged cannot be read.
    """
    if len(data) < 24 or data[:24].tobytes() != _file_header(number):
        if sealed:
            raise DamagedFileError(f"{path} is damaged: its header is wrong; restore it.")
        if len(data) > 24 and _durable_beyond(data, 24, number):
            raise DamagedFileError(f"{path} is damaged: its header is wrong; restore it.")
        return
    position = start
    while True:
        head = _frame_at(data, position, number)
        if head is None:
            if sealed or _durable_beyond(data, position, number):
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
        yield Frame(
            int(head["schema"]),
            data[body:payload].tobytes().decode(),
            int(head["offset"]),
            int(head["count"]),
            memoryview(data[payload : body + length]),  # type: ignore[arg-type]
            end,
        )
        position = end


def is_sealed(data: np.ndarray, end: int, number: int) -> bool:
    """Whether the file ends in a seal behind its last frame at ``end``."""
    head = _frame_at(data, end, number)
    return head is not None and int(head["kind"]) == SEAL


def _durable_beyond(data: np.ndarray, position: int, number: int) -> bool:
    """Whether a later sound frame says that the log was synced beyond ``position``."""
    words = data[: len(data) // 8 * 8].view("<u4")[::2]
    for word in np.flatnonzero(words == FRAME_MAGIC):
        if word * 8 > position:
            head = _frame_at(data, int(word) * 8, number)
            if head is not None and int(head["durable"]) > position:
                return True
    return False


class WalWriter:
    """Appends frames to one log file. Not thread-safe: the store serialises it.

    The file is there under its name from ``begin`` on, so that a log never has two
    files without a seal.
    """

    def __init__(self, files: Files, directory: str, number: int) -> None:
        self._files, self._directory, self.number = files, directory, number
        self.path = path_of(directory, number)
        self.fd = files.create(self.path + ".tmp")
        try:
            files.allocate(self.fd, FILE_SIZE)
            self.position = files.write_all(self.fd, _file_header(number), 0)
            files.fdatasync(self.fd)
        except BaseException:
            self.discard()
            raise
        self.durable = self.position

    def begin(self) -> None:
        """Gives the file its name: the file before it must be sealed by now."""
        self._files.rename(self.path + ".tmp", self.path)
        self._files.sync_directory(f"{self._directory}/wal")

    def discard(self) -> None:
        """Gives up a file that was not begun."""
        self._files.close(self.fd)
        with suppress(OSError):
            self._files.unlink(self.path + ".tmp")

    def write(self, schema_id: int, source: str, offset: int, count: int, payload: bytes) -> None:
        """Writes a frame; it is durable after the next ``sync``."""
        self._put(EVENTS, schema_id, source, offset, count, payload)

    def _put(
        self, kind: int, schema_id: int, source: str, offset: int, count: int, payload: bytes
    ) -> None:
        frame = encode(kind, self.number, self.durable, schema_id, source, offset, count, payload)
        self.position = self._files.write_all(self.fd, frame, self.position)

    def sync(self) -> None:
        """Makes all frames written so far durable."""
        position = self.position
        self._files.fdatasync(self.fd)
        self.durable = position

    def seal(self) -> None:
        """Ends the file; nothing can follow."""
        self._put(SEAL, 0, "", -1, 0, b"")
        self._files.truncate(self.fd, self.position)
        self.sync()

    def close(self) -> None:
        """Closes the file, which stays as it is."""
        self._files.close(self.fd)


def repair(files: Files, directory: str, number: int, data: np.ndarray, end: int) -> None:
    """Replaces a log file that a crash left open by its sound part, sealed.

    Copying also makes sure that what was read is really on disk, should the crash
    have been a failed sync.
    """
    head = _file_header(number) if end <= 24 else data[:end].tobytes()
    whole = head + encode(SEAL, number, len(head), 0, "", -1, 0, b"")
    files.publish(path_of(directory, number), whole)


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
