"""The actor-critic: one recurrent core with a policy head and a value head. Two learners train it on-policy.

A2C makes one step of Adam per rollout, PPO several. Actions are choices or bounded vectors. The core is injected, as in
`mpn_dqn.py`, so that every core can be trained on-policy as well.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mpn_rl.config import A2CConfig, OnPolicyConfig, PPOConfig
from mpn_rl.contracts import Core, State, StateDict
from mpn_rl.learners.base import Adam, ReplaySizes, RolloutLearner, truncated_unroll
from mpn_rl.learners.rollout_buffer import Rollout, RolloutBuffer
from mpn_rl.networks.action_heads import ChoicesHead, GaussianHead, NormalizedValue
from mpn_rl.networks.encoder import AgentNetwork, Encoder
from mpn_rl.options import ConfigError
from mpn_rl.returns import lambda_returns
from mpn_rl.storage.state_trees import Schema, Values


class ActorCritic(AgentNetwork):
    """pi(. | s_t) = head(h_t) and V(s_t) = linear(h_t), with h_t the core's output for the encoded observation.

    Args:
        obs_dim, hidden_dim, action_dim: sizes of observation, core, and action set or vector.
        encoder: in front of the core.
        core: any module with the core contract and `encoder.output_dim` inputs.
        sample_policy: without exploration, draw from the policy (given a generator) instead of its best action.
        low, high: bounds of continuous actions, (action_dim,); None: the actions are choices.
        normalize_value: V is a `NormalizedValue` instead of linear(h_t).
    """

    head: ChoicesHead | GaussianHead

    def __init__(
        self,
        obs_dim: int,
        hidden_dim: int,
        action_dim: int,
        *,
        encoder: Encoder,
        core: Core,
        sample_policy: bool = False,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
        normalize_value: bool = False,
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden_dim, self.action_dim = obs_dim, hidden_dim, action_dim
        self.encoder, self.core, self.sample_policy = encoder, core, sample_policy
        if low is None or high is None:
            self.head, self.output_name = ChoicesHead(hidden_dim, action_dim), "action_probabilities"
        else:
            self.head, self.output_name = GaussianHead(hidden_dim, low, high), None
        self.value_head = NormalizedValue(hidden_dim) if normalize_value else nn.Linear(hidden_dim, 1)

    def forward(self, obs: Tensor, state: State):
        """One step: obs (B, D) -> the head's output (B, A), V (B,) and the next state."""
        h, state = self.features(obs, state)
        return self.head(h), self.value_head(h).squeeze(-1), state

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None):
        """A sequence: obs (B, T, D) -> the head's output (B, T, A), V (B, T), the last state. See `Core`."""
        hs, state = self.core.unroll(self.encoder(obs), state, reset)
        return self.head(hs), self.value_head(hs).squeeze(-1), state

    def reported(self, output: Tensor) -> Tensor:
        """pi(. | s_t) from the logits (B, A) of choices."""
        return output.softmax(-1)

    def choose(self, outputs: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The best actions, or with `sample_policy` sampled ones; a share `epsilon` of them is uniform."""
        sampled = self.sample_policy and generator
        actions = self.head.sample(outputs, sampled) if sampled else self.head.best(outputs)
        return self.head.mixed(actions, epsilon, generator)


class Targets(NamedTuple):
    """What the network learns from a rollout, each (B, T), without gradient."""

    returns: Tensor  # G
    advantages: Tensor  # of the policy gradient
    log_probs: Tensor | None = None  # log pi_old of the actions, by the policy that acted; None: it is pi itself

    def part(self, index: Tensor | tuple[slice, slice]) -> Targets:
        """The targets of some lanes, or of some steps."""
        old = None if self.log_probs is None else self.log_probs[index]
        return Targets(self.returns[index], self.advantages[index], old)


def compute_a2c_loss(network: ActorCritic, rollout: Rollout, config: A2CConfig) -> dict[str, Tensor]:
    """The advantage actor-critic loss of a rollout, with its gradient already in `network` (`.grad` is added to).

        L = mean_{b,t}[ -log pi(a_t) (G_t - V_t) + value_coef (G_t - V_t)^2 - entropy_coef S(pi_t) ]

    G is the lambda-return or the discounted return. No gradient flows through G, nor through G - V in the first term.
    With `bptt_chunk_size` the gradient stops between chunks while the state passes on, and each chunk's graph is freed
    before the next (truncated BPTT, Williams & Peng 1990).

    Source: Mnih et al. 2016 (A3C); the form of the loss: Miconi et al. 2019. Differs from the latter's public code,
    which uses the value of the first episode for all episodes.

    Args:
        network: gets the gradient.
        rollout: T steps of N lanes.
        config: coefficients, discount and chunk size.

    Returns: "loss", "policy_loss", "value_loss" and "entropy", detached; the last two without their coefficients.
    """
    batch = rollout.batch
    steps = batch.action.shape[1]
    if (config.bptt_chunk_size or steps) >= steps:
        outputs, values, _ = network.unroll(batch.obs, batch.state0, batch.reset)
        targets = _targets(values.detach(), rollout, config)
        return _learn(network, outputs[:, :-1], values[:, :-1], targets, batch.action, config)
    with torch.no_grad():
        targets = _targets(network.unroll(batch.obs, batch.state0, batch.reset)[1], rollout, config)
    return _learn_in_chunks(network, rollout, targets, config)


def compute_ppo_loss(network: ActorCritic, rollout: Rollout, targets: Targets, config: PPOConfig) -> dict[str, Tensor]:
    """The clipped loss of proximal policy optimisation, with its gradient already in `network` (`.grad` is added to).

        L = mean_{b,t}[ -min(rho A, clip(rho, 1 - c, 1 + c) A) + value_coef ((G - V) / sigma)^2 - entropy_coef S(pi) ]
        rho_t = pi(a_t) / pi_old(a_t),    sigma: of `NormalizedValue`

    G and A are A2C's, computed once per rollout by the network that acted. The state starts as it was when the rollout
    began, and passes from chunk to chunk as in `compute_a2c_loss`.

    Source: Schulman et al. 2017 (arXiv 1707.06347), without clipping of V.

    Args:
        network: gets the gradient.
        rollout: T steps of B lanes.
        targets: of these lanes, with `log_probs`.
        config: coefficients, clip range c and chunk size.

    Returns: those of `compute_a2c_loss`, "clip_fraction" (steps where rho is outside the range) and "approx_kl", an
        estimate of KL(pi_old, pi), mean of rho - 1 - log rho (Schulman's third estimator).
    """
    return _learn_in_chunks(network, rollout, targets, config)


def _targets(values: Tensor, rollout: Rollout, config: OnPolicyConfig) -> Targets:
    """The targets of a rollout, from V(s_0), ..., V(s_T)."""
    bootstrap, cut = torch.where(rollout.ended, rollout.final_value, values[:, 1:]), rollout.ended.clone()
    cut[:, -1] = True
    if not config.bootstrap:
        bootstrap = bootstrap.masked_fill(cut, 0.0)
    lam = 1.0 if config.gae_lambda is None else config.gae_lambda
    returns = lambda_returns(rollout.batch.reward, bootstrap, cut, config.gamma, lam)
    advantages = returns - values[:, :-1]
    if config.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return Targets(returns, advantages)


def _learn_in_chunks(
    network: ActorCritic, rollout: Rollout, targets: Targets, config: OnPolicyConfig
) -> dict[str, Tensor]:
    """Backpropagate the loss of a rollout chunk by chunk. Returns: the means over its steps."""
    batch, parts = rollout.batch, []
    steps = batch.action.shape[1]
    obs, reset, chunk = batch.obs[:, :-1], batch.reset[:, :-1], config.bptt_chunk_size or steps
    for part, (outputs, values) in truncated_unroll(network.unroll, obs, batch.state0, reset, chunk):
        of_part = targets.part((slice(None), part))
        share = values.shape[1] / steps
        parts.append(_learn(network, outputs, values, of_part, batch.action[:, part], config, share))
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def _learn(
    network: ActorCritic,
    outputs: Tensor,
    values: Tensor,
    targets: Targets,
    actions: Tensor,
    config: OnPolicyConfig,
    share: float = 1.0,
) -> dict[str, Tensor]:
    """Backpropagate what one chunk, a share of the rollout's steps, contributes to the mean."""
    log_probs, entropies = network.head.evaluate_actions(outputs, actions, config.entropy_form)
    named: dict[str, Tensor] = {}
    count = values.numel() / share
    if targets.log_probs is None:
        policy_loss = -(log_probs * targets.advantages).sum() / count
    else:
        assert isinstance(config, PPOConfig)
        log_ratio = log_probs - targets.log_probs
        ratio, clip = log_ratio.exp(), config.clip_range
        gains = torch.minimum(ratio * targets.advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * targets.advantages)
        policy_loss = -gains.sum() / count
        named["clip_fraction"] = ((ratio - 1.0).abs() > clip).sum() / count
        named["approx_kl"] = (ratio - 1.0 - log_ratio).sum() / count
    errors = targets.returns - values
    if isinstance(network.value_head, NormalizedValue):
        errors = errors / network.value_head.statistics[1]
    value_loss = errors.square().sum() / count
    entropy = entropies.sum() / count
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    loss.backward()
    named |= {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return {name: value.detach() for name, value in named.items()}


class ActorCriticLearner(RolloutLearner):
    """What A2C and PPO share: the network, Adam, and how they act."""

    continuous = None
    config: Any
    online: ActorCritic

    @staticmethod
    def network_options(config: Any) -> dict[str, bool]:
        """Whether the network samples in an evaluation."""
        return {"sample_policy": config.eval_policy == "sample"}

    def __init__(
        self, network: ActorCritic, config: OnPolicyConfig, seed: int, device: torch.device | str = "cpu", **adam: Any
    ) -> None:
        super().__init__(network, config, seed, device)
        weights = [parameter for parameter in self.online.parameters() if parameter.requires_grad]
        self.optimizer = Adam(weights, lr=config.learning_rate, fused=True, **adam)
        self.networks, self.optimizers = {"online": self.online}, {"online": self.optimizer}
        self.noise = torch.zeros(0, network.action_dim)  # of the last actions, with noise_correlation

    @property
    def evaluated_as(self) -> str:
        """Whether an evaluation takes the best actions or samples from the policy."""
        return "sampled" if self.config.eval_policy == "sample" else "greedy"

    @torch.no_grad()
    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """Actions, one per lane, and the next state; they are sampled, or chosen as in an evaluation."""
        if not explore:
            return self.policy.select_action(obs, state, 0.0, self.generator)
        h, state = self.online.features(obs, state)
        head, outputs = self.online.head, self.online.head(h)
        if isinstance(head, GaussianHead) and self.config.noise_correlation > 0.0:
            return head.around(outputs, self._correlated_noise(outputs)), state
        return head.sample(outputs, self.generator), state

    def _correlated_noise(self, outputs: Tensor) -> Tensor:
        """n_t = rho n_{t-1} + sqrt(1 - rho^2) e_t with e_t ~ N(0, 1): each n_t alone is N(0, 1)."""
        drawn, rho = torch.randn(outputs.shape, generator=self.generator), self.config.noise_correlation
        if len(self.noise) == len(drawn):
            drawn = rho * self.noise + math.sqrt(1.0 - rho**2) * drawn
        self.noise = drawn
        return drawn.to(outputs.device)

    @property
    def optional_state(self) -> dict[str, Schema]:
        """The noise, of as many lanes as the run has."""
        return {"noise?": Values(torch.float32, (None, self.online.action_dim), -100.0, 100.0)}

    def state_dict(self) -> StateDict:
        """That of every learner, and the correlated noise if there is any."""
        return {**super().state_dict(), **({"noise": self.noise} if len(self.noise) else {})}

    def load_state_dict(self, saved: StateDict) -> None:
        """Restore what `state_dict` returned. Raises: StateError, as that of every learner."""
        self.noise = self.noise[:0]
        super().load_state_dict(saved)
        self.noise = saved.get("noise", self.noise).clone()

    @torch.no_grad()
    def final_value(self, obs: Tensor, state: State) -> Tensor:
        """V (n,) of the last observations."""
        return self.online(obs, state)[1]


class A2CLearner(ActorCriticLearner):
    """Advantage actor-critic: one step of Adam on every rollout.

    Args: those of `BaseLearner`, with an `ActorCritic` and a `config.A2CConfig`.
    """

    config: A2CConfig

    def __init__(self, network: ActorCritic, config: A2CConfig, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(network, config, seed, device, eps=config.adam_eps, weight_decay=config.weight_decay)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Learn from one rollout; no step of Adam during the first `warmup_updates` rollouts."""
        self.optimizer.zero_grad(set_to_none=True)
        values = compute_a2c_loss(self.online, rollout.to(self.device), self.config)
        if self.updates < self.config.warmup_updates:
            norm = nn.utils.clip_grad_norm_(self.online.parameters(), float("inf"))
        else:
            norm = self.descend("online", self.config.grad_clip)
        self.updates += 1
        return {**values, "grad_norm": norm}


class PPOLearner(ActorCriticLearner):
    """Proximal policy optimisation: `epochs` passes over every rollout, each in `minibatches` groups of lanes.

    A group is the whole rollout of its lanes, so the state that each step starts from is recomputed by the network as
    it is now.

    Args: those of `BaseLearner`, with an `ActorCritic` and a `config.PPOConfig`.
    """

    config: PPOConfig

    @staticmethod
    def network_options(config: PPOConfig) -> dict[str, bool]:
        """Those of every actor-critic, and a value for returns of any size."""
        return {**ActorCriticLearner.network_options(config), "normalize_value": True}

    @classmethod
    def make_replay(cls, config: PPOConfig, sizes: ReplaySizes) -> RolloutBuffer:
        """The buffer of one rollout. Raises: ConfigError where there are more groups than lanes."""
        if config.minibatches > sizes.num_lanes:
            lanes = f"--num-envs {sizes.num_lanes}"
            raise ConfigError(f"--minibatches must not exceed the lanes, got {config.minibatches} with {lanes}")
        return super().make_replay(config, sizes)

    def update(self, rollout: Rollout) -> dict[str, Tensor]:
        """Learn from one rollout. Returns: means over the steps of Adam."""
        rollout = rollout.to(self.device)
        batch = rollout.batch
        with torch.no_grad():
            outputs, values, _ = self.online.unroll(batch.obs, batch.state0, batch.reset)
            log_probs, _ = self.online.head.evaluate_actions(outputs[:, :-1], batch.action, self.config.entropy_form)
            targets = _targets(values, rollout, self.config)._replace(log_probs=log_probs)
            if isinstance(self.online.value_head, NormalizedValue):
                self.online.value_head.track(targets.returns)
        rows, results = len(batch.action), []
        for _ in range(self.config.epochs):
            for group in torch.randperm(rows, generator=self.generator).chunk(self.config.minibatches):
                lanes = group.to(self.device)
                self.optimizer.zero_grad(set_to_none=True)
                losses = compute_ppo_loss(self.online, rollout.lanes(lanes), targets.part(lanes), self.config)
                results.append({**losses, "grad_norm": self.descend("online", self.config.grad_clip)})
        self.updates += 1
        return {name: torch.stack([result[name] for result in results]).mean() for name in results[0]}
