r"""The scan of a multi-plasticity network (MPN) over time: the plain reference, and the choice of a fused kernel.

With W, M of shape (H, D), x_t of size D, h_t of size H, for every batch row (Aitken & Mihalas 2023, eLife 12:e83035):

    E_t = W * (M_{t-1} + 1)   or, additive,   W + M_{t-1}                 u_t = b + E_t x_t            h_t = f(u_t)
    M_t = lambda M_{t-1} + eta S_t        S_t = h x^T   |    1 x^T    |    h 1^T     |   h x^T - h^2 M_{t-1}
                                            associative   presynaptic   postsynaptic   Oja-like

The adjoint runs from T to 1 with A_t = dL/dM_t, starting at A_T = dL/dM_T. For the multiplicative associative scan:

    g_h  = dL/dh_t + sum_j eta A_ij x_j             g_u = g_h f'(u_t), a function of h_t alone
    dW  += g_u x^T * (M_{t-1} + 1)                  db += g_u
    dx_j = sum_i g_u E_ij + sum_i eta A_ij h_i      deta += A * S_t          dlambda += A * M_{t-1}
    A_{t-1} = lambda A_t + (g_u x^T) * W

Where M is bounded, M_t = tanh(lambda M_{t-1} + eta S_t), A_t (1 - M_t^2) replaces A_t in all of these.

Additive: dW += g_u x^T and A_{t-1} = lambda A_t + g_u x^T. The other rules use their own S_t in place of h x^T; Oja's
rule adds -2 h_i sum_j eta A_ij M_ij to g_h and -eta h_i^2 A_ij to A_{t-1}. A reset before step t sets M_{t-1} = M(0):
A_{t-1} is added to dM(0), and A continues from zero. eta and lambda are numbers, one per input, one per hidden unit or
full matrices; their gradients are summed accordingly.

Row i of M needs only h_i and x, so each hidden unit of each batch row runs through time alone, with its M in the cache
or in registers. Only the M of every ~sqrt(T)-th step is stored; the backward pass computes the others again. Inverting
the update to get M_{t-1} would cost less, but its error grows as lambda^-T. Memory: O(B T (D + H)) and O(sqrt(T))
copies of M.
"""

from __future__ import annotations

import functools
import importlib

import torch
from torch import Tensor

from mpn_rl.kernels.launcher import fused_device

FORMS = ("multiplicative", "additive")
RULES = ("associative", "presynaptic", "postsynaptic", "oja")
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda u: u}
M_ACTIVATIONS = ("none", "tanh")
PACKAGES = {"cpu": "numba", "cuda": "triton"}  # what the fused kernels need, by the type of device
# xs, weight, bias, modulation, eta, lambda_decay, reset and modulation0 of `mpn_scan`.
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
MAX_CUDA_INPUTS = 1024  # a larger D does not fit into the tile of M that a GPU's program keeps in registers


def mpn_scan(
    xs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation: Tensor,
    eta: Tensor,
    lambda_decay: Tensor,
    *,
    reset: Tensor | None = None,
    modulation0: Tensor | None = None,
    form: str = "multiplicative",
    rule: str = "associative",
    activation: str = "tanh",
    m_activation: str = "none",
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run an MPN layer over a sequence; the top of this module has the equations.

    Args:
        xs: inputs, (B, T, D).
        weight: W, (H, D).
        bias: b, (H,); None for a layer without bias.
        modulation: M before the first step, (B, H, D).
        eta: the Hebbian learning rate, broadcastable to (H, D).
        lambda_decay: the decay of M per step, broadcastable to (H, D).
        reset: (B, T) bool; where true, the row's M is set to M(0) before that step.
        modulation0: M(0), (H, D); None means zeros.
        form: one of FORMS.
        rule: one of RULES.
        activation: f, one of ACTIVATIONS.
        m_activation: one of M_ACTIVATIONS; tanh bounds M after each update.
        kernel: "fused" covers every form, rule and activation in float32 on the CPU (Numba) and on CUDA (Triton);
            "reference" is the plain loop; "auto" takes the fused kernel if it can run this scan, else the reference:
            for other dtypes and devices, without Numba or Triton, or for inputs too wide for a GPU's registers.
    Returns: hs (B, T, H) and the final M (B, H, D). The fused kernel on the CPU returns M as a transposed view of
        (B, D, H) memory, which the next call reads without a copy. Gradients flow to every tensor but `reset`;
        the fused kernels have first derivatives only.
    Raises: ConfigError if kernel="fused" cannot run this scan; ValueError for shapes that do not fit together.
    """
    inputs = (xs, weight, bias, modulation, eta, lambda_decay, reset, modulation0)
    _check(*inputs)
    problem, width = None, xs.shape[2]
    if xs.is_cuda and width > MAX_CUDA_INPUTS:
        problem = f"takes at most {MAX_CUDA_INPUTS} inputs on cuda, got {width}"
    device = fused_device(kernel, inputs, PACKAGES, problem)
    if device is None or xs.shape[0] * xs.shape[1] == 0:
        return _reference(inputs, form, rule, activation, m_activation)
    fused = importlib.import_module(f"mpn_rl.kernels.mpn_{device}")  # late: its compiler is slow to import
    return fused.scan(inputs, form, rule, activation, m_activation)


# As a loop over PyTorch operations, for any device and dtype; its gradients are autograd's.
mpn_scan_reference = functools.partial(mpn_scan, kernel="reference")


def _reference(inputs: Inputs, form: str, rule: str, activation: str, m_activation: str) -> tuple[Tensor, Tensor]:
    xs, weight, bias, m, eta, lambda_decay, reset, modulation0 = inputs
    m0 = weight.new_zeros(()) if modulation0 is None else modulation0
    hs = []
    for t in range(xs.shape[1]):
        if reset is not None:
            m = torch.where(reset[:, t, None, None], m0, m)
        h, m = mpn_step(xs[:, t], weight, bias, m, eta, lambda_decay, form, rule, activation, m_activation)
        hs.append(h)
    return torch.stack(hs, dim=1) if hs else xs.new_zeros(xs.shape[0], 0, weight.shape[0]), m


def mpn_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    m: Tensor,
    eta: Tensor,
    lambda_decay: Tensor,
    form: str,
    rule: str,
    activation: str,
    m_activation: str,
) -> tuple[Tensor, Tensor]:
    """One step: x (B, D) and M (B, H, D) -> h (B, H) and the next M; the other arguments are those of `mpn_scan`."""
    effective = weight * (m + 1.0) if form == "multiplicative" else weight + m  # (B, H, D)
    u = torch.bmm(effective, x[:, :, None])[:, :, 0]
    h = ACTIVATIONS[activation](u if bias is None else u + bias)
    post, pre = h[:, :, None], x[:, None, :]
    if rule == "associative":
        change = post * pre
    elif rule == "presynaptic":
        change = pre
    elif rule == "postsynaptic":
        change = post
    else:
        change = post * pre - post**2 * m
    m = lambda_decay * m + eta * change
    return h, torch.tanh(m) if m_activation == "tanh" else m


def _check(xs, weight, bias, modulation, _eta, _lambda_decay, reset, modulation0) -> None:
    """Refuse wrong shapes: the fused kernels read memory by its address, and check nothing."""
    (B, T, D), H = xs.shape, weight.shape[0]
    if (
        weight.shape != (H, D)
        or modulation.shape != (B, H, D)
        or (bias is not None and bias.shape != (H,))
        or (reset is not None and (reset.shape != (B, T) or reset.dtype != torch.bool))
        or (modulation0 is not None and modulation0.shape != (H, D))
    ):
        named = {"weight": weight, "bias": bias, "modulation": modulation, "reset": reset, "modulation0": modulation0}
        shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in named.items() if a is not None)
        raise ValueError(
            f"xs {(B, T, D)} needs weight (H, D), bias (H,), modulation (B, H, D), a boolean reset (B, T) and "
            f"modulation0 (H, D), got {shapes}"
        )
