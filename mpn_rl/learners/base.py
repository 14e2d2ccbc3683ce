"""Base classes of the learners: what all share, and learning from a replay buffer, rollouts, or labelled sequences."""

from __future__ import annotations

import collections
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVarTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpn_rl.config import (
    ContinualBackpropConfig,
    ExpansionConfig,
    L2InitConfig,
    LearnerConfig,
    PaperExpansionConfig,
    ReplayConfig,
    ShrinkPerturbConfig,
)
from mpn_rl.contracts import Batch, Expansion, Replay, Sequences, SequenceSource, State, StateDict, Steps, map_state
from mpn_rl.expansion.continual_backprop import ContinualBackprop
from mpn_rl.expansion.plasticity_remedies import Draw, L2Init, ShrinkPerturb
from mpn_rl.expansion.topology import Topology
from mpn_rl.learners.rollout_buffer import Rollout, RolloutBuffer
from mpn_rl.networks.encoder import AgentNetwork, check_weights
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import (
    FLOAT_MAX,
    LARGEST,
    Anything,
    Named,
    Schema,
    Values,
    check,
    check_torch_random,
    like,
    like_dict,
)
from trial_replay import ReplayBuffer, SequenceReplayBuffer, TrialReplayBuffer


class Adam(torch.optim.Adam):
    """torch.optim.Adam with the same numbers, without the import of torch._dynamo.

    PyTorch wraps methods of its optimisers so that torch.compile skips them, and the first call of a wrapped method
    imports torch._dynamo, which takes over a second. Nothing here is compiled, so this class calls the plain methods.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


SQUARES = {"step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}  # of an optimiser's state: never negative
Outputs = TypeVarTuple("Outputs")


def truncated_unroll(
    unroll: Callable[[Tensor, State, Tensor], tuple[*Outputs, State]],
    obs: Tensor,
    state: State,
    reset: Tensor,
    chunk: int,
) -> Iterator[tuple[slice, tuple[*Outputs]]]:
    """Unroll a sequence chunk by chunk. The state passes from chunk to chunk, its gradient does not.

    A caller that backpropagates each chunk at once frees its graph before the next, so memory does not grow with the
    length of the sequence (truncated BPTT, Williams & Peng 1990).

    Args:
        unroll: a network's method of that name: (obs, state, reset) -> (*outputs, state).
        obs: observations, (B, T, D).
        state: the core's state before the first step.
        reset: true where a row's state is reset before that step, (B, T).
        chunk: steps per chunk; the last one may be shorter.

    Yields: the chunk's slice of the time axis, and its outputs, each (B, chunk, ...).
    """
    for start in range(0, obs.shape[1], chunk):
        part = slice(start, min(start + chunk, obs.shape[1]))
        result = unroll(obs[:, part], state, reset[:, part])
        state = map_state(torch.Tensor.detach, result[-1])
        yield part, result[:-1]


def learning_rate_at(progress: float, config: LearnerConfig) -> float:
    """The step size when a share `progress` of the run is done: it falls linearly to the share `lr_final` of itself."""
    share = 1.0 - (1.0 - config.lr_final) * min(max(progress, 0.0), 1.0)
    return config.learning_rate * share


class ReplaySizes(NamedTuple):
    """The sizes that a learner's memory needs besides the learner's own options."""

    num_lanes: int
    obs_dim: int
    action_shape: tuple[int, ...] | None  # of continuous actions; None: discrete actions
    state_shapes: list[tuple[int, ...]]  # the core's state tensors, each without the batch axis
    reset_state_on_trial: bool
    max_episode_steps: int | None  # None: not known
    total_steps: int | None  # of the whole run, in environment steps; None: not known


class BaseLearner:
    """The parts that every learner shares. Derive from `ReplayLearner`, `RolloutLearner` or `SequenceLearner`.

    Subclasses fill `networks`, `targets`, `averages` and `optimizers` (the same names in each), implement `act` and
    `update`, and extend `state_dict` with everything else that a resumed run needs to continue bit for bit.

    Args:
        network: the network that acts; it is moved to `device` and trained in place.
        config: the dataclass of the algorithm's options, with at least `learning_rate` and `lr_final`.
        seed: of exploration.
        device: of the networks.
    """

    continuous: bool | None = (
        False  # whether actions are vectors within bounds, not one choice of several; None: either
    )
    acts = True  # whether it learns from the steps of the lanes
    topology: Expansion | None = None  # with --expansion

    def __init__(self, network: AgentNetwork, config: Any, seed: int, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.online = network.to(self.device)
        self.networks: dict[str, nn.Module] = {}
        self.targets: dict[str, nn.Module] = {}
        self.averages: dict[str, nn.Module] = {}  # running averages of networks, by the same names
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        self.updates = 0
        self.grad_norms: dict[str, Tensor] = {}

    @staticmethod
    def network_options(config: Any) -> StateDict:
        """Constructor arguments of the acting network that the learner's options decide."""
        return {}

    @property
    def policy(self) -> AgentNetwork:
        """The network that is evaluated and saved."""
        return self.online

    @property
    def evaluated_as(self) -> str:
        """How `policy` chooses actions in an evaluation: "greedy" or "sampled"."""
        return "greedy"

    def expand(self, config: ExpansionConfig, seed: int, total_steps: int | None, draw: Draw) -> None:
        """Let an expansion change the networks from now on.

        Args:
            config: the kind of expansion.
            seed: of its random numbers.
            total_steps: environment steps of the run; None if unknown.
            draw: new networks of this learner, from their initialisation.

        Raises: ConfigError, as the kind's class, for options that do not fit the networks or the run.
        """
        if isinstance(config, L2InitConfig):
            self.topology = L2Init(config, self.networks)
        elif isinstance(config, ShrinkPerturbConfig):
            copies = (self.targets, self.averages)
            self.topology = ShrinkPerturb(config, self.networks, copies, self.optimizers, draw, seed, total_steps)
        elif isinstance(config, ContinualBackpropConfig):
            self.topology = ContinualBackprop(config, self.networks, self.optimizers, draw, seed)
        elif isinstance(config, PaperExpansionConfig):
            topology = Topology(config, self.networks, self.targets, self.optimizers, seed, total_steps)
            for name, average in self.averages.items():
                topology.follow(name, average)
            self.topology = topology

    def start_from(self, weights: StateDict) -> None:
        """Start from the weights of another agent's `policy`. Raises: StateError where they do not fit."""
        name = next(name for name, network in self.networks.items() if network is self.online)
        check_weights(weights, self.online)
        for group in (self.networks, self.targets, self.averages):
            if name in group:
                group[name].load_state_dict(weights)

    def set_progress(self, progress: float) -> None:
        """Set the learning rate. Args: progress: share of the run that is done, from 0 to 1."""
        rate = learning_rate_at(progress, self.config)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate

    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """Actions (N,) or (N, A) for obs (N, D), and the next state; without `explore`, as in an evaluation."""
        raise NotImplementedError

    def run_network(self, name: str, batch: Batch) -> None:
        """Run one of `networks` over a batch as learning does, for the metrics, which watch its layers."""
        self.online.unroll(batch.obs, batch.state0, batch.reset)

    def status(self) -> dict[str, float]:
        """Current values of the schedules, for the log."""
        return {"learning_rate": next(iter(self.optimizers.values())).param_groups[0]["lr"]}

    def descend(self, name: str, grad_clip: float | None = None) -> Tensor:
        """One step of the optimiser `name` along the gradients in `.grad`. Returns: their norm before clipping."""
        if self.topology is not None:
            self.topology.before_step(name)
        weights = [part for group in self.optimizers[name].param_groups for part in group["params"]]
        weights = [part for part in weights if part.grad is not None]
        norm = nn.utils.clip_grad_norm_(weights, float("inf") if grad_clip is None else grad_clip)
        self.optimizers[name].step()
        if self.topology is not None:
            self.topology.after_step(name)
        self.grad_norms[name] = norm
        return norm

    @property
    def optional_state(self) -> dict[str, Schema]:
        """Parts that a saved `state_dict` may have, with a ? after their names."""
        return {}

    def state_dict(self) -> StateDict:
        """Networks, optimisers, topology, counters and generator: a learner that loads it continues bit for bit."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "targets": {name: network.state_dict() for name, network in self.targets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "topology": None if self.topology is None else self.topology.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "grad_norms": dict(self.grad_norms),
        }

    def load_state_dict(self, saved: StateDict) -> None:
        """Restore what `state_dict` returned. The optimisers keep their own options.

        Raises: StateError, with nothing restored, where the names, shapes or dtypes are not those of this learner, or a
            number is out of range.
        """
        norms: dict[str, Schema] = {f"{name}?": Values(torch.float32, (), 0.0, FLOAT_MAX) for name in self.networks}
        dynamic: dict[str, Schema] = {"optimizers": Anything(), "topology": Anything(), "grad_norms": norms}
        check(saved, {**like_dict(self.state_dict(), **dynamic), **self.optional_state}, "learner")
        check(saved["optimizers"], dict.fromkeys(self.optimizers, Anything()), "learner.optimizers")
        for name, optimizer in self.optimizers.items():
            _check_moments(optimizer, saved["optimizers"][name], f"learner.optimizers.{name}")
        if self.topology is None:
            check(saved["topology"], like(None), "learner.topology")
        else:
            self.topology.check_state(saved["topology"], "learner.topology")
        check_torch_random(saved["generator"], "learner.generator")
        for part in ("networks", "targets"):
            for name, module in getattr(self, part).items():
                module.load_state_dict(saved[part][name])
        for name, optimizer in self.optimizers.items():
            own, stored = optimizer.state_dict()["param_groups"], saved["optimizers"][name]["param_groups"]
            rates = learning_rate_at(1.0, self.config), learning_rate_at(0.0, self.config)
            for group, other in zip(own, stored if isinstance(stored, list) else (), strict=False):
                rate = other.get("lr") if isinstance(other, dict) else None
                if isinstance(rate, float) and rates[0] <= rate <= rates[1]:  # the place in the schedule
                    group["lr"] = rate
            optimizer.load_state_dict({"state": saved["optimizers"][name]["state"], "param_groups": own})
        if self.topology is not None:
            self.topology.load_state_dict(saved["topology"])
        self.generator.set_state(saved["generator"].cpu())
        self.updates, self.grad_norms = saved["updates"], dict(saved["grad_norms"])


def _check_moments(optimizer: torch.optim.Optimizer, saved: object, place: str) -> None:
    """Raise a StateError where `saved` is not a state of this optimiser; a weight without a gradient has none."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    check(saved, {"state": Named(Anything(), r"\d+", 10**6), "param_groups": Anything()}, place)
    assert isinstance(saved, dict)
    known = {index: weight for index, weight in enumerate(weights) if index in saved["state"]}
    schema: dict[int, dict[str, Schema]] = {index: {} for index in known}
    for name, part in _moments(optimizer).items():
        low, high = (0.0, LARGEST**2) if name in SQUARES else (-LARGEST, LARGEST)
        for index, weight in known.items():
            schema[index][name] = Values(part.dtype, tuple(weight.shape) if part.dim() else (), low, high)
    check(saved["state"], schema, f"{place}.state")


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser keeps for a weight of two numbers, by name, such as "exp_avg"; found by one step of a copy."""
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.zeros(2)
    probe = copy.copy(optimizer)
    probe.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
    probe.state = collections.defaultdict(dict)
    probe.step()
    return {name: part for name, part in probe.state[weight].items() if isinstance(part, Tensor)}


class ReplayLearner(BaseLearner):
    """An off-policy learner: it updates from batches of a replay buffer, as its `config.ReplayConfig` describes."""

    first_update = "see --learning-starts"
    priorities: Tensor | None = None  # (B,) of the last batch, where sampling is prioritised

    @classmethod
    def make_replay(cls, config: Any, sizes: ReplaySizes) -> Replay:
        """The replay buffer that the learner's options describe.

        Raises: ConfigError where options do not fit each other or the task.
        """
        buffer: Callable[..., Replay] = SequenceReplayBuffer
        segment = {"length": 1, "stride": 1, "burn_in": 0}
        if config.replay == "trial":
            if sizes.max_episode_steps is None:
                raise ConfigError(
                    "--replay trial stores whole trials and needs --max-episode-steps to know the longest"
                )
            buffer, segment = TrialReplayBuffer, {"max_steps": sizes.max_episode_steps}
        elif config.replay == "sequence":
            burn_in = config.burn_in if config.replay_state == "burn-in" else 0
            segment = {"length": config.sequence_length, "stride": config.sequence_stride, "burn_in": burn_in}
        return buffer(
            sizes.num_lanes,
            sizes.obs_dim,
            capacity=config.buffer_size,
            state_shapes=sizes.state_shapes,
            replay_state=config.replay_state,
            reset_state_on_trial=sizes.reset_state_on_trial,
            priority_exponent=config.priority_exponent if config.prioritized else None,
            importance_exponent=config.importance_exponent,
            action_shape=sizes.action_shape or (),
            action_dtype=np.int64 if sizes.action_shape is None else np.float32,
            **segment,
        )

    @classmethod
    def batch_shape(cls, config: Any, num_envs: int) -> tuple[int, int]:
        """(rows, steps) of an update's batch, at least."""
        if config.replay == "trial":
            return config.trial_batch_size, 1
        return config.batch_size, config.sequence_length if config.replay == "sequence" else 1

    @property
    def memory(self) -> str:
        """What it learns from, in words."""
        return f"replay of {self.config.replay}s"

    @property
    def _batch_size(self) -> int:
        config: ReplayConfig = self.config
        return config.trial_batch_size if config.replay == "trial" else config.batch_size

    def store(self, replay: Replay, steps: Steps, state: State, next_state: State) -> None:
        """Add one step of all lanes to the replay buffer."""
        replay.add(steps, state)

    def updates_due(self, replay: Replay, step: int, num_lanes: int) -> float:
        """One update per `update_every` environment steps, once there have been `learning_starts` of them."""
        config: ReplayConfig = self.config
        return num_lanes / config.update_every if step >= config.learning_starts and len(replay) else 0.0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch. Returns 0-d tensors, "loss" among them."""
        raise NotImplementedError

    def learn(self, replay: ReplayBuffer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Sample a batch, update, and give the buffer the new priorities."""
        batch = replay.sample(self._batch_size, rng)
        values = self.update(batch)
        if self.priorities is not None:
            replay.update_priorities(batch.places, self.priorities.cpu().numpy())
        return values

    def probe(self, replay: Replay, rng: np.random.Generator) -> Batch | None:
        """A batch for the metrics, which changes nothing; None while the buffer is empty."""
        return replay.sample(self._batch_size, rng) if len(replay) else None


class RolloutLearner(BaseLearner):
    """An on-policy learner: it updates once from each rollout of `config.rollout_steps` steps of all lanes."""

    memory = "rollout"
    first_update = "a rollout is --num-envs times --rollout-steps"

    @classmethod
    def make_replay(cls, config: Any, sizes: ReplaySizes) -> RolloutBuffer:
        """The buffer of one rollout."""
        shape = (sizes.num_lanes, sizes.obs_dim, config.rollout_steps)
        return RolloutBuffer(*shape, sizes.state_shapes, sizes.reset_state_on_trial, sizes.action_shape)

    @classmethod
    def batch_shape(cls, config: Any, num_envs: int) -> tuple[int, int]:
        """(rows, steps) of an update's batch."""
        return num_envs, config.rollout_steps

    def final_value(self, obs: Tensor, state: State) -> Tensor:
        """V (n,) of the observations (n, D) at which a time limit ended the episode.

        Args:
            obs: the last observations.
            state: the core's state before them.
        """
        raise NotImplementedError

    def store(self, replay: RolloutBuffer, steps: Steps, state: State, next_state: State) -> None:
        """Add one step of all lanes to the rollout, and the value of each last observation at a time limit."""
        values, rows = None, np.flatnonzero(steps.truncated & ~steps.terminated)
        if len(rows):
            index = torch.from_numpy(rows).to(self.device)
            obs = torch.from_numpy(steps.next_obs[rows]).to(self.device)
            values = np.full(len(steps.obs), np.nan, np.float32)
            values[rows] = self.final_value(obs, map_state(lambda part: part[index], next_state)).cpu().numpy()
        replay.add(steps, state, values)

    def updates_due(self, replay: RolloutBuffer, step: int, num_lanes: int) -> float:
        """One update when the rollout is complete."""
        return float(replay.full)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Learn from one rollout. Returns 0-d tensors, "loss" among them."""
        raise NotImplementedError

    def learn(self, replay: RolloutBuffer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Update from the complete rollout; the buffer then starts the next one."""
        return self.update(replay.take())

    def probe(self, replay: RolloutBuffer, rng: np.random.Generator) -> Batch | None:
        """The rollout as it is, for the metrics; None before the first update."""
        return replay.view() if self.updates else None


class SequenceLearner(BaseLearner):
    """A learner that does not act while it learns: it updates from new sequences of a task, with their right actions.

    `config` has `batch_size` and `sequence_length`.
    """

    acts = False
    memory = "new sequences in every update"
    first_update = "an update takes --batch-size times --sequence-length steps"

    @classmethod
    def batch_shape(cls, config: Any, num_envs: int) -> tuple[int, int]:
        """(rows, steps) of an update's batch."""
        return config.batch_size, config.sequence_length

    def store(self, replay: SequenceSource, steps: Steps, state: State, next_state: State) -> None:
        """Do nothing: no step of the lanes is learned from."""

    def updates_due(self, replay: SequenceSource, step: int, num_lanes: int) -> float:
        """One update per batch."""
        return 1.0

    def update(self, batch: Sequences) -> dict[str, Tensor]:
        """Learn from one batch. Returns 0-d tensors, "loss" among them."""
        raise NotImplementedError

    def learn(self, replay: SequenceSource, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draw a batch of sequences and update."""
        return self.update(replay.sample(self.config.batch_size, rng))

    def probe(self, replay: SequenceSource, rng: np.random.Generator) -> Batch | None:
        """New sequences for the metrics, as a batch whose last observation is repeated."""
        drawn = replay.sample(self.config.batch_size, rng)
        rows, steps = drawn.decision.shape
        nothing = torch.zeros(rows, steps)
        with torch.no_grad():
            state0 = self.online.init_state(rows)
        return Batch(
            obs=torch.cat([drawn.obs, drawn.obs[:, -1:]], 1),
            reset=torch.cat([drawn.reset, torch.zeros(rows, 1, dtype=torch.bool)], 1),
            action=nothing.long(),
            reward=nothing,
            terminated=nothing,
            mask=torch.ones(rows, steps),
            state0=state0,
            burn_in=0,
            weight=torch.ones(rows),
            places=np.arange(rows),
        )
