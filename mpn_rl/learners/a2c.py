"""The actor-critic: one recurrent core with a policy head and a value head, and the A2C learner that trains it.

The core is injected, as in `mpn_dqn.py`, so that every core can be trained on-policy as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpn_rl.config import A2CConfig
from mpn_rl.contracts import Core, State
from mpn_rl.learners.base import Adam, RolloutLearner, truncated_unroll
from mpn_rl.learners.rollout_buffer import Rollout
from mpn_rl.networks.encoder import AgentNetwork, Encoder, epsilon_greedy
from mpn_rl.returns import lambda_returns, shannon_entropy, simpson_entropy

ENTROPIES = {"shannon": shannon_entropy, "simpson": simpson_entropy}


class ActorCritic(AgentNetwork):
    """pi(. | s_t) = softmax(linear(h_t)) and V(s_t) = linear(h_t), h_t the core's output for the encoded observation.

    Args:
        obs_dim, hidden_dim, action_dim: sizes of observation, core and action set.
        encoder: in front of the core.
        core: any module with the core contract and `encoder.output_dim` inputs.
        sample_policy: without exploration, draw from the policy (given a generator) instead of its best action.
    """

    output_name = "action_probabilities"

    def __init__(
        self,
        obs_dim: int,
        hidden_dim: int,
        action_dim: int,
        *,
        encoder: Encoder,
        core: Core,
        sample_policy: bool = False,
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden_dim, self.action_dim = obs_dim, hidden_dim, action_dim
        self.encoder, self.core, self.sample_policy = encoder, core, sample_policy
        self.head = nn.Linear(hidden_dim, action_dim)
        self.value_head = nn.Linear(hidden_dim, 1)

    def forward(self, obs: Tensor, state: State):
        """One step: obs (B, D) -> logits (B, A), V (B,) and the next state."""
        h, state = self.features(obs, state)
        return self.head(h), self.value_head(h).squeeze(-1), state

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None):
        """A sequence: obs (B, T, D) -> logits (B, T, A), V (B, T), the last state; `reset` as in the core contract."""
        hs, state = self.core.unroll(self.encoder(obs), state, reset)
        return self.head(hs), self.value_head(hs).squeeze(-1), state

    def reported(self, output: Tensor) -> Tensor:
        """pi(. | s_t) from the logits (B, A)."""
        return output.softmax(-1)

    def choose(self, logits: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The best actions (B,), or with `sample_policy` sampled ones; a share `epsilon` of them is uniform."""
        actions = sample(logits, generator) if self.sample_policy and generator else logits.argmax(-1)
        return epsilon_greedy(actions, self.action_dim, epsilon, generator)


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Actions (B,) drawn from softmax(logits), by the Gumbel-max trick: argmax_a logits_a - log E_a, E_a ~ Exp(1)."""
    noise = torch.empty(logits.shape).exponential_(generator=generator)  # on the CPU: the same on every device
    return (logits - noise.log_().to(logits.device)).argmax(-1)


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
    chunk = min(config.bptt_chunk_size or steps, steps)
    if chunk == steps:
        logits, values, _ = network.unroll(batch.obs, batch.state0, batch.reset)
        returns, advantages = _targets(values.detach(), rollout, config)
        return _learn(logits[:, :-1], values[:, :-1], returns, advantages, batch.action, config, steps)
    with torch.no_grad():
        returns, advantages = _targets(network.unroll(batch.obs, batch.state0, batch.reset)[1], rollout, config)
    parts = []
    obs, reset = batch.obs[:, :-1], batch.reset[:, :-1]
    for part, (logits, values) in truncated_unroll(network.unroll, obs, batch.state0, reset, chunk):
        parts.append(
            _learn(logits, values, returns[:, part], advantages[:, part], batch.action[:, part], config, steps)
        )
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}


def _targets(values: Tensor, rollout: Rollout, config: A2CConfig) -> tuple[Tensor, Tensor]:
    """The returns G (B, T) and the advantages (B, T) of the policy gradient, from V(s_0), ..., V(s_T)."""
    bootstrap, cut = torch.where(rollout.ended, rollout.final_value, values[:, 1:]), rollout.ended.clone()
    cut[:, -1] = True
    if not config.bootstrap:
        bootstrap = bootstrap.masked_fill(cut, 0.0)
    lam = 1.0 if config.gae_lambda is None else config.gae_lambda
    returns = lambda_returns(rollout.batch.reward, bootstrap, cut, config.gamma, lam)
    advantages = returns - values[:, :-1]
    if config.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    return returns, advantages


def _learn(
    logits: Tensor, values: Tensor, returns: Tensor, advantages: Tensor, action: Tensor, config: A2CConfig, steps: int
) -> dict[str, Tensor]:
    """Backpropagate the part that one chunk contributes to the mean over B rows and `steps` steps."""
    log_probs = logits.log_softmax(-1)
    taken = log_probs.gather(-1, action[..., None]).squeeze(-1)
    count = len(values) * steps
    policy_loss = -(taken * advantages).sum() / count
    value_loss = (returns - values).square().sum() / count
    entropy = ENTROPIES[config.entropy_form](log_probs).sum() / count
    loss = policy_loss + config.value_coef * value_loss - config.entropy_coef * entropy
    loss.backward()
    named = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    return {name: value.detach() for name, value in named.items()}


class A2CLearner(RolloutLearner):
    """Advantage actor-critic: one step of Adam on every rollout.

    Args: those of `BaseLearner`, with an `ActorCritic` and a `config.A2CConfig`.
    """

    config: A2CConfig
    online: ActorCritic

    @staticmethod
    def network_options(config: A2CConfig) -> dict[str, bool]:
        """Whether the network samples in an evaluation."""
        return {"sample_policy": config.eval_policy == "sample"}

    def __init__(self, network: ActorCritic, config: A2CConfig, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(network, config, seed, device)
        self.optimizer = Adam(
            [parameter for parameter in self.online.parameters() if parameter.requires_grad],
            lr=config.learning_rate,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.networks, self.optimizers = {"online": self.online}, {"online": self.optimizer}

    @property
    def evaluated_as(self) -> str:
        """Whether an evaluation takes the best actions or samples from the policy."""
        return "sampled" if self.config.eval_policy == "sample" else "greedy"

    @torch.no_grad()
    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """Actions (N,) and the next state; the actions are sampled from the policy, or chosen as in an evaluation."""
        if not explore:
            return self.policy.select_action(obs, state, 0.0, self.generator)
        h, state = self.online.features(obs, state)
        return sample(self.online.head(h), self.generator), state

    @torch.no_grad()
    def final_value(self, obs: Tensor, state: State) -> Tensor:
        """V (n,) of the last observations."""
        return self.online(obs, state)[1]

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
