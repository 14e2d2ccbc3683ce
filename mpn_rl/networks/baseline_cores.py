"""The baselines of the MPN, with the core contract: torch.nn's RNN, GRU and LSTM, and an MLP without memory."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor, nn

from mpn_rl.contracts import State, map_state, state_parts
from mpn_rl.kernels.linear import Linear
from mpn_rl.kernels.mpn import ACTIVATIONS

KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentCore(nn.Module):
    """torch.nn's RNN (tanh), GRU or LSTM.

    The state is h (B, layers, H), and for the LSTM (h, c). Unlike in torch.nn the batch comes first, as in every core.

    Args:
        kind: rnn, gru or lstm.
        input_dim: D.
        hidden_dim: H, of every layer.
        num_layers: number of stacked layers.
    Source: torch.nn.RNN, GRU, LSTM, whose documentation has the equations.
    """

    def __init__(self, kind: str, input_dim: int, hidden_dim: int, num_layers: int = 1) -> None:
        super().__init__()
        self.kind, self.input_dim, self.hidden_dim, self.num_layers = kind, input_dim, hidden_dim, num_layers
        self.net = KINDS[kind](input_dim, hidden_dim, num_layers, batch_first=True)

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """Zeros in the parameters' dtype, on their device or on `device`."""
        zeros = next(self.parameters()).new_zeros(batch_size, self.num_layers, self.hidden_dim, device=device)
        return (zeros, zeros.clone()) if self.kind == "lstm" else zeros

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x (B, D) -> h (B, H) and the next state."""
        hs, state = self._run(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(self, xs: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """A sequence: xs (B, T, D) -> hs (B, T, H) and the last state; `reset` as in the core contract.

        The sequence is cut only at the steps where a row resets, since torch's kernel is fast for long pieces.
        """
        if reset is None or not bool(reset.any()):
            return self._run(xs, state)
        cuts = reset.any(0).nonzero().flatten().tolist()
        edges = sorted({0, *cuts, xs.shape[1]})
        pieces = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            fresh = functools.partial(torch.masked_fill, mask=reset[:, start, None, None], value=0.0)
            hs, state = self._run(xs[:, start:stop], map_state(fresh, state))
            pieces.append(hs)
        return torch.cat(pieces, 1), state

    def state_arrays(self, state: State) -> dict[str, Tensor]:
        """{"h": ...} and for the LSTM {"c": ...}, each (B, layers * H)."""
        return {name: part.flatten(1) for name, part in zip(("h", "c"), state_parts(state), strict=False)}

    def _run(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        """`unroll` without resets."""
        hs, inner = self.net(xs, map_state(_layers_first, state))
        return hs, map_state(_layers_first, inner)


def _layers_first(part: Tensor) -> Tensor:
    """(B, layers, H) <-> (layers, B, H)."""
    return part.transpose(0, 1).contiguous()


class MLPCore(nn.Module):
    """A multilayer perceptron, h = f(W_L ... f(W_1 x + b_1) ... + b_L), without memory: its state is empty, (B, 0).

    Args:
        input_dim: D.
        hidden_dim: H, of every layer.
        num_layers: L.
        activation: f, one of tanh, relu, sigmoid, linear.
        layer_norm: normalise each layer before f, with learned gain and bias (Ba et al. 2016). It keeps units from
            saturating and from dying, and so helps a network to stay able to learn (Lyle et al. 2023).
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, num_layers: int = 1, activation: str = "tanh", layer_norm: bool = False
    ) -> None:
        super().__init__()
        self.input_dim, self.hidden_dim, self.activation = input_dim, hidden_dim, activation
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(Linear(sizes[i], hidden_dim) for i in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(num_layers if layer_norm else 0))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """An empty state, (B, 0)."""
        return next(self.parameters()).new_zeros(batch_size, 0, device=device)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: x (..., D) -> h (..., H) and the same state."""
        for layer, norm in itertools.zip_longest(self.layers, self.norms):
            x = layer(x)
            x = ACTIVATIONS[self.activation](x if norm is None else norm(x))
        return x, state

    def unroll(self, xs: Tensor, state: Tensor, reset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A sequence: xs (B, T, D) -> hs (B, T, H) and the same state; `reset` has no effect."""
        return self.forward(xs, state)

    def state_arrays(self, state: Tensor) -> dict[str, Tensor]:
        """No arrays: the state is empty."""
        return {}
