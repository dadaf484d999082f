"""Smallest pieces of the numba kernels: unaligned loads and stores, bit length, CRC32C."""

# mypy: ignore-errors

import platform

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

_I64 = ir.IntType(64)

# a kernel that only kernels call: it needs no way in from Python, which takes long to compile
inner = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _pointer(context, builder, kind, data, index, to):
    """To the item ``index`` of an array, or to the byte ``index`` behind an address.

    Arrays cost some ten words and two atomic counts with each call that is not inlined;
    hot kernels hand addresses on.
    """
    if isinstance(kind, types.Integer):
        start = builder.inttoptr(data, ir.IntType(8).as_pointer())
    else:
        start = context.make_array(kind)(context, builder, data).data
    return builder.bitcast(builder.gep(start, [index]), to.as_pointer())


@intrinsic
def load_u8(typingctx, data, index):
    """One byte of a uint8 array or behind an address, as a number."""

    def codegen(context, builder, signature, args):
        kind = ir.IntType(8)
        value = builder.load(_pointer(context, builder, signature.args[0], *args, kind), align=1)
        return builder.zext(value, _I64)

    return types.int64(data, types.intp), codegen


@intrinsic
def load_u64(typingctx, data, index):
    """Little-endian 8 bytes of a uint8 array or behind an address, at any offset."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature.args[0], *args, _I64), align=1)

    return types.uint64(data, types.intp), codegen


@intrinsic
def store_u64(typingctx, data, index, value):
    """Writes 8 bytes little-endian into a uint8 array or behind an address."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args[:2], _I64)
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), codegen


def _store_narrow(width):
    @intrinsic
    def store(typingctx, array, index, value):
        def codegen(context, builder, signature, args):
            kind = ir.IntType(width)
            pointer = _pointer(context, builder, signature.args[0], *args[:2], kind)
            builder.store(builder.trunc(args[2], kind), pointer, align=1)
            return context.get_dummy_value()

        return types.void(array, types.intp, types.uint64), codegen

    return store


store_u8, store_u16, store_u32 = _store_narrow(8), _store_narrow(16), _store_narrow(32)

_LANES = ir.VectorType(ir.IntType(32), 8)


def _lane_pointer(context, builder, kind, data, index):
    return _pointer(context, builder, kind, data, index, _LANES)


def _splat(builder, value):
    word = builder.trunc(value, ir.IntType(32))
    single = builder.insert_element(
        ir.Constant(_LANES, ir.Undefined), word, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
    return builder.shuffle_vector(single, ir.Constant(_LANES, ir.Undefined), mask)


def _lanes_at(context, builder, kind, data, position, shift, mask):
    low = builder.load(_lane_pointer(context, builder, kind, data, position), align=1)
    after = builder.add(position, ir.Constant(position.type, 32))
    high = builder.load(_lane_pointer(context, builder, kind, data, after), align=1)
    right = _splat(builder, shift)
    # shifted twice, because a shift by 32 has no meaning
    left = _splat(builder, builder.sub(ir.Constant(_I64, 31), shift))
    one = ir.Constant(_LANES, [1] * 8)
    value = builder.or_(builder.lshr(low, right), builder.shl(builder.shl(high, one), left))
    return builder.and_(value, _splat(builder, mask))


def _put_lanes(width):
    """Unpacks 8 values, adds ``base`` and stores them last first, in ``width`` bits each."""
    narrow = ir.VectorType(ir.IntType(width), 8)
    order = ir.Constant(_LANES, list(range(7, -1, -1)))

    @intrinsic
    def put(typingctx, data, position, shift, mask, base, out, at):
        def codegen(context, builder, signature, args):
            value = _lanes_at(context, builder, signature.args[0], *args[:4])
            value = builder.add(value, _splat(builder, args[4]))
            value = builder.shuffle_vector(value, ir.Constant(_LANES, ir.Undefined), order)
            if width < 32:
                value = builder.trunc(value, narrow)
            target = _pointer(context, builder, signature.args[5], *args[5:], narrow)
            builder.store(value, target, align=1)
            return context.get_dummy_value()

        u64, index = types.uint64, types.intp
        return types.void(data, index, u64, u64, u64, out, index), codegen

    return put


put_lanes_u8, put_lanes_u16, put_lanes_u32 = _put_lanes(8), _put_lanes(16), _put_lanes(32)
_WIDE = ir.VectorType(_I64, 8)


@intrinsic
def put_lanes_u64(typingctx, data, low, low_shift, low_mask, high, high_shift, high_mask, base,
                  out, at):  # fmt: skip
    """The same of two planes, low 32 bits and those above; a mask of 0 is no second plane."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        lower = _lanes_at(context, builder, kind, args[0], *args[1:4])
        upper = _lanes_at(context, builder, kind, args[0], *args[4:7])
        upper = builder.shl(builder.zext(upper, _WIDE), ir.Constant(_WIDE, [32] * 8))
        value = builder.or_(builder.zext(lower, _WIDE), upper)
        undefined = ir.Constant(_WIDE, ir.Undefined)
        single = builder.insert_element(undefined, args[7], ir.Constant(ir.IntType(32), 0))
        value = builder.add(
            value, builder.shuffle_vector(single, undefined, ir.Constant(_LANES, [0] * 8))
        )
        order = ir.Constant(_LANES, list(range(7, -1, -1)))
        value = builder.shuffle_vector(value, undefined, order)
        target = _pointer(context, builder, signature.args[8], *args[8:], _WIDE)
        builder.store(value, target, align=1)
        return context.get_dummy_value()

    u64, index = types.uint64, types.intp
    return types.void(data, index, u64, u64, index, u64, u64, u64, out, index), codegen


@intrinsic
def address_of(typingctx, array):
    """Where an array's items are in memory."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), codegen


@intrinsic
def bytes_at(typingctx, address, size):
    """uint8 array over the ``size`` bytes at an address."""
    kind = types.Array(types.uint8, 1, "C")

    def codegen(context, builder, signature, args):
        array = context.make_array(kind)(context, builder)
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        arrayobj.populate_array(
            array, data=pointer, shape=[args[1]], strides=[ir.Constant(_I64, 1)],
            itemsize=ir.Constant(_I64, 1), meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return kind(types.int64, types.int64), codegen


@intrinsic
def widened(typingctx, bits):
    """Bits of the float64 that is the float32 whose bits these are."""

    def codegen(context, builder, signature, args):
        narrow = builder.bitcast(builder.trunc(args[0], ir.IntType(32)), ir.FloatType())
        return builder.bitcast(builder.fpext(narrow, ir.DoubleType()), _I64)

    return types.uint64(types.uint64), codegen


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


def _powers(count):
    """x^(64 t - 33) for t = 1... modulo the polynomial, bits reflected; entry 0 is unused."""
    tables = [row.tolist() for row in _TABLES[4:]]
    powers, value = [0], 1  # x^31
    for _ in range(count - 1):
        powers.append(value)
        word = value
        value = (
            tables[3][word & 255]
            ^ tables[2][(word >> 8) & 255]
            ^ tables[1][(word >> 16) & 255]
            ^ tables[0][word >> 24]
        )
    return np.array(powers, np.uint64)


@intrinsic
def _carryless(typingctx, a, b):
    """Low 64 bits of the product without carries."""

    def codegen(context, builder, signature, args):
        pair = ir.VectorType(_I64, 2)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(pair, [pair, pair, ir.IntType(8)]),
            "llvm.x86.pclmulqdq",
        )
        zero = ir.Constant(ir.IntType(32), 0)
        wide = [builder.insert_element(ir.Constant(pair, [0, 0]), arg, zero) for arg in args]
        return builder.extract_element(
            builder.call(function, [*wide, ir.Constant(ir.IntType(8), 0)]), zero
        )

    return types.uint64(types.uint64, types.uint64), codegen


_FEATURES = llvm.get_host_cpu_features()
if (
    platform.machine() in ("x86_64", "AMD64")
    and _FEATURES.get("sse4.2")
    and _FEATURES.get("pclmul")
):
    _crc_word = _crc_step("llvm.x86.sse42.crc32.64.64", 64)
    _crc_byte = _crc_step("llvm.x86.sse42.crc32.32.8", 8)
    _WORDS = 1024  # of each of three streams
    _POWERS = _powers(2 * _WORDS + 1)

    @njit(nogil=True, cache=True)
    def crc32c(data, start, end):
        """CRC32C of ``data[start:end]`` by the processor's own instruction.

        It takes three steps of the clock but can start at every one: three streams run
        side by side, and are put together by a product with a power of x.
        """
        crc = np.uint64(0xFFFFFFFF)
        zero = np.uint64(0)
        i = start
        while end - i >= 192:
            words = min((end - i) // 24, _WORDS)
            stride = 8 * words
            second, third = zero, zero
            for j in range(i, i + stride, 8):
                crc = _crc_word(crc, load_u64(data, j))
                second = _crc_word(second, load_u64(data, j + stride))
                third = _crc_word(third, load_u64(data, j + 2 * stride))
            moved = _carryless(crc, _POWERS[2 * words]) ^ _carryless(second, _POWERS[words])
            crc = _crc_word(zero, moved) ^ third
            i += 3 * stride
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
