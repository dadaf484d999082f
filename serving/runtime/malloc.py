"""What glibc's allocator does with memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes

# Of malloc.h.
_M_MMAP_THRESHOLD = -3


def return_large_blocks(size: int) -> bool:
    """Have every block of at least ``size`` bytes go back to the system when it is freed.

    Without this glibc raises the size whenever such a block is freed, up to 32 MiB: the next one
    comes from the heap of its thread, and what a few large requests held in each of them is never
    returned. Blocks from the system cost a page fault for each page, so ``size`` is to lie above
    what is taken and freed again and again.

    Args:
        size: Bytes.

    Returns:
        Whether it was done: False where the C library is another.

    Example:
        >>> return_large_blocks(32 * 2**20) in (True, False)
        True
    """
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size))
    return False


def return_freed() -> bool:
    """Give the pages that hold nothing any more back to the system, those amid others too.

    By itself the allocator returns only what is free at the end of a thread's heap, so each thread
    would keep what its largest request took. Takes milliseconds, during which other threads may
    wait for memory.

    Returns:
        Whether there was something to return: False, too, where the C library is another.

    Example:
        >>> return_freed() in (True, False)
        True
    """
    with contextlib.suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).malloc_trim(0))
    return False
