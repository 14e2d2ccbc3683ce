r"""The scan of a recurrent multi-plasticity network over time: the plain reference, and the choice of a fused kernel.

The layer is an MPN whose input is z_t = (x_t, h_{t-1}), of size Z = D + H. With W = (W_x, W_h) and M = (M^x, M^h) of
shape (H, Z), for every batch row (Aitken & Mihalas 2023, eLife 12:e83035, and the options of its public code):

    h_t = f( b + [W * (M_{t-1} + 1)] z_t )  =  f( b + [W_x * (M^x_{t-1} + 1)] x_t + [W_h * (M^h_{t-1} + 1)] h_{t-1} )
    M_t = g( lambda M_{t-1} + eta S_t )           S_t = h_t z_t^T, so M^x learns h_t x_t^T and M^h learns h_t h_{t-1}^T

The other forms and rules are those of `mpn.py` with z in place of x, and so is the adjoint. The part of dL/dz_t that
belongs to h_{t-1} is added to dL/dh_{t-1} before step t-1, unless a reset before step t has set h_{t-1} to zero.

Every hidden unit reads the others, so the units cannot run through time one after the other. The kernel takes one batch
row, and at each step all blocks of units. Memory: O(B T (D + H)) and O(sqrt(T)) copies of M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mpn_rl.kernels import mpn
from mpn_rl.kernels.launcher import fused_device


def recurrent_mpn_scan(
    xs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation: Tensor,
    hidden: Tensor,
    eta: Tensor,
    lambda_decay: Tensor,
    *,
    reset: Tensor | None = None,
    modulation0: Tensor | None = None,
    form: str = "multiplicative",
    rule: str = "associative",
    activation: str = "tanh",
    m_activation: str = "tanh",
    kernel: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a recurrent MPN layer over a sequence; the top of this module has the equations.

    Args:
        xs: inputs, (B, T, D).
        weight: (W_x, W_h), (H, D + H).
        bias: b, (H,); None for a layer without bias.
        modulation: (M^x, M^h) before the first step, (B, H, D + H).
        hidden: h before the first step, (B, H).
        eta: the Hebbian learning rate, broadcastable to (H, D + H).
        lambda_decay: the decay of M per step, broadcastable to (H, D + H).
        reset: (B, T) bool; where true, the row's M is set to M(0) and its h to zero before that step.
        modulation0: M(0), (H, D + H); None means zeros.
        form, rule, activation, m_activation: as in `mpn.mpn_scan`.
        kernel: "fused" covers every variant in float32 on the CPU (Numba); "reference" is the plain loop; "auto" takes
            the fused kernel if it can run this scan, else the reference.
    Returns: hs (B, T, H), the final M (B, H, D + H) and the final h (B, H). Gradients flow to every tensor but `reset`;
        the fused kernel has first derivatives only.
    Raises: ConfigError if kernel="fused" cannot run this scan; ValueError for shapes that do not fit together.
    """
    _check(xs, weight, bias, modulation, hidden, reset, modulation0)
    tensors = (xs, weight, bias, modulation, hidden, eta, lambda_decay, reset, modulation0)
    device = fused_device(kernel, tensors, {"cpu": "numba"})
    if device is not None and xs.shape[0] * xs.shape[1] > 0:
        from mpn_rl.kernels import recurrent_mpn_cpu  # late: its compiler is slow to import

        inputs = (xs, weight, bias, modulation, eta, lambda_decay, reset, modulation0)
        hs, modulation = recurrent_mpn_cpu.scan(inputs, hidden, form, rule, activation, m_activation)
        return hs, modulation, hs[:, -1].clone()
    m0 = weight.new_zeros(()) if modulation0 is None else modulation0
    variant = (form, rule, activation, m_activation)
    steps = []
    for t in range(xs.shape[1]):
        if reset is not None:
            modulation = torch.where(reset[:, t, None, None], m0, modulation)
            hidden = hidden.masked_fill(reset[:, t, None], 0.0)
        z = torch.cat([xs[:, t], hidden], 1)
        hidden, modulation = mpn.mpn_step(z, weight, bias, modulation, eta, lambda_decay, *variant)
        steps.append(hidden)
    hs = torch.stack(steps, 1) if steps else xs.new_zeros(xs.shape[0], 0, weight.shape[0])
    return hs, modulation, hidden


def _check(
    xs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    modulation: Tensor,
    hidden: Tensor,
    reset: Tensor | None,
    modulation0: Tensor | None,
) -> None:
    """Refuse wrong shapes: the fused kernel reads memory by its address, and checks nothing."""
    (B, T, D), H = xs.shape, weight.shape[0]
    if (
        weight.shape != (H, D + H)
        or modulation.shape != (B, H, D + H)
        or hidden.shape != (B, H)
        or (bias is not None and bias.shape != (H,))
        or (reset is not None and (reset.shape != (B, T) or reset.dtype != torch.bool))
        or (modulation0 is not None and modulation0.shape != (H, D + H))
    ):
        named = {"weight": weight, "bias": bias, "modulation": modulation, "hidden": hidden, "reset": reset}
        named["modulation0"] = modulation0
        shapes = ", ".join(f"{name} {tuple(a.shape)}" for name, a in named.items() if a is not None)
        raise ValueError(
            f"xs {(B, T, D)} needs weight (H, D + H), bias (H,), modulation (B, H, D + H), hidden (B, H), a boolean "
            f"reset (B, T) and modulation0 (H, D + H), got {shapes}"
        )
