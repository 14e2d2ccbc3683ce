"""The torch function around the Numba kernels of the plastic scan: memory, checkpoints, threads, autograd."""

from __future__ import annotations

import array
import math
import threading

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mpn_rl.kernels.backpropamine_scan import BIAS_, ETA_, TENSORS, backward_kernel, forward_kernel, step_kernel
from mpn_rl.kernels.backpropamine_simd import CLIP, LINEAR, SOFT
from mpn_rl.kernels.simd import ACTIVATIONS, run

KINDS = {"hard-clip": CLIP, "decay": LINEAR, "oja": LINEAR, "soft-clip": SOFT}

MAX_PIECES = 16  # of the batch, at most, in the backward pass, each with weight gradients of its own
SEGMENT_BYTES = 512 * 1024  # of the traces of one segment: a share of a core's second-level cache
PARALLEL_WORK = 1_000_000  # B T N N from which a second thread pays for waking it up

_local = threading.local()


def _segments(T: int, size: int) -> tuple[int, int]:
    """Steps between checkpoints, and segments: sqrt(T), or shorter ones where a segment's traces would leave the cache.

    `size`: floats of one row's traces.
    """
    steps = min(math.isqrt(T - 1) + 1, max(4, SEGMENT_BYTES // (4 * size)))
    segments = -(-T // steps)
    return -(-T // segments), segments


def _launch(kernel, every: int, size: int, sum_size: int, variant, weights, drive: Tensor, **tensors) -> None:
    """Run the kernel on a table of these tensors, with threads if the work is worth it (`step_kernel` knows one).

    `size`: floats of scratch for each thread; `sum_size`: for each piece of the batch.
    """
    B, T, N = drive.shape
    pieces = min(B, MAX_PIECES)
    threads = min(torch.get_num_threads(), pieces) if T > 1 and B * T * N * N >= PARALLEL_WORK else 1
    scratch = getattr(_local, "scratch", None)
    if scratch is None or scratch.numel() < threads * size + pieces * sum_size:
        scratch = _local.scratch = torch.empty(threads * size + pieces * sum_size)  # on a cache line's boundary
    start = scratch.data_ptr()
    w, alpha, eta, u, c, fan_a, fan_d = weights
    bias, rate = (0.0 if number is None else number.item() for number in (c, eta))
    numbers = array.array("f", [bias, rate, variant.trace_clip, *((0.0, rate) if u is None else (1.0, 0.0))])
    table = array.array("q", [0, 0, 0, pieces, start, size, start + 4 * threads * size, sum_size, every, B, T, N])
    table.extend((variant.trace_rule == "oja", ACTIVATIONS[variant.modulator_activation], numbers.buffer_info()[0]))
    tensors |= {"drive": drive, "weight": w, "alpha": alpha, "u": u, "fan_a": fan_a, "fan_d": fan_d}
    given = [tensors.get(name) for name in TENSORS]
    table.extend([0 if a is None else a.data_ptr() for a in given])
    run(kernel, table.buffer_info()[0], threads)


def _forward(variant, weights, drive, reset, h, trace, elig):
    """hs (B, T, N), M (B, T), H_T and E_T."""
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
    """`backpropamine.plastic_scan` for an RNN in float32 on the CPU."""
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
