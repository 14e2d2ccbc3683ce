"""What passes between tasks, memories and learners: one step of all lanes, and a batch to learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

State: TypeAlias = Tensor | tuple[Tensor, ...]  # of a core: tensors with one row per batch row


class Batch(NamedTuple):
    """What a learner learns from; B rows, T steps, observations of dimension D.

    Row b's obs[b, t] led to action[b, t], reward[b, t] and obs[b, t+1], so the last observation is the true
    final one and a target evaluated one step late cannot be written.
    """

    obs: Tensor  # (B, T+1, D)
    reset: Tensor  # (B, T+1) bool: the state is set to `init_state` before this observation
    action: Tensor  # (B, T) int64, or (B, T, A) float for continuous actions
    reward: Tensor  # (B, T)
    terminated: Tensor  # (B, T) 1.0 where the task ended; a time limit does not
    mask: Tensor  # (B, T) 1.0 on steps that are recorded and learned
    state0: State  # the core's state before obs[:, 0]
    burn_in: int  # leading steps that only warm up the state
    weight: Tensor  # (B,) importance-sampling weights, 1 when sampling is uniform
    places: np.ndarray  # (B,) where the rows lie in the replay buffer, for `update_priorities`

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`."""
        return self._replace(
            obs=self.obs.to(device),
            reset=self.reset.to(device),
            action=self.action.to(device),
            reward=self.reward.to(device),
            terminated=self.terminated.to(device),
            mask=self.mask.to(device),
            state0=map_state(lambda part: part.to(device), self.state0),
            weight=self.weight.to(device),
        )


class Core(Protocol):
    """A recurrent core, an nn.Module: B rows that never mix, T steps, D inputs, H hidden units.

    The state is a tensor or a tuple of tensors, each with B rows, and is never kept on the module. A core receives only
    states of its own kind, so its methods may ask for a tensor alone or for a tuple alone.
    """

    hidden_dim: int  # H

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """The state of `batch_size` rows at an episode's start."""
        ...

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, State]:
        """One step: x (B, D) -> h (B, H) and the next state."""
        ...

    def unroll(self, xs: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """A sequence, equal to the loop over single steps: xs (B, T, D) -> hs (B, T, H) and the last state.

        Args:
            xs: inputs, (B, T, D).
            state: before the first step.
            reset: true where a row's state is set back to `init_state` before that step, (B, T); None: nowhere.
        """
        ...

    def state_arrays(self, state: Any) -> dict[str, Tensor]:
        """The parts of a state by the names that analyses use, each (B, ...)."""
        ...


@runtime_checkable
class Maskable(Protocol):
    """A module with trained weight matrices that are none of torch.nn's, which an expansion may mask."""

    feedforward: bool  # whether these matrices read the module's input; false where they are recurrent

    def maskable_weights(self) -> tuple[str, ...]:
        """Names of the module's own parameters, each a matrix (units, inputs) or (inputs, units)."""
        ...


def state_parts(state: State) -> tuple[Tensor, ...]:
    """A core's state, which is a tensor or a tuple of them, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """`function` over every tensor of a state; the shape of the state stays."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


class Steps(NamedTuple):
    """One step of all N lanes, as `lanes.Lanes` reports it; all arrays have N rows."""

    obs: np.ndarray  # (N, D) acted upon
    action: np.ndarray  # (N,)
    reward: np.ndarray
    terminated: np.ndarray  # bool
    truncated: np.ndarray  # bool
    next_obs: np.ndarray  # (N, D) the true next observation, also at an episode's end
    new_trial: np.ndarray  # bool: this step ended a trial
