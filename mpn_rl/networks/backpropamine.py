"""Backpropamine: a recurrent network whose connections carry Hebbian traces, gated by its own neuromodulator.

    h_t = tanh( b + U x_t + h_{t-1} (w + alpha * H_t) )      m_t = tanh( u h_t + c )
    H_{t+1} = clip( H_t + m_t h_{t-1} h_t^T, -c, c )

w, alpha, U, b and the modulator are learned by backpropagation. H changes at every step; the network's own output m
sets how strongly. Source: Miconi et al. 2019 (ICLR, arXiv 2002.10585); without m: Miconi et al. 2018 (ICML, arXiv
1804.02464).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpn_rl.config import BackpropamineConfig
from mpn_rl.kernels.backpropamine import PlasticState, Variant, Weights, plastic_scan
from mpn_rl.options import ConfigError

ALPHA_SHAPES = {"connection": lambda N: (N, N), "neuron": lambda N: (1, N), "scalar": lambda N: (1, 1)}
# The parameters in the order of `Weights`; those that a variant lacks are None.
WEIGHTS = ("weight", "alpha", "eta", "modulator_weight", "modulator_bias", "fanout_weight", "fanout_bias", "gates")
LESIONS = {"modulator": "modulator", "trace": "H", "eligibility": "E"}  # the part of the state that stays at zero


class Backpropamine(nn.Module):
    """A plastic, neuromodulated recurrent layer behind the core contract.

    The state is a tuple: h (B, N); for an LSTM its c (B, N); the trace H (B, N, N), presynaptic unit first; with
    retroactive modulation the eligibility trace E (B, N, N); and, if there is a modulator, its last output m (B, 1),
    which is kept for recordings only. All start at zero. With S = h_{t-1} h_t^T and per postsynaptic unit j

        none         gain_j = eta                    retroactive  gain_j = m_t, and the trace E_t replaces S, then
        simple       gain_j = m_t                                 E_{t+1} = (1 - eta) E_t + eta S
        fanout       gain_j = a_j m_t + d_j

        hard-clip    H + gain S, clipped to [-c, c]
        soft-clip    H + max(gain S, 0) (c - H) + min(gain S, 0) (c + H), clipped to [-c, c]
        decay        (1 - gain) H + gain S
        oja          H + gain h_j (h_i - h_j H)

    fanout is not the paper's equation 3 but the form of its public simplemaze code: d_j keeps connections plastic at
    m = 0, and gain_j is not bounded. none, simple and fanout go with every rule, retroactive with the two clips only.

    An LSTM's plastic connections are those to its candidate, g_t = tanh( U_g x_t + h_{t-1} (w + alpha * H_t) ), and
    S = h_{t-1} g_t^T; it has only the hard clip, and no retroactive modulation, as in the public code.

    Args:
        input_dim: D.
        hidden_dim: N.
        options: those of `config.BackpropamineConfig`, which has the defaults and ranges:
            cell: rnn or lstm.
            trace_rule: hard-clip, soft-clip, decay or oja.
            modulation: none, simple, fanout or retroactive.
            alpha_shape: connection (N, N), neuron (one per postsynaptic unit) or scalar.
            trace_clip: c, of hard-clip and soft-clip.
            eta: initial value of the trained, unconstrained eta, which only none and retroactive have.
            modulator_activation: tanh, sigmoid or linear, for m.
            init_scale: alpha, and an RNN's w, start at init_scale times U(0, 1), so alpha is positive at first. U, b,
                the modulator and a, d start like those of torch.nn.Linear, an LSTM's w like that of torch.nn.LSTM.
            kernel: auto, reference (plain PyTorch, which needs less memory and more time for gradients than a loop
                under autograd) or fused (every RNN in float32 on the CPU); see `kernels/backpropamine.py`.

    Raises: ConfigError (a ValueError) for a value out of range, an unknown name or a combination that does not exist.
    """

    def __init__(self, input_dim: int, hidden_dim: int, **options) -> None:
        super().__init__()
        checked = BackpropamineConfig(hidden_dim=hidden_dim, **options)
        N, scale = hidden_dim, checked.init_scale
        self.input_dim, self.hidden_dim, self.kernel = input_dim, hidden_dim, checked.kernel
        self.variant = Variant(
            checked.cell, checked.trace_rule, checked.modulation, checked.trace_clip, checked.modulator_activation
        )
        lstm, bound = checked.cell == "lstm", 1.0 / math.sqrt(N)
        self.input = nn.Linear(input_dim, 4 * N if lstm else N)  # U and b
        self.weight = nn.Parameter(torch.empty(N, N).uniform_(-bound, bound) if lstm else scale * torch.rand(N, N))
        self.gates = nn.Parameter(torch.empty(N, 3 * N).uniform_(-bound, bound)) if lstm else None
        self.alpha = nn.Parameter(scale * torch.rand(ALPHA_SHAPES[checked.alpha_shape](N)))
        learned_rate = checked.modulation in ("none", "retroactive")
        self.eta = nn.Parameter(torch.full((1,), checked.eta)) if learned_rate else None
        modulated, spread = checked.modulation != "none", checked.modulation == "fanout"
        # As torch.nn.Linear(N, 1) and torch.nn.Linear(1, N), which start within 1 / sqrt(inputs).
        self.modulator_weight = nn.Parameter(torch.empty(N).uniform_(-bound, bound)) if modulated else None
        self.modulator_bias = nn.Parameter(torch.empty(1).uniform_(-bound, bound)) if modulated else None
        self.fanout_weight = nn.Parameter(torch.empty(N).uniform_(-1.0, 1.0)) if spread else None
        self.fanout_bias = nn.Parameter(torch.empty(N).uniform_(-1.0, 1.0)) if spread else None
        self._lesion: str | None = None

    @property
    def lesion(self) -> str | None:
        """The part of the state that stays at zero: None, "modulator", "trace" or "eligibility".

        With fanout, the plasticity of d_j remains if the modulator is lesioned.

        Raises: ConfigError for a part that this network does not have.
        """
        return self._lesion

    @lesion.setter
    def lesion(self, part: str | None) -> None:
        names = [name for name, state in LESIONS.items() if state in self.variant.state_names]
        if part is not None and part not in names:
            raise ConfigError(
                f"--lesion must be one of {', '.join(names)} for --modulation {self.variant.modulation}, got {part!r}"
            )
        self._lesion = part

    feedforward = False

    def maskable_weights(self) -> tuple[str, ...]:
        """w, an LSTM's recurrent gates, and alpha if each connection has its own."""
        own = {"weight": self.weight, "gates": self.gates, "alpha": self.alpha}
        return tuple(name for name, part in own.items() if part is not None and (name != "alpha" or len(part) > 1))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> PlasticState:
        """Zeros in the parameters' dtype, on their device or on `device`."""
        N = self.hidden_dim
        shapes = {"H": (N, N), "E": (N, N), "modulator": (1,)}
        return tuple(
            self.weight.new_zeros(batch_size, *shapes.get(name, (N,)), device=device)
            for name in self.variant.state_names
        )

    def forward(self, x: Tensor, state: PlasticState) -> tuple[Tensor, PlasticState]:
        """One step: x (B, D) -> h (B, N) and the next state."""
        hs, state = self.unroll(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(self, xs: Tensor, state: PlasticState, reset: Tensor | None = None) -> tuple[Tensor, PlasticState]:
        """A sequence: xs (B, T, D) -> hs (B, T, N) and the last state.

        Where reset (B, T) is true, the row's state is set back to zero before that step.
        """
        variant, kernel = self.variant, self.kernel
        if self._lesion:
            variant, kernel = variant._replace(lesion=LESIONS[self._lesion]), "reference"
        own = self._parameters  # acting runs this at every step, and getattr on a module is slow
        weights = Weights._make(map(own.get, WEIGHTS))
        return plastic_scan(self.input(xs), state, weights, variant, reset, kernel)

    def forget(self, state: PlasticState, changed: dict[str, Tensor]) -> PlasticState:
        """The state with H = E = 0 at connections that have appeared or disappeared.

        Args:
            state: the core's state.
            changed: masks (N, N) of these connections, by the name of the weight.
        """
        mask = changed.get("alpha")
        if mask is None:
            return state
        names = self.variant.state_names
        return tuple(
            part.masked_fill(mask, 0.0) if name in ("H", "E") else part for name, part in zip(names, state, strict=True)
        )

    def state_arrays(self, state: PlasticState) -> dict[str, Tensor]:
        """{"h": (B, N), "H": (B, N, N)}, and "c" (B, N), "E" (B, N, N), "modulator" (B, 1) if the variant has them."""
        return dict(zip(self.variant.state_names, state, strict=True))
