"""Arrays in memory that other processes can map, taken and given back by one of them."""

import mmap
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

PAGE = 1 << 12
RESERVED = 1 << 40  # bytes of address space; memory is taken for what is written alone
# Not taken at the end: a reader that looked while something changed may look this far behind an
# array before it notices. A number of 32 bits leads at most 16 GiB behind one of int64.
SLACK = 1 << 35
KEPT_SECONDS = 60.0  # that memory which no reader finds any more stays as it was


@dataclass
class _Block:
    at: int
    size: int
    array: "weakref.ref[np.ndarray]"
    named: int = 0  # the last revision that readers can find it by; 0: none
    retired: float | None = None  # since when no newer one names it


class SharedArrays:
    """Memory without a name in any file system, in which arrays are made. Safe for many threads.

    The first page is the caller's. Readers in other processes go by *revisions*: lists of the
    arrays that belong together. Memory of an array is given back once nothing in this process
    refers to it and no revision of the last ``KEPT_SECONDS`` has named it.

    Args:
        clock: seconds, for tests.

    Attributes:
        fd: descriptor of the memory.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.fd = os.memfd_create("seqvault", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, RESERVED)
        self._map = mmap.mmap(self.fd, RESERVED)
        self.page = np.frombuffer(self._map, np.uint8, PAGE)
        self._base = int(self.page.__array_interface__["data"][0])
        self._clock, self._lock = clock, threading.Lock()
        self._end = PAGE
        self._blocks: list[_Block] = []
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """As ``np.empty``, in shared memory."""
        kind = np.dtype(dtype)
        need = kind.itemsize * (shape if isinstance(shape, int) else prod(shape))
        size = max(PAGE, 1 << (need - 1).bit_length())
        with self._lock:
            if self._free[size]:
                at = self._free[size].pop()
            elif self._end + size > RESERVED - SLACK:
                raise MemoryError(f"the store's shared memory has no room for {need} bytes.")
            else:
                at, self._end = self._end, self._end + size
            base = np.frombuffer(self._map, np.uint8, size, at)
            self._blocks.append(_Block(at, size, weakref.ref(base)))
        array: np.ndarray = base[:need].view(kind).reshape(shape)
        return array

    def place_of(self, array: np.ndarray) -> int:
        """Where an array that ``empty`` made begins in the memory, bytes."""
        return int(array.__array_interface__["data"][0]) - self._base

    def name(self, places: set[int], revision: int) -> list[int]:
        """Tells that a revision names the arrays that begin there, and no others.

        Returns:
            The places that can be given back now, see ``give_back``.
        """
        now, over = self._clock(), []
        with self._lock:
            for block in self._blocks:
                if block.at in places:
                    block.named = revision
                    continue
                if block.named and block.retired is None:
                    block.retired = now
                if block.array() is None and (
                    block.retired is None or now - block.retired >= KEPT_SECONDS
                ):
                    over.append(block.at)
        return over

    def newest_naming(self, places: list[int]) -> int:
        """The newest revision that named any of them; 0: none."""
        wanted = set(places)
        with self._lock:
            return max((block.named for block in self._blocks if block.at in wanted), default=0)

    def give_back(self, places: list[int]) -> None:
        """Gives memory back that ``name`` returned; whoever still reads it reads zeros."""
        wanted = set(places)
        with self._lock:
            for block in self._blocks:
                if block.at in wanted:
                    self._map.madvise(mmap.MADV_REMOVE, block.at, block.size)
                    self._free[block.size].append(block.at)
            self._blocks = [block for block in self._blocks if block.at not in wanted]

    @property
    def bytes(self) -> int:
        """Bytes of memory in use."""
        return os.fstat(self.fd).st_blocks * 512

    def close(self) -> None:
        """Closes the descriptor; the memory goes with the last array in any process."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
