"""The multi-plasticity network (MPN): a layer whose only memory is a Hebbian modulation of its weights.

    h_t = f( b + [W * (M_{t-1} + 1)] x_t )        M_t = lambda M_{t-1} + eta h_t x_t^T

W and b are learned by backpropagation, M is the recurrent state. Source: Aitken & Mihalas 2023, eLife
12:e83035. An input of all zeros reads nothing out of M; see `mpn_dqn.Encoder` for what to do about it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpn_rl.config import MPNConfig
from mpn_rl.kernels.mpn import ACTIVATIONS, mpn_scan

# (H, D) -> the shape of eta and lambda, which broadcasts over the synapses.
GRANULARITIES = {
    "scalar": lambda hidden, inputs: (1, 1),
    "pre": lambda hidden, inputs: (1, inputs),
    "post": lambda hidden, inputs: (hidden, 1),
    "matrix": lambda hidden, inputs: (hidden, inputs),
}


class MPNLayer(nn.Module):
    """One layer; `MPN` stacks them and documents the options."""

    def __init__(self, input_dim: int, options: MPNConfig) -> None:
        super().__init__()
        self.options = options
        hidden_dim, frozen = options.hidden_dim, options.freeze_plasticity
        bound = 1.0 / math.sqrt(input_dim)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(hidden_dim, input_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(hidden_dim).uniform_(-bound, bound)) if options.bias else None

        def synaptic(value: float, shape: str, trained: bool) -> nn.Parameter:
            full = torch.full(GRANULARITIES[shape](hidden_dim, input_dim), value)
            return nn.Parameter(full, requires_grad=trained and not frozen)

        self.eta = synaptic(options.eta, options.eta_shape, options.train_eta)
        self.lambda_decay = synaptic(options.lambda_decay, options.lambda_shape, options.train_lambda)
        m0 = torch.zeros(hidden_dim, input_dim)
        self.m0 = nn.Parameter(m0, requires_grad=options.train_m0 and not frozen)
        self.mask: Tensor | None
        self.register_buffer("mask", None)  # (H, D) bool, where the topology changes: the synapses that exist

    feedforward = True

    def maskable_weights(self) -> tuple[str, ...]:
        """W; eta, lambda and M(0) are no synapses."""
        return ("weight",)

    def set_mask(self, weight: str, mask: Tensor) -> None:
        """Keep M at 0 where `mask` (H, D), that of W, is false."""
        self.mask = mask

    def init_state(self, batch_size: int) -> Tensor:
        """M(0) for every row: (B, H, D); a trained M(0) gets its gradient through it."""
        return self.m0.expand(batch_size, *self.m0.shape).clone()

    def forward(self, xs: Tensor, modulation: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, D), (B, H, D), (B, T) -> h (B, T, H), M (B, H, D)."""
        # The options, not requires_grad, tell what is trained: a target network is a copy without gradients.
        options = self.options
        if options.freeze_plasticity:
            return ACTIVATIONS[options.activation](nn.functional.linear(xs, self.weight, self.bias)), modulation
        if options.train_lambda:
            # Projected gradient: the stored value is in range whenever it is used, and never stuck at the edge.
            # By .data, since within one graph only the first use can change it, and autograd may save it before.
            self.lambda_decay.data.clamp_(0.0, options.lambda_max)
        eta: Tensor = self.eta
        m0: Tensor | None = self.m0 if options.train_m0 else None
        if self.mask is not None and options.form == "additive":  # here alone M acts without W
            modulation, eta, m0 = modulation * self.mask, eta * self.mask, None if m0 is None else m0 * self.mask
        hs, modulation = mpn_scan(
            xs,
            self.weight,
            self.bias,
            modulation,
            eta,
            self.lambda_decay,
            reset=reset,
            modulation0=m0,
            form=options.form,
            rule=options.rule,
            activation=options.activation,
            kernel=options.kernel,
        )
        return hs, modulation if self.mask is None else modulation * self.mask

    def _load_from_state_dict(self, saved: dict[str, Tensor], prefix: str, *rest) -> None:
        if self.mask is None and prefix + "mask" in saved:
            self.mask = saved[prefix + "mask"].to(self.weight.device, copy=True)
        super()._load_from_state_dict(saved, prefix, *rest)


class MPN(nn.Module):
    """A multi-plasticity network of one or more layers, behind the core contract.

        multiplicative  h_t = f( b + [W * (M_{t-1} + 1)] x_t )          additive  h_t = f( b + [W + M_{t-1}] x_t )
        associative     M_t = lambda M_{t-1} + eta h_t x_t^T
        presynaptic     M_t = lambda M_{t-1} + eta 1 x_t^T              (the paper's MPN-pre)
        postsynaptic    M_t = lambda M_{t-1} + eta h_t 1^T
        oja             M_t = lambda M_{t-1} + eta (h_t x_t^T - h_t^2 M_{t-1})

    The state is M, (B, H, D); with several layers a tuple, whose later layers read the h of the one before. Where a
    layer has a mask (see `expansion/topology.py`), M is 0 at the synapses that do not exist.

    Args:
        input_dim, hidden_dim: D and H.
        num_layers: stacked layers, all of H units.
        activation: f, one of tanh, relu, sigmoid, linear.
        eta: Hebbian learning rate; negative is anti-Hebbian.
        lambda_decay: decay of M per step, in [0, lambda_max].
        lambda_max: at most 1; bounds lambda while it is trained.
        eta_shape, lambda_shape: scalar, pre (one per input), post (one per hidden unit) or matrix.
        train_eta, train_lambda, train_m0: whether backpropagation learns eta, lambda and M(0), which starts at 0.
        form, rule: as above.
        bias: with or without b.
        freeze_plasticity: M stays exactly 0: the control that must fail where memory is needed.
        kernel: auto, reference (plain PyTorch) or fused; see `kernels/mpn.py`.
    Defaults and ranges are those of `config.MPNConfig`.

    Raises: ConfigError (a ValueError) for a value out of range or an unknown name.
    Source: Aitken & Mihalas 2023, eLife 12:e83035; the additive form: Miconi et al. 2018 (arXiv 1804.02464).
    """

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int = 1, **options) -> None:
        super().__init__()
        checked = MPNConfig(hidden_dim=hidden_dim, num_layers=num_layers, **options)
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(MPNLayer(sizes[i], checked) for i in range(num_layers))
        self.input_dim, self.hidden_dim = input_dim, hidden_dim

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> Tensor | tuple[Tensor, ...]:
        """M(0): (B, H, D), or a tuple with one per layer; on the parameters' device unless another is named."""
        states = tuple(layer.init_state(batch_size).to(device) for layer in self.layers)  # type: ignore[operator]
        return states if len(states) > 1 else states[0]

    def forward(self, x: Tensor, state):
        """One step: x (B, D) -> h (B, H) and the next state."""
        hs, state = self.unroll(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(self, xs: Tensor, state, reset: Tensor | None = None):
        """A sequence: xs (B, T, D) -> hs (B, T, H) and the last state.

        Where reset (B, T) is true, the row's state is set back to M(0) before that step.
        """
        before = state if isinstance(state, tuple) else (state,)
        after = []
        for layer, modulation in zip(self.layers, before, strict=True):
            xs, modulation = layer(xs, modulation, reset)
            after.append(modulation)
        return xs, tuple(after) if len(after) > 1 else after[0]

    def forget(self, state, changed: dict[str, Tensor]):
        """The state with M = 0 where synapses are new or gone: `changed` has masks (H, D) by the name of W."""
        parts = state if isinstance(state, tuple) else (state,)
        masks = [changed.get(f"layers.{i}.weight") for i in range(len(parts))]
        after = [part if mask is None else part.masked_fill(mask, 0.0) for part, mask in zip(parts, masks, strict=True)]
        return tuple(after) if len(after) > 1 else after[0]

    def state_arrays(self, state) -> dict[str, Tensor]:
        """{"M": (B, H, D)}, or M1, M2, ... by layer."""
        if isinstance(state, tuple):
            return {f"M{i + 1}": modulation for i, modulation in enumerate(state)}
        return {"M": state}


def main() -> None:
    """A short self-check: memory decays through silence, and a frozen network has none."""
    torch.manual_seed(0)
    mpn = MPN(4, 8, eta=1.0, lambda_decay=0.85)
    xs = torch.randn(2, 10, 4)
    with torch.no_grad():
        hs, state = mpn.unroll(xs, mpn.init_state(2))
        stepped = mpn.init_state(2)
        for t in range(10):
            h, stepped = mpn(xs[:, t], stepped)
        _, silent = mpn.unroll(torch.zeros(2, 10, 4), state)
    frozen = MPN(4, 8, freeze_plasticity=True)
    print(f"unroll: xs {tuple(xs.shape)} -> hs {tuple(hs.shape)}, M {tuple(state.shape)}")
    print(f"unroll against stepping: largest difference {float((h - hs[:, -1]).abs().max()):.1e}")
    share = float(silent.norm() / state.norm())
    print(f"|M| after 10 silent steps: {share:.3f} of what it was; lambda^10 = {0.85**10:.3f}")
    print(f"frozen: |M| {float(frozen.unroll(xs, frozen.init_state(2))[1].norm()):.1f}")


if __name__ == "__main__":
    main()
