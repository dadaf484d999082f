"""The writer's side of a store that other processes attach to."""

import json
import os
import select
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from seqvault.disk.files import Files
from seqvault.memory import edition_board as board
from seqvault.memory.shared_arrays import SharedArrays
from seqvault.memory.shared_version import describe
from seqvault.memory.version import Version

NAME = "SHARED"  # file in the store's directory that says where its shared memory is
WAIT_MS = 1000  # for the end of a killed writer; another process may have its number by now


class SharedMemory:
    """Publishes every change of a store's version to readers in other processes.

    An edition counter guards what they look up: it is odd while something changes, and a reader
    that finds it odd, or another one afterwards, looks again. The caller holds the store's lock
    around ``begin`` and ``end``. What a version consists of is written down anew, as a
    *revision*, when an array was replaced by another or the manifest changed; an append alone
    changes no more than the arrays.

    Attributes:
        arrays: what the index and the memtable must be made in.
    """

    def __init__(self) -> None:
        self.arrays = SharedArrays()
        self._words = board.words_of(self.arrays.page)
        self._published: tuple[Any, ...] = ()
        self._list: np.ndarray | None = None

    def announce(self, files: Files, path: str, version: Version) -> None:
        """Lets readers in: writes down the version, and in the directory where it is."""
        words, instance = self._words, os.urandom(16)
        words[board.INSTANCE : board.INSTANCE + 2] = np.frombuffer(instance, np.int64)
        status = os.stat(f"{path}/LOCK")
        words[board.DEVICE], words[board.INODE] = status.st_dev, status.st_ino
        words[board.FORMAT_AT] = board.FORMAT
        self.begin()
        self.end(version)
        board.store(words, board.MAGIC_AT, board.MAGIC)
        told = {
            "process": os.getpid(),
            "descriptor": self.arrays.fd,
            "instance": instance.hex(),
        }
        files.publish(f"{path}/{NAME}", json.dumps(told).encode())

    def begin(self) -> None:
        """Something is about to change."""
        board.store(self._words, board.EDITION, self._words[board.EDITION] + 1)

    def end(self, version: Version) -> None:
        """It has changed; the version is what readers see from now on."""
        index, memtable = version.index, version.memtable
        state = (version, index.revision, memtable.revision)
        over: list[int] = []
        if len(self._published) != 3 or not (
            self._published[0] is version and self._published[1:] == state[1:]
        ):
            over = self._publish(version)
            self._published = state
        self._words[board.USERS], self._words[board.EVENTS] = len(index.users), memtable.size
        board.store(self._words, board.EDITION, self._words[board.EDITION] + 1)
        if over:  # a reader that is that late learns it before it could read zeros unawares
            newest = self.arrays.newest_naming(over)
            oldest = max(int(self._words[board.OLDEST]), newest + 1)
            board.store(self._words, board.OLDEST, oldest)
            self.arrays.give_back(over)

    def _publish(self, version: Version) -> list[int]:
        content, places = describe(version, self.arrays.place_of)
        room = self.arrays.empty(len(content), np.uint8)
        room[:] = np.frombuffer(content, np.uint8)
        self._list = room
        place, revision = self.arrays.place_of(room), int(self._words[board.REVISION]) + 1
        self._words[board.REVISION] = revision
        self._words[board.LIST_AT], self._words[board.LIST_SIZE] = place, len(content)
        return self.arrays.name({*places, place}, revision)

    def close(self, files: Files, path: str) -> None:
        """Tells readers that the store is closed; the caller still has its lock."""
        if self._words[board.MAGIC_AT]:  # it was announced
            board.store(self._words, board.CLOSED, 1)
            with suppress(OSError):
                files.unlink(f"{path}/{NAME}")
        self.arrays.close()


def wait_for_former(files: Files, path: str) -> None:
    """Waits until a writer that did not close the store is gone for its readers, too.

    The caller has just taken the lock. The kernel gives a killed process' lock away a moment
    before it says that the process has ended; what is appended in that moment, readers of its
    memory would not see.
    """
    try:
        told = json.loads(Path(path, NAME).read_text())
        process = int(told["process"])
        pidfd = os.pidfd_open(process)
    except (OSError, ValueError, TypeError, KeyError):
        return
    try:
        if process != os.getpid():  # else it is a store that was never closed, but let go of
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll(WAIT_MS)
    finally:
        os.close(pidfd)
    with suppress(OSError):
        files.unlink(f"{path}/{NAME}")
