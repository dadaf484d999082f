"""The state of a store that another process has open, read from that process' memory."""

import json
import mmap
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from seqvault.disk import item_file
from seqvault.disk.files import Files
from seqvault.disk.segment import Segment
from seqvault.errors import (
    InvalidRequestError,
    LimitError,
    NotSharedError,
    StoreNotFoundError,
    WriterGoneError,
)
from seqvault.memory import edition_board as board
from seqvault.memory.item_table import Items
from seqvault.memory.shared_arrays import PAGE, RESERVED
from seqvault.memory.shared_memory import NAME
from seqvault.memory.shared_version import restore
from seqvault.memory.store_state import Found, State
from seqvault.memory.version import Version
from seqvault.schema import Schema

WAIT_SECONDS = 5.0  # that a look-up waits for a moment without a change


class _ChangedError(Exception):
    """The store changed while something was looked up."""


class _Seen(threading.local):
    """Of a thread: the revision that its last look-up found, and its poll of the writer."""

    def __init__(self) -> None:
        self.revision = 0
        self.poll: select.poll | None = None


class AttachedState(State):
    """What reads need of a store, in memory that the writer shares and this process only reads.

    Nothing is copied. A look-up goes by the edition counter: it takes what it needs, and takes
    it again if the edition is another one afterwards, so that it never waits for a lock that the
    writer holds. A read that is over is read again if memory that it may have read was given
    back meanwhile.

    Args:
        path: the store's directory. files: the file layer. clock: seconds since 1970.

    Raises:
        NotSharedError: no process here shares this store in a form that this version knows.
        StoreNotFoundError: there is no store.
    """

    def __init__(self, path: str, files: Files, clock: Callable[[], float]) -> None:
        super().__init__(path, files, True, clock)
        self._pidfd, self._base, self._words, self._map = _attach(path)
        self._seen, self._opening = _Seen(), threading.Lock()
        self._current: tuple[int, Version | None] = 0, None
        self._items: tuple[list[int], Items] = [], Items()
        try:
            self.look_up(lambda version: None)
        except BaseException:
            self.give_up_lock()
            raise

    # ---- looking up

    def look_up(self, find: Callable[[Version], Found]) -> Found:
        """See ``State.look_up``; ``find`` may be called several times."""
        until = time.monotonic() + WAIT_SECONDS
        while True:
            edition = self._edition(until)
            try:
                revision, version = self._version_now(edition)
                found = find(version)
            except Exception:
                if self._is_at(edition):
                    raise
            else:
                if self._is_at(edition):
                    self._seen.revision = revision
                    return found
            if time.monotonic() > until:
                raise LimitError(
                    f"the store at {self.path} changed all the time for {WAIT_SECONDS:.0f} s; "
                    "try again, or read fewer users at a time."
                )

    def whole(self, read: Callable[[], Found]) -> Found:
        """See ``State.whole``."""
        while True:
            try:
                found = read()
            except Exception:
                if self._is_kept():
                    raise
                continue
            if self._is_kept():
                return found

    def _is_kept(self) -> bool:
        """Whether the memory that this thread's last look-up found is as it was."""
        return bool(board.load(self._words, board.OLDEST) <= self._seen.revision)

    def _is_at(self, edition: int) -> bool:
        return bool(board.load(self._words, board.EDITION) == edition)

    def _edition(self, until: float) -> int:
        """The present edition, once nothing changes."""
        tries = 0
        while True:
            self.check_open()
            edition = int(board.load(self._words, board.EDITION))
            if not edition & 1:
                return edition
            tries += 1
            if tries > 50:
                time.sleep(0.00005)
                if time.monotonic() > until:
                    raise LimitError(
                        f"a change of the store at {self.path} takes more than {WAIT_SECONDS:.0f} "
                        "s; try again."
                    )

    def _version_now(self, edition: int) -> tuple[int, Version]:
        """The version of an edition, and its revision."""
        revision = int(self._words[board.REVISION])
        known, version = self._current
        if version is None or known != revision:
            with self._opening:
                known, version = self._current
                if version is None or known != revision:
                    version = self._load(edition, version)
                    self._current = known, version = revision, version
        version.index.users.know(int(self._words[board.USERS]))
        return known, version

    def _load(self, edition: int, before: Version | None) -> Version:
        place, size = int(self._words[board.LIST_AT]), int(self._words[board.LIST_SIZE])
        if not self._is_at(edition):
            raise _ChangedError
        content = self._array_at(place, size, np.dtype(np.uint8)).tobytes()
        if not self._is_at(edition):
            raise _ChangedError
        return restore(
            content,
            self._array_at,
            {} if before is None else before.segments,
            lambda number: Segment(self.files, self.path, number),
        )

    def _array_at(self, place: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
        if not 0 <= place <= place + size * dtype.itemsize <= RESERVED:
            raise _ChangedError
        return _array_over(self._map, self._base + place, size, dtype)

    # ---- what else there is

    @property
    def version(self) -> Version:  # type: ignore[override]
        """The present one."""
        return self.look_up(lambda version: version)

    @property
    def schema(self) -> Schema:
        """The schema in force, which a writer sets when it opens the store."""
        version = self._current[1]
        assert version is not None
        return version.schemas[-1]

    @property
    def items(self) -> Items:
        """The item table: a copy of this process' own, loaded when it is asked for."""
        for _ in range(20):
            numbers = self.version.manifest.items
            known, items = self._items
            if known == numbers:
                return items
            items = Items()
            try:
                for number in numbers:
                    table = item_file.load(self.files, self.path, number, items.schema)
                    items.apply(table, number)
            except FileNotFoundError:
                if self.version.manifest.items == numbers:
                    raise
                continue  # written as one again meanwhile
            self._items = numbers, items
        raise LimitError(f"the items of {self.path} change faster than they can be read.")

    @property
    def events_in_log(self) -> int:
        """See ``State.events_in_log``."""
        return self.look_up(lambda version: int(self._words[board.EVENTS]))

    def check_own(self, what: str) -> None:
        """Raises ``InvalidRequestError``: an attached store has no more than reads need."""
        raise InvalidRequestError(
            f"an attached store has no {what}; ask the process that has {self.path} open, or open "
            "it with read_only=True."
        )

    def check_open(self) -> None:
        """Raises ``StoreClosedError``, ``WriterGoneError`` if the writer has ended or closed."""
        super().check_open()
        seen = self._seen
        if seen.poll is None:
            seen.poll = select.poll()
            seen.poll.register(self._pidfd, select.POLLIN)
        if seen.poll.poll(0) or board.load(self._words, board.CLOSED):
            raise WriterGoneError(
                f"the process that had the store at {self.path} open has ended or closed it; "
                "attach again once it is open again."
            )

    def after_fork_in_child(self) -> None:
        """See ``State.after_fork_in_child``: the child reads on."""
        super().after_fork_in_child()
        self._opening = threading.Lock()

    def give_up_lock(self) -> None:
        """Closes the store."""
        super().give_up_lock()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class _Memory:
    """Memory of a mapping as an array that kernels take for one they may write to.

    NumPy's own would be read-only, and another type to kernels, which would be compiled again.
    """

    def __init__(self, owner: mmap.mmap, address: int, size: int, dtype: np.dtype[Any]) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "data": (address, False), "shape": (size,), "typestr": dtype.str, "version": 3,
        }  # fmt: skip


def _array_over(owner: mmap.mmap, address: int, size: int, dtype: np.dtype[Any]) -> np.ndarray:
    return np.asarray(_Memory(owner, address, size, dtype))


def _attach(path: str) -> tuple[int, int, np.ndarray, mmap.mmap]:
    """Descriptor of the writer's process, address, words and mapping of its shared memory."""
    if not Path(path, "MANIFEST").exists():
        raise StoreNotFoundError(f"no SeqVault store at {path}.")
    try:
        told = json.loads(Path(path, NAME).read_text())
        process, descriptor = int(told["process"]), int(told["descriptor"])
        instance = np.frombuffer(bytes.fromhex(told["instance"]), np.int64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _not_shared(path, f"its file {NAME} cannot be read ({error})") from None
    try:
        pidfd = os.pidfd_open(process)
    except OSError as error:
        raise _not_shared(path, f"process {process} cannot be found ({error.strerror})") from None
    try:
        memory = f"/proc/{process}/fd/{descriptor}"
        if not os.readlink(memory).startswith("/memfd:seqvault"):
            raise _not_shared(path, f"process {process} shares nothing, it is another by now")
        fd = os.open(memory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mapped = mmap.mmap(fd, RESERVED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        page = np.frombuffer(mapped, np.uint8, PAGE)
        base = int(page.__array_interface__["data"][0])
        words = _array_over(mapped, base, board.WORDS, np.dtype(np.int64))
        status = os.stat(f"{path}/LOCK")
        fault = _fault(words, instance, (status.st_dev, status.st_ino))
        if fault:
            raise _not_shared(path, fault)
    except BaseException as error:
        with suppress(OSError):
            os.close(pidfd)
        if isinstance(error, OSError | ValueError):
            raise _not_shared(path, f"memory of process {process}: {error}") from error
        raise
    return pidfd, base, words, mapped


def _fault(words: np.ndarray, instance: np.ndarray, lock: tuple[int, int]) -> str:
    """What is wrong with shared memory, or ""."""
    if words[board.MAGIC_AT] != board.MAGIC:
        return "what its process shares is not a store's memory"
    if words[board.FORMAT_AT] != board.FORMAT:
        return (
            f"its memory has format {words[board.FORMAT_AT]}, this version reads {board.FORMAT}: "
            "use the same version of seqvault in all processes"
        )
    if (words[board.INSTANCE : board.INSTANCE + 2] != instance).any():
        return "its process has opened it anew meanwhile"
    if (int(words[board.DEVICE]), int(words[board.INODE])) != lock:
        return "the memory is of another store, of which this directory is a copy"
    return ""


def _not_shared(path: str, why: str) -> NotSharedError:
    return NotSharedError(
        f"the store at {path} is not shared: {why}. Open it with share=True (seqvault serve "
        "--readers) in a process of the same user on this host, or here with read_only=True."
    )
