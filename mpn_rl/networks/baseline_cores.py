"""RNN, GRU, LSTM (torch.nn's own) and a memoryless MLP behind the core contract: the baselines of the MPN."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from mpn_rl.kernels.linear import Linear
from mpn_rl.kernels.mpn import ACTIVATIONS

KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentCore(nn.Module):
    """torch.nn's RNN (tanh), GRU or LSTM.

    The state is h (B, layers, H), and for the LSTM (h, c): the batch comes first, unlike in torch.nn, so
    that rows can be stored, reset and replayed alike for every core.

    Args:
        kind: rnn, gru or lstm.
        input_dim, hidden_dim, num_layers: D, H and the stacked layers, all of H units.
    Source: torch.nn.RNN, GRU, LSTM, whose documentation has the equations.
    """

    def __init__(self, kind: str, input_dim: int, hidden_dim: int, num_layers: int = 1) -> None:
        super().__init__()
        self.kind, self.input_dim, self.hidden_dim, self.num_layers = kind, input_dim, hidden_dim, num_layers
        self.net = KINDS[kind](input_dim, hidden_dim, num_layers, batch_first=True)

    def init_state(self, batch_size: int, device: torch.device | str | None = None):
        """Zeros in the parameters' dtype, and on their device unless another is named."""
        zeros = next(self.parameters()).new_zeros(batch_size, self.num_layers, self.hidden_dim, device=device)
        return (zeros, zeros.clone()) if self.kind == "lstm" else zeros

    def forward(self, x: Tensor, state):
        """One step: x (B, D) -> h (B, H) and the next state."""
        hs, state = self._run(x.unsqueeze(1), state)
        return hs.squeeze(1), state

    def unroll(self, xs: Tensor, state, reset: Tensor | None = None):
        """A sequence: xs (B, T, D) -> hs (B, T, H); the state of a row is 0 again where reset (B, T) is true.

        torch's kernel takes whole stretches: the sequence is cut only at the steps where some row resets.
        """
        if reset is None or not bool(reset.any()):
            return self._run(xs, state)
        cuts = reset.any(0).nonzero().flatten().tolist()
        edges = sorted({0, *cuts, xs.shape[1]})
        pieces = []
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            fresh = functools.partial(torch.masked_fill, mask=reset[:, start, None, None], value=0.0)
            hs, state = self._run(xs[:, start:stop], _each(fresh, state))
            pieces.append(hs)
        return torch.cat(pieces, 1), state

    def state_arrays(self, state) -> dict[str, Tensor]:
        """{"h": ...} and for the LSTM {"c": ...}, each (B, layers * H)."""
        parts = state if isinstance(state, tuple) else (state,)
        return {name: part.flatten(1) for name, part in zip(("h", "c"), parts, strict=False)}

    def _run(self, xs: Tensor, state):
        hs, inner = self.net(xs, _each(_layers_first, state))
        return hs, _each(_layers_first, inner)


def _each(function, state):
    """`function` of every tensor of a state."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def _layers_first(part: Tensor) -> Tensor:
    """(B, layers, H) <-> (layers, B, H)."""
    return part.transpose(0, 1).contiguous()


class MLPCore(nn.Module):
    """A memoryless multilayer perceptron, h = f(W_L ... f(W_1 x + b_1) ... + b_L); its state is empty, (B, 0)."""

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int = 1, activation: str = "tanh") -> None:
        super().__init__()
        self.input_dim, self.hidden_dim, self.activation = input_dim, hidden_dim, activation
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(Linear(sizes[i], hidden_dim) for i in range(num_layers))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """Nothing: (B, 0)."""
        return next(self.parameters()).new_zeros(batch_size, 0, device=device)

    def forward(self, x: Tensor, state: Tensor):
        """x (..., D) -> h (..., H); the state passes through."""
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return x, state

    def unroll(self, xs: Tensor, state: Tensor, reset: Tensor | None = None):
        """xs (B, T, D) -> hs (B, T, H); with no memory there is nothing to reset."""
        return self.forward(xs, state)

    def state_arrays(self, state: Tensor) -> dict[str, Tensor]:
        """Nothing to name."""
        return {}
