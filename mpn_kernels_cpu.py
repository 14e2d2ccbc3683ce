"""The MPN scan on the CPU: Numba kernels (the maths stands in `mpn_kernels`) and the torch function around them.

Hidden units never exchange anything within a layer, so a kernel takes one batch row and one block of L hidden units at
a time, lays their M out as (D, L) in a scratch buffer that stays in the cache, and walks through all of time. The
backward pass walks segments of time from the last to the first: each segment's M are computed again from its
checkpoint, then the adjoint runs back through them.

A kernel is a C function of one table of integers: sizes, and addresses of tensors. Several threads may run it on one
table: each takes pieces (ranges of rows) until none is left. They are torch's own OpenMP threads, so no second pool
fights for the cores. Rows are cut into a fixed number of pieces, whose weight gradients are added in a fixed order:
results do not depend on the number of threads.
"""

from __future__ import annotations

import array
import ctypes
import functools
import math
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_lanes import (
    ACTIVATIONS,
    activate,
    compiled,
    flags,
    floats,
    load,
    load_part,
    pack,
    prefetch,
    read,
    shift,
    splat,
    store,
    store_part,
    take_ticket,
    through,
    total,
    write,
)

ASSOCIATIVE, PRESYNAPTIC, POSTSYNAPTIC, OJA = range(4)
RULES = {"associative": ASSOCIATIVE, "presynaptic": PRESYNAPTIC, "postsynaptic": POSTSYNAPTIC, "oja": OJA}

# The table that a kernel works from: two counters, sizes, addresses (0: absent).
(SLOT, TICKET, PIECES, SCRATCH, SIZE, EVERY, B_, T_, D_, H_, XS, WEIGHT, BIAS, ETA, LAMBDA, RESET, M0, M_IN, HS, KEPT,
 M_OUT, G_HS, G_M, DXS, DW, DB, DETA, DLAMBDA, DM_IN, DM0) = range(30)  # fmt: skip

AHEAD = 8  # steps: how early the cache is asked for h and its gradient
MAX_PIECES = 16  # of the batch, at most, in the backward pass, each with weight gradients of its own
SEGMENT_BYTES = 512 * 1024  # of M in one segment: a share of a core's second-level cache
PARALLEL_WORK = 2_000_000  # B T D H from which a second thread pays for waking it up


# --- one block of hidden units: matrices of (D, L) -------------------------------------------------------------------


@numba.njit(inline="always")
def is_reset(table, k):
    return table[RESET] != 0 and flags(table[RESET])[k] != 0


@numba.njit(inline="always")
def restart(block, table, i0, n, H, D, L):
    """M(0), zeros if there is none."""
    for j in range(D):
        store(block, j * L, load_part(floats(table[M0]), i0 + j * H, n, L) if table[M0] != 0 else splat(0.0, L))


@numba.njit(inline="always")
def readout(W, M, x, D, L, additive):
    """[W * (M + 1)] x or [W + M] x, in two chains of additions: one alone would wait for each sum to finish."""
    u, v = splat(0.0, L), splat(0.0, L)
    for j in range(0, D - 1, 2):
        w, m = load(W, j * L, L), load(M, j * L, L)
        u = u + (w + m if additive else w * m + w) * x[j]
        w, m = load(W, (j + 1) * L, L), load(M, (j + 1) * L, L)
        v = v + (w + m if additive else w * m + w) * x[j + 1]
    if D % 2:
        w, m = load(W, (D - 1) * L, L), load(M, (D - 1) * L, L)
        u = u + (w + m if additive else w * m + w) * x[D - 1]
    return u + v


@numba.njit(inline="always")
def rates(h, eta, lam, rule, L):
    """M_t = decay M_{t-1} + gain pre: Oja's h^2 M_{t-1} is part of the decay."""
    post = splat(1.0, L) if rule == PRESYNAPTIC else h
    gain = post * eta
    decay = splat(lam, L)
    if rule == OJA:
        decay = decay - gain * h
    return post, gain, decay


@numba.njit(inline="always")
def advance(M_next, M, h, x, eta, lam, E, F, D, L, rule, full):
    """One step of M; E and F are the blocks of eta and lambda if `full`, else the numbers count."""
    post, gain, decay = rates(h, eta, lam, rule, L)
    for j in range(D):
        pre = np.float32(1.0) if rule == POSTSYNAPTIC else x[j]
        if full:
            gain = post * load(E, j * L, L)
            decay = load(F, j * L, L)
            if rule == OJA:
                decay = decay - gain * h
        store(M_next, j * L, decay * load(M, j * L, L) + gain * pre)


@functools.cache
def forward_kernel(L: int, additive: bool, rule: int, activation: int, full: bool) -> Callable[[int], None]:
    """The scan with L lanes; `full`: eta and lambda are (H, D) matrices, not numbers."""

    def forward(table):
        T, D, H, every, keep = table[T_], table[D_], table[H_], table[EVERY], table[KEPT] != 0
        xs, hs, kept = floats(table[XS]), floats(table[HS]), floats(table[KEPT])
        eta, lam = floats(table[ETA])[0], floats(table[LAMBDA])[0]
        M = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        W, E, F = shift(M, D * L), shift(M, D * (L + H + L)), shift(M, D * (L + 2 * (H + L)))
        pack(W, floats(table[WEIGHT]), H, D, L)
        if full:
            pack(E, floats(table[ETA]), H, D, L)
            pack(F, floats(table[LAMBDA]), H, D, L)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= table[PIECES]:
                break
            for row in range(table[B_] * piece // table[PIECES], table[B_] * (piece + 1) // table[PIECES]):
                for i0 in range(0, H, L):
                    n = min(L, H - i0)
                    Wi, Ei, Fi = shift(W, i0 * D), shift(E, i0 * D), shift(F, i0 * D)
                    b = load_part(floats(table[BIAS]), i0, n, L) if table[BIAS] != 0 else splat(0.0, L)
                    read(M, floats(table[M_IN]), row * D * H + i0, n, H, D, L)
                    for t in range(T):
                        here = (row * T + t) * H + i0
                        prefetch(hs, here + AHEAD * H, 1, L)
                        if is_reset(table, row * T + t):
                            restart(M, table, i0, n, H, D, L)
                        if keep and t > 0 and t % every == 0:
                            slot = row * ((T - 1) // every) + t // every - 1
                            write(M, kept, slot * D * H + i0, n, H, D, L)
                        x = shift(xs, (row * T + t) * D)
                        h = activate(b + readout(Wi, M, x, D, L, additive), activation)
                        store_part(hs, here, h, n)
                        advance(M, M, h, x, eta, lam, Ei, Fi, D, L, rule, full)
                    write(M, floats(table[M_OUT]), row * D * H + i0, n, H, D, L)

    return compiled(forward)


Block = namedtuple("Block", "A W E F dW dM0 dE dF db segment")  # scratch of one block of hidden units: (D, L) each


@numba.njit(inline="always")
def recompute(table, block, eta, lam, row, i0, t0, t1, L, rule, full):
    """M before every step of t0..t1, from the checkpoint at t0, into block.segment."""
    T, D, H, every = table[T_], table[D_], table[H_], table[EVERY]
    xs, hs = floats(table[XS]), floats(table[HS])
    n = min(L, H - i0)
    for t in range(t0, t1):
        here = (row * T + t) * H + i0
        M = shift(block.segment, (t - t0) * D * L)
        prefetch(hs, here + AHEAD * H, 0, L)
        if is_reset(table, row * T + t):
            restart(M, table, i0, n, H, D, L)
        elif t == 0:
            read(M, floats(table[M_IN]), row * D * H + i0, n, H, D, L)
        elif t == t0:
            slot = row * ((T - 1) // every) + t // every - 1
            read(M, floats(table[KEPT]), slot * D * H + i0, n, H, D, L)
        else:
            h = load_part(hs, here - H, n, L)
            x = shift(xs, (row * T + t - 1) * D)
            advance(M, shift(M, -D * L), h, x, eta, lam, block.E, block.F, D, L, rule, full)


@numba.njit(inline="always")
def adjoint(block, M, h, g_h, x, dx, eta, lam, D, L, additive, rule, activation, full, input_gradient, first):
    """One step of the adjoint: A_t becomes A_{t-1}. Returns the step's terms of deta and dlambda, a lane each."""
    post, gain, decay = rates(h, eta, lam, rule, L)
    ax, am = splat(0.0, L), splat(0.0, L)  # sum_j A pre and sum_j A M_{t-1}, weighted with eta if that is a matrix
    for j in range(D):
        pre = np.float32(1.0) if rule == POSTSYNAPTIC else x[j]
        a = load(block.A, j * L, L)
        if full:
            a = a * load(block.E, j * L, L)
        ax = ax + a * pre
        am = am + a * load(M, j * L, L)
    scale = np.float32(1.0) if full else eta
    if rule != PRESYNAPTIC:
        g_h = g_h + ax * scale
    if rule == OJA:
        g_h = g_h - (h * am) * (scale * np.float32(2.0))
    g_u = through(g_h, h, activation)
    store(block.db, 0, load(block.db, 0, L) + g_u)
    for j in range(D):
        k = j * L
        a, m, w = load(block.A, k, L), load(M, k, L), load(block.W, k, L)
        if full:
            gain = post * load(block.E, k, L)
            decay = load(block.F, k, L)
            change = post if rule == POSTSYNAPTIC else post * x[j]
            if rule == OJA:
                decay = decay - gain * h
                change = change - h * h * m
            store(block.dE, k, load(block.dE, k, L) + a * change)
            store(block.dF, k, load(block.dF, k, L) + a * m)
        g_ux = g_u * x[j]
        store(block.dW, k, load(block.dW, k, L) + (g_ux if additive else g_ux * (m + 1.0)))
        store(block.A, k, decay * a + (g_ux if additive else g_ux * w))
        if input_gradient:
            v = g_u * (w + m if additive else w * m + w)
            if rule != POSTSYNAPTIC:
                v = v + a * gain
            dx[j] = total(v) if first else dx[j] + total(v)
    if rule == OJA:
        return post * ax - h * h * am, am
    return post * ax, am


@numba.njit(inline="always")
def walk_back(table, block, row, i0, L, additive, rule, activation, full, input_gradient):
    """The whole adjoint of one row and block; returns its deta and dlambda."""
    T, D, H, every = table[T_], table[D_], table[H_], table[EVERY]
    xs, dxs, hs, g_hs = floats(table[XS]), floats(table[DXS]), floats(table[HS]), floats(table[G_HS])
    eta, lam = floats(table[ETA])[0], floats(table[LAMBDA])[0]
    n = min(L, H - i0)
    deta, dlam = splat(0.0, L), splat(0.0, L)
    for k in range(0, D * L, L):
        store(block.A, k, splat(0.0, L))
    if table[G_M] != 0:
        read(block.A, floats(table[G_M]), row * D * H + i0, n, H, D, L)
    for t0 in range((T - 1) // every * every, -1, -every):
        t1 = min(t0 + every, T)
        recompute(table, block, eta, lam, row, i0, t0, t1, L, rule, full)
        for t in range(t1 - 1, t0 - 1, -1):
            here = (row * T + t) * H + i0
            prefetch(g_hs, here - AHEAD * H, 0, L)
            h, g_h = load_part(hs, here, n, L), load_part(g_hs, here, n, L)
            x, dx = shift(xs, (row * T + t) * D), shift(dxs, (row * T + t) * D)
            M = shift(block.segment, (t - t0) * D * L)
            e, f = adjoint(
                block, M, h, g_h, x, dx, eta, lam, D, L, additive, rule, activation, full, input_gradient, i0 == 0
            )
            deta, dlam = deta + e, dlam + f
            if is_reset(table, row * T + t):
                for k in range(0, D * L, L):
                    store(block.dM0, k, load(block.dM0, k, L) + load(block.A, k, L))
                    store(block.A, k, splat(0.0, L))
    if table[DM_IN] != 0:
        write(block.A, floats(table[DM_IN]), row * D * H + i0, n, H, D, L)
    return total(deta), total(dlam)


@functools.cache
def backward_kernel(
    L: int, additive: bool, rule: int, activation: int, full: bool, input_gradient: bool
) -> Callable[[int], None]:
    """The adjoint of `forward_kernel`; each piece of rows has weight gradients of its own."""

    def backward(table):
        D, H, every = table[D_], table[H_], table[EVERY]
        width = (H + L - 1) // L * L * D
        A = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        segment = shift(A, D * L)
        W = shift(segment, every * D * L)
        E, F = shift(W, width), shift(W, 2 * width)
        dW, dM0, dE = shift(W, 3 * width), shift(W, 4 * width), shift(W, 5 * width)
        dF, db = shift(W, 6 * width), shift(W, 7 * width)
        pack(W, floats(table[WEIGHT]), H, D, L)
        if full:
            pack(E, floats(table[ETA]), H, D, L)
            pack(F, floats(table[LAMBDA]), H, D, L)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= table[PIECES]:
                break
            for k in range(0, 4 * width + width // D, L):
                store(dW, k, splat(0.0, L))
            deta, dlam = 0.0, 0.0
            for row in range(table[B_] * piece // table[PIECES], table[B_] * (piece + 1) // table[PIECES]):
                for i0 in range(0, H, L):
                    at = i0 * D
                    block = Block(
                        A, shift(W, at), shift(E, at), shift(F, at), shift(dW, at), shift(dM0, at), shift(dE, at),
                        shift(dF, at), shift(db, i0), segment,
                    )  # fmt: skip
                    e, f = walk_back(table, block, row, i0, L, additive, rule, activation, full, input_gradient)
                    deta, dlam = deta + e, dlam + f
            for i0 in range(0, H, L):
                n, at, to = min(L, H - i0), i0 * D, piece * D * H + i0
                store_part(floats(table[DB]), piece * H + i0, load(db, i0, L), n)
                write(shift(dW, at), floats(table[DW]), to, n, H, D, L)
                if table[DM0] != 0:
                    write(shift(dM0, at), floats(table[DM0]), to, n, H, D, L)
                if full:
                    write(shift(dE, at), floats(table[DETA]), to, n, H, D, L)
                    write(shift(dF, at), floats(table[DLAMBDA]), to, n, H, D, L)
            if not full:
                floats(table[DETA])[piece] = deta
                floats(table[DLAMBDA])[piece] = dlam

    return compiled(backward)


# --- the torch side ---------------------------------------------------------------------------------------------------


_local = threading.local()


@functools.cache
def _openmp() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the very OpenMP runtime that torch uses, or None without one."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _launch(kernel, work: int, pieces: int, size: int, every: int, sizes: tuple[int, ...], tensors: list) -> None:
    """Run the kernel on a table of these values, on threads if the work is worth it; `size`: floats of scratch each."""
    threads = min(torch.get_num_threads(), pieces) if work >= PARALLEL_WORK and _openmp() else 1
    scratch = getattr(_local, "scratch", None)
    if scratch is None or scratch.numel() < threads * size:
        scratch = _local.scratch = torch.empty(threads * size)  # on a cache line's boundary
    addresses = [0 if a is None else a.data_ptr() for a in tensors]
    table = array.array("q", [0, 0, pieces, scratch.data_ptr(), size, every, *sizes, *addresses])
    if threads == 1:
        kernel(table.buffer_info()[0])
    else:
        _openmp()(kernel, table.buffer_info()[0], threads, 0)


def _layout(T: int, D: int, H: int) -> tuple[int, int, int]:
    """Lanes, blocks of hidden units, and steps between checkpoints: sqrt(T), or more if their M fit into the cache."""
    L = 16 if H <= 16 else 32 if H <= 32 or D > 64 else 64  # W, A and dW of a block share the first-level cache
    steps = max(math.isqrt(T - 1) + 1, SEGMENT_BYTES // (4 * D * L))
    segments = -(-T // steps)
    return L, -(-H // L), -(-T // segments)


def _forward(variant, xs, weight, bias, eta, lam, m_in, m0, reset, keep):
    """hs, M_T and, if `keep`, the checkpoints of M. All M are (B, D, H) here."""
    (B, T, D), H = xs.shape, weight.shape[0]
    L, blocks, every = _layout(T, D, H)
    hs, m_out = xs.new_empty(B, T, H), xs.new_empty(B, D, H)
    kept = xs.new_empty(B, (T - 1) // every, D, H) if keep else None
    kernel = forward_kernel(L, *variant, eta.numel() > 1)
    tensors = [xs, weight, bias, eta, lam, reset, m0, m_in, hs, kept, m_out]
    size = (1 + 3 * (blocks + 1)) * D * L
    _launch(kernel, B * T * D * H, min(B, MAX_PIECES), size, every, (B, T, D, H), tensors)
    return hs, m_out, kept


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variant, xs, weight, bias, eta, lam, m_in, m0, reset):
        hs, m_out, kept = _forward(variant, xs, weight, bias, eta, lam, m_in, m0, reset, keep=True)
        ctx.variant = variant
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, weight, eta, lam, m_in, m0, reset, hs, kept)
        return hs, m_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g_hs, g_m):
        xs, weight, eta, lam, m_in, m0, reset, hs, kept = ctx.saved_tensors
        (B, T, D), H, P, full = xs.shape, weight.shape[0], min(len(xs), MAX_PIECES), eta.numel() > 1
        L, blocks, every = _layout(T, D, H)
        names = ("xs", "weight", "bias", "eta", "lam", "m_in", "m0")
        need = dict(zip(names, ctx.needs_input_grad[1:-1], strict=True))
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.contiguous()
        g_m = None if g_m is None else g_m.contiguous()
        dxs = torch.empty_like(xs) if need["xs"] else None
        dm_in = torch.empty_like(m_in) if need["m_in"] else None
        dm0 = xs.new_empty(P, D, H) if need["m0"] else None
        dw, db = xs.new_empty(P, D, H), xs.new_empty(P, H)
        deta, dlam = (xs.new_empty((P, D, H) if full else (P, 1, 1)) for _ in range(2))
        kernel = backward_kernel(L, *ctx.variant, full, need["xs"])
        inputs = [xs, weight, None, eta, lam, reset, m0, m_in, hs, kept, None, g_hs, g_m]
        outputs = [dxs, dw, db, deta, dlam, dm_in, dm0]
        size = (1 + every + 7 * blocks) * D * L + blocks * L
        _launch(kernel, 3 * B * T * D * H, P, size, every, (B, T, D, H), inputs + outputs)
        dm0 = None if dm0 is None else dm0.sum(0)
        gradients = dxs, dw.sum(0).t(), db.sum(0), deta.sum(0).t(), dlam.sum(0).t(), dm_in, dm0
        return None, *(g if needed else None for g, needed in zip(gradients, need.values(), strict=True)), None


def scan(
    xs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation: Tensor,
    eta: Tensor,
    lambda_decay: Tensor,
    reset: Tensor | None,
    modulation0: Tensor | None,
    form: str,
    rule: str,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """`mpn_kernels.mpn_scan` for float32 on the CPU."""
    H, D = weight.shape
    if eta.numel() > 1 or lambda_decay.numel() > 1:
        eta, lambda_decay = eta.expand(H, D).contiguous(), lambda_decay.expand(H, D).contiguous()
    elif eta.dim() != 2 or lambda_decay.dim() != 2:
        eta, lambda_decay = eta.reshape(1, 1), lambda_decay.reshape(1, 1)
    m_in = modulation.transpose(1, 2).contiguous()
    m0 = None if modulation0 is None or reset is None else modulation0.t().contiguous()
    reset = None if reset is None else reset.contiguous()
    bias = None if bias is None else bias.contiguous()
    inputs = (xs.contiguous(), weight.contiguous(), bias, eta, lambda_decay, m_in, m0)
    variant = (form == "additive", RULES[rule], ACTIVATIONS[activation])
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs):
        hs, m_out = _Scan.apply(variant, *inputs, reset)
    else:
        hs, m_out, _ = _forward(variant, *inputs, reset, keep=False)
    return hs, m_out.transpose(1, 2)
