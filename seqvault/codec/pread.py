"""Many small reads without Python, and without the GIL, in between."""

# mypy: ignore-errors

from numba import njit, types

# pread(2) of the C library; pointers are passed as integers of their size
_pread = types.ExternalFunction(
    "pread", types.intp(types.intc, types.uintp, types.uintp, types.intp)
)


@njit(nogil=True, cache=True)
def read_pieces(fds, offsets, sizes, out, starts):
    """Reads pieces until one is short or fails; returns which, or their number."""
    base = out.ctypes.data
    for r in range(len(fds)):
        if _pread(fds[r], base + starts[r], sizes[r], offsets[r]) != sizes[r]:
            return r
    return len(fds)
