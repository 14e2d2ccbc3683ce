"""TD3: a deterministic actor for continuous actions, twin critics, and the learner that trains them.

Source: Fujimoto, van Hoof & Meger 2018 (arXiv 1802.09477). The actor's core is an argument, as in `mpn_dqn.py`. With a
memoryless core (`--core mlp`) the critics read the observation itself, and the learner uses single transitions. With
any other core, the two critics share a core of their own over the observations, and the learner uses sequences (the
variant that Ni et al. 2022, arXiv 2110.05038, recommend).
"""

from __future__ import annotations

import copy
import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mpn_rl.config import TD3Config
from mpn_rl.contracts import Batch, Core, Replay, State, StateDict, map_state, state_parts
from mpn_rl.expansion.plasticity_metrics import active_fraction, activities
from mpn_rl.kernels.linear import Linear
from mpn_rl.learners.base import Adam, ReplayLearner, ReplaySizes, truncated_unroll
from mpn_rl.learners.transition_replay import TransitionReplay, transition_batch
from mpn_rl.networks.action_heads import BoundedHead
from mpn_rl.networks.baseline_cores import MLPCore
from mpn_rl.networks.encoder import AgentNetwork, Encoder
from mpn_rl.options import ConfigError
from mpn_rl.returns import n_step_targets, sequence_priorities
from trial_replay import ReplayBuffer

REVIEW_EVERY = 100  # updates between two measurements of the critics' active units


class Actor(AgentNetwork):
    """pi(s_t) = head(h_t), with h_t the core's output for the encoded observation.

    Args:
        obs_dim, hidden_dim, action_dim: sizes of observation, core and action.
        encoder: in front of the core; None: the observation itself.
        core: any module with the core contract and `encoder.output_dim` inputs; None: two ReLU layers.
        low, high: bounds of the actions, (action_dim,).
    """

    output_name = None
    head: BoundedHead

    def __init__(
        self,
        obs_dim: int,
        hidden_dim: int,
        action_dim: int,
        *,
        encoder: Encoder | None = None,
        core: Core | None = None,
        low: ArrayLike,
        high: ArrayLike,
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden_dim, self.action_dim = obs_dim, hidden_dim, action_dim
        self.encoder = encoder or Encoder(obs_dim, 0, False)
        self.core = core or MLPCore(self.encoder.output_dim, hidden_dim, 2, "relu")
        self.head = BoundedHead(hidden_dim, low, high)

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """A sequence: obs (B, T, D) -> actions (B, T, A) and the last state; `reset` as in the core contract."""
        hs, state = self.core.unroll(self.encoder(obs), state, reset)
        return self.head(hs.contiguous()), state  # torch's GRU returns time first, in other strides

    def choose(self, actions: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The head's actions (B, A), a share `epsilon` of the rows replaced by random actions."""
        return self.head.mixed(actions, epsilon, generator)


class Critics(nn.Module):
    """Q_1(z, a) and Q_2(z, a): two ReLU networks on [z, a], where z is the observation or a core's output for it.

    Args:
        actor: has the sizes, and the encoder and core that the critics copy, weights included.
        memoryless: whether the critics read the observation itself, without encoder and core.
        layers: hidden layers of each critic, as wide as the actor's core.
        layer_norm: hidden layers with a LayerNorm before the ReLU: none, last or all.
    """

    def __init__(self, actor: Actor, memoryless: bool, layers: int, layer_norm: str) -> None:
        super().__init__()
        self.encoder = None if memoryless else copy.deepcopy(actor.encoder)
        self.core = None if memoryless else copy.deepcopy(actor.core)
        inputs = (actor.obs_dim if memoryless else actor.hidden_dim) + actor.action_dim
        self.q1, self.q2 = (value_network(inputs, actor.hidden_dim, layers, layer_norm) for _ in range(2))

    def init_state(self, batch_size: int, device: torch.device | str | None = None) -> State:
        """The core's state at an episode's start; without a core an empty one, (B, 0)."""
        empty = torch.zeros(batch_size, 0, device=device)
        return empty if self.core is None else self.core.init_state(batch_size, device)

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None) -> tuple[Tensor, State]:
        """A sequence: obs (B, T, D) -> z (B, T, Z) and the last state."""
        if self.core is None or self.encoder is None:
            return obs, state
        return self.core.unroll(self.encoder(obs), state, reset)

    def forward(self, z: Tensor, actions: Tensor) -> Tensor:
        """(..., Z) and (..., A) -> both values (2, ...)."""
        x = torch.cat([z, actions], -1)
        return torch.stack([self.q1(x), self.q2(x)]).squeeze(-1)

    def first(self, z: Tensor, actions: Tensor) -> Tensor:
        """Q_1 alone (...,), which the actor maximises."""
        return self.q1(torch.cat([z, actions], -1)).squeeze(-1)


def value_network(inputs: int, hidden_dim: int, layers: int, layer_norm: str) -> nn.Sequential:
    """(..., inputs) -> (..., 1)."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        parts.append(Linear(hidden_dim if layer else inputs, hidden_dim))
        if layer_norm == "all" or (layer_norm == "last" and layer == layers - 1):
            parts.append(nn.LayerNorm(hidden_dim))
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, Linear(hidden_dim, 1))


class TD3Learner(ReplayLearner):
    """Twin delayed deep deterministic policy gradient.

        a'  = clip(pi'(s') + clip(noise, -c, c), low, high)                  target policy smoothing
        y   = r + gamma (1 - terminated) min_i Q'_i(s', a')                  clipped double Q
        L   = sum_i (Q_i(s, a) - y)^2                                        every update
        J   = Q_1(s, pi(s)), and soft updates of the targets by tau          every policy_freq updates

    Noise is in units of half the action's range. A time limit bootstraps. Options beyond the paper: n-step returns,
    critics with LayerNorm or more layers, a running average of the actor for evaluation (`eval_average`), and two uses
    of old transitions, `experience_review` and `dynamic_buffer`; see `learn`.

    Differs from Fujimoto et al.: Adam in one fused step; networks with a memory are unrolled over sequences, the
    critics from a zero state before the burn-in, since only the actor's state is stored.

    Args: those of `BaseLearner`, with an `Actor` and a `config.TD3Config`.
    """

    continuous = True
    config: TD3Config
    online: Actor

    @classmethod
    def make_replay(cls, config: TD3Config, sizes: ReplaySizes) -> Replay:
        """A `TransitionReplay` for uniformly drawn transitions of a memoryless actor, else as every `ReplayLearner`.

        Raises: ConfigError for options that need another replay buffer or a longer run.
        """
        memoryless = not any(map(math.prod, sizes.state_shapes))
        plain = memoryless and config.replay == "transition" and not config.prioritized
        for flag, wanted in (
            ("--dynamic-buffer", config.dynamic_buffer),
            ("--experience-review", config.experience_review),
        ):
            if wanted and not plain:
                raise ConfigError(
                    f"{flag} works on single transitions, drawn uniformly: --core mlp --replay transition"
                )
        if config.n_step > 1 and config.replay == "transition" and not plain:
            raise ConfigError(
                f"--n-step sums rewards along sequences, or from --core mlp with transitions drawn uniformly, got "
                f"{config.n_step}; take --replay sequence"
            )
        interval, steps = config.buffer_adjustment_interval, sizes.total_steps
        if config.dynamic_buffer and steps is not None and interval > steps:
            raise ConfigError(
                f"--buffer-adjustment-interval must not exceed --total-steps = {steps}, or nothing is ever adjusted, "
                f"got {interval}"
            )
        if plain and sizes.action_shape is not None:
            return TransitionReplay(sizes.num_lanes, sizes.obs_dim, sizes.action_shape[0], config.buffer_size)
        return super().make_replay(config, sizes)

    def __init__(self, network: Actor, config: TD3Config, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(network, config, seed, device)
        self.memoryless = all(part.numel() == 0 for part in state_parts(network.init_state(1)))
        critics = Critics(network, self.memoryless, config.critic_layers, config.critic_layer_norm)
        self.critic = critics.to(self.device)
        self.networks = {"actor": self.online, "critic": self.critic}
        self.target_actor = copy.deepcopy(self.online).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.targets = {"actor": self.target_actor, "critic": self.target_critic}
        self.optimizers = {
            name: Adam(_trained(net), lr=config.learning_rate, fused=True) for name, net in self.networks.items()
        }
        self.average = copy.deepcopy(self.online).requires_grad_(False) if config.eval_average else None
        if self.average is not None:
            self.averages = {"actor": self.average}
        self._actor = _trained(self.online)
        self._online, self._target = _parts(*self.networks.values()), _parts(*self.targets.values())
        self.acted = 0  # environment steps with exploration
        self.active = 1.0  # share of the critics' hidden units that are active, as last measured
        self.buffer_checks, self.buffer_distance, self.buffer_held = 0, 0.0, 0

    @property
    def policy(self) -> Actor:
        """The actor, or with `eval_average` the running average of its weights."""
        return self.online if self.average is None else self.average

    @torch.no_grad()
    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """Actions (N, A) and the next state; with exploration, uniform until `learning_starts` and then noisy."""
        if not explore:
            return self.policy.select_action(obs, state)
        actions, state = self.online.select_action(obs, state)
        head = self.online.head
        if self.acted < self.config.learning_starts:
            actions = head.uniform(len(obs), self.generator)
        else:
            actions = head.disturbed(actions, self.config.expl_noise, self.generator)
        self.acted += len(obs)
        return actions, state

    # --- learning ---------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Update the critics, and every `policy_freq` updates the actor and the targets."""
        batch = batch.to(self.device)
        values = self._learn_critics(batch)
        self.updates += 1
        if self.updates % self.config.policy_freq == 0:
            values |= self._learn_actor(batch)
            torch._foreach_lerp_(self._target, self._online, self.config.target_tau)
            if self.average is not None:
                tau, count = self.config.average_tau, self.updates // self.config.policy_freq
                weight = tau / (1 - (1 - tau) ** count)  # 1 at the first update: the untrained actor has no weight
                torch._foreach_lerp_(_parts(self.average), _parts(self.online), weight)
        return values

    def _learn_critics(self, batch: Batch) -> dict[str, Tensor]:
        burn, mask = batch.burn_in, batch.mask[:, batch.burn_in :]
        targets = self._targets(batch)
        z = self._unroll(self.critic, batch, burn, batch.action.shape[1])
        errors = self.critic(z, batch.action[:, burn:]) - targets  # (2, B, T)
        loss = (errors.square() * (mask * batch.weight[:, None])).sum() / mask.sum()
        self.optimizers["critic"].zero_grad(set_to_none=True)
        loss.backward()
        self.descend("critic", self.config.grad_clip)
        if self.config.prioritized:
            self.priorities = sequence_priorities(errors.detach().abs().amax(0), mask)
        return {"loss": loss.detach()}

    @torch.no_grad()
    def _targets(self, batch: Batch) -> Tensor:
        """y (B, T - burn_in)."""
        config, burn, steps = self.config, batch.burn_in, batch.action.shape[1]
        actor, critic = self.target_actor, self.target_critic
        actions = self._unroll(actor, batch, burn + 1, steps + 1)
        actions = self.online.head.disturbed(actions, config.policy_noise, self.generator, config.noise_clip)
        values = critic(self._unroll(critic, batch, burn + 1, steps + 1), actions).amin(0)
        parts = (batch.reward[:, burn:], batch.terminated[:, burn:], batch.mask[:, burn:])
        return n_step_targets(values, *parts, config.gamma, min(self.n_step, steps - burn))

    def _learn_actor(self, batch: Batch) -> dict[str, Tensor]:
        burn, steps, mask = batch.burn_in, batch.action.shape[1], batch.mask[:, batch.burn_in :]
        with torch.no_grad():
            z = self._unroll(self.critic, batch, burn, steps)
        actions = self._unroll(self.online, batch, burn, steps)
        loss = -(self.critic.first(z, actions) * mask).sum() / mask.sum()
        self.optimizers["actor"].zero_grad(set_to_none=True)
        loss.backward(inputs=self._actor)  # the critics' gradients stay those of their own loss
        self.descend("actor", self.config.grad_clip)
        return {"actor_loss": loss.detach()}

    def _unroll(self, network: Actor | Critics, batch: Batch, first: int, last: int) -> Tensor:
        """The outputs of `network` for obs[:, first:last]; a core reads the earlier steps without gradient.

        With `bptt_chunk_size` the gradient stops between chunks while the state passes on.
        """
        obs, reset = batch.obs[:, first:last].contiguous(), batch.reset[:, first:last]  # aligned: `contracts.to_tensor`
        if self.memoryless:
            return network.unroll(obs, batch.state0, reset)[0]
        state = self._first_state(network, batch)
        if first:
            with torch.no_grad():
                state = network.unroll(batch.obs[:, :first], state, batch.reset[:, :first])[1]
        chunk = self.config.bptt_chunk_size or obs.shape[1]
        pieces = truncated_unroll(network.unroll, obs, state, reset, chunk)
        return torch.cat([output for _, (output,) in pieces], 1)

    def _first_state(self, network: Actor | Critics, batch: Batch) -> State:
        """The state before obs[:, 0]: the batch's for an actor, zero for the critics, whose state is not stored."""
        if isinstance(network, Critics):
            return network.init_state(len(batch.obs), batch.obs.device)
        return map_state(torch.clone, batch.state0)

    def run_network(self, name: str, batch: Batch) -> None:
        """Run actor or critics over a batch as learning does; the critics value the batch's actions."""
        network = self.critic if name == "critic" else self.online
        z, _ = network.unroll(batch.obs, self._first_state(network, batch), batch.reset)
        if isinstance(network, Critics):
            network(z[:, : batch.action.shape[1]], batch.action)

    @property
    def n_step(self) -> int:
        """Steps of reward before bootstrapping, at this update."""
        return self.config.n_step if self.updates >= self.config.n_step_delay else 1

    # --- the replay buffer ------------------------------------------------------------------------------

    def learn(self, replay: ReplayBuffer | TransitionReplay, rng: np.random.Generator) -> dict[str, Tensor]:
        """Sample a batch and update.

        `dynamic_buffer`: see `_shrink`. `experience_review`: while fewer than `review_below` of the critics' hidden
        units are active, a batch comes from the oldest `review_share` of the buffer with probability

            review_chance (1 - active / review_below)

        Both need a `TransitionReplay`. Differs from the public code of Neuroplastic Expansion, whose probability jumps
        from 0 to 0.47 at the threshold and hardly rises from there; the paper derives it from the rate at which
        dormancy changes.
        """
        if not isinstance(replay, TransitionReplay):
            return super().learn(replay, rng)
        config = self.config
        if config.dynamic_buffer:
            self._shrink(replay)
        review = config.experience_review and rng.random() < self.review_chance
        oldest = config.review_share if review else 1.0
        batch = replay.sample(config.batch_size, rng, self.n_step, config.gamma, oldest)
        values = self.update(batch)
        if config.experience_review and self.updates % REVIEW_EVERY == 0:
            layers = activities(self, "critic", batch.to(self.device)).values()
            self.active = sum(map(active_fraction, layers)) / len(layers)
        return values

    @property
    def review_chance(self) -> float:
        """Probability that the next batch comes from the oldest transitions."""
        return self.config.review_chance * max(0.0, 1.0 - self.active / self.config.review_below)

    @torch.no_grad()
    def _shrink(self, replay: TransitionReplay) -> None:
        """Every `buffer_adjustment_interval` steps, drop the oldest tenth if the policy has moved away from it:

            d = mean (pi(s) - a)^2 / (2 half^2) > buffer_threshold        over the oldest 8 batches

        where half is half the action's range. The buffer keeps at least `buffer_min_size` transitions.

        Source: RLx2 (Tan et al. 2023). Differs from it: a includes the exploration noise, which adds at most
        expl_noise^2 / 2 to d.
        """
        config = self.config
        checks = replay.last // config.buffer_adjustment_interval
        if checks > self.buffer_checks:
            self.buffer_checks = checks
            batch = replay.oldest(8 * config.batch_size).to(self.device)
            actions = self._unroll(self.online, batch, 0, 1)
            away = (actions - batch.action) / self.online.head.scale
            self.buffer_distance = float(away.square().mean() / 2)
            if self.buffer_distance > config.buffer_threshold:
                replay.drop_oldest(max(0, min(len(replay) // 10, len(replay) - config.smallest_buffer)))
        self.buffer_held = len(replay)

    def status(self) -> dict[str, float]:
        """The learning rate, and current values of the options in use, for the log."""
        shown = super().status()
        if self.config.n_step > 1:
            shown["n_step"] = self.n_step
        if self.config.experience_review:
            shown |= {"critic_active": self.active, "review_chance": self.review_chance}
        if self.config.dynamic_buffer:
            shown |= {"buffer_size": self.buffer_held, "buffer_distance": self.buffer_distance}
        return shown

    # --- saving -----------------------------------------------------------------------------------------

    _COUNTERS = ("acted", "active", "buffer_checks", "buffer_distance", "buffer_held")

    def state_dict(self) -> StateDict:
        counters = {name: getattr(self, name) for name in self._COUNTERS}
        average = None if self.average is None else self.average.state_dict()
        return {**super().state_dict(), "average": average, "counters": counters}

    def load_state_dict(self, saved: StateDict) -> None:
        super().load_state_dict(saved)
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        for name in self._COUNTERS:
            setattr(self, name, saved["counters"][name])


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [part for part in network.parameters() if part.requires_grad]


def _parts(*networks: nn.Module) -> list[Tensor]:
    return [part for network in networks for part in network.parameters()]


class PublishedReplay(Protocol):
    """The published replay buffer, whose batches are state, action, next_state, and reward and not_done (B, 1)."""

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]: ...


class TD3:
    """The learner with the names and arguments of the published class, for use from Python.

    Args: as published, with the noise in the action's own units; `options` are further fields of `config.TD3Config`.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        max_action: float,
        discount: float = 0.99,
        tau: float = 0.005,
        policy_noise: float = 0.2,
        noise_clip: float = 0.5,
        policy_freq: int = 2,
        *,
        hidden_dim: int = 256,
        seed: int = 0,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        options |= {"gamma": discount, "target_tau": tau, "policy_freq": policy_freq}
        options |= {"policy_noise": policy_noise / max_action, "noise_clip": noise_clip / max_action}
        high = np.full(action_dim, max_action, np.float32)
        actor = Actor(state_dim, hidden_dim, action_dim, low=-high, high=high)
        self.learner = TD3Learner(actor, TD3Config(**options), seed, device)
        self.rng = np.random.default_rng(seed)
        self.actor, self.critic = self.learner.online, self.learner.critic
        self.actor_target, self.critic_target = self.learner.target_actor, self.learner.target_critic
        self.actor_optimizer, self.critic_optimizer = (self.learner.optimizers[name] for name in ("actor", "critic"))

    def select_action(self, state: np.ndarray) -> np.ndarray:
        """The action (action_dim,) in a state (state_dim,), without noise."""
        obs = torch.as_tensor(np.asarray(state, np.float32).reshape(1, -1), device=self.learner.device)
        return self.actor.select_action(obs, self.actor.init_state(1))[0][0].cpu().numpy()

    def train(self, replay: TransitionReplay | PublishedReplay, batch_size: int = 256) -> dict[str, Tensor]:
        """One update. Returns: 0-d tensors, "loss" among them."""
        if isinstance(replay, TransitionReplay):
            return self.learner.update(replay.sample(batch_size, self.rng))
        state, action, next_state, reward, not_done = replay.sample(batch_size)
        obs = torch.stack([state, next_state], 1)
        batch = transition_batch(obs, action[:, None], reward.view(-1, 1), 1.0 - not_done.view(-1, 1))
        return self.learner.update(batch)
