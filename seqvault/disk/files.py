"""The file layer: all file access goes through it, so that tests can inject faults."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import numpy as np
from numba import njit, types

from seqvault.errors import DiskFullError


class SyncError(OSError):
    """A sync failed: whether writes since the last successful one are on disk is unknown."""


class Files:
    """Thin layer over ``os``: every write, sync, rename and unlink of a store.

    Args of all methods are plain paths and descriptors, as in ``os``. Short reads and writes and
    EINTR are handled here.
    """

    def open_read(self, path: str) -> int:
        """Opens a file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def create(self, path: str) -> int:
        """Opens ``path`` for reading and writing, emptied if it was there."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def open_write(self, path: str) -> int:
        """Opens a file that is there for reading and writing, its contents kept."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Closes a descriptor."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        return os.fstat(fd).st_size

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Writes some of ``data`` at ``offset``; returns how many bytes."""
        return os.pwrite(fd, data, offset)

    def preadv(self, fd: int, out: memoryview, offset: int) -> int:
        """Reads some bytes into ``out``; returns how many, 0 at the end."""
        return os.preadv(fd, [out], offset)

    def allocate(self, fd: int, size: int) -> None:
        """Makes the file at least ``size`` bytes long, zeros at the end."""
        os.posix_fallocate(fd, 0, size)

    def truncate(self, fd: int, size: int) -> None:
        """Cuts the file off behind ``size`` bytes."""
        os.ftruncate(fd, size)

    def fdatasync(self, fd: int) -> None:
        """Flushes the data of a file to disk (``fdatasync``)."""
        os.fdatasync(fd)

    def rename(self, old: str, new: str) -> None:
        """Renames a file to ``new``, replacing a file of that name."""
        os.replace(old, new)

    def unlink(self, path: str) -> None:
        """Removes a name."""
        os.unlink(path)

    def link(self, old: str, new: str) -> None:
        """Creates a hard link."""
        os.link(old, new)

    def exists(self, path: str) -> bool:
        """Whether there is such a name."""
        return os.path.exists(path)

    def list_directory(self, path: str) -> list[str]:
        """Names in a directory."""
        return os.listdir(path)

    def sync_directory(self, path: str) -> None:
        """Makes created, renamed and removed names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directory(self, path: str) -> None:
        """Creates a directory and its parents, durably."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_directory(parent)
        with suppress(FileExistsError):
            os.mkdir(path)
        self.sync_directory(parent)

    def lock(self, path: str) -> int:
        """Takes the exclusive lock; raises ``BlockingIOError`` if it is taken."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def unlock(self, fd: int) -> None:
        """Gives the lock up and closes its descriptor.

        A process that was forked a moment ago has the descriptor, too: closing alone would leave
        it the lock.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    def holds(self, fd: int, path: str) -> bool:
        """Whether ``path`` still is the file whose lock was taken as ``fd``."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(path))
        except OSError:
            return False

    def free_bytes(self, path: str) -> int:
        """Free bytes of the file system; a large number if unknown."""
        try:
            found = os.statvfs(path)
        except OSError:
            return 1 << 62
        return found.f_bavail * found.f_frsize

    # ---- built from the calls above; not points of failure of their own

    def sync(self, fd: int) -> None:
        """``fdatasync`` whose failure is a ``SyncError``."""
        try:
            self.fdatasync(fd)
        except OSError as error:
            raise SyncError(error.errno, error.strerror) from error

    def sync_names(self, path: str) -> None:
        """``sync_directory`` whose failure is a ``SyncError``."""
        try:
            self.sync_directory(path)
        except OSError as error:
            raise SyncError(error.errno, error.strerror, path) from error

    def write_all(self, fd: int, data: bytes | memoryview | np.ndarray, offset: int) -> int:
        """Writes everything at ``offset`` and returns the offset behind it."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            done += self.pwrite(fd, view[done : done + (1 << 30)], offset + done)
        return offset + done

    def read_all(self, fd: int, size: int, offset: int) -> np.ndarray:
        """Reads up to ``size`` bytes; fewer only where the file ends."""
        out = np.empty(size, np.uint8)
        return out[: self.read_into(fd, memoryview(out), offset)]  # type: ignore[arg-type]

    def read_into(self, fd: int, out: memoryview, offset: int) -> int:
        """Fills ``out`` from ``offset`` on; returns the bytes read, fewer at the end."""
        done = 0
        while done < len(out):
            got = self.preadv(fd, out[done : done + (1 << 30)], offset + done)
            if got == 0:
                break
            done += got
        return done

    def read_many(
        self,
        fds: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        out: np.ndarray,
        starts: np.ndarray,
    ) -> int:
        """Reads pieces of files into ``out``; returns the first that is short, or -1.

        Args:
            fds, offsets, sizes: int64 [R], what to read.
            out: uint8. starts: int64 [R], where each piece goes.
        """
        first = 0
        if type(self).preadv is Files.preadv:  # not overridden: no one observes single calls
            first = read_pieces(fds, offsets, sizes, out, starts)
        view = memoryview(out)  # type: ignore[arg-type]
        for r in range(first, len(fds)):
            piece = view[int(starts[r]) : int(starts[r] + sizes[r])]
            if self.read_into(int(fds[r]), piece, int(offsets[r])) != len(piece):
                return r
        return -1

    def temporary_of(self, path: str) -> str:
        """A unique temporary name, for a file that will be renamed to ``path``."""
        return f"{path}.{os.urandom(6).hex()}.tmp"

    def publish(
        self,
        path: str,
        data: bytes | Iterable[bytes | memoryview | np.ndarray],
        fence: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Replaces the file ``path`` by ``data``: after a crash it is old or new.

        Args:
            path: of the file.
            data: its bytes, or the pieces that make it up.
            fence: held while the file gets its name; may raise to prevent that.
        """
        temporary = self.temporary_of(path)
        try:
            fd = self.create(temporary)
            try:
                end = 0
                for piece in [data] if isinstance(data, bytes) else data:
                    end = self.write_all(fd, piece, end)
                self.sync(fd)
            finally:
                self.close(fd)
            with fence():
                self.rename(temporary, path)
                self.sync_names(os.path.dirname(path))
        except BaseException:
            with suppress(OSError):  # renamed already, or what is left goes at the next open
                self.unlink(temporary)
            raise

    def pieces(self, fd: int, size: int = 8 << 20) -> Iterator[np.ndarray]:
        """The bytes of an open file, ``size`` at a time."""
        for offset in range(0, self.size(fd), size):
            yield self.read_all(fd, size, offset)


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


# pread(2) of the C library; pointers are passed as integers of their size
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.uintp, types.uintp, types.intp)
)


@njit(nogil=True, cache=True)
def read_pieces(
    fds: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, starts: np.ndarray
) -> int:
    """Reads pieces until one is short or fails; returns which, or their number."""
    base = out.ctypes.data
    for r in range(len(fds)):
        if _pread(fds[r], base + starts[r], sizes[r], offsets[r]) != sizes[r]:
            return r
    return len(fds)
