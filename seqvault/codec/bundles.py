"""Passes many arrays to a kernel as one argument: each array argument costs a call 0.2 us.

A bundle is an int64 array with the address and the length of each of its parts. It holds no
reference to the arrays: the caller must keep them alive until the kernel returns.
"""

# mypy: disable-error-code="no-untyped-def"

from collections.abc import Sequence

import numpy as np
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

# Places of the parts in the bundles that ``find_rows`` and ``read_rows`` take.
# of a store: its index and open segments, the memtable's chains and columns
(
    TABLE, KEYS, LATEST, PREVIOUS, SEGMENT, OFFSET, LENGTH, COUNT, ARRIVALS,
    NUMBERS, DESCRIPTORS, SCHEMAS, HEADS, LINKS, MEM_TIMES, MEM_ADDRESSES,
    DEPTHS, RUNS, SUMMARIES,
) = range(19)  # fmt: skip
# of a choice of fields
COLUMNS_OF, SIZES, DEFAULTS, MEM_COLUMNS, COLUMNS_IN = range(5)
# of the room that a thread keeps: int64 [B, 3] rows, int64 [R, 5] records, bytes
ROWS, RECORDS, BUFFER = range(3)
ROW_WIDTH, RECORD_WIDTH = 3, 5


def bundle(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [2 N]: address and number of values of each array, all of them contiguous.

    Raises:
        ValueError: an array is not contiguous.
    """
    words = np.empty(2 * len(arrays), np.int64)
    for place, array in enumerate(arrays):
        if not array.flags.c_contiguous:
            raise ValueError("parts of a bundle must be contiguous.")
        words[2 * place] = array.__array_interface__["data"][0]
        words[2 * place + 1] = array.size
    return words


def _reader(dtype):
    """An intrinsic that makes a flat array of a part of a bundle."""
    kind = types.Array(dtype, 1, "C")

    @intrinsic
    def part(typingctx, words, place):
        """The array at a place of the bundle, of ``dtype``, valid while its owner holds it."""

        def codegen(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            first = builder.shl(args[1], context.get_constant(types.intp, 1))
            at = builder.load(builder.gep(data, [first]))
            after = builder.add(first, context.get_constant(types.intp, 1))
            size = builder.load(builder.gep(data, [after]))
            item = context.get_data_type(dtype)
            width = context.get_constant(types.intp, context.get_abi_sizeof(item))
            array = context.make_array(kind)(context, builder)
            arrayobj.populate_array(
                array, data=builder.inttoptr(at, item.as_pointer()), shape=[size],
                strides=[width], itemsize=width, meminfo=None,
            )  # fmt: skip
            return array._getvalue()

        return kind(words, types.intp), codegen

    return part


int64_part, int32_part = _reader(types.int64), _reader(types.int32)
uint64_part, uint8_part = _reader(types.uint64), _reader(types.uint8)
