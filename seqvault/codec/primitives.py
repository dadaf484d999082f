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


def _store_narrow(width):
    @intrinsic
    def store(typingctx, array, index, value):
        def codegen(context, builder, signature, args):
            data = context.make_array(signature.args[0])(context, builder, args[0]).data
            kind = ir.IntType(width)
            pointer = builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
            builder.store(builder.trunc(args[2], kind), pointer, align=1)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.uint64), codegen

    return store


store_u8, store_u16, store_u32 = _store_narrow(8), _store_narrow(16), _store_narrow(32)

_LANES = ir.VectorType(ir.IntType(32), 8)


def _lane_pointer(context, builder, kind, array, index):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _LANES.as_pointer())


def _splat(builder, value):
    word = builder.trunc(value, ir.IntType(32))
    single = builder.insert_element(
        ir.Constant(_LANES, ir.Undefined), word, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    return builder.shuffle_vector(single, ir.Constant(_LANES, ir.Undefined), mask)


@intrinsic
def unpack_lanes(typingctx, data, position, shift, mask, out, index):
    """``out[index:index + 8] = (32-bit lanes at position, continued in the next) >> shift``.

    Plain loops over uint32 are widened by numba and do not vectorise; this emits
    ``<8 x i32>`` directly.
    """

    def codegen(context, builder, signature, args):
        low = builder.load(
            _lane_pointer(context, builder, signature.args[0], args[0], args[1]), align=1
        )
        after = builder.add(args[1], ir.Constant(args[1].type, 32))
        high = builder.load(
            _lane_pointer(context, builder, signature.args[0], args[0], after), align=1
        )
        right = _splat(builder, args[2])
        # shifted twice, because a shift by 32 has no meaning
        left = _splat(builder, builder.sub(ir.Constant(_I64, 31), args[2]))
        one = ir.Constant(_LANES, [1] * 8)
        value = builder.or_(builder.lshr(low, right), builder.shl(builder.shl(high, one), left))
        value = builder.and_(value, _splat(builder, args[3]))
        builder.store(
            value, _lane_pointer(context, builder, signature.args[4], args[4], args[5]), align=1
        )
        return context.get_dummy_value()

    return (
        types.void(data, types.intp, types.uint64, types.uint64, out, types.intp),
        codegen,
    )


def _store_backward(width, source_width):
    """Store of 8 values from ``values[index:index + 8]``, last first, plus ``shift``."""
    wide = ir.VectorType(ir.IntType(source_width), 8)
    narrow = ir.VectorType(ir.IntType(width), 8)
    order = ir.Constant(_LANES, list(range(7, -1, -1)))

    @intrinsic
    def store(typingctx, out, at, values, index, shift):
        def codegen(context, builder, signature, args):
            source = context.make_array(signature.args[2])(context, builder, args[2]).data
            source = builder.bitcast(builder.gep(source, [args[3]]), wide.as_pointer())
            value = builder.load(source, align=1)
            value = builder.shuffle_vector(value, ir.Constant(wide, ir.Undefined), order)
            if source_width == 32:
                value = builder.add(value, _splat(builder, args[4]))
            if width < source_width:
                value = builder.trunc(value, narrow)
            target = context.make_array(signature.args[0])(context, builder, args[0]).data
            target = builder.bitcast(builder.gep(target, [args[1]]), narrow.as_pointer())
            builder.store(value, target, align=1)
            return context.get_dummy_value()

        return types.void(out, types.intp, values, types.intp, types.uint64), codegen

    return store


store_backward_u8, store_backward_u16 = _store_backward(8, 32), _store_backward(16, 32)
store_backward_u32, store_backward_u64 = _store_backward(32, 32), _store_backward(64, 64)


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
