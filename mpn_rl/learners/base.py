"""What every learner is, whatever it learns by: what the loop, the topology engine and the metrics rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpn_rl.contracts import Batch, map_state
from mpn_rl.learners.rollout_buffer import RolloutBuffer
from mpn_rl.options import ConfigError
from trial_replay import SequenceReplayBuffer, TrialReplayBuffer


class Adam(torch.optim.Adam):
    """torch.optim.Adam with the same numbers, without the import of torch._dynamo.

    PyTorch wraps methods of its optimisers so that torch.compile skips them, and the first call of a wrapped method
    imports torch._dynamo, which takes over a second. Nothing here is compiled, so this class calls the plain methods.
    """

    _step = staticmethod(inspect.unwrap(torch.optim.Adam.step))
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._step(self)


def truncated_unroll(
    unroll: Callable[..., tuple[Any, ...]], obs: Tensor, state: Any, reset: Tensor, chunk: int
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Unroll a sequence chunk by chunk: the state goes on, and its gradient stops between chunks.

    A caller that backpropagates each chunk at once frees its graph before the next, so memory does not grow with the
    sequence (truncated BPTT, Williams & Peng 1990).

    Args:
        unroll: a network's method of that name: (obs, state, reset) -> (*outputs, state).
        obs: (B, T, D).
        state: the core's state before the first step.
        reset: (B, T) bool.
        chunk: steps of a chunk; the last one may be shorter.

    Yields: the chunk's place in time, and its outputs, each (B, chunk, ...).
    """
    for start in range(0, obs.shape[1], chunk):
        part = slice(start, min(start + chunk, obs.shape[1]))
        *outputs, state = unroll(obs[:, part], state, reset[:, part])
        state = map_state(torch.Tensor.detach, state)
        yield part, tuple(outputs)


class ReplaySizes(NamedTuple):
    """What a learner's replay memory has to fit, besides the learner's own options."""

    num_lanes: int
    obs_dim: int
    action_shape: tuple[int, ...] | None  # of continuous actions; None: one choice of several
    state_shapes: list[tuple[int, ...]]  # the core's state tensors, each without the batch axis
    reset_state_on_trial: bool
    max_episode_steps: int | None  # None: not known
    total_steps: int | None  # of the whole run, in environment steps; None: not known


class Learner:
    """A learning algorithm around a network that acts.

    Subclasses fill `networks`, `targets`, `averages` and `optimizers` (the same names in each), implement `act` and
    `update`, and extend `state_dict` with everything else that a resumed run needs to continue bit for bit.

    Args:
        network: the network that acts; it is moved to `device` and trained in place.
        config: every option of the algorithm.
        seed: of exploration.
    """

    continuous = False  # acts in a vector of bounded actions, instead of by one of several choices
    on_policy = False  # learns once from what it has just done, instead of from a replay memory
    topology: Any = None  # an expansion.topology.Topology with --expansion
    priorities: Tensor | None = None  # (B,) of the last batch, where sampling is prioritised

    def __init__(self, network: Any, config: Any, seed: int, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.online = network.to(self.device)
        self.networks: dict[str, nn.Module] = {}
        self.targets: dict[str, nn.Module] = {}
        self.averages: dict[str, nn.Module] = {}  # running averages of networks, by the same names
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        self.updates = 0
        self.grad_norms: dict[str, Tensor] = {}  # of the last update, before clipping

    @staticmethod
    def network_options(config: Any) -> dict[str, Any]:
        """Options of the learner that its acting network is made with."""
        return {}

    @classmethod
    def make_replay(cls, config: Any, sizes: ReplaySizes) -> Any:
        """The replay memory that the learner's options describe.

        Raises: ConfigError where options do not fit each other or the task.
        """
        if cls.on_policy:
            shape = (sizes.num_lanes, sizes.obs_dim, config.rollout_steps)
            return RolloutBuffer(*shape, sizes.state_shapes, sizes.reset_state_on_trial)
        common: dict[str, Any] = {
            "state_shapes": sizes.state_shapes,
            "replay_state": config.replay_state,
            "reset_state_on_trial": sizes.reset_state_on_trial,
            "priority_exponent": config.priority_exponent if config.prioritized else None,
            "importance_exponent": config.importance_exponent,
        }
        if sizes.action_shape is not None:
            common |= {"action_shape": sizes.action_shape, "action_dtype": np.float32}
        capacity = config.buffer_size
        if config.replay == "trial":
            limit = sizes.max_episode_steps
            if limit is None:
                raise ConfigError(
                    "--replay trial stores whole trials and needs --max-episode-steps to know the longest"
                )
            return TrialReplayBuffer(sizes.num_lanes, sizes.obs_dim, capacity=capacity, max_steps=limit, **common)
        segment = {"length": 1, "stride": 1, "burn_in": 0}
        if config.replay == "sequence":
            burn_in = config.burn_in if config.replay_state == "burn-in" else 0
            segment = {"length": config.sequence_length, "stride": config.sequence_stride, "burn_in": burn_in}
        return SequenceReplayBuffer(sizes.num_lanes, sizes.obs_dim, capacity=capacity, **segment, **common)

    @classmethod
    def batch_shape(cls, config: Any, num_envs: int) -> tuple[int, int]:
        """(rows, steps) of an update's batch, at least."""
        if cls.on_policy:
            return num_envs, config.rollout_steps
        if config.replay == "trial":
            return config.trial_batch_size, 1
        return config.batch_size, config.sequence_length if config.replay == "sequence" else 1

    @property
    def policy(self) -> Any:
        """The network that is evaluated and saved."""
        return self.online

    def set_progress(self, progress: float) -> None:
        """Move the schedules to where the run is, 0 at its start and 1 at its end."""
        share = 1.0 - (1.0 - self.config.lr_final) * min(max(progress, 0.0), 1.0)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * share

    def act(self, obs: Tensor, state, explore: bool):
        """Actions (N,) or (N, A) and the next state."""
        raise NotImplementedError

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch. Returns 0-d tensors, "loss" among them: reading one would make a GPU wait."""
        raise NotImplementedError

    def learn(self, replay: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draw from the replay memory and update."""
        config = self.config
        batch = replay.sample(config.trial_batch_size if config.replay == "trial" else config.batch_size, rng)
        values = self.update(batch)
        if self.priorities is not None:
            replay.update_priorities(batch.places, self.priorities.cpu().numpy())
        return values

    def probe(self, replay: Any, rng: np.random.Generator) -> Batch | None:
        """A batch to look at the networks with, outside of learning; None: there is none yet."""
        if not len(replay):
            return None
        config = self.config
        batch: Batch = replay.sample(config.trial_batch_size if config.replay == "trial" else config.batch_size, rng)
        return batch

    def status(self) -> dict[str, float]:
        """The schedules, for the log."""
        return {}

    def descend(self, name: str, grad_clip: float | None = None) -> Tensor:
        """One step of the optimiser `name` along the gradients that are there; returns their norm."""
        if self.topology is not None:
            self.topology.before_step(name)
        found = [part for group in self.optimizers[name].param_groups for part in group["params"]]
        found = [part for part in found if part.grad is not None]
        norm = nn.utils.clip_grad_norm_(found, float("inf") if grad_clip is None else grad_clip)
        self.optimizers[name].step()
        if self.topology is not None:
            self.topology.after_step(name)
        self.grad_norms[name] = norm
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, topology, counter and generator: a learner that loads it goes on bit for bit."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "targets": {name: network.state_dict() for name, network in self.targets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "topology": None if self.topology is None else self.topology.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "grad_norms": dict(self.grad_norms),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for part in ("networks", "targets", "optimizers"):
            for name, module in getattr(self, part).items():
                module.load_state_dict(saved[part][name])
        if self.topology is not None:
            self.topology.load_state_dict(saved["topology"])
        self.generator.set_state(saved["generator"].cpu())
        self.updates, self.grad_norms = saved["updates"], dict(saved["grad_norms"])
