"""The MPN scan on a GPU: Triton kernels (the equations are in `mpn.py`) and the torch function around them.

One program takes one batch row and one block of hidden units. Its tile of M (and, in the backward pass, of A and the
weight gradients) stays in registers from the first step to the last; sums are in float32. The backward pass takes
segments of time from the last to the first: it computes each segment's M again from a checkpoint, into a buffer that
stays in the second-level cache, then runs the adjoint back through them. Each row's weight gradients, and each block's
input gradients, go to buffers of their own, which torch adds up, so results repeat bit for bit.

If TRITON_INTERPRET=1 is set before this module is imported, the kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_rl.kernels.mpn import Inputs

TILE = 1024  # numbers of M in one program: 8 registers per thread for each of M, W, A and the gradients
LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}

RULES = {"associative": 0, "presynaptic": 1, "postsynaptic": 2, "oja": 3}
ACTIVATIONS = {"tanh": 0, "relu": 1, "sigmoid": 2, "linear": 3}
PRESYNAPTIC = tl.constexpr(1)
POSTSYNAPTIC = tl.constexpr(2)
OJA = tl.constexpr(3)


@triton.jit
def _tanh(u):
    """u P(u^2) / Q(u^2) on |u| < 8, as on the CPU; NaN stays NaN."""
    u = tl.where(u > 8.0, 8.0, tl.where(u < -8.0, -8.0, u))
    z = u * u
    p = 2.1895065567696637e-05 + z * 1.5230969991344216e-08
    p = 0.9999999935856142 + z * (0.1344451895655767 + z * (0.003571622814459778 + z * p))
    q = 0.0003411332364409541 + z * 8.522674082435644e-07
    q = 1.0 + z * (0.46777846287604596 + z * (0.026164537559397925 + z * q))
    h = u * p / q
    return tl.where(h > 1.0, 1.0, tl.where(h < -1.0, -1.0, h))


@triton.jit
def _activate(u, ACTIVATION: tl.constexpr):
    """h = f(u)."""
    if ACTIVATION == 0:
        h = _tanh(u)
    elif ACTIVATION == 1:
        h = tl.where(u < 0.0, 0.0, u)
    elif ACTIVATION == 2:
        h = _tanh(u * 0.5) * 0.5 + 0.5
    else:
        h = u
    return h


@triton.jit
def _through(g, h, ACTIVATION: tl.constexpr):
    """g f'(u), where f' is a function of h = f(u)."""
    if ACTIVATION == 0:
        g = g * (1.0 - h * h)
    elif ACTIVATION == 1:
        g = tl.where(h > 0.0, g, 0.0)
    elif ACTIVATION == 2:
        g = g * (h * (1.0 - h))
    return g


@triton.jit
def _change(m, h, x, RULE: tl.constexpr):
    """S of M_t = lambda M_{t-1} + eta S, a tile."""
    if RULE == PRESYNAPTIC:
        s = tl.zeros_like(m) + x[None, :]
    elif RULE == POSTSYNAPTIC:
        s = tl.zeros_like(m) + h[:, None]
    else:
        s = h[:, None] * x[None, :]
    if RULE == OJA:
        s = s - (h * h)[:, None] * m
    return s


@triton.jit
def _next(m, h, x, eta, lam, RULE: tl.constexpr, BOUNDED: tl.constexpr):
    """M after the step, a tile."""
    m = lam * m + eta * _change(m, h, x, RULE)
    if BOUNDED:
        m = _tanh(m)
    return m


@triton.jit
def _forward_kernel(
    xs, weight, bias, etas, lams, reset, m0, m_in, hs, m_out, kept,
    T, D, H, every, slots,
    ADDITIVE: tl.constexpr, RULE: tl.constexpr, ACTIVATION: tl.constexpr, BOUNDED: tl.constexpr, FULL: tl.constexpr,
    RESET: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i, j = tl.program_id(1) * BH + tl.arange(0, BH), tl.arange(0, BD)
    tile, inside = i[:, None] * D + j[None, :], (i < H)[:, None] & (j < D)[None, :]
    w = tl.load(weight + tile, inside, 0.0)
    b = tl.load(bias + i, i < H, 0.0)
    eta = tl.load(etas + tile, inside, 0.0) if FULL else tl.load(etas)
    lam = tl.load(lams + tile, inside, 0.0) if FULL else tl.load(lams)
    m = tl.load(m_in + row * H * D + tile, inside, 0.0)
    for t in range(T):
        if RESET:  # noqa: SIM102  (known at compile time; the next condition is not)
            if tl.load(reset + row * T + t) != 0:
                m = tl.load(m0 + tile, inside, 0.0)
        if (t > 0) & (t % every == 0) & (slots > 0):
            tl.store(kept + (row * slots + t // every - 1) * H * D + tile, m, inside)
        x = tl.load(xs + (row * T + t) * D + j, j < D, 0.0)
        effective = w + m if ADDITIVE else w * m + w
        h = _activate(b + tl.sum(effective * x[None, :], axis=1), ACTIVATION)
        tl.store(hs + (row * T + t) * H + i, h, i < H)
        m = _next(m, h, x, eta, lam, RULE, BOUNDED)
    tl.store(m_out + row * H * D + tile, m, inside)


@triton.jit
def _backward_kernel(
    xs, weight, etas, lams, reset, m0, m_in, hs, kept, g_hs, g_m,
    segment, dxs, dw, db, deta, dlam, dm_in, dm0,
    B, T, D, H, every, slots,
    ADDITIVE: tl.constexpr, RULE: tl.constexpr, ACTIVATION: tl.constexpr, BOUNDED: tl.constexpr, FULL: tl.constexpr,
    RESET: tl.constexpr, INPUT_GRADIENT: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    i, j = block * BH + tl.arange(0, BH), tl.arange(0, BD)
    tile, inside = i[:, None] * D + j[None, :], (i < H)[:, None] & (j < D)[None, :]
    w = tl.load(weight + tile, inside, 0.0)
    eta = tl.load(etas + tile, inside, 0.0) if FULL else tl.load(etas)
    lam = tl.load(lams + tile, inside, 0.0) if FULL else tl.load(lams)
    a = tl.load(g_m + row * H * D + tile, inside, 0.0)  # A_t
    sum_w, sum_m0 = tl.zeros_like(w), tl.zeros_like(w)
    sum_eta, sum_lam = tl.zeros_like(w), tl.zeros_like(w)
    sum_b = tl.zeros((BH,), tl.float32)
    own = segment + row * every * H * D + tile
    for k in range(slots + 1):
        t0 = (slots - k) * every
        steps = tl.minimum(every, T - t0)
        if t0 > 0:
            m = tl.load(kept + (row * slots + slots - k - 1) * H * D + tile, inside, 0.0)
        else:
            m = tl.load(m_in + row * H * D + tile, inside, 0.0)
        for s in range(steps):
            at = row * T + t0 + s
            if RESET:  # noqa: SIM102
                if tl.load(reset + at) != 0:
                    m = tl.load(m0 + tile, inside, 0.0)
            tl.store(own + s * H * D, m, inside)
            h = tl.load(hs + at * H + i, i < H, 0.0)
            x = tl.load(xs + at * D + j, j < D, 0.0)
            m = _next(m, h, x, eta, lam, RULE, BOUNDED)
        tl.debug_barrier()  # a thread may load what another has stored
        for s in range(steps):
            at = row * T + t0 + steps - 1 - s
            m = tl.load(own + (steps - 1 - s) * H * D, inside, 0.0)
            h = tl.load(hs + at * H + i, i < H, 0.0)
            g_h = tl.load(g_hs + at * H + i, i < H, 0.0)
            x = tl.load(xs + at * D + j, j < D, 0.0)
            change = _change(m, h, x, RULE)
            if BOUNDED:
                a = _through(a, _tanh(lam * m + eta * change), 0)
            ea = eta * a
            if RULE == POSTSYNAPTIC:
                g_h += tl.sum(ea, axis=1)
            elif RULE != PRESYNAPTIC:
                g_h += tl.sum(ea * x[None, :], axis=1)
            if RULE == OJA:
                g_h -= 2.0 * h * tl.sum(ea * m, axis=1)
            g_u = _through(g_h, h, ACTIVATION)
            g_ux = g_u[:, None] * x[None, :]
            sum_b += g_u
            sum_w += g_ux if ADDITIVE else g_ux * (m + 1.0)
            sum_eta += a * change
            sum_lam += a * m
            if INPUT_GRADIENT:
                g_x = g_u[:, None] * (w + m if ADDITIVE else w * m + w)
                if RULE == PRESYNAPTIC:
                    g_x += ea
                elif RULE != POSTSYNAPTIC:
                    g_x += ea * h[:, None]
                tl.store(dxs + (block * B * T + at) * D + j, tl.sum(g_x, axis=0), j < D)
            a = lam * a + (g_ux if ADDITIVE else g_ux * w)
            if RULE == OJA:
                a -= (h * h)[:, None] * ea
            if RESET:  # noqa: SIM102
                if tl.load(reset + at) != 0:
                    sum_m0 += a
                    a = tl.zeros_like(a)
        tl.debug_barrier()  # finish loading before the next segment overwrites this one
    out = row * H * D + tile
    tl.store(dw + out, sum_w, inside)
    tl.store(db + row * H + i, sum_b, i < H)
    tl.store(dm_in + out, a, inside)
    if RESET:
        tl.store(dm0 + out, sum_m0, inside)
    if FULL:
        tl.store(deta + out, sum_eta, inside)
        tl.store(dlam + out, sum_lam, inside)
    else:
        scalar = row * tl.num_programs(1) + block
        tl.store(deta + scalar, tl.sum(sum_eta))
        tl.store(dlam + scalar, tl.sum(sum_lam))


def _layout(B: int, T: int, D: int, H: int) -> tuple[int, int, tuple[int, int], int, int]:
    """Tile (BH, BD), grid, steps between checkpoints (about sqrt(T)) and the number of checkpoints."""
    BD = triton.next_power_of_2(D)
    BH = min(triton.next_power_of_2(H), max(TILE // BD, 1))
    every = math.isqrt(T - 1) + 1
    return BH, BD, (B, triton.cdiv(H, BH)), every, (T - 1) // every


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, variant, keep, xs, weight, bias, eta, lam, m_in, m0, reset):
        (B, T, D), H = xs.shape, weight.shape[0]
        BH, BD, grid, every, slots = _layout(B, T, D, H)
        slots = slots if keep else 0
        hs, m_out = xs.new_empty(B, T, H), torch.empty_like(m_in)
        kept = xs.new_empty(B, max(slots, 1), H, D)
        with torch.cuda.device_of(xs):
            _forward_kernel[grid](
                xs, weight, bias, eta, lam, reset, m0, m_in, hs, m_out, kept, T, D, H, every, slots,
                *variant, eta.numel() > 1, reset is not None, BH, BD, **LAUNCH,
            )  # fmt: skip
        ctx.variant = variant
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(xs, weight, eta, lam, m_in, m0, reset, hs, kept)
        return hs, m_out

    @staticmethod
    @once_differentiable
    def backward(ctx, g_hs, g_m):
        xs, weight, eta, lam, m_in, m0, reset, hs, kept = ctx.saved_tensors
        (B, T, D), H, full = xs.shape, weight.shape[0], eta.numel() > 1
        BH, BD, grid, every, slots = _layout(B, T, D, H)
        need = ctx.needs_input_grad[2:-1]
        g_hs = torch.zeros_like(hs) if g_hs is None else g_hs.contiguous()
        g_m = torch.zeros_like(m_in) if g_m is None else g_m.contiguous()
        segment = xs.new_empty(B, every, H, D)
        dxs = xs.new_empty(grid[1], B, T, D) if need[0] else None
        dw, db, dm_in = torch.empty_like(m_in), xs.new_empty(B, H), torch.empty_like(m_in)
        dm0 = torch.empty_like(m_in) if reset is not None else None
        deta, dlam = (xs.new_empty((B, H, D) if full else (B * grid[1], 1, 1)) for _ in range(2))
        with torch.cuda.device_of(xs):
            _backward_kernel[grid](
                xs, weight, eta, lam, reset, m0, m_in, hs, kept, g_hs, g_m,
                segment, dxs, dw, db, deta, dlam, dm_in, dm0, B, T, D, H, every, slots,
                *ctx.variant, full, reset is not None, need[0], BH, BD, **LAUNCH,
            )  # fmt: skip
        sums = (a if a is None else a.sum(0) for a in (dxs, dw, db, deta, dlam))
        gradients = (*sums, dm_in, dm0 if dm0 is None else dm0.sum(0))
        return None, None, *(g if needed else None for g, needed in zip(gradients, need, strict=True)), None


def scan(inputs: Inputs, form: str, rule: str, activation: str, m_activation: str) -> tuple[Tensor, Tensor]:
    """`mpn.mpn_scan` for float32 on CUDA with D up to `mpn.MAX_CUDA_INPUTS`; the arguments are the same."""
    xs, weight, bias, modulation, eta, lambda_decay, reset, modulation0 = inputs
    H, D = weight.shape
    if eta.numel() > 1 or lambda_decay.numel() > 1:
        eta, lambda_decay = eta.expand(H, D).contiguous(), lambda_decay.expand(H, D).contiguous()
    eta, lambda_decay = eta.reshape(eta.shape[-2:]), lambda_decay.reshape(lambda_decay.shape[-2:])
    bias = xs.new_zeros(H) if bias is None else bias.contiguous()
    m0 = None
    if reset is not None:
        reset = reset.contiguous().view(torch.uint8)
        m0 = xs.new_zeros(H, D) if modulation0 is None else modulation0.contiguous()
    tensors = (xs.contiguous(), weight.contiguous(), bias, eta, lambda_decay, modulation.contiguous(), m0)
    keep = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in tensors)
    variant = (form == "additive", RULES[rule], ACTIVATIONS[activation], m_activation == "tanh")
    return _Scan.apply(variant, keep, *tensors, reset)
