"""SIMD vectors for Numba: `Lanes`, a fixed number of float32 that add, multiply and move as one value.

LLVM maps them onto whatever the processor has (64 lanes are 4 AVX-512 registers, 8 AVX2, 16 NEON or SSE ones), so the kernels say
what is done to a block of hidden units and leave the instructions to the compiler. A product that feeds a sum becomes
one fused multiply-add. Memory is a plain float32 pointer and an offset; nothing is bounds-checked.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

FLAGS = ("contract", "nsz")  # NaN and infinity stay themselves, so a diverged network still shows
_INT32 = ir.IntType(32)


class Lanes(types.Type):
    """`width` float32 in a row."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(name=f"Lanes({width})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, ir.VectorType(ir.FloatType(), fe_type.width))


def _splat(builder, value, width):
    vector = ir.VectorType(ir.FloatType(), width)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT32, 0))
    mask = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _operator(op, method):
    """Make `op` work between Lanes, and between Lanes and a number on either side."""

    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            lanes = [a for a in args if isinstance(a, Lanes)]
            if lanes and len(args) == 2:
                return signature(lanes[0], *(a if isinstance(a, Lanes) else types.float32 for a in args))
            return None

    def lower(context, builder, sig, args):
        width = sig.return_type.width
        wide = [v if isinstance(t, Lanes) else _splat(builder, v, width) for t, v in zip(sig.args, args, strict=True)]
        return getattr(builder, method)(*wide, flags=FLAGS)

    for pair in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(op, *pair)(lower)


for _op, _method in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_op, _method)


def _pointer(builder, pointer, offset, kind):
    return builder.bitcast(builder.gep(pointer, [offset]), ir.PointerType(kind))


def _mask(builder, count, width):
    """True in the first `count` lanes."""
    index = ir.Constant(ir.VectorType(_INT32, width), list(range(width)))
    count = builder.trunc(count, _INT32)
    vector = ir.VectorType(_INT32, width)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), count, ir.Constant(_INT32, 0))
    wide = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * width))
    return builder.icmp_signed("<", index, wide)


def _masked(builder, name, result, arguments):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


FLOATS = types.CPointer(types.float32)


@intrinsic
def floats(typingctx, address):
    """The integer `address` as a pointer to float32: p[k] reads and writes."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], ir.PointerType(ir.FloatType()))

    return signature(FLOATS, types.intp), codegen


@intrinsic
def flags(typingctx, address):
    """The integer `address` as a pointer to bytes."""

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], ir.PointerType(ir.IntType(8)))

    return signature(types.CPointer(types.uint8), types.intp), codegen


@intrinsic
def shift(typingctx, p, offset):
    """p + offset, counted in float32."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return signature(p, p, types.intp), codegen


@intrinsic
def take_ticket(typingctx, table, k):
    """table[k]++, atomically, and the value before; `table` points to int64."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), ir.Constant(ir.IntType(64), 1), "seq_cst")

    return signature(types.int64, table, types.intp), codegen


@intrinsic(prefer_literal=True)
def splat(typingctx, value, width):
    """Lanes that all hold `value`."""
    lanes = Lanes(width.literal_value)

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0], lanes.width)

    return signature(lanes, types.float32, width), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, p, offset, width):
    """p[offset : offset + width]."""
    lanes = Lanes(width.literal_value)

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), lanes.width)
        return builder.load(_pointer(builder, args[0], args[1], vector), align=4)

    return signature(lanes, p, types.intp, width), codegen


@intrinsic(prefer_literal=True)
def store(typingctx, p, offset, value):
    """p[offset : offset + width] = value."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), value.width)
        builder.store(args[2], _pointer(builder, args[0], args[1], vector), align=4)
        return context.get_dummy_value()

    return signature(types.void, p, types.intp, value), codegen


@intrinsic(prefer_literal=True)
def load_part(typingctx, p, offset, count, width):
    """The first `count` lanes from p[offset:], zeros in the rest; reads nothing beyond."""
    lanes = Lanes(width.literal_value)

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), lanes.width)
        pointer = _pointer(builder, args[0], args[1], vector)
        arguments = [pointer, ir.Constant(_INT32, 4), _mask(builder, args[2], lanes.width), ir.Constant(vector, None)]
        return _masked(builder, f"llvm.masked.load.v{lanes.width}f32.p0", vector, arguments)

    return signature(lanes, p, types.intp, types.intp, width), codegen


@intrinsic(prefer_literal=True)
def store_part(typingctx, p, offset, value, count):
    """p[offset : offset + count] = value[:count]; writes nothing beyond."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), value.width)
        pointer = _pointer(builder, args[0], args[1], vector)
        arguments = [args[2], pointer, ir.Constant(_INT32, 4), _mask(builder, args[3], value.width)]
        _masked(builder, f"llvm.masked.store.v{value.width}f32.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return signature(types.void, p, types.intp, value, types.intp), codegen


@intrinsic(prefer_literal=True)
def total(typingctx, value):
    """The sum over the lanes, as a float32, added in a fixed tree."""

    def codegen(context, builder, sig, args):
        vector, width = args[0], value.width
        while width > 1:  # halves: the upper lanes onto the lower
            width //= 2
            half = ir.VectorType(_INT32, width)
            low = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width))))
            high = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width, 2 * width))))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_INT32, 0))

    return signature(types.float32, value), codegen


@intrinsic(prefer_literal=True)
def at_most(typingctx, value, bound):
    """min(value, bound) lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        wide = _splat(builder, args[1], value.width)
        return builder.select(builder.fcmp_ordered(">", args[0], wide), wide, args[0])

    return signature(value, value, types.float32), codegen


@intrinsic(prefer_literal=True)
def at_least(typingctx, value, bound):
    """max(value, bound) lane by lane; NaN stays NaN."""

    def codegen(context, builder, sig, args):
        wide = _splat(builder, args[1], value.width)
        return builder.select(builder.fcmp_ordered("<", args[0], wide), wide, args[0])

    return signature(value, value, types.float32), codegen


@intrinsic(prefer_literal=True)
def where_positive(typingctx, condition, value):
    """`value` where `condition` > 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return signature(value, condition, value), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, p, offset, write, width):
    """Ask the cache for p[offset : offset + width], to be written or read soon; never faults."""
    count = width.literal_value

    def codegen(context, builder, sig, args):
        byte = ir.IntType(8)
        pointer = ir.PointerType(byte)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32]), "llvm.prefetch.p0"
        )
        for line in range(0, count, 16):
            at = builder.add(args[1], ir.Constant(args[1].type, line))
            address = _pointer(builder, args[0], at, byte)
            builder.call(
                function,
                [address, ir.Constant(_INT32, write.literal_value), ir.Constant(_INT32, 3), ir.Constant(_INT32, 1)],
            )
        return context.get_dummy_value()

    return signature(types.void, p, types.intp, write, width), codegen
