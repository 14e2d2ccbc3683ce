"""RNN, GRU, LSTM (torch.nn's own) and a memoryless MLP behind the core contract: the baselines of the MPN."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpn_kernels import ACTIVATIONS

KINDS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentCore(nn.Module):
    """torch.nn's RNN (tanh), GRU or LSTM.

    The state is h (B, layers, H), and for the LSTM (h, c): the batch comes first, unlike in torch.nn, so
    that rows can be stored, reset and replayed alike for every core.
    """

    def __init__(self, kind: str, input_dim: int, hidden_dim: int, num_layers: int = 1) -> None:
        super().__init__()
        self.kind, self.input_dim, self.hidden_dim, self.num_layers = kind, input_dim, hidden_dim, num_layers
        self.net = KINDS[kind](input_dim, hidden_dim, num_layers, batch_first=True)

    def init_state(self, batch_size: int, device: torch.device | str | None = None):
        zeros = torch.zeros(batch_size, self.num_layers, self.hidden_dim, device=device)
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
            keep = (~reset[:, start]).to(xs.dtype)[:, None, None]
            state = tuple(part * keep for part in state) if isinstance(state, tuple) else state * keep
            hs, state = self._run(xs[:, start:stop], state)
            pieces.append(hs)
        return torch.cat(pieces, 1), state

    def state_arrays(self, state) -> dict[str, Tensor]:
        """{"h": ...} and for the LSTM {"c": ...}, each (B, layers * H)."""
        parts = state if isinstance(state, tuple) else (state,)
        return {name: part.flatten(1) for name, part in zip(("h", "c"), parts, strict=False)}

    def _run(self, xs: Tensor, state):
        inner = _layers_first(state)
        hs, inner = self.net(xs, inner)
        return hs, _layers_first(inner)


def _layers_first(state):
    """(B, layers, H) <-> (layers, B, H)."""
    if isinstance(state, tuple):
        return tuple(part.transpose(0, 1).contiguous() for part in state)
    return state.transpose(0, 1).contiguous()


class MLPCore(nn.Module):
    """A memoryless multilayer perceptron; its state is empty, (B, 0)."""

    def __init__(self, input_dim: int, hidden_dim: int, num_layers: int = 1, activation: str = "tanh") -> None:
        super().__init__()
        self.input_dim, self.hidden_dim, self.activation = input_dim, hidden_dim, activation
        sizes = [input_dim] + [hidden_dim] * num_layers
        self.layers = nn.ModuleList(nn.Linear(sizes[i], hidden_dim) for i in range(num_layers))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(batch_size, 0, device=device)

    def forward(self, x: Tensor, state: Tensor):
        """x (..., D) -> h (..., H); the state passes through."""
        for layer in self.layers:
            x = ACTIVATIONS[self.activation](layer(x))
        return x, state

    def unroll(self, xs: Tensor, state: Tensor, reset: Tensor | None = None):
        return self.forward(xs, state)

    def state_arrays(self, state: Tensor) -> dict[str, Tensor]:
        return {}
