"""A file system in memory that crashes, tears, drops and reorders as disks do."""

import errno
import random
from collections.abc import Callable

import numpy as np

from seqvault.files import Files


class Crash(BaseException):
    """The process ends here."""


class _File:
    """Contents of a file: what was synced, and the writes since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.current = bytearray()
        self.pending: list[tuple[int, bytes]] = []


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


class MemoryFiles(Files):
    """Files in memory, with a strict view of what survives a crash.

    A write survives for certain only after ``fdatasync`` of its file; a name made,
    changed or removed only after ``sync_directory``. ``after_crash`` builds one of
    the states that the disk may be in: of the writes since, any sectors may have
    arrived, of the names any first part of the changes.

    Args:
        fault: called with the name of each operation before it takes place; may raise
            ``Crash`` or ``OSError``. ``"pwrite"`` that raises ``Crash`` may still have
            written, as in a real crash.
        short: makes every read and write stop short of what was asked, now and then.
    """

    def __init__(
        self, fault: Callable[[str], None] | None = None, short: random.Random | None = None
    ) -> None:
        self.fault = fault or (lambda operation: None)
        self.names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._pending_names: list[tuple[str, str, _File | None]] = []  # directory, path, file
        self._open: dict[int, _File] = {}
        self._next = 3
        self._short = short

    def after_crash(self, rng: random.Random) -> "MemoryFiles":
        """A disk as the crash may have left it; this one is left alone."""
        disk = MemoryFiles(short=self._short)
        names = dict(self._durable_names)
        # the journal of a file system keeps the order of changes of names
        for _, path, file in self._pending_names[: rng.randint(0, len(self._pending_names))]:
            if file is None:
                names.pop(path, None)
            else:
                names[path] = file
        copies: dict[int, _File] = {}
        for path, file in names.items():
            if id(file) not in copies:
                copy = _File()
                copy.durable = bytearray(file.durable)
                for offset, piece in file.pending:
                    sector = rng.choice((512, 4096))
                    mood = rng.random()
                    for start in range(0, len(piece), sector):
                        if mood < 0.3 or (mood < 0.7 and rng.random() < 0.5):
                            _put(copy.durable, offset + start, piece[start : start + sector])
                copy.current = bytearray(copy.durable)
                copies[id(file)] = copy
            disk.names[path] = copies[id(file)]
        disk._durable_names = dict(disk.names)
        return disk

    def _rename_later(self, path: str, file: _File | None) -> None:
        self._pending_names.append((path.rsplit("/", 1)[0], path, file))
        if file is None:
            self.names.pop(path, None)
        else:
            self.names[path] = file

    def _open_file(self, file: _File) -> int:
        self._next += 1
        self._open[self._next] = file
        return self._next

    def open_read(self, path: str) -> int:  # noqa: D102
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self._open_file(self.names[path])

    def create(self, path: str) -> int:  # noqa: D102
        self.fault("create")
        self._rename_later(path, _File())
        return self._open_file(self.names[path])

    def close(self, fd: int) -> None:  # noqa: D102
        self._open.pop(fd)

    def size(self, fd: int) -> int:  # noqa: D102
        return len(self._open[fd].current)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:  # noqa: D102
        piece = bytes(data)
        if self._short is not None and len(piece) > 1 and self._short.random() < 0.3:
            piece = piece[: self._short.randint(1, len(piece) - 1)]
        file = self._open[fd]
        try:
            self.fault("pwrite")
        except Crash:
            file.pending.append((offset, piece))
            raise
        file.pending.append((offset, piece))
        _put(file.current, offset, piece)
        return len(piece)

    def preadv(self, fd: int, out: memoryview, offset: int) -> int:  # noqa: D102
        self.fault("preadv")
        count = len(out)
        if self._short is not None and count > 1 and self._short.random() < 0.3:
            count = self._short.randint(1, count - 1)
        piece = self._open[fd].current[offset : offset + count]
        out[: len(piece)] = bytes(piece)
        return len(piece)

    def allocate(self, fd: int, size: int) -> None:  # noqa: D102
        self.fault("allocate")
        file = self._open[fd]
        if len(file.current) < size:
            file.current.extend(bytes(size - len(file.current)))

    def truncate(self, fd: int, size: int) -> None:  # noqa: D102
        self.fault("truncate")
        file = self._open[fd]
        del file.current[size:]
        # a crash may bring the old end back, so what is on the disk stays for now

    def fdatasync(self, fd: int) -> None:  # noqa: D102
        self.fault("fdatasync")
        file = self._open[fd]
        for offset, piece in file.pending:
            _put(file.durable, offset, piece)
        if len(file.durable) < len(file.current):
            file.durable.extend(bytes(len(file.current) - len(file.durable)))
        del file.durable[len(file.current) :]
        file.pending = []

    def rename(self, old: str, new: str) -> None:  # noqa: D102
        self.fault("rename")
        file = self.names[old]
        self._rename_later(new, file)
        self._rename_later(old, None)

    def unlink(self, path: str) -> None:  # noqa: D102
        self.fault("unlink")
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        self._rename_later(path, None)

    def link(self, old: str, new: str) -> None:  # noqa: D102
        self.fault("link")
        self._rename_later(new, self.names[old])

    def exists(self, path: str) -> bool:  # noqa: D102
        return path in self.names or any(name.startswith(path + "/") for name in self.names)

    def list_directory(self, path: str) -> list[str]:  # noqa: D102
        return [name.rsplit("/", 1)[1] for name in self.names if name.rsplit("/", 1)[0] == path]

    def sync_directory(self, path: str) -> None:  # noqa: D102
        self.fault("sync_directory")
        later = []
        for directory, name, file in self._pending_names:
            if directory != path:
                later.append((directory, name, file))
            elif file is None:
                self._durable_names.pop(name, None)
            else:
                self._durable_names[name] = file
        self._pending_names = later

    def make_directory(self, path: str) -> None:  # noqa: D102
        pass

    def lock(self, path: str) -> int:  # noqa: D102
        return self._open_file(_File())

    def flip_bit(self, path: str, bit: int) -> None:
        """Turns one bit of a file over."""
        file = self.names[path]
        file.current[bit >> 3] ^= 1 << (bit & 7)
        file.durable = bytearray(file.current)

    def content(self, path: str) -> np.ndarray:
        """A file's bytes."""
        return np.frombuffer(bytes(self.names[path].current), np.uint8)
