"""SIMD for Numba: `Simd`, a vector of float32 that is loaded, added and multiplied as one value; `compiled` kernels.

LLVM maps a vector onto the registers of the processor (64 numbers are 4 AVX-512 registers, 8 AVX2, 16 NEON or SSE
ones), so the kernels describe the operations on a block of hidden units and leave the instructions to the compiler. A
product that is added to a sum becomes one fused multiply-add. Memory is a pointer to float32 and an offset, without
bounds checks.
"""

from __future__ import annotations

import ctypes
import hashlib
import operator
import sys
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, event
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from mpn_rl.kernels.launcher import Kernel

FLAGS = ("contract", "nsz")  # NaN and infinity are kept, so a diverged network is visible
_INT32 = ir.IntType(32)

TANH, RELU, SIGMOID, LINEAR = range(4)
ACTIVATIONS = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "linear": LINEAR}


class Simd(types.Type):
    """A vector of `width` float32."""

    def __init__(self, width: int):
        self.width = width
        super().__init__(name=f"Simd({width})")


@register_model(Simd)
class _SimdModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, ir.VectorType(ir.FloatType(), fe_type.width))


def _splat(builder, value, width):
    vector = ir.VectorType(value.type, width)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT32, 0))
    mask = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


def _operator(op, method):
    """Make `op` work between Simd, and between Simd and a number on either side."""

    @infer_global(op)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            vectors = [a for a in args if isinstance(a, Simd)]
            if vectors and len(args) == 2:
                return signature(vectors[0], *(a if isinstance(a, Simd) else types.float32 for a in args))
            return None

    def lower(context, builder, sig, args):
        width = sig.return_type.width
        wide = [v if isinstance(t, Simd) else _splat(builder, v, width) for t, v in zip(sig.args, args, strict=True)]
        return getattr(builder, method)(*wide, flags=FLAGS)

    for pair in ((Simd, Simd), (Simd, types.Float), (types.Float, Simd)):
        lower_builtin(op, *pair)(lower)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _pointer(builder, pointer, offset, kind):
    return builder.bitcast(builder.gep(pointer, [offset]), ir.PointerType(kind))


def _mask(builder, count, width):
    """True in the first `count` elements."""
    index = ir.Constant(ir.VectorType(_INT32, width), list(range(width)))
    return builder.icmp_signed("<", index, _splat(builder, builder.trunc(count, _INT32), width))


def _masked(builder, name, result, arguments):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _pointer_from(kind, llvm_kind):
    """The function that makes an integer a pointer to numbers of this kind: p[k] reads and writes."""

    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], ir.PointerType(llvm_kind))

        return signature(types.CPointer(kind), types.intp), codegen

    return pointer


floats, flags = _pointer_from(types.float32, ir.FloatType()), _pointer_from(types.uint8, ir.IntType(8))


@intrinsic
def address(typingctx, p):
    """The pointer as an integer."""

    def codegen(context, builder, sig, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return signature(types.intp, p), codegen


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
    """A vector whose elements are all `value`."""
    vector_type = Simd(width.literal_value)

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0], vector_type.width)

    return signature(vector_type, types.float32, width), codegen


@intrinsic(prefer_literal=True)
def load(typingctx, p, offset, width):
    """p[offset : offset + width]."""
    vector_type = Simd(width.literal_value)

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), vector_type.width)
        return builder.load(_pointer(builder, args[0], args[1], vector), align=4)

    return signature(vector_type, p, types.intp, width), codegen


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
    """p[offset : offset + count], followed by zeros; reads nothing beyond."""
    vector_type = Simd(width.literal_value)

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), vector_type.width)
        pointer = _pointer(builder, args[0], args[1], vector)
        inside = _mask(builder, args[2], vector_type.width)
        arguments = [pointer, ir.Constant(_INT32, 4), inside, ir.Constant(vector, None)]
        return _masked(builder, f"llvm.masked.load.v{vector_type.width}f32.p0", vector, arguments)

    return signature(vector_type, p, types.intp, types.intp, width), codegen


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
    """The sum of the elements, a float32, added in a fixed tree."""

    def codegen(context, builder, sig, args):
        vector, width = args[0], value.width
        while width > 1:  # adds the upper half to the lower
            width //= 2
            half = ir.VectorType(_INT32, width)
            low = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width))))
            high = builder.shuffle_vector(vector, vector, ir.Constant(half, list(range(width, 2 * width))))
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_INT32, 0))

    return signature(types.float32, value), codegen


def _bounded(beyond):
    """The function (value, bound) that sets elements beyond the bound to it; NaN stays NaN."""

    @intrinsic(prefer_literal=True)
    def bounded(typingctx, value, bound):
        def codegen(context, builder, sig, args):
            wide = _splat(builder, args[1], value.width)
            return builder.select(builder.fcmp_ordered(beyond, args[0], wide), wide, args[0])

        return signature(value, value, types.float32), codegen

    return bounded


at_most, at_least = _bounded(">"), _bounded("<")


@intrinsic(prefer_literal=True)
def where_positive(typingctx, condition, value):
    """`value` where `condition` > 0, else 0."""

    def codegen(context, builder, sig, args):
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], zero)

    return signature(value, condition, value), codegen


@intrinsic(prefer_literal=True)
def prefetch(typingctx, p, offset, write, width):
    """Prefetch p[offset : offset + width] into the cache, to be written or read soon; any address is allowed."""
    count = width.literal_value

    def codegen(context, builder, sig, args):
        byte = ir.IntType(8)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(byte), _INT32, _INT32, _INT32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        how = [ir.Constant(_INT32, number) for number in (write.literal_value, 3, 1)]
        for line in range(0, count, 16):
            at = builder.add(args[1], ir.Constant(args[1].type, line))
            builder.call(function, [_pointer(builder, args[0], at, byte), *how])
        return context.get_dummy_value()

    return signature(types.void, p, types.intp, write, width), codegen


@numba.njit(inline="always")
def tanh(u):
    """u P(u^2) / Q(u^2) on |u| < 8, a minimax fit of degree 4/4; within 4e-7 of the value."""
    u = at_most(at_least(u, -8.0), 8.0)
    z = u * u
    p = z * 1.5230969991344216e-08 + 2.1895065567696637e-05
    p = p * z + 0.003571622814459778
    p = p * z + 0.1344451895655767
    p = p * z + 0.9999999935856142
    q = z * 8.522674082435644e-07 + 0.0003411332364409541
    q = q * z + 0.026164537559397925
    q = q * z + 0.46777846287604596
    q = q * z + 1.0
    return at_most(at_least(u * p / q, -1.0), 1.0)


@numba.njit(inline="always")
def activate(u, activation):
    """h = f(u)."""
    if activation == TANH:
        return tanh(u)
    if activation == RELU:
        return at_least(u, 0.0)
    if activation == SIGMOID:
        return tanh(u * 0.5) * 0.5 + 0.5
    return u


@numba.njit(inline="always")
def through(g, h, activation):
    """g f'(u), where f' is a function of h = f(u)."""
    if activation == TANH:
        return g * (1.0 - h * h)
    if activation == RELU:
        return where_positive(h, g)
    if activation == SIGMOID:
        return g * (h * (1.0 - h))
    return g


@numba.njit(inline="always")
def read(block, source, si, sj, n, D, L):
    """Copy source[i si + j sj] of n hidden units i and D inputs j to a (D, L) block; zeros beyond n or if absent."""
    if address(source) == 0:
        for k in range(0, D * L, L):
            store(block, k, splat(0.0, L))
    elif si == 1:
        for j in range(D):
            store(block, j * L, load_part(source, j * sj, n, L))
    else:
        for i in range(L):
            for j in range(D):
                block[j * L + i] = source[i * si + j * sj] if i < n else np.float32(0.0)


@numba.njit(inline="always")
def write(block, target, sj, n, D, L):
    """The inverse of `read` for si = 1: copy n hidden units of a (D, L) block to target[i + j sj]."""
    for j in range(D):
        store_part(target, j * sj, load(block, j * L, L), n)


@numba.njit
def unpack(blocks, target, H, D, L):
    """Copy blocks of (D, L) to an (H, D) matrix, if there is one."""
    if address(target) != 0:
        for i in range(H):
            for j in range(D):
                target[i * D + j] = blocks[(i - i % L) * D + j * L + i % L]


class _Announce(event.Listener):
    """Print once that kernels are being compiled, which takes seconds."""

    printed = False

    def on_start(self, event: event.Event) -> None:
        if not _Announce.printed:
            _Announce.printed = True
            print("Compiling the fused kernels: a few seconds, once per machine.", file=sys.stderr, flush=True)

    def on_end(self, event: event.Event) -> None:
        pass


_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_VERSION = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:8]
_compiled: list[object] = []  # keeps the machine code alive


_notes: list[str] = []


def _without_cache(error: Exception) -> None:
    """Print once why the cache is not used, and the way out."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    way_out = "empty that folder, or set NUMBA_CACHE_DIR to a writable one"
    folder = numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__"
    if not _notes:
        _notes.append(f"note: the cache of compiled kernels, {folder}, cannot be used ({reason}); {way_out}")
        print(_notes[0], file=sys.stderr, flush=True)


def compiled(function: Callable[..., None]) -> Kernel:
    """The kernel as a C function of its table's address, from Numba's disk cache if that can be read and written."""
    function.__qualname__ += f"_{_VERSION}"  # Numba's cache checks the file of `function`, not those that it imports
    kernel_type = types.void(types.CPointer(types.int64))
    with event.install_listener("numba:run_pass", _Announce()):
        try:
            kernel = numba.cfunc(kernel_type, cache=True)(function)
        except Exception as error:  # a damaged file, a full disk, no writable folder; a kernel's own error comes again
            _without_cache(error)
            kernel = numba.cfunc(kernel_type)(function)
    _compiled.append(kernel)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel.address)
