"""What passes between tasks, memories and learners: one step of all lanes, and a batch to learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

State: TypeAlias = Tensor | tuple[Tensor, ...]  # of a core: tensors with one row per batch row
Action: TypeAlias = int | np.ndarray  # a choice, or a vector (A,) where actions are continuous
Info: TypeAlias = dict[str, Any]  # what a step reports besides, under the names that `Task` lists
Conditions: TypeAlias = Mapping[str, bool | int | float | str]  # of one trial, by name


class Batch(NamedTuple):
    """What a learner learns from; B rows, T steps, observations of dimension D.

    Row b's obs[b, t] led to action[b, t], reward[b, t] and obs[b, t+1], so the last observation is the true
    final one and a target evaluated one step late cannot be written.
    """

    obs: Tensor  # (B, T+1, D)
    reset: Tensor  # (B, T+1) bool: the state starts anew before this observation
    action: Tensor  # (B, T) int64, or (B, T, A) float for continuous actions
    reward: Tensor  # (B, T)
    terminated: Tensor  # (B, T) 1.0 where the task ended; a time limit does not
    mask: Tensor  # (B, T) 1.0 on steps that are recorded and learned
    state0: Any  # the core's state before obs[:, 0]
    burn_in: int  # leading steps that only warm up the state
    weight: Tensor  # (B,) importance-sampling weights, 1 when sampling is uniform
    index: np.ndarray  # type: ignore[assignment]  # (B,) the segments' places, for `update_priorities`

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor) and name != "state0"
        }
        return self._replace(**moved, state0=map_state(lambda part: part.to(device), self.state0))


class Core(Protocol):
    """A recurrent core, an nn.Module: B rows that never mix, T steps, D inputs, H hidden units.

    The state is a tensor or a tuple of tensors, each with B rows, and is never kept on the module.
    """

    hidden_dim: int  # H

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> Any:
        """The state of `batch_size` rows at an episode's start."""
        ...

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step: x (B, D) -> h (B, H) and the next state."""
        ...

    def unroll(self, xs: Tensor, state: Any, reset: Tensor | None = None) -> tuple[Tensor, Any]:
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


def state_parts(state) -> tuple[Tensor, ...]:
    """A core's state, which is a tensor or a tuple of them, as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def map_state(function, state):
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


@runtime_checkable
class Lesionable(Protocol):
    """A core that can hold one part of its state at zero (`--lesion`)."""

    lesion: str | None  # the part's name; None: the core is intact


@runtime_checkable
class HasConditions(Protocol):
    """A Gymnasium task with trials, which names the conditions of the current one."""

    conditions: Conditions


class Task(Protocol):
    """A Gymnasium environment with flat float32 observations, as `registry.make_env` builds it.

    An episode is a function of its seed and the actions. The toolkit reads these entries of the info of a step:
        hit            bool, the step earned what the task is about; counted per quarter of the episode
        new_trial      bool, the step ended a trial; a task without this entry has no trials
        trial_number, gt, period, decision, performance, aborted   as in `NeuroGymWrapper`
    """

    obs_dim: int  # D
    action_names: Sequence[str] | None  # one per choice; None: numbers

    @property
    def observation_space(self) -> object: ...  # gymnasium.spaces.Box of shape (D,)

    @property
    def action_space(self) -> object: ...  # gymnasium.spaces.Discrete from 0, or a bounded Box of shape (A,)

    @property
    def dt_ms(self) -> float: ...  # duration of a step in ms; 0 where the task has no clock

    @property
    def trial_steps(self) -> int: ...  # full length of the current trial in steps; 0 where the task has no trials

    @property
    def conditions(self) -> Conditions: ...  # of the current trial; empty where the task has none

    @property
    def scripted(self) -> Mapping[str, Callable[..., Action]]: ...  # reference policies (env, rng) -> action, by name

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, Info]:
        """Start an episode. Returns: observation (D,), info."""
        ...

    def step(self, action: Action) -> tuple[np.ndarray, float, bool, bool, Info]:
        """Returns: observation (D,), reward, terminated, truncated, info."""
        ...

    def render(self) -> object: ...  # (height, width, 3) uint8, or something else where the task has no pictures

    def close(self) -> None: ...


class VectorEnv(Protocol):
    """N rows of one task that step together. A row behaves as a single environment with its seed does.

    A row whose episode has ended waits for `reset_rows`; it does not restart by itself.
    """

    num_envs: int  # N

    def reset_rows(self, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Start an episode in each of `rows` (n,), with the seeds (n,). Returns: their observations, (n, D)."""
        ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Returns: observations (N, D); rewards, terminated, truncated and each entry of the info, (N,)."""
        ...

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the rows need to go on."""
        ...

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None: ...
