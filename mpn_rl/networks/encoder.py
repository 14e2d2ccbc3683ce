"""What stands around a core, whatever the learner: the encoder in front of it, and the network that acts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mpn_rl.contracts import Core


def epsilon_greedy(greedy: Tensor, num_actions: int, epsilon: float, generator: torch.Generator | None) -> Tensor:
    """Actions (B,): the greedy ones, each replaced by a uniform one with probability epsilon.

    Args:
        greedy: the best actions, (B,) int64.
        num_actions: A, the number of choices.
        epsilon: probability of a uniform action; with 0 nothing is drawn.
        generator: on the CPU, so that a run's random numbers do not depend on the device; None: torch's global one.
    """
    if epsilon <= 0.0:
        return greedy
    explore = torch.rand(len(greedy), generator=generator) < epsilon
    uniform = torch.randint(num_actions, (len(greedy),), generator=generator)
    return torch.where(explore.to(greedy.device), uniform.to(greedy.device), greedy)


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


class AgentNetwork(nn.Module):
    """The network that acts: head(h_t), with h_t the core's output for the encoded observation.

    Subclasses set `encoder`, `core` and `head`, and say in `choose` what the head's output means.
    """

    encoder: Encoder
    core: Core
    head: Any
    sample_policy: bool | None = None  # draw from the policy instead of its best action; None: it cannot be drawn from

    def init_state(self, batch_size: int, device: torch.device | str | None = None):
        """The core's state at an episode's start."""
        return self.core.init_state(batch_size, device or next(self.head.parameters()).device)

    def features(self, obs: Tensor, state):
        """One step without the head: obs (B, D) -> h (B, H) and the next state."""
        return self.core(self.encoder(obs), state)

    def forward(self, obs: Tensor, state):
        """One step: obs (B, D) -> what the head makes of h (B, A), and the next state."""
        h, state = self.features(obs, state)
        return self.head(h), state

    def unroll(self, obs: Tensor, state, reset: Tensor | None = None):
        """A sequence: obs (B, T, D) -> (B, T, A) and the last state; `reset` as in the core contract."""
        hs, state = self.core.unroll(self.encoder(obs), state, reset)
        return self.head(hs), state

    @torch.no_grad()
    def select_action(self, obs: Tensor, state, epsilon: float = 0.0, generator: torch.Generator | None = None):
        """Actions by `choose`, and the next state, which moves on whatever the action."""
        h, state = self.features(obs, state)
        return self.choose(self.head(h), epsilon, generator), state

    def choose(self, preferences: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Actions from what the head returned (B, A), a share `epsilon` of them random."""
        raise NotImplementedError
