"""The encoder in front of a core, and the base class of the networks that act."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mpn_rl.contracts import Core, Maskable, MaskedState, State
from mpn_rl.storage.state_trees import Schema, Values, check, like


def epsilon_greedy(greedy: Tensor, num_actions: int, epsilon: float, generator: torch.Generator | None) -> Tensor:
    """The greedy actions, each replaced by a uniform one with probability epsilon.

    Args:
        greedy: the best actions, (B,) int64.
        num_actions: A, the number of choices.
        epsilon: probability of a uniform action; 0 draws no random numbers.
        generator: on the CPU, so that a run's random numbers do not depend on the device; None: torch's global one.
    Returns: actions, (B,) int64.
    """
    if epsilon <= 0.0:
        return greedy
    explore = torch.rand(len(greedy), generator=generator) < epsilon
    uniform = torch.randint(num_actions, (len(greedy),), generator=generator)
    return torch.where(explore.to(greedy.device), uniform.to(greedy.device), greedy)


class Encoder(nn.Module):
    """The core's input, x = [tanh(A obs + a), 1]; both the embedding and the constant channel are optional.

    A fixed random projection x = P obs + p may replace the embedding; its entries are drawn from N(0, 1 / width) once
    and never trained, so that on average |P obs| = |obs| and |p| = 1.

    M acts only through (W * (M + 1)) x, so an MPN cannot read its memory while its input is zero, and in nearly all of
    NeuroGym's decision periods the observation is zero: an MPN without encoder stays at chance. With an embedding or
    the constant channel, the core's input is never all zero.

    Args:
        obs_dim: size of an observation.
        embed_dim: size of the embedding; 0: x contains obs itself.
        constant_input: whether x has the constant channel.
        random_projection: width of the fixed projection, which replaces the embedding; 0: none.
    """

    def __init__(self, obs_dim: int, embed_dim: int, constant_input: bool, random_projection: int = 0) -> None:
        super().__init__()
        width = random_projection or embed_dim or obs_dim
        self.embedding = nn.Linear(obs_dim, embed_dim) if embed_dim and not random_projection else None
        self.projection: Tensor | None
        self.offset: Tensor | None
        # Buffers: no optimiser and no expansion changes them.
        drawn = torch.randn(width, obs_dim + 1) / math.sqrt(width) if random_projection else None
        self.register_buffer("projection", None if drawn is None else drawn[:, :-1].clone())
        self.register_buffer("offset", None if drawn is None else drawn[:, -1].clone())
        self.constant_input = constant_input
        self.output_dim = width + constant_input

    def forward(self, obs: Tensor) -> Tensor:
        """Observations (..., obs_dim) -> x (..., output_dim)."""
        x = torch.tanh(self.embedding(obs)) if self.embedding is not None else obs
        if self.projection is not None:
            x = nn.functional.linear(obs, self.projection, self.offset)
        return nn.functional.pad(x, (0, 1), value=1.0) if self.constant_input else x


class AgentNetwork(nn.Module):
    """A network that acts by head(h_t), where h_t is the core's output for the encoded observation.

    Subclasses set `encoder`, `core` and `head`, and define in `choose` which actions follow from the head's output.
    """

    encoder: Encoder
    core: Core
    head: nn.Module
    hidden_dim: int  # H, of the core
    output_name: str | None = "q_values"  # of what `reported` returns, in recordings; None: the actions say it all
    sample_policy: bool | None = None  # draw from the policy instead of its best action; None: it cannot be drawn from

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """The core's state at an episode's start."""
        return self.core.init_state(batch_size, device or next(self.head.parameters()).device)

    def features(self, obs: Tensor, state: State) -> tuple[Tensor, State]:
        """One step without the head: obs (B, D) -> h (B, H) and the next state."""
        return self.core(self.encoder(obs), state)

    def forward(self, obs: Tensor, state: State):
        """One step: obs (B, D) -> the head's output (B, A) and the next state."""
        h, state = self.features(obs, state)
        return self.head(h), state

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None):
        """A sequence: obs (B, T, D) -> (B, T, A) and the last state; `reset` as in the core contract."""
        hs, state = self.core.unroll(self.encoder(obs), state, reset)
        return self.head(hs), state

    def state_arrays(self, state: State) -> dict[str, Tensor]:
        """The parts of the core's state by name, each (B, ...)."""
        return self.core.state_arrays(state)

    @torch.no_grad()
    def select_action(
        self, obs: Tensor, state: State, epsilon: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Actions by `choose`, and the next state, which does not depend on the action."""
        h, state = self.features(obs, state)
        return self.choose(self.head(h), epsilon, generator), state

    def reported(self, output: Tensor) -> Tensor:
        """What a recording stores of the head's output (B, A)."""
        return output

    def choose(self, preferences: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Actions from the head's output (B, A); a share `epsilon` of them is random."""
        raise NotImplementedError


def check_weights(saved: object, network: nn.Module, place: str = "network") -> None:
    """Raise a StateError where `saved` is not a `state_dict` of the network: other names, shapes, dtypes, or NaN.

    A layer may have a mask that the network lacks so far, as a layer of a sparse topology has.
    """
    schema: dict[str, Schema] = {}
    for name, value in network.state_dict().items():
        schema[name] = like(value)
    for prefix, module in network.named_modules():
        if not (isinstance(module, MaskedState) and isinstance(module, Maskable)):
            continue
        for own in module.maskable_weights():
            weight = schema.get(f"{prefix}.{own}".removeprefix("."))
            name = f"{prefix}.{'mask' if own == 'weight' else own + '_mask'}".removeprefix(".")
            if isinstance(weight, Values) and name not in schema:
                schema[f"{name}?"] = Values(torch.bool, weight.shape)  # None, which state_dict leaves out
    check(saved, schema, place)
