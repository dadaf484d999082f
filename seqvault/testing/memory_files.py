"""An in-memory file system that simulates crashes with torn, lost and reordered writes."""

import errno
import os
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Literal

import numpy as np

from seqvault.disk.files import Files


class Crash(BaseException):
    """A simulated crash."""


class _File:
    """Contents of a file: what was synced, and the writes since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.current = bytearray()
        self.pending: list[tuple[int, bytes]] = []

    def after_crash(self, rng: random.Random, survives: str) -> "_File":
        """What may be left of the file."""
        copy = _File()
        copy.durable = bytearray(self.durable)
        for offset, piece in self.pending if survives != "nothing" else []:
            sector = rng.choice((512, 4096))
            share = 1.0 if survives == "all" else rng.choice((0.0, 0.5, 1.0))
            first = offset - offset % sector  # sectors are the disk's, not the write's
            for start in range(first, offset + len(piece), sector):
                if rng.random() < share:
                    low, high = max(start, offset), min(start + sector, offset + len(piece))
                    _put(copy.durable, low, piece[low - offset : high - offset])
        copy.current = bytearray(copy.durable)
        return copy


def _put(data: bytearray, offset: int, piece: bytes) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece


class MemoryFiles(Files):
    """Files in memory, with a strict view of what survives a crash.

    A write survives for certain only after ``fdatasync`` of its file; a name made,
    changed or removed only after ``sync_directory``. ``after_crash`` builds one of
    the states that the disk may be in: of the writes since, any sectors of 512 or 4096
    bytes may have arrived, in any order; of the names, of each directory any first part
    of the changes.

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
        self._next = 1 << 20  # no system call can mistake it for a real descriptor
        self._short = short

    def after_crash(
        self, rng: random.Random, survives: Literal["nothing", "some", "all"] = "some"
    ) -> "MemoryFiles":
        """A disk as the crash may have left it; this one is left alone.

        Args:
            rng: chooses among the states that are possible.
            survives: what remains of all that was not synced.
        """
        disk = MemoryFiles(short=self._short)
        names = dict(self._durable_names)
        # the journal of a file system keeps the order of changes, here within a directory
        changes: dict[str, list[tuple[str, _File | None]]] = defaultdict(list)
        for directory, path, file in self._pending_names:
            changes[directory].append((path, file))
        for one in changes.values():
            kept = {"nothing": 0, "some": rng.randint(0, len(one)), "all": len(one)}[survives]
            for path, file in one[:kept]:
                if file is None:
                    names.pop(path, None)
                else:
                    names[path] = file
        copies: dict[int, _File] = {}
        for path, file in names.items():
            if id(file) not in copies:
                copies[id(file)] = file.after_crash(rng, survives)
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
        if path in self.names:  # the same file, emptied; a crash may bring the old bytes back
            self.names[path].current.clear()
            self.names[path].pending.clear()
        else:
            self._rename_later(path, _File())
        return self._open_file(self.names[path])

    def open_write(self, path: str) -> int:  # noqa: D102
        self.fault("open_write")
        return self.open_read(path)

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

    def unlock(self, fd: int) -> None:  # noqa: D102
        self._open.pop(fd)

    def holds(self, fd: int, path: str) -> bool:  # noqa: D102
        return fd in self._open

    def flip_bit(self, path: str, bit: int) -> None:
        """Flips one bit of a file."""
        file = self.names[path]
        file.current[bit >> 3] ^= 1 << (bit & 7)
        file.durable = bytearray(file.current)

    def replace(self, path: str, content: bytes) -> None:
        """Gives a file, which need not be there yet, other bytes."""
        file = _File()
        file.current, file.durable = bytearray(content), bytearray(content)
        self.names[path] = self._durable_names[path] = file

    def write_to(self, folder: str, below: str) -> None:
        """Writes the files below a directory to real ones below ``folder``."""
        for path, file in self.names.items():
            if path.startswith(below + "/"):
                target = folder + path[len(below) :]
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as real:
                    real.write(file.current)

    def remove(self, path: str) -> None:
        """Loses a file for good."""
        self.names.pop(path)
        self._durable_names.pop(path, None)

    def content(self, path: str) -> np.ndarray:
        """A file's bytes."""
        return np.frombuffer(bytes(self.names[path].current), np.uint8)
