"""What stands between an observation and the core, whatever the learner."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """What the core sees: x = [tanh(A obs + a), 1], each part optional.

    M acts only through (W * (M + 1)) x, so an MPN reads nothing out of its memory while the observation is
    zero, and NeuroGym's decision periods are just that: a bare MPN stays at chance for ever. With a learned
    embedding (`embed_dim`) or a constant channel (`constant_input`) the core's input is never all zero.
    """

    def __init__(self, obs_dim: int, embed_dim: int, constant_input: bool) -> None:
        super().__init__()
        self.embedding = nn.Linear(obs_dim, embed_dim) if embed_dim else None
        self.constant_input = constant_input
        self.output_dim = (embed_dim or obs_dim) + constant_input

    def forward(self, obs: Tensor) -> Tensor:
        """(..., obs_dim) -> (..., output_dim)."""
        x = torch.tanh(self.embedding(obs)) if self.embedding is not None else obs
        return nn.functional.pad(x, (0, 1), value=1.0) if self.constant_input else x
