"""The one place that touches files, so that tests can put faults in its way."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from seqvault.errors import DiskFullError


class Files:
    """Thin layer over ``os``: every write, sync, rename and unlink of a store.

    Args of all methods are plain paths and descriptors, as in ``os``. Short
    reads and writes and EINTR are dealt with here, once.
    """

    def open_read(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def create(self, path: str) -> int:
        """Opens ``path`` for reading and writing, emptied if it was there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def preadv(self, fd: int, out: memoryview, offset: int) -> int:
        return os.preadv(fd, [out], offset)

    def allocate(self, fd: int, size: int) -> None:
        os.posix_fallocate(fd, 0, size)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)

    def lock(self, path: str) -> int:
        """Takes the exclusive lock; raises ``BlockingIOError`` if it is taken."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    # ---- built from the calls above; not points of failure of their own

    def write_all(self, fd: int, data: bytes | memoryview | np.ndarray, offset: int) -> int:
        """Writes everything at ``offset`` and returns the offset behind it."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self.pwrite(fd, view[done : done + (1 << 30)], offset + done)
        return offset + done

    def read_all(self, fd: int, size: int, offset: int) -> np.ndarray:
        """Reads up to ``size`` bytes; fewer only where the file ends."""
        out = np.empty(size, np.uint8)
        return out[: self.read_into(fd, memoryview(out), offset)]

    def read_into(self, fd: int, out: memoryview, offset: int) -> int:
        done = 0
        while done < len(out):
            got = self.preadv(fd, out[done : done + (1 << 30)], offset + done)
            if got == 0:
                break
            done += got
        return done

    def publish(self, path: str, data: bytes) -> None:
        """Replaces the file ``path`` by ``data``: after a crash it is old or new."""
        temporary = path + ".tmp"
        fd = self.create(temporary)
        try:
            self.write_all(fd, data, 0)
            self.fdatasync(fd)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_directory(os.path.dirname(path))


@contextmanager
def disk_full_is_typed(what: str) -> Iterator[None]:
    """Turns ENOSPC and EDQUOT into ``DiskFullError``."""
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"no room on the disk to {what}: nothing of this call was stored. "
            "Free some space and call again; reads go on meanwhile."
        ) from error
