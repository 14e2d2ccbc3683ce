"""The multi-plasticity network (MPN): a layer whose only memory is a Hebbian modulation of its weights.

    h_t = f( b + [W * (M_{t-1} + 1)] x_t )        M_t = lambda M_{t-1} + eta h_t x_t^T

W and b are learned by backpropagation, M is the recurrent state. Source: Aitken & Mihalas 2023, eLife
12:e83035. While the input is all zero, M has no effect on h; `mpn_rl.networks.encoder.Encoder` has the remedies.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mpn_rl.config import MPNConfig
from mpn_rl.contracts import State, state_parts
from mpn_rl.kernels.mpn import ACTIVATIONS, mpn_scan

# The shape of eta and lambda for given (H, D); it broadcasts over the synapses.
GRANULARITIES = {
    "scalar": lambda hidden, inputs: (1, 1),
    "pre": lambda hidden, inputs: (1, inputs),
    "post": lambda hidden, inputs: (hidden, 1),
    "matrix": lambda hidden, inputs: (hidden, inputs),
}


class MPNLayer(nn.Module):
    """One layer; `MPN` stacks layers and documents the options.

    Args:
        input_dim: D.
        options: of the layer.
        fed_back: number of inputs beyond D, whose synapses are not in `weight`; see `networks/recurrent_mpn.py`.
    """

    def __init__(self, input_dim: int, options: MPNConfig, fed_back: int = 0) -> None:
        super().__init__()
        self.options = options
        hidden_dim, frozen, plastic = options.hidden_dim, options.freeze_plasticity, input_dim + fed_back
        bound = 1.0 / math.sqrt(input_dim)  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(hidden_dim, input_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(hidden_dim).uniform_(-bound, bound)) if options.bias else None

        def synaptic(value: float, shape: str, trained: bool) -> nn.Parameter:
            full = torch.full(GRANULARITIES[shape](hidden_dim, plastic), value)
            return nn.Parameter(full, requires_grad=trained and not frozen)

        self.eta = synaptic(options.eta, options.eta_shape, options.train_eta)
        if options.eta_init == "xavier" and not frozen:
            spread = math.sqrt(6.0 / (hidden_dim + plastic))
            self.eta.data.uniform_(-spread, spread)
        self.lambda_decay = synaptic(options.lambda_decay, options.lambda_shape, options.train_lambda)
        m0 = torch.zeros(hidden_dim, plastic)
        self.m0 = nn.Parameter(m0, requires_grad=options.train_m0 and not frozen)
        self.mask: Tensor | None
        self.register_buffer("mask", None)  # (H, D) bool, the synapses that exist; None: all

    feedforward = True

    def maskable_weights(self) -> tuple[str, ...]:
        """W only: eta, lambda and M(0) are not weights."""
        return ("weight",)

    def set_mask(self, weight: str, mask: Tensor) -> None:
        """Keep the mask of W, so that M is 0 where W has no synapse."""
        self.mask = mask

    def plasticity(self, modulation: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """M, eta and M(0) for a scan with this mask; M(0) is None where it is zero. Keeps lambda in its range."""
        # What is trained is read from the options, not from requires_grad: a target network has no gradients.
        options = self.options
        if options.train_lambda:
            # Projected gradient: the stored value is in range at every use, and never stuck at the edge.
            # By .data: autograd may have saved the tensor, and within one graph only the first use can change it.
            self.lambda_decay.data.clamp_(0.0, options.lambda_max)
        eta: Tensor = self.eta
        m0: Tensor | None = self.m0 if options.train_m0 else None
        if mask is not None and options.form == "additive":  # the one form in which M acts where W is 0
            modulation, eta, m0 = modulation * mask, eta * mask, None if m0 is None else m0 * mask
        return modulation, eta, m0

    def forward(self, xs: Tensor, modulation: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """A sequence, as `mpn_scan`: xs (B, T, D), M (B, H, D) and reset (B, T) -> hs (B, T, H) and the last M."""
        options = self.options
        if options.freeze_plasticity:
            return ACTIVATIONS[options.activation](nn.functional.linear(xs, self.weight, self.bias)), modulation
        modulation, eta, m0 = self.plasticity(modulation, self.mask)
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
            m_activation=options.m_activation,
            kernel=options.kernel,
        )
        return hs, modulation if self.mask is None else modulation * self.mask

    def _load_from_state_dict(self, saved: dict[str, Tensor], prefix: str, *rest) -> None:
        if self.mask is None and prefix + "mask" in saved:
            self.mask = saved[prefix + "mask"].to(self.weight.device, copy=True)
        super()._load_from_state_dict(saved, prefix, *rest)


class MPN(nn.Module):
    """A multi-plasticity network of one or more layers, with the core contract.

        multiplicative  h_t = f( b + [W * (M_{t-1} + 1)] x_t )          additive  h_t = f( b + [W + M_{t-1}] x_t )
        associative     M_t = lambda M_{t-1} + eta h_t x_t^T
        presynaptic     M_t = lambda M_{t-1} + eta 1 x_t^T              (the paper's MPN-pre)
        postsynaptic    M_t = lambda M_{t-1} + eta h_t 1^T
        oja             M_t = lambda M_{t-1} + eta (h_t x_t^T - h_t^2 M_{t-1})

    With m_activation tanh, M_t is the tanh of the right-hand side, so M lies within [-1, 1]. The state is M, (B, H, D),
    or with several layers a tuple of them; each layer after the first has the h of the layer before as its input. If a
    layer has a mask (see `expansion/topology.py`), M is 0 at the synapses that do not exist.

    Args:
        input_dim: D.
        hidden_dim: H, of every layer.
        num_layers: number of stacked layers.
        options: those of `config.MPNConfig`, which has the defaults and ranges:
            activation: f, one of tanh, relu, sigmoid, linear.
            eta: Hebbian learning rate; a negative one is anti-Hebbian.
            eta_init: constant (eta), or xavier: eta ~ U(-s, s), s = sqrt(6 / (H + D)), whatever the shape of eta.
            lambda_decay: decay of M per step, in [0, lambda_max].
            lambda_max: upper bound of lambda while it is trained, at most 1.
            eta_shape: scalar, pre (one per input), post (one per hidden unit) or matrix.
            lambda_shape: as eta_shape.
            train_eta: whether backpropagation trains eta.
            train_lambda: whether backpropagation trains lambda.
            train_m0: whether backpropagation trains M(0), which starts at 0.
            form: multiplicative or additive.
            rule: associative, presynaptic, postsynaptic or oja.
            m_activation: none or tanh.
            bias: whether there is a b.
            freeze_plasticity: M stays exactly 0: the control that must fail tasks that need memory.
            kernel: auto, reference (plain PyTorch) or fused; see `kernels/mpn.py`.

    Raises: ConfigError (a ValueError) for a value out of range or an unknown name.
    Source: Aitken & Mihalas 2023, eLife 12:e83035; the additive form: Miconi et al. 2018 (arXiv 1804.02464).
    """

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int = 1, **options) -> None:
        super().__init__()
        checked = MPNConfig(hidden_dim=hidden_dim, num_layers=num_layers, **options)
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(MPNLayer(sizes[i], checked) for i in range(num_layers))
        self.input_dim, self.hidden_dim = input_dim, hidden_dim

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """M(0) (B, H, D), or a tuple with one per layer, on the parameters' device or on `device`.

        A trained M(0) receives its gradient through this state.
        """
        layers = cast("list[MPNLayer]", self.layers)
        states = tuple(layer.m0.expand(batch_size, *layer.m0.shape).clone().to(device) for layer in layers)
        return states if len(states) > 1 else states[0]

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x (B, D) -> h (B, H) and the next state."""
        hs, state = self.unroll(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(self, xs: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """A sequence: xs (B, T, D) -> hs (B, T, H) and the last state.

        Where reset (B, T) is true, the row's state is set back to M(0) before that step.
        """
        after = []
        for layer, modulation in zip(self.layers, state_parts(state), strict=True):
            xs, modulation = layer(xs, modulation, reset)
            after.append(modulation)
        return xs, tuple(after) if len(after) > 1 else after[0]

    def forget(self, state: State, changed: dict[str, Tensor]) -> State:
        """The state with M = 0 at synapses that have appeared or disappeared.

        Args:
            state: the core's state.
            changed: masks (H, D) of these synapses, by the name of the weight.
        """
        parts = state_parts(state)
        masks = [changed.get(f"layers.{i}.weight") for i in range(len(parts))]
        after = [part if mask is None else part.masked_fill(mask, 0.0) for part, mask in zip(parts, masks, strict=True)]
        return tuple(after) if len(after) > 1 else after[0]

    def state_arrays(self, state: State) -> dict[str, Tensor]:
        """{"M": (B, H, D)}, or M1, M2, ... for several layers."""
        if isinstance(state, tuple):
            return {f"M{i + 1}": modulation for i, modulation in enumerate(state)}
        return {"M": state}


def main() -> None:
    """A short self-check: M decays while the input is zero, and a frozen network has none."""
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
        _, unchanged = frozen.unroll(xs, frozen.init_state(2))
    m, m_silent, m_frozen = (state_parts(parts)[0] for parts in (state, silent, unchanged))
    print(f"unroll: xs {tuple(xs.shape)} -> hs {tuple(hs.shape)}, M {tuple(m.shape)}")
    print(f"unroll against stepping: largest difference {float((h - hs[:, -1]).abs().max()):.1e}")
    print(
        f"|M| after 10 silent steps: {float(m_silent.norm() / m.norm()):.3f} of its value; lambda^10 = {0.85**10:.3f}"
    )
    print(f"frozen: |M| {float(m_frozen.norm()):.1f}")


if __name__ == "__main__":
    main()
