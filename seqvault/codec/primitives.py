"""Smallest pieces of the numba kernels: unaligned loads and stores, bit length, CRC32C."""

# mypy: ignore-errors

import platform

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)


@intrinsic
def load_u64(typingctx, array, index):
    """Little-endian 8 bytes of a uint8 array at any offset."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), _I64.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, types.intp), codegen


@intrinsic
def store_u64(typingctx, array, index, value):
    """Writes 8 bytes little-endian into a uint8 array at any offset."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), _I64.as_pointer())
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), codegen


@intrinsic
def bit_length(typingctx, value):
    """Number of bits up to the highest set one; 0 for 0."""

    def codegen(context, builder, signature, args):
        zeros = builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))
        return builder.sub(ir.Constant(_I64, 64), zeros)

    return types.int64(types.uint64), codegen


def _crc_step(name, width):
    @intrinsic
    def step(typingctx, crc, data):
        def codegen(context, builder, signature, args):
            state = ir.IntType(64 if width == 64 else 32)
            argument = ir.IntType(width)
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(state, [state, argument]), name
            )
            crc_value, data_value = args
            if width == 8:
                crc_value = builder.trunc(crc_value, state)
                data_value = builder.trunc(data_value, argument)
                return builder.zext(builder.call(function, [crc_value, data_value]), _I64)
            return builder.call(function, [crc_value, data_value])

        return types.uint64(types.uint64, types.uint64), codegen

    return step


def _crc_table():
    """Eight tables of 256 for CRC32C (Castagnoli), eight bytes at a time."""
    tables = np.zeros((8, 256), np.uint64)
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        tables[0, byte] = crc
    for level in range(1, 8):
        for byte in range(256):
            last = int(tables[level - 1, byte])
            tables[level, byte] = (last >> 8) ^ int(tables[0, last & 0xFF])
    return tables


_TABLES = _crc_table()


@njit(nogil=True, cache=True)
def crc32c_portable(data, start, end):
    """CRC32C of ``data[start:end]`` by tables: any processor."""
    crc = np.uint64(0xFFFFFFFF)
    low = np.uint64(0xFF)
    i = start
    while i + 8 <= end:
        word = load_u64(data, i) ^ crc
        crc = (
            _TABLES[7, word & low]
            ^ _TABLES[6, (word >> np.uint64(8)) & low]
            ^ _TABLES[5, (word >> np.uint64(16)) & low]
            ^ _TABLES[4, (word >> np.uint64(24)) & low]
            ^ _TABLES[3, (word >> np.uint64(32)) & low]
            ^ _TABLES[2, (word >> np.uint64(40)) & low]
            ^ _TABLES[1, (word >> np.uint64(48)) & low]
            ^ _TABLES[0, word >> np.uint64(56)]
        )
        i += 8
    while i < end:
        crc = (crc >> np.uint64(8)) ^ _TABLES[0, (crc ^ np.uint64(data[i])) & low]
        i += 1
    return crc ^ np.uint64(0xFFFFFFFF)


if platform.machine() in ("x86_64", "AMD64") and llvm.get_host_cpu_features().get("sse4.2"):
    _crc_word = _crc_step("llvm.x86.sse42.crc32.64.64", 64)
    _crc_byte = _crc_step("llvm.x86.sse42.crc32.32.8", 8)

    @njit(nogil=True, cache=True)
    def crc32c(data, start, end):
        """CRC32C of ``data[start:end]`` by the processor's own instruction."""
        crc = np.uint64(0xFFFFFFFF)
        i = start
        while i + 8 <= end:
            crc = _crc_word(crc, load_u64(data, i))
            i += 8
        while i < end:
            crc = _crc_byte(crc, np.uint64(data[i]))
            i += 1
        return crc ^ np.uint64(0xFFFFFFFF)

else:
    crc32c = crc32c_portable


def checksum(data) -> int:
    """CRC32C of any bytes-like object."""
    view = np.frombuffer(data, np.uint8)
    return int(crc32c(view, 0, len(view)))
