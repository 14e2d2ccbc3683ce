r"""The scan of a plastic recurrent layer over time: the plain reference, and the choice of a fused kernel.

For every batch row, with w, alpha, H and E of shape (N, N), presynaptic unit i first, from given h_{-1}, H_0 and E_0
(Miconi et al. 2018, arXiv 1804.02464; Miconi et al. 2019, arXiv 2002.10585):

    h_t = tanh( drive_t + h_{t-1} (w + alpha * H_t) )          m_t = f( u h_t + c )

    gain_j =  eta (none)  |  m_t (simple, retroactive)  |  a_j m_t + d_j (fanout)
    S_ij   =  h_{t-1,i} h_{t,j}, or for retroactive modulation the trace E_t, which then becomes
              E_{t+1} = (1 - eta) E_t + eta h_{t-1} h_t^T

    hard-clip  H_{t+1} = clip( H + D, -c, c )                  D = gain * S, H = H_t
    soft-clip  H_{t+1} = clip( H + max(D, 0) (c - H) + min(D, 0) (c + H), -c, c )
    decay      H_{t+1} = (1 - gain) H + D
    oja        H_{t+1} = H + gain h_t (h_{t-1} - h_t H)

m reads the new h_t; retroactive modulation uses the old E. An LSTM's plastic connections are those from h_{t-1} to the
cell's candidate g_t, which replaces h_t in S; its three gates are not plastic, and m reads h_t.

The adjoint of the kernel runs from T to 1 with A = dL/dH_{t+1}. Both clips pass no gradient where they cut (A = 0
there). For the hard clip with simple modulation:

    q_j    = sum_i A_ij h_{t-1,i}              dM = sum_j q_j h_j          g_c = f' (dM + dL/dM_t)
    g_h    = dL/dh_t + gain q + g_c u + (from step t+1)                    g_u = g_h (1 - h_t^2) = dL/ddrive_t
    to step t-1:   sum_j ( A_ij gain_j h_j + (w + alpha H_t)_ij g_u,j )
    dalpha += h_{t-1} g_u^T * H_t              dw += h_{t-1} g_u^T         A <- A + h_{t-1} g_u^T * alpha

The other variants follow from D = gain * S. The H of every ~sqrt(T)-th step is stored; the others are computed again
from the stored h and m: an elementwise update, without a product. Memory: O(B T N) and O(sqrt(T)) copies of the
(B, N, N) traces; autograd keeps O(T) copies, several per step. The reference uses autograd, with a checkpoint every
sqrt(T) steps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mpn_rl.kernels.launcher import fused_device

MODULATOR_ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "linear": lambda u: u}


class Weights(NamedTuple):
    """The trained parameters of a plastic layer, but for those that make `drive`; None if the variant has none."""

    w: Tensor  # (N, N), presynaptic unit first
    alpha: Tensor  # (N, N), (1, N) or (1, 1)
    eta: Tensor | None = None  # (1,), with modulation none and retroactive
    u: Tensor | None = None  # (N,), of the modulator
    c: Tensor | None = None  # (1,), of the modulator
    fan_a: Tensor | None = None  # (N,), with modulation fanout
    fan_d: Tensor | None = None  # (N,), with modulation fanout
    gates: Tensor | None = None  # (N, 3N), from h to an LSTM's input, forget and output gate


class Variant(NamedTuple):
    """The variant of a plastic layer; the names are those of `config.BackpropamineConfig`."""

    cell: str = "rnn"
    trace_rule: str = "hard-clip"
    modulation: str = "simple"
    trace_clip: float = 1.0
    modulator_activation: str = "tanh"
    lesion: str | None = None  # a part of the state that stays at zero: modulator, H or E

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the state's parts: h (B, N), an LSTM's c (B, N), H and E (B, N, N), modulator (B, 1)."""
        cell = ("h", "c") if self.cell == "lstm" else ("h",)
        eligibility = ("E",) if self.modulation == "retroactive" else ()
        return (*cell, "H", *eligibility, *(() if self.modulation == "none" else ("modulator",)))


PlasticState = tuple[Tensor, ...]  # the parts of the state, in the order of `Variant.state_names`


def plastic_scan(
    drive: Tensor,
    state: PlasticState,
    weights: Weights,
    variant: Variant,
    reset: Tensor | None = None,
    kernel: str = "auto",
) -> tuple[Tensor, PlasticState]:
    """Run a plastic layer over a sequence; the top of this module has the equations.

    Args:
        drive: b + U x_t for every step, (B, T, N); for an LSTM (B, T, 4N): its gates i, f, o and the candidate g.
        state: before the first step, tensors in the order of `variant.state_names`.
        weights: the trained parameters.
        variant: of the layer.
        reset: (B, T) bool; where true, the row's state is set to zero before that step.
        kernel: "fused" covers every variant of the RNN in float32 on the CPU (Numba), without lesion; "reference" is
            the plain loop, with checkpoints if a gradient is needed; "auto" takes the fused kernel if it can run this
            scan, else the reference.
    Returns: hs (B, T, N) and the last state. The fused kernel has first derivatives only.
    Raises: ConfigError if kernel="fused" cannot run this scan; ValueError for shapes that do not fit together.
    """
    _check(drive, state, weights, variant, reset)
    problem = None
    if variant.cell != "rnn":
        problem = f"exists for --cell rnn, not for {variant.cell}"
    elif variant.lesion:
        problem = "does not support --lesion"
    device = fused_device(kernel, (drive, *state, *weights), {"cpu": "numba"}, problem)
    if device is None or drive.shape[0] * drive.shape[1] == 0:
        return plastic_scan_reference(drive, state, weights, variant, reset)
    from mpn_rl.kernels import backpropamine_cpu  # late: its compiler is slow to import

    return backpropamine_cpu.scan(drive, state, weights, variant, reset)


def plastic_scan_reference(
    drive: Tensor, state: PlasticState, weights: Weights, variant: Variant, reset: Tensor | None = None
) -> tuple[Tensor, PlasticState]:
    """`plastic_scan` as a loop over PyTorch operations, for any device and dtype; its gradients are autograd's.

    If a gradient is needed, only the state of every sqrt(T)-th step is stored, and the backward pass runs the steps
    between again.
    """
    T = drive.shape[1]
    stretch = math.isqrt(max(T - 1, 0)) + 1
    needed = (drive, *state, *(a for a in weights if a is not None))
    checkpointed = torch.is_grad_enabled() and any(a.requires_grad for a in needed)
    hs: list[Tensor] = []
    for start in range(0, T, stretch):
        part = slice(start, start + stretch)
        inputs = (drive[:, part], state, weights, variant, None if reset is None else reset[:, part])
        if checkpointed:
            h, state = checkpoint(_stretch, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            h, state = _stretch(*inputs)
        hs.append(h)
    return torch.cat(hs, 1) if hs else drive.new_zeros(drive.shape[0], 0, weights.w.shape[0]), state


def _stretch(
    drive: Tensor, state: PlasticState, weights: Weights, variant: Variant, reset: Tensor | None
) -> tuple[Tensor, PlasticState]:
    """`plastic_scan_reference` over the steps between two checkpoints."""
    hs = []
    for t in range(drive.shape[1]):
        if reset is not None:
            rows = reset[:, t]
            state = tuple(part.masked_fill(rows.view(-1, *(1,) * (part.dim() - 1)), 0.0) for part in state)
        state = plastic_step(drive[:, t], state, weights, variant)
        hs.append(state[0])
    return torch.stack(hs, 1), state


def plastic_step(drive: Tensor, state: PlasticState, weights: Any, variant: Variant) -> PlasticState:
    """One step: drive (B, N) or (B, 4N) and `Weights` that fit the variant -> the next state, whose first part is h."""
    parts = dict(zip(variant.state_names, state, strict=True))
    if variant.lesion:
        parts[variant.lesion] = torch.zeros_like(parts[variant.lesion])
    pre, trace = parts["h"], parts["H"]
    N = pre.shape[1]
    recurrent = torch.bmm(pre[:, None], weights.w + weights.alpha * trace)[:, 0]
    h = post = torch.tanh(drive[:, -N:] + recurrent)
    if weights.gates is not None:
        i, f, o = torch.sigmoid(drive[:, :-N] + pre @ weights.gates).chunk(3, 1)
        parts["c"] = f * parts["c"] + i * post
        h = o * torch.tanh(parts["c"])
    parts["h"] = h
    hebbian = pre[:, :, None] * post[:, None]  # (B, N, N)
    gain = weights.eta
    if weights.u is not None:
        modulator = MODULATOR_ACTIVATIONS[variant.modulator_activation](h @ weights.u[:, None] + weights.c)
        modulator = torch.zeros_like(modulator) if variant.lesion == "modulator" else modulator
        parts["modulator"] = modulator  # (B, 1)
        gain = modulator if weights.fan_a is None else modulator * weights.fan_a + weights.fan_d
        gain = gain[:, None]  # (B, 1, 1) or (B, 1, N): per postsynaptic unit
    signal = hebbian
    if variant.modulation == "retroactive":
        signal = parts["E"]
        parts["E"] = (1.0 - weights.eta) * signal + weights.eta * hebbian
    parts["H"] = updated_trace(trace, gain, signal, post[:, None], variant)
    if variant.lesion in ("H", "E"):
        parts[variant.lesion] = torch.zeros_like(trace)
    return tuple(parts[name] for name in variant.state_names)


def updated_trace(trace: Tensor, gain: Tensor, signal: Tensor, post: Tensor, variant: Variant) -> Tensor:
    """H after one step of the variant's rule; gain and post broadcast to the (B, N, N) of trace and signal."""
    change, bound = gain * signal, variant.trace_clip
    if variant.trace_rule == "hard-clip":
        return (trace + change).clamp(-bound, bound)
    if variant.trace_rule == "soft-clip":
        new = trace + change.relu() * (bound - trace) - (-change).relu() * (bound + trace)
        return new.clamp(-bound, bound)
    if variant.trace_rule == "decay":
        return (1.0 - gain) * trace + change
    return trace + change - gain * post**2 * trace


def _check(drive: Tensor, state: PlasticState, weights: Weights, variant: Variant, reset: Tensor | None) -> None:
    """Refuse wrong shapes: the fused kernel reads memory by its address, and checks nothing."""
    (B, T, width), N = drive.shape, weights.w.shape[0]
    shapes = {"h": (B, N), "c": (B, N), "H": (B, N, N), "E": (B, N, N), "modulator": (B, 1)}
    if (
        width != (4 * N if variant.cell == "lstm" else N)
        or weights.w.shape != (N, N)
        or weights.alpha.shape not in ((N, N), (1, N), (1, 1))
        or len(state) != len(variant.state_names)
        or any(part.shape != shapes[name] for name, part in zip(variant.state_names, state, strict=True))
        or any(a is not None and a.shape != (N,) for a in (weights.u, weights.fan_a, weights.fan_d))
        or (reset is not None and (reset.shape != (B, T) or reset.dtype != torch.bool))
    ):
        got = ", ".join(str(tuple(part.shape)) for part in state)
        raise ValueError(
            f"drive {(B, T, width)} and w {tuple(weights.w.shape)} need the state {', '.join(variant.state_names)} of "
            f"(B, N), (B, N, N) or (B, 1) and a boolean reset (B, T), got {got}"
        )
