"""The recurrent MPN: an MPN that also reads its own last output, with a modulation of both weight matrices.

    h_t = f( b + [W_x * (M^x_{t-1} + 1)] x_t + [W_h * (M^h_{t-1} + 1)] h_{t-1} )
    M^x_t = g( lambda M^x_{t-1} + eta h_t x_t^T )          M^h_t = g( lambda M^h_{t-1} + eta h_t h_{t-1}^T )

g is tanh by default: M and h drive each other, and by its authors' account M must be bounded for the network to train.
Source: the options of the public code of Aitken & Mihalas 2023, eLife 12:e83035.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from mpn_module import MPNLayer
from mpn_rl.config import MPNConfig, RecurrentMPNConfig
from mpn_rl.kernels.mpn import ACTIVATIONS
from mpn_rl.kernels.recurrent_mpn import recurrent_mpn_scan

LayerState = tuple[Tensor, Tensor, Tensor]  # M^x (B, H, D), M^h (B, H, H) and h (B, H)
NAMES = ("Mx", "Mh", "h")


class RecurrentMPNLayer(MPNLayer):
    """One layer; `RecurrentMPN` stacks layers and documents the options.

    eta, lambda and M(0) are those of an `MPNLayer` with the D + H inputs (x_t, h_{t-1}).

    Args:
        input_dim: D.
        options: of the layer.
    """

    def __init__(self, input_dim: int, options: MPNConfig) -> None:
        super().__init__(input_dim, options, fed_back=options.hidden_dim)
        H = options.hidden_dim
        bound = 1.0 / math.sqrt(H)  # as torch.nn.RNN
        self.recurrent = nn.Parameter(torch.empty(H, H).uniform_(-bound, bound))
        self.recurrent_mask: Tensor | None
        self.register_buffer("recurrent_mask", None)  # (H, H) bool

    def maskable_weights(self) -> tuple[str, ...]:
        """W_x and W_h."""
        return ("weight", "recurrent")

    def recurrent_weights(self) -> tuple[str, ...]:
        """W_h."""
        return ("recurrent",)

    def set_mask(self, weight: str, mask: Tensor) -> None:
        """Keep the mask of W_x or W_h, so that M is 0 where there is no synapse."""
        setattr(self, "mask" if weight == "weight" else "recurrent_mask", mask)

    def both_masks(self) -> Tensor | None:
        """The synapses that exist, (H, D + H); None: all."""
        pairs = ((self.mask, self.weight), (self.recurrent_mask, self.recurrent))
        if all(mask is None for mask, _ in pairs):
            return None
        return torch.cat([torch.ones_like(w, dtype=torch.bool) if mask is None else mask for mask, w in pairs], 1)

    def forward(  # type: ignore[override]
        self, xs: Tensor, state: LayerState, reset: Tensor | None
    ) -> tuple[Tensor, LayerState]:
        """A sequence: xs (B, T, D), the layer's state and reset (B, T) -> hs (B, T, H) and the last state."""
        options, D = self.options, xs.shape[2]
        if options.freeze_plasticity:
            return self._plain(xs, state, reset)
        mask = self.both_masks()
        modulation, eta, m0 = self.plasticity(torch.cat(state[:2], 2), mask)
        hs, modulation, h = recurrent_mpn_scan(
            xs,
            torch.cat([self.weight, self.recurrent], 1),
            self.bias,
            modulation,
            state[2],
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
        modulation = modulation if mask is None else modulation * mask
        return hs, (modulation[:, :, :D], modulation[:, :, D:], h)

    def _plain(self, xs: Tensor, state: LayerState, reset: Tensor | None) -> tuple[Tensor, LayerState]:
        """`forward` while M is 0: h_t = f(b + W_x x_t + W_h h_{t-1})."""
        drive, h = nn.functional.linear(xs, self.weight, self.bias), state[2]
        hs = []
        for t in range(xs.shape[1]):
            h = h if reset is None else h.masked_fill(reset[:, t, None], 0.0)
            h = ACTIVATIONS[self.options.activation](drive[:, t] + h @ self.recurrent.T)
            hs.append(h)
        return (torch.stack(hs, 1) if hs else drive), (*state[:2], h)

    def _load_from_state_dict(self, saved: dict[str, Tensor], prefix: str, *rest) -> None:
        if self.recurrent_mask is None and prefix + "recurrent_mask" in saved:
            self.recurrent_mask = saved[prefix + "recurrent_mask"].to(self.recurrent.device, copy=True)
        super()._load_from_state_dict(saved, prefix, *rest)


class RecurrentMPN(nn.Module):
    """A recurrent MPN of one or more layers, with the core contract.

    The state is a tuple: M^x (B, H, D), M^h (B, H, H) and h (B, H) of the first layer, then those of the others. Each
    layer after the first has the h of the layer before as its input. h starts at zero. The forms and rules are those of
    `mpn_module.MPN` with the input (x_t, h_{t-1}); so are the masks of an expansion, one for each weight matrix.

    Args:
        input_dim: D.
        hidden_dim: H, of every layer.
        num_layers: number of stacked layers.
        options: those of `config.RecurrentMPNConfig`, which `mpn_module.MPN` describes, with these differences:
            eta_shape, lambda_shape: over the D + H inputs; a scalar counts for both matrices.
            m_activation: tanh by default.
            freeze_plasticity: M stays exactly 0, which leaves a plain RNN.
            kernel: auto, reference or fused; see `kernels/recurrent_mpn.py`.

    Raises: ConfigError (a ValueError) for a value out of range or an unknown name.
    """

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int = 1, **options) -> None:
        super().__init__()
        checked = RecurrentMPNConfig(hidden_dim=hidden_dim, num_layers=num_layers, **options)
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(RecurrentMPNLayer(sizes[i], checked) for i in range(num_layers))
        self.input_dim, self.hidden_dim = input_dim, hidden_dim

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> tuple[Tensor, ...]:
        """M(0) and h = 0 of every layer, on the parameters' device or on `device`."""
        state: list[Tensor] = []
        for layer in cast("list[RecurrentMPNLayer]", self.layers):
            D = layer.weight.shape[1]
            state += (layer.m0[:, :D], layer.m0[:, D:], layer.m0.new_zeros(self.hidden_dim))
        return tuple(part.expand(batch_size, *part.shape).clone().to(device) for part in state)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step: x (B, D) -> h (B, H) and the next state."""
        hs, state = self.unroll(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(
        self, xs: Tensor, state: tuple[Tensor, ...], reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A sequence: xs (B, T, D) -> hs (B, T, H) and the last state.

        Where reset (B, T) is true, the row's M is set back to M(0) and its h to zero before that step.
        """
        after: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            xs, of_layer = layer(xs, state[3 * i : 3 * i + 3], reset)
            after += of_layer
        return xs, tuple(after)

    def forget(self, state: tuple[Tensor, ...], changed: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The state with M = 0 at synapses that have appeared or disappeared.

        Args:
            state: the core's state.
            changed: masks of these synapses, (H, D) or (H, H), by the name of the weight.
        """
        after = list(state)
        for i in range(len(self.layers)):
            for place, name in enumerate(("weight", "recurrent")):
                mask = changed.get(f"layers.{i}.{name}")
                if mask is not None:
                    after[3 * i + place] = after[3 * i + place].masked_fill(mask, 0.0)
        return tuple(after)

    def state_arrays(self, state: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """{"Mx": (B, H, D), "Mh": (B, H, H), "h": (B, H)}, or Mx1, Mh1, h1, Mx2, ... for several layers."""
        count = len(self.layers)
        names = [name if count == 1 else f"{name}{i + 1}" for i in range(count) for name in NAMES]
        return dict(zip(names, state, strict=True))
