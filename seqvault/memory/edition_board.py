"""The first page of shared memory: which store it is of, and the edition counter."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

MAGIC = int.from_bytes(b"SQVSHM\x00\x00", "little")
FORMAT = 1  # of this page and what it leads to; changes with any of the arrays
(
    MAGIC_AT, FORMAT_AT, INSTANCE, INSTANCE_REST, DEVICE, INODE, EDITION, REVISION,
    LIST_AT, LIST_SIZE, OLDEST, USERS, EVENTS, CLOSED,
) = range(14)  # fmt: skip
WORDS = 14


@intrinsic
def _fence(typingctx):
    """What was read and written before is, in every other processor's eyes, before what follows."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@njit(cache=True)
def load(words, place):
    """A word of the page, not before anything that was read before."""
    _fence()
    value = words[place]
    _fence()
    return value


@njit(cache=True)
def store(words, place, value):
    """Sets a word of the page, not before anything that was written before."""
    _fence()
    words[place] = value
    _fence()


def words_of(page: np.ndarray) -> np.ndarray:
    """int64, the words of a page."""
    words: np.ndarray = page[: 8 * WORDS].view(np.int64)
    return words
