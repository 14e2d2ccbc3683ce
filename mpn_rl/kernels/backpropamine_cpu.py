"""The plastic scan on the CPU: Numba kernels (equations: `backpropamine.py`) and the torch function around them.

Every unit of a row reads all others at every step, so a kernel takes one batch row and runs through all time steps with
the row's whole trace in the cache. One pass over the matrices updates H after step t-1 and computes the pre-activations
of step t; in the backward pass, one pass finishes the adjoint of step t and starts that of step t-1.

`launcher.py` describes the table that a kernel works on, and its threads.
"""

from __future__ import annotations

import array
import functools
import math
from collections import namedtuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_rl.kernels.backpropamine_simd import (
    CLIP,
    LINEAR,
    SOFT,
    Backward,
    Copy,
    Forward,
    Four,
    Step,
    all_advance,
    all_advance_and_read,
    all_advance_tensor,
    all_gather,
    all_into_blocks,
    all_out_of_blocks,
    all_read,
    all_read_four,
    all_spread,
    clear,
    copy,
    inner,
)
from mpn_rl.kernels.launcher import SEGMENT_BYTES, Header, Kernel, launch
from mpn_rl.kernels.simd import (
    ACTIVATIONS,
    activate,
    compiled,
    flags,
    floats,
    load,
    load_part,
    shift,
    splat,
    store,
    store_part,
    take_ticket,
    tanh,
    through,
    total,
)

# A kernel's table: the launcher's header, sizes and options, then addresses of contiguous tensors (0: absent). Numba
# compiles a slot as a constant, so each one is a global.
SIZES = ("B_", "T_", "N_", "is_oja", "activation", "numbers")
TENSORS = ("drive", "reset", "u", "fan_a", "fan_d", "weight", "alpha", "h_in", "trace_in", "elig_in",
           "hs", "ms", "trace_out", "elig_out", "g_hs", "g_m", "g_trace", "g_elig",
           "g_drive", "dh_in", "dtrace_in", "delig_in", "dalpha", "du", "da", "dd", "dnumbers")  # fmt: skip
SLOTS = {name: slot for slot, name in enumerate((*Header._fields, *SIZES, *TENSORS))}
(SLOT, TICKET, DONE, PIECES, SCRATCH, SIZE, SUMS, SUM_SIZE, EVERY, B_, T_, N_, IS_OJA, ACTIVATION,
 NUMBERS, DRIVE, RESET, U, FAN_A, FAN_D, WEIGHT, ALPHA, H_IN, TRACE_IN, ELIG_IN,
 HS, MS, TRACE_OUT, ELIG_OUT, G_HS, G_M, G_TRACE, G_ELIG,
 G_DRIVE, DH_IN, DTRACE_IN, DELIG_IN, DALPHA, DU, DA, DD, DNUMBERS) = SLOTS.values()  # fmt: skip
assert all(globals()[name.upper()] == slot for name, slot in SLOTS.items())
KINDS = {"hard-clip": CLIP, "decay": LINEAR, "oja": LINEAR, "soft-clip": SOFT}

# In `numbers`: the modulator's bias c, E's rate eta, the trace's bound, and a and d if all units have the same.
BIAS_, ETA_, BOUND_, ALL_A, ALL_D = range(5)


# --- between tensors and scratch --------------------------------------------------------------------------------------


@inner
def matrix_of(table, name, row):
    """Batch row `row` of a tensor of (N, N) matrices."""
    return floats(table[name] + 4 * row * table[N_] * table[N_])


@inner
def fetch(blocks, table, name, row):
    """Copy a matrix of the table to blocks; zeros if it is absent."""
    all_into_blocks(Copy(table[N_], blocks, matrix_of(table, name, row), table[name] != 0), 0, 0)


@inner
def write_matrix(blocks, table, name, row):
    """Copy blocks to a matrix of the table, if it is there."""
    if table[name] != 0:
        all_out_of_blocks(Copy(table[N_], blocks, matrix_of(table, name, row), True), 0, 0)


@inner
def fetch_vector(target, table, name, at, instead=0.0):
    """Copy N numbers of a tensor from `at` on, padded with zeros; all are `instead` if it is absent."""
    N = table[N_]
    for j in range(0, N, 16):
        n = min(16, N - j)
        store(target, j, load_part(floats(table[name]), at + j, n, 16) if table[name] != 0 else splat(instead, 16))


@inner
def fetch_units(table, u, fan_a, fan_d):
    """Copy the modulator's u, and a and d, one per unit, to the scratch."""
    fetch_vector(u, table, U, 0)
    fetch_vector(fan_a, table, FAN_A, 0, floats(table[NUMBERS])[ALL_A])
    fetch_vector(fan_d, table, FAN_D, 0, floats(table[NUMBERS])[ALL_D])


# --- vectors of one step ----------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def is_reset(table, k):
    return table[RESET] != 0 and flags(table[RESET])[k] != 0


@inner
def rates(step, fan_a, fan_d, modulator, N, oja, kind, retro):
    """Set the step's gain_j = a_j m + d_j, its product gp with the step's h (retroactive: gain alone), and `keep`."""
    numba.literally(kind)
    numba.literally(retro)
    for j in range(0, N, 16):
        gain, post = load(fan_a, j, 16) * modulator + load(fan_d, j, 16), load(step.post, j, 16)
        gp = gain if retro else gain * post
        store(step.gain, j, gain)
        store(step.gp, j, gp)
        if kind == LINEAR:
            store(step.keep, j, 1.0 - gp * post if oja else 1.0 - gain)


@inner
def new_h(table, here, acc, post, u):
    """Write h = tanh(drive + acc) to hs and `post`; returns the modulator m."""
    N = table[N_]
    m = splat(0.0, 16)
    for j in range(0, N, 16):
        n = min(16, N - j)
        h = tanh(load_part(floats(table[DRIVE]), here * N + j, n, 16) + load(acc, j, 16))
        store(post, j, h)
        store_part(floats(table[HS]), here * N + j, h, n)
        m = m + h * load(u, j, 16)
    modulator = np.float32(0.0)
    if table[U] != 0:
        store(acc, 0, activate(splat(total(m) + floats(table[NUMBERS])[BIAS_], 16), table[ACTIVATION]))
        modulator = acc[0]
        floats(table[MS])[here] = modulator
    return modulator


# --- the kernels ------------------------------------------------------------------------------------------------------


@functools.cache
def forward_kernel(kind: int, retro: bool) -> Kernel:
    """The scan; one kernel serves every modulation of this kind of rule, with other values of a and d."""

    def forward(table):
        T, N, oja = table[T_], table[N_], table[IS_OJA] != 0
        P = (N + 15) // 16 * 16
        size, copies = N * P, 2 if retro else 1
        W = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        alpha, H, E = shift(W, size), shift(W, 2 * size), shift(W, 3 * size)
        u = shift(W, (2 + copies) * size)
        fan_a, fan_d, acc, h, gain = shift(u, P), shift(u, 2 * P), shift(u, 3 * P), shift(u, 4 * P), shift(u, 7 * P)
        gp, keep = shift(u, 8 * P), shift(u, 9 * P)
        eta, bound = floats(table[NUMBERS])[ETA_], floats(table[NUMBERS])[BOUND_]
        fetch(W, table, WEIGHT, 0)
        fetch(alpha, table, ALPHA, 0)
        fetch_units(table, u, fan_a, fan_d)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= table[PIECES]:
                break
            for row in range(table[B_] * piece // table[PIECES], table[B_] * (piece + 1) // table[PIECES]):
                fetch(H, table, TRACE_IN, row)
                if retro:
                    fetch(E, table, ELIG_IN, row)
                fetch_vector(h, table, H_IN, row * N)
                for t in range(T):
                    # h before step t is in slot t % 3, the h before that in (t + 2) % 3
                    old, pre, post = shift(h, (t + 2) % 3 * P), shift(h, t % 3 * P), shift(h, (t + 1) % 3 * P)
                    s = Forward(N, W, alpha, H, E, H, E, old, pre, gp, keep, pre, acc, eta, bound)
                    if is_reset(table, row * T + t):
                        clear(H, copies * size)
                        clear(pre, P)
                        clear(acc, P)
                    elif t == 0:
                        all_read(s, 0, 0)
                    else:
                        all_advance_and_read(s, kind, retro)
                    m = new_h(table, row * T + t, acc, post, u)
                    rates(Step(pre, post, gain, gp, keep), fan_a, fan_d, m, N, oja, kind, retro)
                pre, post = shift(h, (T + 2) % 3 * P), shift(h, T % 3 * P)
                all_advance(Forward(N, W, alpha, H, E, H, E, pre, post, gp, keep, post, acc, eta, bound), kind, retro)
                write_matrix(H, table, TRACE_OUT, row)
                write_matrix(E, table, ELIG_OUT, row)

    return compiled(forward)


@functools.cache
def step_kernel(kind: int, retro: bool) -> Kernel:
    """`forward_kernel` for T = 1, which acting runs at every step: it reads and writes the tensors without a copy."""

    def step(table):
        B, N, oja = table[B_], table[N_], table[IS_OJA] != 0
        P = (N + 15) // 16 * 16
        u = floats(table[SCRATCH])
        fan_a, fan_d, acc, gain = shift(u, P), shift(u, 2 * P), shift(u, 3 * P), shift(u, 7 * P)
        gp, keep, post = shift(u, 8 * P), shift(u, 9 * P), shift(u, 10 * P)
        eta, bound = floats(table[NUMBERS])[ETA_], floats(table[NUMBERS])[BOUND_]
        W, alpha, h = floats(table[WEIGHT]), floats(table[ALPHA]), floats(table[H_IN])
        fetch_units(table, u, fan_a, fan_d)
        for first in range(0, B, 4):
            b, c, d = min(first + 1, B - 1), min(first + 2, B - 1), min(first + 3, B - 1)  # repeats the last row
            H = (matrix_of(table, TRACE_IN, first), matrix_of(table, TRACE_IN, b),
                 matrix_of(table, TRACE_IN, c), matrix_of(table, TRACE_IN, d))  # fmt: skip
            pre = (shift(h, first * N), shift(h, b * N), shift(h, c * N), shift(h, d * N))
            all_read_four(Four(N, W, alpha, H, pre, acc), 0, 0)
            for row in range(first, min(first + 4, B)):
                sums, before = shift(acc, (row - first) * P), shift(h, row * N)
                m = new_h(table, row, sums, post, u)
                rates(Step(before, post, gain, gp, keep), fan_a, fan_d, m, N, oja, kind, retro)
                H_in, E_in = matrix_of(table, TRACE_IN, row), matrix_of(table, ELIG_IN, row)
                H_out, E_out = matrix_of(table, TRACE_OUT, row), matrix_of(table, ELIG_OUT, row)
                s = Forward(N, W, alpha, H_in, E_in, H_out, E_out, before, before, gp, keep, post, acc, eta, bound)
                all_advance_tensor(s, kind, retro)

    return compiled(step)


# Scratch of the backward pass: parameters, the adjoints A of H and Z of E, sums over presynaptic units, a segment's
# steps with the H and E before each of them, and the checkpoints of H and E.
Scratch = namedtuple("Scratch", "W alpha A Z u fan_a fan_d g_u R G K Q S g_h steps H E kept")
Sums = namedtuple("Sums", "numbers du da dd dalpha")  # of one piece


@numba.njit(inline="always")
def step_at(w, q, P):
    """The vectors of step q of the segment."""
    p = shift(w.steps, 5 * q * P)
    return Step(p, shift(p, P), shift(p, 2 * P), shift(p, 3 * P), shift(p, 4 * P))


@inner
def begin_step(table, w, b, H, E, row, t, kind, retro):
    """Set the vectors of step t; a reset sets H, E and h before the step to zero."""
    numba.literally(kind)
    numba.literally(retro)
    N, P, here = table[N_], (table[N_] + 15) // 16 * 16, row * table[T_] + t
    if is_reset(table, here):
        clear(b.pre, P)
        clear(H, N * P)
        if retro:
            clear(E, N * P)
    elif t == 0:
        fetch_vector(b.pre, table, H_IN, row * N)
    else:
        fetch_vector(b.pre, table, HS, (here - 1) * N)
    fetch_vector(b.post, table, HS, here * N)
    m = floats(table[MS])[here] if table[U] != 0 else np.float32(0.0)
    rates(b, w.fan_a, w.fan_d, m, N, table[IS_OJA] != 0, kind, retro)


@inner
def advanced(table, w, b, H, E, H_new, E_new, kind, retro):
    """One step of H and E with the vectors of the step."""
    numba.literally(kind)
    numba.literally(retro)
    eta, bound = floats(table[NUMBERS])[ETA_], floats(table[NUMBERS])[BOUND_]
    s = Forward(table[N_], w.W, w.alpha, H, E, H_new, E_new, b.pre, b.pre, b.gp, b.keep, b.post, b.pre, eta, bound)
    all_advance(s, kind, retro)


@inner
def keep_checkpoints(table, w, row, kind, retro):
    """Write H (and E) before the steps 0, every, 2 every, ... of a row to w.kept."""
    numba.literally(kind)
    numba.literally(retro)
    T, N, every, copies = table[T_], table[N_], table[EVERY], 2 if retro else 1
    size, b = N * ((N + 15) // 16 * 16), step_at(w, 0, (N + 15) // 16 * 16)
    fetch(w.H, table, TRACE_IN, row)
    if retro:
        fetch(w.E, table, ELIG_IN, row)
    last = (T - 1) // every * every
    for t in range(last + 1):
        begin_step(table, w, b, w.H, w.E, row, t, kind, retro)
        if t % every == 0:
            kept = shift(w.kept, t // every * copies * size)
            copy(kept, w.H, size)
            if retro:
                copy(shift(kept, size), w.E, size)
        if t < last:
            advanced(table, w, b, w.H, w.E, w.H, w.E, kind, retro)


@inner
def recompute(table, w, row, t0, t1, kind, retro):
    """Compute the vectors of every step of t0..t1, and H (and E) before each of them and after the last."""
    numba.literally(kind)
    numba.literally(retro)
    N, P = table[N_], (table[N_] + 15) // 16 * 16
    size = N * P
    kept = shift(w.kept, t0 // table[EVERY] * (2 if retro else 1) * size)
    copy(w.H, kept, size)
    if retro:
        copy(w.E, shift(kept, size), size)
    for t in range(t0, t1):
        q, b = t - t0, step_at(w, t - t0, P)
        H, E = shift(w.H, q * size), shift(w.E, q * size)
        begin_step(table, w, b, H, E, row, t, kind, retro)
        advanced(table, w, b, H, E, shift(H, size), shift(E, size), kind, retro)


@inner
def through_units(table, w, sums, b, here, last, row, kind, retro):
    """The adjoint of one step's vectors: g_u from the sums G, K, Q, S and from R, the dL/dh of later steps."""
    numba.literally(kind)
    numba.literally(retro)
    N, oja, eta = table[N_], table[IS_OJA] != 0, floats(table[NUMBERS])[ETA_]
    m = floats(table[MS])[here] if table[U] != 0 else np.float32(0.0)
    g_m, g_eta = splat(0.0, 16), splat(0.0, 16)
    for j in range(0, N, 16):
        post, gain, G = load(b.post, j, 16), load(b.gain, j, 16), load(w.G, j, 16)
        g_gain, g_h = G, splat(0.0, 16)
        if retro:
            Q = load(w.Q, j, 16)
            g_h = Q * eta
            g_eta = g_eta + post * Q - load(w.S, j, 16)
        elif kind == LINEAR:
            K = load(w.K, j, 16)
            if oja:
                G = G - K * post
                g_gain = G * post
                g_h = G * gain - K * load(b.gp, j, 16)
            else:
                g_gain, g_h = G * post - K, G * gain
        else:
            g_gain, g_h = G * post, G * gain
        g_m = g_m + g_gain * load(w.fan_a, j, 16)
        store(sums.da, j, load(sums.da, j, 16) + g_gain * m)
        store(sums.dd, j, load(sums.dd, j, 16) + g_gain)
        store(w.g_h, j, g_h)
    sums.numbers[ETA_] += total(g_eta)
    g_pre = splat(0.0, 16)  # dL/d(u h + c)
    if table[U] != 0:
        upstream = floats(table[G_M])[row] if last and table[G_M] != 0 else np.float32(0.0)
        g_pre = through(splat(total(g_m) + upstream, 16), splat(m, 16), table[ACTIVATION])
        store(w.Q, 0, g_pre)  # Q is not needed any more
        sums.numbers[BIAS_] += w.Q[0]
    for j in range(0, N, 16):
        n = min(16, N - j)
        post = load(b.post, j, 16)
        g_h = load(w.g_h, j, 16) + load(w.R, j, 16) + load_part(floats(table[G_HS]), here * N + j, n, 16)
        g_h = g_h + g_pre * load(w.u, j, 16)
        store(sums.du, j, load(sums.du, j, 16) + g_pre * post)
        g_u = g_h * (1.0 - post * post)
        store(w.g_u, j, g_u)
        store_part(floats(table[G_DRIVE]), here * N + j, g_u, n)


@inner
def walk_back(table, w, sums, row, kind, retro):
    """The adjoint of all steps of one batch row."""
    numba.literally(kind)
    numba.literally(retro)
    T, N, P, every = table[T_], table[N_], (table[N_] + 15) // 16 * 16, table[EVERY]
    size, eta, bound = N * P, floats(table[NUMBERS])[ETA_], floats(table[NUMBERS])[BOUND_]
    fetch(w.A, table, G_TRACE, row)
    if retro:
        fetch(w.Z, table, G_ELIG, row)
    clear(w.R, P)
    keep_checkpoints(table, w, row, kind, retro)
    for t0 in range((T - 1) // every * every, -1, -every):
        t1 = min(t0 + every, T)
        recompute(table, w, row, t0, t1, kind, retro)
        for t in range(t1 - 1, t0 - 1, -1):
            q, here = t - t0, row * T + t
            now, more = step_at(w, q, P), t > t0
            before = step_at(w, max(q - 1, 0), P)
            H, E = shift(w.H, q * size), shift(w.E, q * size)
            H0, E0 = shift(w.H, max(q - 1, 0) * size), shift(w.E, max(q - 1, 0) * size)
            if t == t1 - 1:
                last = Backward(N, w.W, w.alpha, sums.dalpha, w.A, w.Z, H, E, shift(H, size), H, E, now, now, w.g_u,
                                w.R, w.G, w.K, w.Q, w.S, eta, bound, more)  # fmt: skip
                all_gather(last, kind, retro)
            through_units(table, w, sums, now, here, t == T - 1, row, kind, retro)
            clear(w.R, P)
            if is_reset(table, here):
                clear(w.A, (2 if retro else 1) * size)  # Z follows A in memory
                clear(w.G, 4 * P)
            else:
                s = Backward(N, w.W, w.alpha, sums.dalpha, w.A, w.Z, H, E, H, H0, E0, now, before, w.g_u,
                             w.R, w.G, w.K, w.Q, w.S, eta, bound, more)  # fmt: skip
                all_spread(s, kind, retro)
    write_matrix(w.A, table, DTRACE_IN, row)
    write_matrix(w.Z, table, DELIG_IN, row)
    if table[DH_IN] != 0:
        for j in range(0, N, 16):
            store_part(floats(table[DH_IN]), row * N + j, load(w.R, j, 16), min(16, N - j))


@functools.cache
def backward_kernel(kind: int, retro: bool) -> Kernel:
    """The adjoint of `forward_kernel`; each piece of the batch has weight gradients of its own."""

    def backward(table):
        N, pieces = table[N_], table[PIECES]
        P = (N + 15) // 16 * 16
        size = N * P
        p = shift(floats(table[SCRATCH]), take_ticket(table, SLOT) * table[SIZE])
        v = shift(p, (4 if retro else 3) * size)
        steps = shift(v, 10 * P)
        H, slots = shift(steps, 5 * table[EVERY] * P), (table[EVERY] + 1) * size
        w = Scratch(p, shift(p, size), shift(p, 2 * size), shift(p, 3 * size), v, shift(v, P), shift(v, 2 * P),
                    shift(v, 3 * P), shift(v, 4 * P), shift(v, 5 * P), shift(v, 6 * P), shift(v, 7 * P),
                    shift(v, 8 * P), shift(v, 9 * P), steps, H, shift(H, slots),
                    shift(H, (2 if retro else 1) * slots))  # fmt: skip
        fetch(w.W, table, WEIGHT, 0)
        fetch(w.alpha, table, ALPHA, 0)
        fetch_units(table, w.u, w.fan_a, w.fan_d)
        while True:
            piece = take_ticket(table, TICKET)
            if piece >= pieces:
                break
            mine = shift(floats(table[SUMS]), piece * table[SUM_SIZE])
            clear(mine, table[SUM_SIZE])
            sums = Sums(mine, shift(mine, 16), shift(mine, 16 + P), shift(mine, 16 + 2 * P), shift(mine, 16 + 3 * P))
            for row in range(table[B_] * piece // pieces, table[B_] * (piece + 1) // pieces):
                walk_back(table, w, sums, row, kind, retro)
            if take_ticket(table, DONE) == pieces - 1:
                finish(table)

    return compiled(backward)


@inner
def finish(table):
    """Add up the gradients of the pieces, in their order, and write them to the tensors; the last thread calls it."""
    N, P, size, sums = table[N_], (table[N_] + 15) // 16 * 16, table[SUM_SIZE], floats(table[SUMS])
    for k in range(0, size, 16):
        s = load(sums, k, 16)
        for piece in range(1, table[PIECES]):
            s = s + load(sums, piece * size + k, 16)
        store(sums, k, s)
    dnumbers, du, da, dd = floats(table[DNUMBERS]), floats(table[DU]), floats(table[DA]), floats(table[DD])
    dnumbers[BIAS_], dnumbers[ETA_] = sums[BIAS_], sums[ETA_]
    for i in range(N):
        du[i], da[i], dd[i] = sums[16 + i], sums[16 + P + i], sums[16 + 2 * P + i]
    write_matrix(shift(sums, 16 + 3 * P), table, DALPHA, 0)


# --- the torch side ---------------------------------------------------------------------------------------------------


def _segments(T: int, size: int) -> tuple[int, int]:
    """Steps between checkpoints, and the number of segments: sqrt(T) steps, or fewer if their traces exceed the cache.

    Args:
        T: time steps.
        size: floats of one row's traces.
    """
    steps = min(math.isqrt(T - 1) + 1, max(4, SEGMENT_BYTES // (4 * size)))
    segments = -(-T // steps)
    return -(-T // segments), segments


def _launch(kernel: Kernel, every: int, size: int, sum_size: int, variant, weights, drive: Tensor, **tensors) -> None:
    """`launch` the kernel on these tensors; `step_kernel`, which takes one step, runs on one thread only."""
    B, T, N = drive.shape
    w, alpha, eta, u, c, fan_a, fan_d = weights
    bias, rate = (0.0 if number is None else number.item() for number in (c, eta))
    numbers = array.array("f", [bias, rate, variant.trace_clip, *((0.0, rate) if u is None else (1.0, 0.0))])
    rest = [B, T, N, variant.trace_rule == "oja", ACTIVATIONS[variant.modulator_activation], numbers.buffer_info()[0]]
    tensors |= {"drive": drive, "weight": w, "alpha": alpha, "u": u, "fan_a": fan_a, "fan_d": fan_d}
    given = [tensors.get(name) for name in TENSORS]
    rest.extend([0 if a is None else a.data_ptr() for a in given])
    launch(kernel, B, B * T * N * N if T > 1 else 0, every, size, sum_size, rest)


def _forward(variant, weights, drive, reset, h, trace, elig):
    """hs (B, T, N), m (B, T), H_T and E_T."""
    (B, T, N), retro = drive.shape, elig is not None
    padded = -(-N // 16) * 16
    hs, ms = torch.empty_like(drive), drive.new_empty(B, T)
    trace_out, elig_out = torch.empty_like(trace), torch.empty_like(elig) if retro else None
    kernel = step_kernel if T == 1 and reset is None else forward_kernel
    _launch(
        kernel(KINDS[variant.trace_rule], retro), 0, (3 + retro) * N * padded + 11 * padded, 0, variant, weights, drive,
        reset=reset, h_in=h, trace_in=trace, elig_in=elig, hs=hs, ms=ms, trace_out=trace_out,
        elig_out=elig_out,
    )  # fmt: skip
    return hs, ms, trace_out, elig_out


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variant, drive, reset, h, trace, elig, *weights):
        hs, ms, trace_out, elig_out = _forward(variant, weights, drive, reset, h, trace, elig)
        ctx.variant = variant
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(drive, reset, h, trace, elig, *weights, hs, ms)
        return hs, ms[:, -1:].clone(), trace_out, elig_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g_hs, g_m, g_trace, g_elig):
        drive, reset, h, trace, elig, *weights, hs, ms = ctx.saved_tensors
        (_, T, N), retro = drive.shape, elig is not None
        padded = -(-N // 16) * 16
        size = N * padded
        every, segments = _segments(T, (1 + retro) * size)
        need_h, need_trace, need_elig = ctx.needs_input_grad[3:6]
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.contiguous()
        g_m, g_trace, g_elig = (None if g is None else g.contiguous() for g in (g_m, g_trace, g_elig))
        g_drive, dalpha, vectors = torch.empty_like(drive), drive.new_empty(N, N), drive.new_empty(4, N + 2)
        dh, dtrace, delig = (
            torch.empty_like(a) if need else None for need, a in ((need_h, h), (need_trace, trace), (need_elig, elig))
        )
        dnumbers, du, da, dd = vectors
        _launch(
            backward_kernel(KINDS[ctx.variant.trace_rule], retro), every,
            (3 + retro) * size + (10 + 5 * every) * padded + (1 + retro) * (every + 1 + segments) * size,
            16 + 3 * padded + size, ctx.variant, weights, drive,
            reset=reset, h_in=h, trace_in=trace, elig_in=elig, hs=hs, ms=ms, g_hs=g_hs, g_m=g_m, g_trace=g_trace,
            g_elig=g_elig, g_drive=g_drive, dh_in=dh, dtrace_in=dtrace, delig_in=delig, dalpha=dalpha, du=du, da=da,
            dd=dd, dnumbers=dnumbers,
        )  # fmt: skip
        before = torch.cat((h[:, None], hs[:, :-1]), 1)
        if reset is not None:
            before.masked_fill_(reset[:, :, None], 0.0)
        dw = before.view(-1, N).T @ g_drive.view(-1, N)
        deta = dd[:N].sum() if weights[3] is None else dnumbers[ETA_]
        gradients = (dw, dalpha, deta.view(1), du[:N], dnumbers[BIAS_].view(1), da[:N], dd[:N])
        kept_gradients = (None if w is None else g for w, g in zip(weights, gradients, strict=True))
        return None, g_drive, None, dh, dtrace, delig, *kept_gradients


def scan(drive: Tensor, state, weights, variant, reset: Tensor | None):
    """`backpropamine.plastic_scan` for an RNN in float32 on the CPU; the arguments are the same."""
    parts = dict(zip(variant.state_names, state, strict=True))
    h, trace, elig = parts["h"].contiguous(), parts["H"].contiguous(), parts.get("E")
    inputs = (
        drive.contiguous(), None if reset is None else reset.contiguous(), h, trace,
        None if elig is None else elig.contiguous(), weights.w.contiguous(),
        weights.alpha.expand_as(weights.w).contiguous(), *(a if a is None else a.contiguous() for a in weights[2:7]),
    )  # fmt: skip
    if torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in inputs):
        hs, modulator, trace, elig = _Scan.apply(variant, *inputs)
    else:
        hs, ms, trace, elig = _forward(variant, inputs[5:], *inputs[:5])
        modulator = ms if ms.shape[1] == 1 else ms[:, -1:].clone()
    after = {"h": hs[:, -1].clone(), "H": trace, "E": elig, "modulator": modulator}
    return hs, tuple(after[name] for name in variant.state_names)
