"""Passes over a plastic layer's matrices, for the kernels in `backpropamine_cpu.py`.

A matrix (N, N) is stored in blocks of 32 or 16 postsynaptic units, each (N, L). Forward and backward, a pass takes the
presynaptic unit i as one number and L postsynaptic units as one vector. A pass over one block is compiled for its L,
its kind of rule, and with or without an eligibility trace (`retro`); `over_blocks` makes it a pass over the matrix.
"""

from __future__ import annotations

from collections import namedtuple

import numba

from mpn_rl.kernels.simd import at_least, at_most, load, load_part, splat, store, store_part, total, where_positive

CLIP, LINEAR, SOFT = range(3)  # kinds of rules; decay and Oja are both H' = keep_j H + gain_j h_j pre_i

# For functions that only kernels call: no wrappers for calls from Python, which take time to compile.
inner = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)

# The arguments of the passes: matrices in blocks, vectors of N or P = N rounded up to a multiple of 16.
Forward = namedtuple("Forward", "N W alpha H E H_new E_new pre pre_next gp keep post acc eta bound")
Four = namedtuple("Four", "N W alpha H pre acc")  # H and pre: a tuple of four rows of the batch
Backward = namedtuple(
    "Backward", "N W alpha dalpha A Z H E H_after H_before E_before now before g_u R G K Q S eta bound more"
)
Step = namedtuple("Step", "pre post gain gp keep")  # vectors of one time step


# --- passes over one block of L postsynaptic units --------------------------------------------------------------------


@numba.njit(inline="always")
def magnitude(x):
    return where_positive(x, x) - where_positive(-1.0 * x, x)


@numba.njit(inline="always")
def updated(h, change, keep, bound, kind):
    """H after a step that adds `change`."""
    if kind == LINEAR:
        return keep * h + change
    new = h + change if kind == CLIP else softly(h, change, bound)
    return at_most(at_least(new, -bound), bound)


@numba.njit(inline="always")
def softly(h, change, bound):
    """H + max(change, 0) (c - H) + min(change, 0) (c + H), which exceeds the bound c only where |change| > 1."""
    return h + where_positive(change, change) * (bound - h) - where_positive(-1.0 * change, -1.0 * change) * (bound + h)


@numba.njit(inline="always")
def stepped(s, h, e, pre, gp, keep, etapost, kind, retro):
    """H and E of one presynaptic unit after a step."""
    change = gp * pre
    if retro:
        change = gp * e
        e = e * (1.0 - s.eta) + etapost * pre
    return updated(h, change, keep, s.bound, kind), e


def forward_pass(advances, reads):
    """A pass over one block: it `advances` H (and E) by one step, and `reads` sum_i (w_ij + alpha_ij H_ij) pre_i."""

    @inner
    def one_block(s, j0, L, kind, retro):
        numba.literally(L)
        numba.literally(kind)
        numba.literally(retro)
        gp, keep, etapost = load(s.gp, j0, L), load(s.keep, j0, L), load(s.post, j0, L) * s.eta
        acc = splat(0.0, L)
        for i in range(s.N):
            k = j0 * s.N + i * L
            h = load(s.H, k, L)
            if advances:
                e = load(s.E, k, L) if retro else gp
                h, e = stepped(s, h, e, s.pre[i], gp, keep, etapost, kind, retro)
                store(s.H_new, k, h)
                if retro:
                    store(s.E_new, k, e)
            if reads:
                acc = acc + (load(s.W, k, L) + load(s.alpha, k, L) * h) * s.pre_next[i]
        if reads:
            store(s.acc, j0, acc)

    return one_block


# Acting takes single steps on the tensors themselves, (N, N) row by row; the last block may be a `part` of one.


@numba.njit(inline="always")
def part(p, k, n, L):
    return load(p, k, L) if n == L else load_part(p, k, n, L)


@inner
def read_four(s, j0, L, kind, retro):
    """A pass that reads, for four batch rows at once, so that w and alpha are loaded once for the four."""
    numba.literally(L)
    n, P = min(L, s.N - j0), (s.N + 15) // 16 * 16
    zero = splat(0.0, L)
    sums = (zero, zero, zero, zero)
    for i in range(s.N):
        k = i * s.N + j0
        w, alpha = part(s.W, k, n, L), part(s.alpha, k, n, L)
        a, b, c, d = sums
        a = a + (w + alpha * part(s.H[0], k, n, L)) * s.pre[0][i]
        b = b + (w + alpha * part(s.H[1], k, n, L)) * s.pre[1][i]
        c = c + (w + alpha * part(s.H[2], k, n, L)) * s.pre[2][i]
        d = d + (w + alpha * part(s.H[3], k, n, L)) * s.pre[3][i]
        sums = (a, b, c, d)
    for r in range(4):
        store(s.acc, r * P + j0, sums[r])


@inner
def advance_tensor(s, j0, L, kind, retro):
    """A pass that advances, on tensors instead of blocks."""
    numba.literally(L)
    numba.literally(kind)
    numba.literally(retro)
    gp, keep, etapost = load(s.gp, j0, L), load(s.keep, j0, L), load(s.post, j0, L) * s.eta
    n = min(L, s.N - j0)
    for i in range(s.N):
        k = i * s.N + j0
        e = part(s.E, k, n, L) if retro else gp
        h, e = stepped(s, part(s.H, k, n, L), e, s.pre[i], gp, keep, etapost, kind, retro)
        if n == L:
            store(s.H_new, k, h)
        else:
            store_part(s.H_new, k, h, n)
        if retro:
            store_part(s.E_new, k, e, n)


@numba.njit(inline="always")
def gather_row(s, k, i, a, z, step, h_after, sums, L, kind, retro):
    """The adjoint of a step's gain: adds row i to the sums G, K, Q, S. Returns A, which is zero where H is clipped."""
    G, K, Q, S = sums
    pre = step.pre[i]
    if kind == SOFT:
        h = load(s.H_before, k, L)
        change = step.gp * load(s.E_before, k, L) if retro else step.gp * pre
        new = softly(h, change, s.bound)
        a = a - where_positive(new - s.bound, a) - where_positive(-1.0 * new - s.bound, a)
        d = soft(a, h, change, s.bound, L)
    if kind == CLIP:
        a = where_positive(s.bound - h_after, where_positive(h_after + s.bound, a))
        d = a
    elif kind == LINEAR:
        d = a
        K = K + a * load(s.H_before, k, L)
    if retro:
        e = load(s.E_before, k, L)
        G = G + d * e
        Q = Q + z * pre
        S = S + z * e
    else:
        G = G + d * pre
    return a, (G, K, Q, S)


@numba.njit(inline="always")
def soft(a, h, change, bound, L):
    """dL/dchange of H' = H + bound change - |change| H."""
    one = splat(1.0, L)
    sign = where_positive(change, one) - where_positive(-1.0 * change, one)
    return a * (bound - sign * h)


@numba.njit(inline="always")
def block_of(step, j0, L):
    """Load the vectors of a step for the block from j0 on."""
    return Step(step.pre, load(step.post, j0, L), load(step.gain, j0, L), load(step.gp, j0, L), load(step.keep, j0, L))


@numba.njit(inline="always")
def store_sums(s, j0, sums):
    G, K, Q, S = sums
    store(s.G, j0, G)
    store(s.K, j0, K)
    store(s.Q, j0, Q)
    store(s.S, j0, S)


@inner
def gather(s, j0, L, kind, retro):
    """`gather_row` alone, for the last step of a segment."""
    numba.literally(L)
    numba.literally(kind)
    numba.literally(retro)
    zero = splat(0.0, L)
    sums = (zero, zero, zero, zero)
    step = block_of(s.before, j0, L)
    for i in range(s.N):
        k = j0 * s.N + i * L
        z = load(s.Z, k, L) if retro else zero
        a, sums = gather_row(s, k, i, load(s.A, k, L), z, step, load(s.H_after, k, L), sums, L, kind, retro)
        if kind != LINEAR:
            store(s.A, k, a)
    store_sums(s, j0, sums)


@inner
def spread(s, j0, L, kind, retro):
    """dL/dpre and dL/dH of one step; and `gather_row` of the step before, if the segment has `more` steps."""
    numba.literally(L)
    numba.literally(kind)
    numba.literally(retro)
    zero = splat(0.0, L)
    sums = (zero, zero, zero, zero)
    now, before = block_of(s.now, j0, L), block_of(s.before, j0, L)
    g_u, etapost = load(s.g_u, j0, L), now.post * s.eta
    for i in range(s.N):
        k = j0 * s.N + i * L
        a, h, al, pre = load(s.A, k, L), load(s.H, k, L), load(s.alpha, k, L), now.pre[i]
        z = load(s.Z, k, L) if retro else zero
        r = (load(s.W, k, L) + al * h) * g_u
        d = a
        if kind == SOFT:
            change = now.gp * load(s.E, k, L) if retro else now.gp * pre
            d = soft(a, h, change, s.bound, L)
            a = a - magnitude(change) * a
        elif kind == LINEAR:
            a = a * now.keep
        if retro:
            r = r + z * etapost
            z = z * (1.0 - s.eta) + d * now.gp
            store(s.Z, k, z)
        else:
            r = r + d * now.gp
        s.R[i] += total(r)
        x = g_u * pre
        store(s.dalpha, k, load(s.dalpha, k, L) + x * h)
        a = a + x * al
        if s.more:
            a, sums = gather_row(s, k, i, a, z, before, h, sums, L, kind, retro)
        store(s.A, k, a)
    store_sums(s, j0, sums)


def over_blocks(one_block):
    """The pass over all blocks of a matrix: blocks of 32 units, then at most two of 16."""

    @inner
    def all_blocks(s, kind, retro):
        numba.literally(kind)
        numba.literally(retro)
        full, padded = s.N // 32 * 32, (s.N + 15) // 16 * 16
        for j0 in range(0, full, 32):
            one_block(s, j0, 32, kind, retro)
        for j0 in range(full, padded, 16):
            one_block(s, j0, 16, kind, retro)

    return all_blocks


all_advance, all_read = over_blocks(forward_pass(True, False)), over_blocks(forward_pass(False, True))
all_advance_and_read = over_blocks(forward_pass(True, True))
all_read_four, all_advance_tensor = map(over_blocks, (read_four, advance_tensor))
all_gather, all_spread = map(over_blocks, (gather, spread))

Copy = namedtuple("Copy", "N blocks matrix given")


@inner
def into_blocks(s, j0, L, kind, retro):
    numba.literally(L)
    n = min(L, s.N - j0)
    for i in range(s.N):
        row = load_part(s.matrix, i * s.N + j0, n, L) if s.given else splat(0.0, L)
        store(s.blocks, j0 * s.N + i * L, row)


@inner
def out_of_blocks(s, j0, L, kind, retro):
    numba.literally(L)
    n = min(L, s.N - j0)
    for i in range(s.N):
        store_part(s.matrix, i * s.N + j0, load(s.blocks, j0 * s.N + i * L, L), n)


all_into_blocks, all_out_of_blocks = map(over_blocks, (into_blocks, out_of_blocks))


@inner
def copy(target, source, count):
    for k in range(0, count, 16):
        store(target, k, load(source, k, 16))


@inner
def clear(target, count):
    for k in range(0, count, 16):
        store(target, k, splat(0.0, 16))
