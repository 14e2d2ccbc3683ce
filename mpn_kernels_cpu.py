"""The MPN scan on the CPU: Numba kernels (the maths stands in `mpn_kernels`) and the torch function around them.

Hidden units never exchange anything within a layer, so a kernel takes one batch row and one block of `L` hidden units at a time, lays
their M out as (D, L) in a scratch buffer that stays in the cache, and walks through all of time. The backward pass walks
segments of time from the last to the first: each segment's M are computed again from its checkpoint, then
the adjoint runs back through them.

Threads are Python's own (the kernels release the GIL), as many as torch uses; rows are cut into a fixed number of groups whose
weight gradients are added in a fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from numba.core import event
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_lanes import at_least, at_most, load, load_part, prefetch, splat, store, store_part, total, where_positive

TANH, RELU, SIGMOID, LINEAR = range(4)
ASSOCIATIVE, PRESYNAPTIC, POSTSYNAPTIC, OJA = range(4)
AHEAD = 8  # steps: how early the cache is asked for h and its gradient
GROUPS = 16  # of batch rows in the backward pass, each with weight gradients of its own
SEGMENT_BYTES = 256 * 1024  # of M in one segment: a share of a core's second-level cache
PARALLEL_WORK = 2_000_000  # B T D H from which a second thread pays for waking it up


# --- one block of hidden units: (D, L) matrices, flat in memory; `at` is where a block starts --------------------------------


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


@numba.njit
def pack(block, at, matrix, i0, L):
    """Rows i0.. of an (H, D) matrix, as a (D, L) block; zeros beyond H."""
    H, D = matrix.shape
    for i in range(L):
        for j in range(D):
            block[at + j * L + i] = matrix[i0 + i, j] if i0 + i < H else np.float32(0.0)


@functools.cache
def forward_kernel(L: int, additive: bool, rule: int, activation: int, full: bool) -> Callable[..., None]:
    """Compile (or load) the scan for `L` lanes; `full`: eta and lambda are (H, D) matrices, not numbers."""

    def forward(xs, w, bias, eta, lam, reset, m0, m_in, hs, m_out, kept, every, scratch, first, last):
        T, D = xs.shape[1:]
        H = w.shape[0]
        size = D * L
        blocks = (H + L - 1) // L
        M, W = scratch[:size], scratch[size:]
        E, F = W[blocks * size :], W[2 * blocks * size :]
        for k in range(blocks):
            pack(W, k * size, w, k * L, L)
            if full:
                pack(E, k * size, eta, k * L, L)
                pack(F, k * size, lam, k * L, L)
        for row in range(first, last):
            for i0 in range(0, H, L):
                n = min(L, H - i0)
                at = i0 * D
                for j in range(D):
                    store(M, j * L, load_part(m_in, (row * D + j) * H + i0, n, L))
                for t in range(T):
                    here = (row * T + t) * H + i0
                    prefetch(hs, here + AHEAD * H, 1, L)
                    if reset[row, t]:
                        for j in range(D):
                            store(M, j * L, load_part(m0, j * H + i0, n, L))
                    if t > 0 and t % every == 0 and kept.size > 0:
                        slot = (row * kept.shape[1] + t // every - 1) * D
                        for j in range(D):
                            store_part(kept, (slot + j) * H + i0, load(M, j * L, L), n)
                    u = load_part(bias, i0, n, L)
                    for j in range(D):
                        wj, mj = load(W, at + j * L, L), load(M, j * L, L)
                        u = u + (wj + mj if additive else wj * mj + wj) * xs[row, t, j]
                    h = activate(u, activation)
                    store_part(hs, here, h, n)
                    advance(M, 0, M, 0, h, xs, row, t, eta, lam, E, F, at, L, rule, full)
                for j in range(D):
                    store_part(m_out, (row * D + j) * H + i0, load(M, j * L, L), n)

    return _compiled(forward)


@numba.njit(inline="always")
def advance(to, at_to, M, at_m, h, xs, row, t, eta, lam, E, F, at, L, rule, full):
    """M_t = decay M_{t-1} + gain pre_t, all rules in one: Oja's h^2 M_{t-1} is part of the decay."""
    D = xs.shape[2]
    post = splat(1.0, L) if rule == PRESYNAPTIC else h
    gain = post * eta[0, 0]
    decay = splat(lam[0, 0], L) - gain * h if rule == OJA else splat(lam[0, 0], L)
    for j in range(D):
        pre = np.float32(1.0) if rule == POSTSYNAPTIC else xs[row, t, j]
        if full:
            gain = post * load(E, at + j * L, L)
            decay = load(F, at + j * L, L)
            if rule == OJA:
                decay = decay - gain * h
        store(to, at_to + j * L, decay * load(M, at_m + j * L, L) + gain * pre)


@functools.cache
def backward_kernel(
    L: int, additive: bool, rule: int, activation: int, full: bool, input_gradient: bool
) -> Callable[..., None]:
    """Compile (or load) the adjoint of `forward_kernel` for rows first..last, whose sums go to group g."""

    def backward(
        xs, w, eta, lam, reset, m0, m_in, hs, kept, every, g_hs, g_m,
        dxs, dw, db, deta, dlam, dm_in, dm0, scratch, g, first, last,
    ):  # fmt: skip
        T, D = xs.shape[1:]
        H = w.shape[0]
        size = D * L
        blocks = (H + L - 1) // L
        A, segment, W = scratch[:size], scratch[size:], scratch[(1 + every) * size :]
        dW, dM0, DB = W[blocks * size :], W[2 * blocks * size :], W[3 * blocks * size :]
        E = DB[blocks * L :]
        F, dE, dF = E[blocks * size :], E[2 * blocks * size :], E[3 * blocks * size :]
        zero = splat(0.0, L)
        for k in range(0, blocks * size, L):
            store(dW, k, zero)
            store(dM0, k, zero)
            if full:
                store(dE, k, zero)
                store(dF, k, zero)
        for k in range(blocks):
            store(DB, k * L, zero)
            pack(W, k * size, w, k * L, L)
            if full:
                pack(E, k * size, eta, k * L, L)
                pack(F, k * size, lam, k * L, L)
        sum_eta, sum_lam = 0.0, 0.0
        for row in range(first, last):
            for i0 in range(0, H, L):
                n = min(L, H - i0)
                at = i0 * D
                acc_eta, acc_lam = zero, zero
                for j in range(D):
                    store(A, j * L, load_part(g_m, (row * D + j) * H + i0, n, L) if g_m.size > 0 else zero)
                for t0 in range((T - 1) // every * every, -1, -every):
                    t1 = min(t0 + every, T)
                    for j in range(D):
                        if t0 > 0:
                            k = ((row * kept.shape[1] + t0 // every - 1) * D + j) * H + i0
                            store(segment, j * L, load_part(kept, k, n, L))
                        elif reset[row, 0]:
                            store(segment, j * L, load_part(m0, j * H + i0, n, L))
                        else:
                            store(segment, j * L, load_part(m_in, (row * D + j) * H + i0, n, L))
                    for t in range(t0 + 1, t1):
                        s = (t - t0) * size
                        here = (row * T + t) * H + i0
                        prefetch(hs, here + AHEAD * H, 0, L)
                        if reset[row, t]:
                            for j in range(D):
                                store(segment, s + j * L, load_part(m0, j * H + i0, n, L))
                        else:
                            h = load_part(hs, here - H, n, L)
                            advance(segment, s, segment, s - size, h, xs, row, t - 1, eta, lam, E, F, at, L, rule, full)
                    for t in range(t1 - 1, t0 - 1, -1):
                        here = (row * T + t) * H + i0
                        s = (t - t0) * size
                        prefetch(hs, here - AHEAD * H, 0, L)
                        prefetch(g_hs, here - AHEAD * H, 0, L)
                        h = load_part(hs, here, n, L)
                        gh = load_part(g_hs, here, n, L)
                        post = splat(1.0, L) if rule == PRESYNAPTIC else h
                        ax, am = zero, zero  # sum_j A pre and sum_j A M_{t-1}
                        for j in range(D):
                            pre = np.float32(1.0) if rule == POSTSYNAPTIC else xs[row, t, j]
                            a = load(A, j * L, L)
                            if full:
                                a = a * load(E, at + j * L, L)
                            ax = ax + a * pre
                            am = am + a * load(segment, s + j * L, L)
                        if not full:
                            acc_eta = acc_eta + post * ax
                            acc_lam = acc_lam + am
                            if rule == OJA:
                                acc_eta = acc_eta - h * h * am
                            ax = ax * eta[0, 0]
                            am = am * eta[0, 0]
                        if rule != PRESYNAPTIC:
                            gh = gh + ax
                        if rule == OJA:
                            gh = gh - (h * am) * 2.0
                        gu = through(gh, h, activation)
                        store(DB, i0, load(DB, i0, L) + gu)
                        gain = post * eta[0, 0]
                        decay = splat(lam[0, 0], L)
                        if rule == OJA:
                            decay = decay - gain * h
                        for j in range(D):
                            x = xs[row, t, j]
                            a = load(A, j * L, L)
                            m = load(segment, s + j * L, L)
                            wj = load(W, at + j * L, L)
                            k = at + j * L
                            if full:
                                pre = np.float32(1.0) if rule == POSTSYNAPTIC else x
                                gain = post * load(E, k, L)
                                decay = load(F, k, L)
                                change = post * pre
                                if rule == OJA:
                                    decay = decay - gain * h
                                    change = change - h * h * m
                                store(dE, k, load(dE, k, L) + a * change)
                                store(dF, k, load(dF, k, L) + a * m)
                            gx = gu * x
                            store(dW, k, load(dW, k, L) + (gx if additive else gx * (m + 1.0)))
                            store(A, j * L, decay * a + (gx if additive else gx * wj))
                            if input_gradient:
                                v = gu * (wj + m if additive else wj * m + wj)
                                if rule != POSTSYNAPTIC:
                                    v = v + a * gain
                                dxs[row, t, j] += total(v)
                        if reset[row, t]:
                            for j in range(D):
                                k = at + j * L
                                store(dM0, k, load(dM0, k, L) + load(A, j * L, L))
                                store(A, j * L, zero)
                if dm_in.size > 0:
                    for j in range(D):
                        store_part(dm_in, (row * D + j) * H + i0, load(A, j * L, L), n)
                sum_eta += total(acc_eta)
                sum_lam += total(acc_lam)
        for i0 in range(0, H, L):
            n = min(L, H - i0)
            store_part(db, g * H + i0, load(DB, i0, L), n)
            for j in range(D):
                k = (g * D + j) * H + i0
                b = i0 * D + j * L
                store_part(dw, k, load(dW, b, L), n)
                if dm0.size > 0:
                    store_part(dm0, k, load(dM0, b, L), n)
                if full:
                    store_part(deta, k, load(dE, b, L), n)
                    store_part(dlam, k, load(dF, b, L), n)
        if not full:
            deta[g, 0, 0] = sum_eta
            dlam[g, 0, 0] = sum_lam

    return _compiled(backward)


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Numba's dispatcher for a kernel, cached on disk where a directory can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable cache directory: compile in every process
        return numba.njit(nogil=True)(function)


# --- the torch side -------------------------------------------------------------------------------------------------------


class _Announce(event.Listener):
    """Say once that a kernel is being compiled: the first call then takes seconds."""

    said = False

    def on_start(self, happening: event.Event) -> None:
        if not _Announce.said:
            _Announce.said = True
            print(
                "mpn: compiling the fused CPU kernels, once per machine (a few seconds) ...",
                file=sys.stderr,
                flush=True,
            )

    def on_end(self, happening: event.Event) -> None:
        pass


_ready: set[Any] = set()
_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def _scratch(floats: int) -> np.ndarray:
    """This thread's own buffer; torch aligns it to cache lines."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < floats:
        buffer = _local.buffer = torch.empty(floats).numpy()
    return buffer


def _launch(
    kernel: Callable[..., None], arguments: Sequence[Any], floats: int, pieces: list[tuple[int, ...]], work: int
) -> None:
    """Run the kernel on every piece, on as many threads as torch may use if the work is worth it."""
    if kernel not in _ready:
        types = [numba.typeof(a) for a in arguments] + [numba.typeof(_scratch(1))] + [numba.intp] * len(pieces[0])
        with event.install_listener("numba:compile", _Announce()):
            kernel.compile(tuple(types))
        _ready.add(kernel)
    threads = min(torch.get_num_threads(), len(pieces)) if work >= PARALLEL_WORK else 1

    def run(k: int) -> None:
        scratch = _scratch(floats)
        for piece in pieces[k::threads]:
            kernel(*arguments, scratch, *piece)

    if threads == 1:
        return run(0)
    pool = _pools.get(threads)
    if pool is None:
        pool = _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="mpn")
    others = [pool.submit(run, k) for k in range(1, threads)]
    run(0)
    for other in others:
        other.result()


def _lanes(hidden_dim: int) -> int:
    return 64 if hidden_dim > 32 else 32 if hidden_dim > 16 else 16


def _cut(n: int, parts: int) -> list[tuple[int, int]]:
    return [(n * k // parts, n * (k + 1) // parts) for k in range(parts)]


def _segment(T: int, D: int, L: int) -> int:
    """Steps between checkpoints: at least sqrt(T), more if they fit into the cache."""
    at_least_steps = max(math.isqrt(T - 1) + 1, SEGMENT_BYTES // (4 * D * L))
    segments = -(-T // at_least_steps)
    return -(-T // segments)


def _forward(variant, xs, weight, bias, m_in, eta, lam, m0, reset, keep):
    """hs, M_T and the checkpoints; the latter only if `keep`. All M are (B, D, H) here."""
    additive, rule, activation = variant
    (B, T, D), H = xs.shape, weight.shape[0]
    L, full = _lanes(H), eta.numel() > 1
    every = _segment(T, D, L)
    hs, m_out = xs.new_empty(B, T, H), xs.new_empty(B, D, H)
    kept = xs.new_empty(B, (T - 1) // every if keep else 0, D, H)
    kernel = forward_kernel(L, additive, rule, activation, full)
    tensors = (xs, weight, bias, eta, lam, reset, m0, m_in, hs, m_out, kept)
    blocks = -(-H // L)
    work = B * T * D * H
    pieces = _cut(B, min(B, torch.get_num_threads())) if work >= PARALLEL_WORK else [(0, B)]
    _launch(kernel, [a.numpy() for a in tensors] + [every], (1 + 3 * blocks) * D * L, pieces, work)
    return hs, m_out, kept


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variant, xs, weight, bias, m_in, eta, lam, m0, reset):
        hs, m_out, kept = _forward(variant, xs, weight, bias, m_in, eta, lam, m0, reset, keep=True)
        ctx.variant = variant
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, weight, m_in, eta, lam, m0, reset, hs, kept)
        return hs, m_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g_hs, g_m):
        xs, weight, m_in, eta, lam, m0, reset, hs, kept = ctx.saved_tensors
        additive, rule, activation = ctx.variant
        (B, T, D), H = xs.shape, weight.shape[0]
        L, full = _lanes(H), eta.numel() > 1
        every, blocks, G = _segment(T, D, L), -(-H // L), min(B, GROUPS)
        _, need_xs, need_w, need_b, need_m, need_eta, need_lam, need_m0, _ = ctx.needs_input_grad
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.contiguous()
        g_m = xs.new_empty(0, 0, 0) if g_m is None else g_m.contiguous()
        dxs = torch.zeros_like(xs) if need_xs else xs.new_empty(0, 0, 0)
        dm_in = torch.empty_like(m_in) if need_m else xs.new_empty(0, 0, 0)
        dw, db = xs.new_empty(G, D, H), xs.new_empty(G, H)
        dm0 = xs.new_empty(G, D, H) if need_m0 else xs.new_empty(0, 0, 0)
        deta, dlam = (xs.new_empty(G, D, H) if full else xs.new_empty(G, 1, 1) for _ in range(2))
        kernel = backward_kernel(L, additive, rule, activation, full, need_xs)
        inputs = [a.numpy() for a in (xs, weight, eta, lam, reset, m0, m_in, hs, kept)]
        outputs = [a.numpy() for a in (g_hs, g_m, dxs, dw, db, deta, dlam, dm_in, dm0)]
        floats = (1 + every + 7 * blocks) * D * L + blocks * L
        pieces = [(g, *rows) for g, rows in enumerate(_cut(B, G))]
        _launch(kernel, [*inputs, every, *outputs], floats, pieces, 3 * B * T * D * H)
        return (
            None,
            dxs if need_xs else None,
            dw.sum(0).t() if need_w else None,
            db.sum(0) if need_b else None,
            dm_in if need_m else None,
            deta.sum(0).t() if need_eta else None,
            dlam.sum(0).t() if need_lam else None,
            dm0.sum(0) if need_m0 else None,
            None,
        )


_RULES = {"associative": ASSOCIATIVE, "presynaptic": PRESYNAPTIC, "postsynaptic": POSTSYNAPTIC, "oja": OJA}
_ACTIVATIONS = {"tanh": TANH, "relu": RELU, "sigmoid": SIGMOID, "linear": LINEAR}


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
    """`mpn_kernels.mpn_scan` for float32 on the CPU. M_T is a (B, H, D) view of (B, D, H) memory: passed on as it is, it costs no copy."""
    (B, T, D), H = xs.shape, weight.shape[0]
    if eta.numel() > 1 or lambda_decay.numel() > 1:
        eta, lambda_decay = eta.expand(H, D).contiguous(), lambda_decay.expand(H, D).contiguous()
    else:
        eta, lambda_decay = eta.reshape(1, 1), lambda_decay.reshape(1, 1)
    m_in = modulation.transpose(1, 2).contiguous()
    m0 = xs.new_zeros(D, H) if modulation0 is None else modulation0.t().contiguous()
    reset = torch.zeros(B, T, dtype=torch.bool) if reset is None else reset.contiguous()
    inputs = (
        xs.contiguous(),
        weight.contiguous(),
        weight.new_zeros(H) if bias is None else bias,
        m_in,
        eta,
        lambda_decay,
        m0,
    )
    variant = (form == "additive", _RULES[rule], _ACTIVATIONS[activation])
    if torch.is_grad_enabled() and any(a.requires_grad for a in inputs):
        hs, m_out = _Scan.apply(variant, *inputs, reset)
    else:
        inputs = tuple(a.detach() for a in inputs)
        hs, m_out, _ = _forward(variant, *inputs, reset, keep=False)
    return hs, m_out.transpose(1, 2)
