"""What cores, replay buffers and learners must provide, and the data that they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

State: TypeAlias = Tensor | tuple[Tensor, ...]  # of a core: tensors with one row per batch row
StateDict: TypeAlias = dict[str, Any]  # what `state_dict` returns: tensors, arrays and numbers, nested
MetricsRow: TypeAlias = dict[str, Any]  # a line of metrics.jsonl: "kind", "step" and numbers by name
Action: TypeAlias = int | np.ndarray  # a choice, or a vector (A,) where actions are continuous
Info: TypeAlias = dict[str, Any]  # what a step reports besides, under the names that `Task` lists
Conditions: TypeAlias = Mapping[str, bool | int | float | str]  # of one trial, by name


class Batch(NamedTuple):
    """One batch of training data: B rows, T steps, observations of dimension D.

    In row b, the agent saw obs[b, t], took action[b, t], received reward[b, t] and then saw obs[b, t+1]. There is one
    observation more than there are steps, so a target that is shifted by one step does not fit the shapes.
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

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed, those of the state too."""
        parts = ("obs", "reset", "action", "reward", "terminated", "mask", "weight")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in parts}
        return self._replace(state0=map_state(change, self.state0), **changed)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with every tensor on `device`."""
        return self.each(lambda part: part.to(device))


class Sequences(NamedTuple):
    """B sequences of T steps with the right actions, for supervised learning."""

    obs: Tensor  # (B, T, D)
    reset: Tensor  # (B, T) bool: the state is set to `init_state` before this observation
    target: Tensor  # the right action: (B, T) int64, -1 where there is none; or (B, T, A), nan where there is none
    decision: Tensor  # (B, T) bool: the step lies in the period in which the task scores the action

    def to(self, device: torch.device | str) -> Sequences:
        """The sequences with every tensor on `device`."""
        return Sequences(*(part.to(device) for part in self))


# The same of NumPy, without `reset`: obs (B, T, D), new_trial (B, T) where a trial starts, target and decision.
SequenceArrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


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
    """A module with trained weight matrices outside torch.nn's layers, which an expansion may mask."""

    feedforward: bool  # whether these matrices read the module's input; false where they are recurrent

    def maskable_weights(self) -> tuple[str, ...]:
        """Names of the module's own parameters, each a matrix (units, inputs) or (inputs, units)."""
        ...


@runtime_checkable
class PartlyRecurrent(Protocol):
    """A `Maskable` module, feedforward as a whole, some of whose matrices read its own last output."""

    def recurrent_weights(self) -> tuple[str, ...]:
        """Names of these, a part of `maskable_weights`, each (units, units)."""
        ...


@runtime_checkable
class MaskedState(Protocol):
    """A `Maskable` module that keeps state on its synapses, and so has to know which of them exist."""

    def set_mask(self, weight: str, mask: Tensor) -> None:
        """Keep the mask of one of the maskable weights, bool in its shape; an expansion changes it in place."""
        ...


@runtime_checkable
class SynapticState(Protocol):
    """A core whose state has an entry per synapse, which must be cleared where an expansion changes a synapse."""

    def forget(self, state: State, changed: Mapping[str, Tensor]) -> State:
        """The state with zeros at changed synapses.

        Args:
            state: of the core.
            changed: true where a weight is new or gone, by the weight's name in the core, in the weight's shape.
        """
        ...


class Network(Protocol):
    """The network that acts, an nn.Module: an encoder, a core and a head; see `networks/encoder.py`."""

    hidden_dim: int  # H, of the core

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State: ...
    def select_action(
        self, obs: Tensor, state: State, epsilon: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
    def state_dict(self) -> StateDict: ...


class Played(NamedTuple):
    """What the lanes of a saved run have done, as far as a memory of their steps has to agree with it."""

    steps: int  # of every lane
    episode_steps: np.ndarray  # (N,) of each lane's current episode
    low: float  # bounds of the actions
    high: float


class Memory(Protocol):
    """Storage of the steps that a learner learns from, as the training loop uses it."""

    @property
    def nbytes(self) -> int: ...  # size in bytes once it is full
    def __len__(self) -> int: ...  # entries that can be learned from now
    def add(self, steps: Steps, state: State) -> None: ...  # one step of all lanes, and the state before it
    def end_episodes(self) -> None: ...  # the next step of every lane starts an episode, as after a time limit
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, saved: StateDict) -> None: ...
    def check_played(self, played: Played) -> None: ...  # StateError where the loaded steps are not those of the run


class Replay(Memory, Protocol):
    """A memory from which an off-policy learner samples batches, with replacement."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Batch: ...


class SequenceSource(Memory, Protocol):
    """What a supervised learner learns from: it draws new sequences of a task, and stores no steps."""

    def sample(self, batch_size: int, rng: np.random.Generator) -> Sequences: ...


class Expansion(Protocol):
    """What grows, prunes or changes a learner's networks; `expansion/topology.py` documents the methods.

    The learner calls the first two around an optimiser's step and saves the state; the training loop and the metrics
    use the others.
    """

    def before_step(self, name: str) -> None: ...
    def after_step(self, name: str) -> None: ...
    def state_dict(self) -> StateDict: ...
    def check_state(self, saved: object, place: str) -> None: ...
    def load_state_dict(self, saved: StateDict, /) -> object: ...
    def advance(self, step: int) -> bool: ...
    def reset_state(self, network: Network, state: State) -> State: ...
    def densities(self) -> dict[str, float]: ...
    def churn(self) -> dict[str, float]: ...
    def history(self) -> dict[str, np.ndarray]: ...


MemoryT = TypeVar("MemoryT", bound=Memory, contravariant=True)


class Learner(Protocol[MemoryT]):
    """A learning algorithm, as the training loop and the metrics use it; `learners/base.py` documents the methods.

    It learns from the kind of memory that its own `make_replay` makes.
    """

    device: torch.device
    networks: dict[str, nn.Module]  # trained, by name
    grad_norms: dict[str, Tensor]  # of the last update, before clipping, by network
    updates: int  # so far
    first_update: str  # in words: which options decide when the first update happens
    acts: bool  # whether it learns from the steps of the lanes; else from a `SequenceSource`

    @property
    def online(self) -> Network: ...  # acts while training
    @property
    def policy(self) -> Network: ...  # is evaluated and saved
    @property
    def topology(self) -> Expansion | None: ...  # with --expansion
    @property
    def evaluated_as(self) -> str: ...  # how `policy` chooses actions in an evaluation: "greedy" or "sampled"
    @property
    def memory(self) -> str: ...  # in words: what it learns from
    def start_from(self, weights: StateDict) -> None: ...
    def set_progress(self, progress: float) -> None: ...
    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]: ...
    def store(self, replay: MemoryT, steps: Steps, state: State, next_state: State) -> None: ...
    def updates_due(self, replay: MemoryT, step: int, num_lanes: int) -> float: ...
    def learn(self, replay: MemoryT, rng: np.random.Generator) -> dict[str, Tensor]: ...
    def probe(self, replay: MemoryT, rng: np.random.Generator) -> Batch | None: ...
    def run_network(self, name: str, batch: Batch) -> None: ...
    def status(self) -> dict[str, float]: ...
    def state_dict(self) -> StateDict: ...
    def load_state_dict(self, saved: StateDict) -> None: ...


def state_parts(state: State) -> tuple[Tensor, ...]:
    """The tensors of a core's state as a tuple, also where the state is a single tensor."""
    return state if isinstance(state, tuple) else (state,)


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply `function` to every tensor of a state. Returns: a state of the same form, a tensor or a tuple."""
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def to_tensor(array: np.ndarray, device: torch.device | str | None = None) -> Tensor:
    """A copy of an array in memory that PyTorch allocates.

    The rounding of a matrix product depends on the address of its operands. PyTorch aligns its memory, NumPy does not,
    so `torch.from_numpy` gives results that may differ from one run to the next.
    """
    return torch.tensor(array, device=device)


class Steps(NamedTuple):
    """One step of all N lanes, as `lanes.Lanes` returns it; all arrays have N rows."""

    obs: np.ndarray  # (N, D) before the step
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
        trial_number, gt, period, decision, performance, aborted   as in `NeuroGymWrapper`; each may be missing
    """

    obs_dim: int  # D

    @property
    def channel_names(self) -> Sequence[str] | None: ...  # one per entry of the observation; None: numbers
    @property
    def action_names(self) -> Sequence[str] | None: ...  # one per choice; None: numbers
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

    def sequences(self, seeds: np.ndarray, steps: int) -> SequenceArrays | None:
        """Whole trials one after the other with their right actions, without being played; each row follows its seed.

        Args:
            seeds: one per sequence, (B,).
            steps: T, of every sequence.
        Returns: None where the observations depend on the actions, so that the task has to be played.
        """
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
        """Everything that the rows need to continue."""
        ...

    def load_state_dict(self, saved: dict[str, np.ndarray]) -> None: ...
