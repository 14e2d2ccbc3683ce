"""The MPN scan on the CPU: Numba kernels (the equations are in `mpn.py`) and the torch function around them.

The hidden units of a layer are independent of each other, so a kernel takes one batch row and one block of L hidden
units at a time, keeps their M as (D, L) in a scratch buffer that stays in the cache, and runs through all time steps.
The backward pass takes segments of time from the last to the first: it computes each segment's M again from a
checkpoint, then runs the adjoint back through them.

`launcher.py` describes the table that a kernel works on, and its threads.
"""

from __future__ import annotations

import functools
import math
from collections import namedtuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_rl.kernels.launcher import SEGMENT_BYTES, Header, Kernel, launch
from mpn_rl.kernels.mpn import Inputs
from mpn_rl.kernels.simd import (
    ACTIVATIONS,
    TANH,
    activate,
    compiled,
    flags,
    floats,
    load,
    load_part,
    prefetch,
    read,
    shift,
    splat,
    store,
    store_part,
    take_ticket,
    tanh,
    through,
    total,
    unpack,
    write,
)

ASSOCIATIVE, PRESYNAPTIC, POSTSYNAPTIC, OJA = range(4)
RULES = {"associative": ASSOCIATIVE, "presynaptic": PRESYNAPTIC, "postsynaptic": POSTSYNAPTIC, "oja": OJA}

# A kernel's table: the launcher's header, sizes, addresses of tensors (0: absent), then for each matrix its address and
# its strides over batch rows, hidden units and inputs. Numba compiles a slot as a constant, so each one is a global.
SIZES = ("B_", "T_", "D_", "H_")
TENSORS = ("xs", "bias", "reset", "hs", "m_out", "g_hs", "dxs", "dm_in", "dw", "db", "deta", "dlam", "dm0")
MATRICES = ("weight", "eta", "lam", "m0", "m_in", "kept", "g_m")
SLOTS = {name: slot for slot, name in enumerate((*Header._fields, *SIZES, *TENSORS))}
SLOTS |= {name: len(SLOTS) + 4 * k for k, name in enumerate(MATRICES)}
(SLOT, TICKET, DONE, PIECES, SCRATCH, SIZE, SUMS, SUM_SIZE, EVERY, B_, T_, D_, H_,
 XS, BIAS, RESET, HS, M_OUT, G_HS, DXS, DM_IN, DW, DB, DETA, DLAM, DM0,
 WEIGHT, ETA, LAM, M0, M_IN, KEPT, G_M) = SLOTS.values()  # fmt: skip
assert all(globals()[name.upper()] == slot for name, slot in SLOTS.items())

AHEAD = 8  # steps: how early h and its gradient are prefetched into the cache


# --- one block of hidden units: matrices of (D, L) -------------------------------------------------------------------


@numba.njit(inline="always")
def is_reset(table, k):
    return table[RESET] != 0 and flags(table[RESET])[k] != 0


@numba.njit
def fetch(block, table, matrix, row, i0, L):
    """Copy a batch row of a matrix, for the hidden units from i0 on, to `block`; zeros if it is absent."""
    numba.literally(L)  # makes L a constant although this function is not inlined
    given, si, sj = table[matrix] != 0, table[matrix + 2], table[matrix + 3]
    source = floats(table[matrix] + 4 * (row * table[matrix + 1] + i0 * si) if given else 0)
    read(block, source, si, sj, min(L, table[H_] - i0), table[D_], L)


@numba.njit(inline="always")
def fetch_weights(W, E, F, table, L, full):
    """Copy W and, if they are matrices, eta and lambda to the scratch: one block after the other."""
    for i0 in range(0, table[H_], L):
        at = i0 * table[D_]
        fetch(shift(W, at), table, WEIGHT, 0, i0, L)
        if full:
            fetch(shift(E, at), table, ETA, 0, i0, L)
            fetch(shift(F, at), table, LAM, 0, i0, L)


@numba.njit(inline="always")
def readout(W, M, x, D, L, additive):
    """[W * (M + 1)] x or [W + M] x, in two chains of additions: in a single one, each sum waits for the last."""
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
    """post, gain and decay of M_t = decay M_{t-1} + gain pre; Oja's h^2 M_{t-1} is part of the decay."""
    post = splat(1.0, L) if rule == PRESYNAPTIC else h
    gain = post * eta
    decay = splat(lam, L)
    if rule == OJA:
        decay = decay - gain * h
    return post, gain, decay


@numba.njit(inline="always")
def advance(M_next, M, h, x, eta, lam, E, F, D, L, rule, full, bounded):
    """One step of M; if `full`, eta and lambda are the blocks E and F instead of the numbers."""
    post, gain, decay = rates(h, eta, lam, rule, L)
    for j in range(D):
        pre = np.float32(1.0) if rule == POSTSYNAPTIC else x[j]
        if full:
            gain = post * load(E, j * L, L)
            decay = load(F, j * L, L)
            if rule == OJA:
                decay = decay - gain * h
        m = decay * load(M, j * L, L) + gain * pre
        store(M_next, j * L, tanh(m) if bounded else m)


@functools.cache
def forward_kernel(L: int, additive: bool, rule: int, activation: int, bounded: bool, full: bool) -> Kernel:
    """The scan with blocks of L hidden units; `full`: eta and lambda are (H, D) matrices, not numbers."""

    def forward(table):
        T, D, H, every, keep = table[T_], table[D_], table[H_], table[EVERY], table[KEPT] != 0
        xs, hs, kept, m_out = floats(table[XS]), floats(table[HS]), floats(table[KEPT]), floats(table[M_OUT])
        eta, lam = floats(table[ETA])[0], floats(table[LAM])[0]
        width = (H + L - 1) // L * L * D
        M = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        W, E, F = shift(M, D * L), shift(M, D * L + width), shift(M, D * L + 2 * width)
        fetch_weights(W, E, F, table, L, full)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= table[PIECES]:
                break
            for row in range(table[B_] * piece // table[PIECES], table[B_] * (piece + 1) // table[PIECES]):
                for i0 in range(0, H, L):
                    n = min(L, H - i0)
                    Wi, Ei, Fi = shift(W, i0 * D), shift(E, i0 * D), shift(F, i0 * D)
                    b = load_part(floats(table[BIAS]), i0, n, L) if table[BIAS] != 0 else splat(0.0, L)
                    fetch(M, table, M_IN, row, i0, L)
                    for t in range(T):
                        here = (row * T + t) * H + i0
                        prefetch(hs, here + AHEAD * H, 1, L)
                        if is_reset(table, row * T + t):
                            fetch(M, table, M0, 0, i0, L)
                        if keep and t > 0 and t % every == 0:
                            slot = row * ((T - 1) // every) + t // every - 1
                            write(M, shift(kept, slot * D * H + i0), H, n, D, L)
                        x = shift(xs, (row * T + t) * D)
                        h = activate(b + readout(Wi, M, x, D, L, additive), activation)
                        store_part(hs, here, h, n)
                        advance(M, M, h, x, eta, lam, Ei, Fi, D, L, rule, full, bounded)
                    write(M, shift(m_out, row * D * H + i0), H, n, D, L)

    return compiled(forward)


Block = namedtuple("Block", "A W E F dW dM0 dE dF db segment")  # scratch of one block: (D, L) each, but db (L,)


@numba.njit(inline="always")
def recompute(table, block, eta, lam, row, i0, t0, t1, L, rule, full, bounded):
    """Write M before every step of t0..t1 to block.segment, from the checkpoint at t0; if bounded, also the next M."""
    T, D, H, every = table[T_], table[D_], table[H_], table[EVERY]
    xs, hs = floats(table[XS]), floats(table[HS])
    n = min(L, H - i0)
    for t in range(t0, t1):
        here = (row * T + t) * H + i0
        M = shift(block.segment, (t - t0) * D * L)
        prefetch(hs, here + AHEAD * H, 0, L)
        if is_reset(table, row * T + t):
            fetch(M, table, M0, 0, i0, L)
        elif t == 0:
            fetch(M, table, M_IN, row, i0, L)
        elif t == t0:
            fetch(M, table, KEPT, row * ((T - 1) // every) + t // every - 1, i0, L)
        else:
            h = load_part(hs, here - H, n, L)
            x = shift(xs, (row * T + t - 1) * D)
            advance(M, shift(M, -D * L), h, x, eta, lam, block.E, block.F, D, L, rule, full, bounded)
    if bounded:
        h = load_part(hs, (row * T + t1 - 1) * H + i0, n, L)
        x, M = shift(xs, (row * T + t1 - 1) * D), shift(block.segment, (t1 - t0) * D * L)
        advance(M, shift(M, -D * L), h, x, eta, lam, block.E, block.F, D, L, rule, full, bounded)


@numba.njit(inline="always")
def adjoint(block, M, h, g_h, x, dx, eta, lam, D, L, additive, rule, activation, bounded, full, input_gradient, first):
    """One step of the adjoint: A_t becomes A_{t-1}. Returns the step's terms of deta and dlambda, per hidden unit."""
    post, gain, decay = rates(h, eta, lam, rule, L)
    if bounded:  # before a reset, A is 0, whatever M is after the step
        for k in range(0, D * L, L):
            store(block.A, k, through(load(block.A, k, L), load(M, D * L + k, L), TANH))
    ax, am = splat(0.0, L), splat(0.0, L)  # sum_j A pre and sum_j A M_{t-1}; Oja's with eta, if it is a matrix
    for j in range(D):
        pre = np.float32(1.0) if rule == POSTSYNAPTIC else x[j]
        a = load(block.A, j * L, L)
        if full:
            a = a * load(block.E, j * L, L)
        ax = ax + a * pre
        if rule == OJA:
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
        if rule != OJA:
            am = am + a * m
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
def walk_back(table, block, row, i0, L, additive, rule, activation, bounded, full, input_gradient):
    """The adjoint of all steps, of one batch row and block; returns its deta and dlambda."""
    T, D, H, every = table[T_], table[D_], table[H_], table[EVERY]
    xs, dxs, hs, g_hs = floats(table[XS]), floats(table[DXS]), floats(table[HS]), floats(table[G_HS])
    eta, lam = floats(table[ETA])[0], floats(table[LAM])[0]
    n = min(L, H - i0)
    deta, dlam = splat(0.0, L), splat(0.0, L)
    fetch(block.A, table, G_M, row, i0, L)
    for t0 in range((T - 1) // every * every, -1, -every):
        t1 = min(t0 + every, T)
        recompute(table, block, eta, lam, row, i0, t0, t1, L, rule, full, bounded)
        for t in range(t1 - 1, t0 - 1, -1):
            here = (row * T + t) * H + i0
            prefetch(g_hs, here - AHEAD * H, 0, L)
            h, g_h = load_part(hs, here, n, L), load_part(g_hs, here, n, L)
            x, dx = shift(xs, (row * T + t) * D), shift(dxs, (row * T + t) * D)
            M = shift(block.segment, (t - t0) * D * L)
            e, f = adjoint(
                block, M, h, g_h, x, dx, eta, lam, D, L, additive, rule, activation, bounded, full, input_gradient,
                i0 == 0,
            )  # fmt: skip
            deta, dlam = deta + e, dlam + f
            if is_reset(table, row * T + t):
                for k in range(0, D * L, L):
                    store(block.dM0, k, load(block.dM0, k, L) + load(block.A, k, L))
                    store(block.A, k, splat(0.0, L))
    if table[DM_IN] != 0:
        write(block.A, shift(floats(table[DM_IN]), row * D * H + i0), H, n, D, L)
    return total(deta), total(dlam)


@functools.cache
def backward_kernel(
    L: int, additive: bool, rule: int, activation: int, bounded: bool, full: bool, input_gradient: bool
) -> Kernel:
    """The adjoint of `forward_kernel`; each piece of the batch has weight gradients of its own."""

    def backward(table):
        D, H, pieces = table[D_], table[H_], table[PIECES]
        width = (H + L - 1) // L * L * D
        A = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        W, E, F = shift(A, D * L), shift(A, D * L + width), shift(A, D * L + 2 * width)
        segment = shift(A, D * L + (3 if full else 1) * width)
        fetch_weights(W, E, F, table, L, full)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= pieces:
                break
            sums = shift(floats(table[SUMS]), piece * table[SUM_SIZE])
            for k in range(0, table[SUM_SIZE], L):
                store(sums, k, splat(0.0, L))
            db, dW, dM0 = shift(sums, L), shift(sums, L + width // D), shift(sums, L + width // D + width)
            dE, dF = shift(dM0, width), shift(dM0, 2 * width)
            deta, dlam = 0.0, 0.0
            for row in range(table[B_] * piece // pieces, table[B_] * (piece + 1) // pieces):
                for i0 in range(0, H, L):
                    at = i0 * D
                    block = Block(
                        A, shift(W, at), shift(E, at), shift(F, at), shift(dW, at), shift(dM0, at), shift(dE, at),
                        shift(dF, at), shift(db, i0), segment,
                    )  # fmt: skip
                    e, f = walk_back(
                        table, block, row, i0, L, additive, rule, activation, bounded, full, input_gradient
                    )
                    deta, dlam = deta + e, dlam + f
            sums[0], sums[1] = deta, dlam
            if take_ticket(table, DONE) == pieces - 1:
                finish(table, L, full)

    return compiled(backward)


@numba.njit(inline="always")
def finish(table, L, full):
    """Add up the gradients of the pieces, in their order, and write them to the tensors; the last thread calls it."""
    D, H, size, sums = table[D_], table[H_], table[SUM_SIZE], floats(table[SUMS])
    width = (H + L - 1) // L * L * D
    for k in range(0, size, L):
        s = load(sums, k, L)
        for piece in range(1, table[PIECES]):
            s = s + load(sums, piece * size + k, L)
        store(sums, k, s)
    db, dW, dM0 = shift(sums, L), shift(sums, L + width // D), shift(sums, L + width // D + width)
    unpack(db, floats(table[DB]), H, 1, L)
    unpack(dW, floats(table[DW]), H, D, L)
    unpack(dM0, floats(table[DM0]), H, D, L)
    if full:
        unpack(shift(dM0, width), floats(table[DETA]), H, D, L)
        unpack(shift(dM0, 2 * width), floats(table[DLAM]), H, D, L)
    else:
        floats(table[DETA])[0], floats(table[DLAM])[0] = sums[0], sums[1]


# --- the torch side ---------------------------------------------------------------------------------------------------


def _layout(T: int, D: int, H: int) -> tuple[int, int, int]:
    """L, H rounded up to a multiple of L, and the steps between checkpoints: sqrt(T), or more if they fit the cache."""
    L = 16 if H <= 16 else 32 if H <= 32 or D > 64 else 64  # W, A and dW of a block fit the first-level cache
    steps = max(math.isqrt(T - 1) + 1, SEGMENT_BYTES // (4 * D * L))
    segments = -(-T // steps)
    return L, -(-H // L) * L, -(-T // segments)


def launch_scan(
    kernel: Kernel, every: int, size: int, sum_size: int, xs: Tensor, weight: Tensor, **tensors: Tensor | None
) -> None:
    """`launch` the kernel on these tensors."""
    (B, T, D), H = xs.shape, weight.shape[0]
    tensors |= {"xs": xs, "weight": weight}
    rest = [B, T, D, H]
    given = [tensors.get(name) for name in TENSORS]
    rest.extend([0 if a is None else a.data_ptr() for a in given])
    for name in MATRICES:
        a = tensors.get(name)
        if a is None:
            rest.extend((0, 0, 0, 0))
        else:
            rest.extend((a.data_ptr(), *((0,) * (3 - a.dim())), *a.stride()))
    launch(kernel, B, B * T * D * H, every, size, sum_size, rest)


def _forward(variant, xs, weight, bias, eta, lam, m_in, m0, reset, keep):
    """hs, M_T and, if `keep`, the checkpoints of M; each M is (D, H) in memory."""
    (B, T, D), H = xs.shape, weight.shape[0]
    L, padded, every = _layout(T, D, H)
    hs, m_out = xs.new_empty(B, T, H), xs.new_empty(B, D, H)
    kept = xs.new_empty(B * ((T - 1) // every), D, H).transpose(1, 2) if keep else None
    launch_scan(
        forward_kernel(L, *variant, eta.numel() > 1), every, (L + 3 * padded) * D, 0, xs, weight,
        bias=bias, eta=eta, lam=lam, m_in=m_in, m0=m0, reset=reset, hs=hs, m_out=m_out, kept=kept,
    )  # fmt: skip
    return hs, m_out.transpose(1, 2), kept


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
        (B, T, D), H, full = xs.shape, weight.shape[0], eta.numel() > 1
        L, padded, every = _layout(T, D, H)
        _, need_xs, need_w, need_b, _, _, need_m, need_m0, _ = ctx.needs_input_grad
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.contiguous()
        dxs = torch.empty_like(xs) if need_xs else None
        dw = xs.new_empty(H, D) if need_w else None
        db = xs.new_empty(H) if need_b else None
        deta, dlam = xs.new_empty(eta.shape), xs.new_empty(eta.shape)
        dm_in = xs.new_empty(B, D, H) if need_m else None
        dm0 = xs.new_empty(H, D) if need_m0 else None
        matrices = 4 if full else 2 if reset is not None else 1  # dW, dM(0), deta, dlambda
        launch_scan(
            backward_kernel(L, *ctx.variant, full, need_xs), every,
            ((2 + every) * L + (3 if full else 1) * padded) * D, L + padded + matrices * padded * D, xs, weight,
            eta=eta, lam=lam, m_in=m_in, m0=m0, reset=reset, hs=hs, kept=kept, g_hs=g_hs, g_m=g_m,
            dxs=dxs, dw=dw, db=db, deta=deta, dlam=dlam, dm_in=dm_in, dm0=dm0,
        )  # fmt: skip
        return None, dxs, dw, db, deta, dlam, None if dm_in is None else dm_in.transpose(1, 2), dm0, None


Variant = tuple[bool, int, int, bool]  # additive, rule, activation, bounded, as the kernels take them
Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor | None]


def prepare(
    inputs: Inputs, form: str, rule: str, activation: str, m_activation: str
) -> tuple[Variant, Tensors, Tensor | None, bool]:
    """The arguments of a scan as its kernels take them.

    Returns: the variant; xs, W, b, eta, lambda, M and M(0), with eta and lambda both numbers or both (H, D); reset; and
        whether a gradient is asked for.
    """
    xs, weight, bias, modulation, eta, lambda_decay, reset, modulation0 = inputs
    if eta.numel() > 1 or lambda_decay.numel() > 1 or eta.dim() != 2 or lambda_decay.dim() != 2:
        shape = weight.shape if eta.numel() > 1 or lambda_decay.numel() > 1 else (1, 1)
        eta, lambda_decay = eta.expand(shape), lambda_decay.expand(shape)
    reset, modulation0 = (None, None) if reset is None else (reset.contiguous(), modulation0)
    bias = None if bias is None else bias.contiguous()
    tensors = (xs.contiguous(), weight, bias, eta, lambda_decay, modulation, modulation0)
    variant = (form == "additive", RULES[rule], ACTIVATIONS[activation], m_activation == "tanh")
    learned = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in tensors)
    return variant, tensors, reset, learned


def scan(inputs: Inputs, form: str, rule: str, activation: str, m_activation: str) -> tuple[Tensor, Tensor]:
    """`mpn.mpn_scan` for float32 on the CPU; the arguments are the same."""
    variant, tensors, reset, learned = prepare(inputs, form, rule, activation, m_activation)
    if learned:
        return _Scan.apply(variant, *tensors, reset)
    return _forward(variant, *tensors, reset, keep=False)[:2]
