"""The recurrent MPN scan on the CPU: kernels from the parts of `mpn_cpu.py` (`recurrent_mpn.py` has the equations).

A kernel takes one batch row at a time, with M of all hidden units in a scratch buffer that stays in the second-level
cache. At each step it goes through the blocks of L hidden units, with the same functions as the kernel of the MPN. Its
input z_t = (x_t, h_{t-1}) is one row of a buffer (B, T, Z), into which the forward kernel writes each h.
"""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_rl.kernels.launcher import SEGMENT_BYTES, Kernel
from mpn_rl.kernels.mpn import Inputs
from mpn_rl.kernels.mpn_cpu import (
    B_,
    BIAS,
    D_,
    DM_IN,
    DONE,
    DXS,
    ETA,
    EVERY,
    G_HS,
    G_M,
    H_,
    HS,
    KEPT,
    LAM,
    M0,
    M_IN,
    M_OUT,
    PIECES,
    SCRATCH,
    SIZE,
    SLOT,
    SUM_SIZE,
    SUMS,
    T_,
    TICKET,
    XS,
    Block,
    adjoint,
    advance,
    fetch,
    fetch_weights,
    finish,
    is_reset,
    launch_scan,
    prepare,
    readout,
    recompute,
)
from mpn_rl.kernels.simd import (
    activate,
    compiled,
    floats,
    load,
    load_part,
    shift,
    splat,
    store,
    store_part,
    take_ticket,
    total,
    write,
)

L = 32  # hidden units in a block


@functools.cache
def forward_kernel(additive: bool, rule: int, activation: int, bounded: bool, full: bool) -> Kernel:
    """The scan with blocks of L hidden units; `full`: eta and lambda are (H, Z) matrices, not numbers."""

    def forward_recurrent(table):
        T, D, H, every, keep = table[T_], table[D_], table[H_], table[EVERY], table[KEPT] != 0
        xs, hs, kept, m_out = floats(table[XS]), floats(table[HS]), floats(table[KEPT]), floats(table[M_OUT])
        eta, lam = floats(table[ETA])[0], floats(table[LAM])[0]
        width = (H + L - 1) // L * L * D
        M = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        W, E, F = shift(M, width), shift(M, 2 * width), shift(M, 3 * width)
        fetch_weights(W, E, F, table, L, full)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= table[PIECES]:
                break
            for row in range(table[B_] * piece // table[PIECES], table[B_] * (piece + 1) // table[PIECES]):
                for i0 in range(0, H, L):
                    fetch(shift(M, i0 * D), table, M_IN, row, i0, L)
                for t in range(T):
                    x = shift(xs, (row * T + t) * D)
                    if is_reset(table, row * T + t):
                        for i0 in range(0, H, L):
                            fetch(shift(M, i0 * D), table, M0, 0, i0, L)
                        for i in range(H):
                            x[D - H + i] = np.float32(0.0)
                    for i0 in range(0, H, L):
                        n, at = min(L, H - i0), i0 * D
                        Mi, Wi, Ei, Fi = shift(M, at), shift(W, at), shift(E, at), shift(F, at)
                        if keep and t > 0 and t % every == 0:
                            slot = row * ((T - 1) // every) + t // every - 1
                            write(Mi, shift(kept, slot * D * H + i0), H, n, D, L)
                        b = load_part(floats(table[BIAS]), i0, n, L) if table[BIAS] != 0 else splat(0.0, L)
                        h = activate(b + readout(Wi, Mi, x, D, L, additive), activation)
                        store_part(hs, (row * T + t) * H + i0, h, n)
                        advance(Mi, Mi, h, x, eta, lam, Ei, Fi, D, L, rule, full, bounded)
                    if t + 1 < T:
                        for i in range(H):
                            x[2 * D - H + i] = hs[(row * T + t) * H + i]
                for i0 in range(0, H, L):
                    write(shift(M, i0 * D), shift(m_out, row * D * H + i0), H, min(L, H - i0), D, L)

    return compiled(forward_recurrent)


@numba.njit(inline="always")
def block_of(block, i0, D, every):
    """The part of the scratch that belongs to the hidden units from i0 on."""
    at = i0 * D
    return Block(
        shift(block.A, at), shift(block.W, at), shift(block.E, at), shift(block.F, at), shift(block.dW, at),
        shift(block.dM0, at), shift(block.dE, at), shift(block.dF, at), shift(block.db, i0),
        shift(block.segment, at * (every + 1)),
    )  # fmt: skip


@numba.njit(inline="always")
def walk_back(table, whole, row, L, additive, rule, activation, bounded, full):
    """The adjoint of all steps of one batch row; returns its deta and dlambda."""
    T, D, H, every = table[T_], table[D_], table[H_], table[EVERY]
    xs, dxs, hs, g_hs = floats(table[XS]), floats(table[DXS]), floats(table[HS]), floats(table[G_HS])
    eta, lam = floats(table[ETA])[0], floats(table[LAM])[0]
    deta, dlam = splat(0.0, L), splat(0.0, L)
    for i0 in range(0, H, L):
        fetch(shift(whole.A, i0 * D), table, G_M, row, i0, L)
    for t0 in range((T - 1) // every * every, -1, -every):
        t1 = min(t0 + every, T)
        for i0 in range(0, H, L):
            recompute(table, block_of(whole, i0, D, every), eta, lam, row, i0, t0, t1, L, rule, full, bounded)
        for t in range(t1 - 1, t0 - 1, -1):
            at = row * T + t
            x, dx = shift(xs, at * D), shift(dxs, at * D)
            for i0 in range(0, H, L):
                block, n = block_of(whole, i0, D, every), min(L, H - i0)
                h, g_h = load_part(hs, at * H + i0, n, L), load_part(g_hs, at * H + i0, n, L)
                M = shift(block.segment, (t - t0) * D * L)
                e, f = adjoint(
                    block, M, h, g_h, x, dx, eta, lam, D, L, additive, rule, activation, bounded, full, True, i0 == 0
                )
                deta, dlam = deta + e, dlam + f
            if is_reset(table, at):
                for k in range(0, (H + L - 1) // L * L * D, L):
                    store(whole.dM0, k, load(whole.dM0, k, L) + load(whole.A, k, L))
                    store(whole.A, k, splat(0.0, L))
                for i in range(H):
                    dx[D - H + i] = np.float32(0.0)
            elif t > 0:
                for i in range(H):
                    g_hs[(at - 1) * H + i] += dx[D - H + i]
    if table[DM_IN] != 0:
        for i0 in range(0, H, L):
            write(shift(whole.A, i0 * D), shift(floats(table[DM_IN]), row * D * H + i0), H, min(L, H - i0), D, L)
    return total(deta), total(dlam)


@functools.cache
def backward_kernel(additive: bool, rule: int, activation: int, bounded: bool, full: bool) -> Kernel:
    """The adjoint of `forward_kernel`; each piece of the batch has weight gradients of its own. It changes g_hs."""

    def backward_recurrent(table):
        D, H, pieces = table[D_], table[H_], table[PIECES]
        width = (H + L - 1) // L * L * D
        A = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        W, E, F = shift(A, width), shift(A, 2 * width), shift(A, 3 * width)
        segment = shift(A, (4 if full else 2) * width)
        fetch_weights(W, E, F, table, L, full)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= pieces:
                break
            sums = shift(floats(table[SUMS]), piece * table[SUM_SIZE])
            for k in range(0, table[SUM_SIZE], L):
                store(sums, k, splat(0.0, L))
            db, dW, dM0 = shift(sums, L), shift(sums, L + width // D), shift(sums, L + width // D + width)
            whole = Block(A, W, E, F, dW, dM0, shift(dM0, width), shift(dM0, 2 * width), db, segment)
            deta, dlam = 0.0, 0.0
            for row in range(table[B_] * piece // pieces, table[B_] * (piece + 1) // pieces):
                e, f = walk_back(table, whole, row, L, additive, rule, activation, bounded, full)
                deta, dlam = deta + e, dlam + f
            sums[0], sums[1] = deta, dlam
            if take_ticket(table, DONE) == pieces - 1:
                finish(table, L, full)

    return compiled(backward_recurrent)


# --- the torch side ---------------------------------------------------------------------------------------------------


def _layout(T: int, Z: int, H: int) -> tuple[int, int]:
    """H rounded up to a multiple of L, and the steps between checkpoints: sqrt(T), or more if they fit the cache."""
    padded = -(-H // L) * L
    steps = max(math.isqrt(T - 1) + 1, SEGMENT_BYTES // (4 * Z * padded))
    segments = -(-T // steps)
    return padded, -(-T // segments)


def _forward(variant, xs, hidden, weight, bias, eta, lam, m_in, m0, reset, keep):
    """zs, hs, M_T and, if `keep`, the checkpoints of M; each M is (Z, H) in memory."""
    (B, T, D), (H, Z) = xs.shape, weight.shape
    padded, every = _layout(T, Z, H)
    zs = xs.new_empty(B, T, Z)
    zs[:, :, :D], zs[:, 0, D:] = xs, hidden
    hs, m_out = xs.new_empty(B, T, H), xs.new_empty(B, Z, H)
    kept = xs.new_empty(B * ((T - 1) // every), Z, H).transpose(1, 2) if keep else None
    launch_scan(
        forward_kernel(*variant, eta.numel() > 1), every, 4 * padded * Z, 0, zs, weight,
        bias=bias, eta=eta, lam=lam, m_in=m_in, m0=m0, reset=reset, hs=hs, m_out=m_out, kept=kept,
    )  # fmt: skip
    return zs, hs, m_out.transpose(1, 2), kept


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variant, xs, hidden, weight, bias, eta, lam, m_in, m0, reset):
        zs, hs, m_out, kept = _forward(variant, xs, hidden, weight, bias, eta, lam, m_in, m0, reset, keep=True)
        ctx.variant = variant
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(zs, weight, eta, lam, m_in, m0, reset, hs, kept)
        return hs, m_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g_hs, g_m):
        zs, weight, eta, lam, m_in, m0, reset, hs, kept = ctx.saved_tensors
        (B, T, Z), H, full = zs.shape, weight.shape[0], eta.numel() > 1
        padded, every = _layout(T, Z, H)
        _, need_xs, need_hidden, need_w, need_b, _, _, need_m, need_m0, _ = ctx.needs_input_grad
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.clone(memory_format=torch.contiguous_format)
        dzs = torch.empty_like(zs)
        dw = zs.new_empty(H, Z) if need_w else None
        db = zs.new_empty(H) if need_b else None
        deta, dlam = zs.new_empty(eta.shape), zs.new_empty(eta.shape)
        dm_in = zs.new_empty(B, Z, H) if need_m else None
        dm0 = zs.new_empty(H, Z) if need_m0 else None
        matrices = 4 if full else 2 if reset is not None else 1  # dW, dM(0), deta, dlambda
        launch_scan(
            backward_kernel(*ctx.variant, full), every,
            ((4 if full else 2) + every + 1) * padded * Z, L + padded + matrices * padded * Z, zs, weight,
            eta=eta, lam=lam, m_in=m_in, m0=m0, reset=reset, hs=hs, kept=kept, g_hs=g_hs, g_m=g_m,
            dxs=dzs, dw=dw, db=db, deta=deta, dlam=dlam, dm_in=dm_in, dm0=dm0,
        )  # fmt: skip
        dxs, dh = dzs[:, :, : Z - H] if need_xs else None, dzs[:, 0, Z - H :] if need_hidden else None
        return None, dxs, dh, dw, db, deta, dlam, None if dm_in is None else dm_in.transpose(1, 2), dm0, None


def scan(
    inputs: Inputs, hidden: Tensor, form: str, rule: str, activation: str, m_activation: str
) -> tuple[Tensor, Tensor]:
    """hs and the last M of `recurrent_mpn.recurrent_mpn_scan` for float32 on the CPU; the arguments are the same."""
    variant, tensors, reset, learned = prepare(inputs, form, rule, activation, m_activation)
    with_hidden = (tensors[0], hidden, *tensors[1:])
    if learned or (torch.is_grad_enabled() and hidden.requires_grad):
        return _Scan.apply(variant, *with_hidden, reset)
    return _forward(variant, *with_hidden, reset, keep=False)[1:3]
