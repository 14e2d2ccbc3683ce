"""The MPN-DQN: a Q-network with a recurrent core, and the (double) DQN learner that trains it.

The core is an argument, so the same network and learner work with the MPN, its baselines and any later core.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from mpn_module import MPN
from mpn_rl.config import DQNConfig, EncoderConfig
from mpn_rl.contracts import Batch, Core, State, StateDict
from mpn_rl.learners.base import Adam, ReplayLearner, truncated_unroll
from mpn_rl.networks.action_heads import DuelingHead
from mpn_rl.networks.encoder import AgentNetwork, Encoder, epsilon_greedy
from mpn_rl.returns import n_step_targets, next_values, sequence_priorities, td_loss


class MPNDQN(AgentNetwork):
    """Q(s_t, .) = head(h_t), with h_t the core's output for the encoded observation.

    Args:
        obs_dim, hidden_dim, action_dim: sizes of observation, core and action set.
        encoder: in front of the core; None: `Encoder` with the defaults of `config.EncoderConfig`.
        core: any module with the core contract and `encoder.output_dim` inputs; None: an `MPN`.
        dueling: whether the head is a `DuelingHead`, else it is linear.
        mpn_options: options of that MPN.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden_dim: int,
        action_dim: int,
        *,
        encoder: Encoder | None = None,
        core: Core | None = None,
        dueling: bool = False,
        **mpn_options,
    ) -> None:
        super().__init__()
        defaults = EncoderConfig()
        self.obs_dim, self.hidden_dim, self.action_dim = obs_dim, hidden_dim, action_dim
        self.encoder = encoder or Encoder(obs_dim, defaults.embed_dim, defaults.constant_input)
        self.core = core or MPN(self.encoder.output_dim, hidden_dim, **mpn_options)
        self.head: nn.Module = DuelingHead(hidden_dim, action_dim) if dueling else nn.Linear(hidden_dim, action_dim)

    def choose(self, q_values: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Epsilon-greedy actions (B,) from Q (B, A)."""
        return epsilon_greedy(q_values.argmax(-1), self.action_dim, epsilon, generator)


def compute_td_loss_trial(online: MPNDQN, target: MPNDQN, batch: Batch, config: DQNConfig) -> tuple[Tensor, Tensor]:
    """The TD loss over full sequences, with its gradient already in `online` (`.grad` is added to).

    Both networks unroll obs[0], ..., obs[T] from the same state. The first `burn_in` steps only advance the state,
    without gradient. With `bptt_chunk_size` the gradient stops between chunks while M passes on, and each chunk's graph
    is freed before the next, so memory does not grow with the trial (truncated BPTT, Williams & Peng 1990).

    Args:
        online: the trained network.
        target: the target network.
        batch: B sequences of T steps.
        config: discount, n-step return, loss and chunk size.

    Returns: the mean loss over learned steps, and |TD error| (B, T - burn_in), both detached.
    """
    burn, steps = batch.burn_in, batch.action.shape[1]
    with torch.no_grad():
        q_next = target.unroll(batch.obs, batch.state0, batch.reset)[0][:, burn + 1 :]
        state = batch.state0
        if burn:
            state = online.unroll(batch.obs[:, :burn], state, batch.reset[:, :burn])[1]
    chunk = config.bptt_chunk_size or steps
    obs, reset, action = batch.obs[:, burn:], batch.reset[:, burn:], batch.action[:, burn:, None]
    if chunk >= steps - burn:
        q = online.unroll(obs, state, reset)[0]
        targets = _targets(q.detach()[:, 1:], q_next, batch, config)
        return _learn(q[:, :-1], action, targets, batch, config, slice(0, steps - burn))
    with torch.no_grad():
        targets = _targets(online.unroll(obs, state, reset)[0][:, 1:], q_next, batch, config)
    losses, errors = [], []
    for part, (q,) in truncated_unroll(online.unroll, obs[:, :-1], state, reset[:, :-1], chunk):
        loss, error = _learn(q, action[:, part], targets[:, part], batch, config, part)
        losses.append(loss)
        errors.append(error)
    return torch.stack(losses).sum(), torch.cat(errors, 1)


def _targets(q_online_next: Tensor, q_target_next: Tensor, batch: Batch, config: DQNConfig) -> Tensor:
    values = next_values(q_target_next, q_online_next if config.double_dqn else None)
    burn = batch.burn_in
    return n_step_targets(
        values, batch.reward[:, burn:], batch.terminated[:, burn:], batch.mask[:, burn:], config.gamma, config.n_step
    )


def _learn(
    q: Tensor, action: Tensor, targets: Tensor, batch: Batch, config: DQNConfig, part: slice
) -> tuple[Tensor, Tensor]:
    """Backpropagate the part of the mean loss that one chunk contributes. Returns: it, and |TD error| (B, chunk)."""
    taken = q.gather(-1, action).squeeze(-1)
    mask = batch.mask[:, batch.burn_in :]
    weight = batch.weight[:, None] * mask[:, part]
    loss = td_loss(taken, targets, weight, config.loss) / mask.sum().clamp(min=1.0)
    loss.backward()
    return loss.detach(), (taken.detach() - targets).abs() * mask[:, part]


class DQNLearner(ReplayLearner):
    """(Double) DQN over sequences.

    Source: Mnih et al. 2015; van Hasselt et al. 2016. Differs from them: Adam, and by default a target that
    is updated softly, target += tau (online - target) at every update (Lillicrap et al. 2016).

    Args: those of `BaseLearner`, with an `MPNDQN` and a `config.DQNConfig`.
    """

    config: DQNConfig
    online: MPNDQN

    def __init__(self, network: MPNDQN, config: DQNConfig, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(network, config, seed, device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self._online: list[Tensor] = list(self.online.parameters())
        self._target: list[Tensor] = list(self.target.parameters())
        trained = [parameter for parameter in self._online if parameter.requires_grad]
        self.optimizer = Adam(trained, lr=config.learning_rate, fused=True)
        self.networks, self.targets = {"online": self.online}, {"online": self.target}
        self.optimizers = {"online": self.optimizer}
        self.epsilon = config.epsilon_start

    @staticmethod
    def network_options(config: DQNConfig) -> StateDict:
        return {"dueling": config.dueling}

    @property
    def policy(self) -> MPNDQN:
        """The network that is evaluated and saved: the target network by default."""
        return self.target if self.config.act_with == "target" else self.online

    def set_progress(self, progress: float) -> None:
        """Set the learning rate and epsilon."""
        super().set_progress(progress)
        self.epsilon = epsilon_at(progress, self.config)

    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """Actions (N,) and the next state; epsilon-greedy by `online`, or greedy by `policy`."""
        network = self.online if explore else self.policy
        return network.select_action(obs, state, self.epsilon if explore else 0.0, self.generator)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of Adam, then the target's update."""
        batch = batch.to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss, errors = compute_td_loss_trial(self.online, self.target, batch, self.config)
        norm = self.descend("online", self.config.grad_clip)
        self.updates += 1
        with torch.no_grad():
            if self.config.target_update == "soft":
                torch._foreach_lerp_(self._target, self._online, self.config.target_tau)
            elif self.updates % self.config.target_update_freq == 0:
                torch._foreach_copy_(self._target, self._online)
        if self.config.prioritized:
            self.priorities = sequence_priorities(errors, batch.mask[:, batch.burn_in :])
        return {"loss": loss, "grad_norm": norm}

    def status(self) -> dict[str, float]:
        """The exploration rate and the learning rate."""
        return {"epsilon": self.epsilon, **super().status()}

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "epsilon": self.epsilon}

    def load_state_dict(self, saved: StateDict) -> None:
        super().load_state_dict(saved)
        self.epsilon = saved["epsilon"]


def epsilon_at(progress: float, config: DQNConfig) -> float:
    """Exploration rate when a share `progress` of the run is done, with p = progress / epsilon_decay.

    linear       start + (end - start) p                exponential  start (end / start)^p
    step         start while p < 1                       all: end once p >= 1
    """
    start, end = config.epsilon_start, config.epsilon_end
    share = min(progress / config.epsilon_decay, 1.0)
    if share >= 1.0:
        return end
    if config.epsilon_schedule == "step":
        return start
    if config.epsilon_schedule == "exponential" and start > 0.0:
        return start * (max(end, 1e-3 * start) / start) ** share
    return start + (end - start) * share


def main() -> None:
    """A short self-check: one update on one sequence moves the Q-values towards the targets."""
    torch.manual_seed(0)
    dqn = MPNDQN(obs_dim=4, hidden_dim=64, action_dim=2)
    state = dqn.init_state(batch_size=1)
    q_values, new_state = dqn(torch.randn(1, 4), state)
    action, new_state = dqn.select_action(torch.randn(1, 4), new_state, epsilon=0.1)
    print(f"Q {[round(q, 3) for q in q_values.flatten().tolist()]}, action {int(action)}")
    learner = DQNLearner(dqn, DQNConfig(), seed=0)
    steps = 20
    batch = Batch(
        obs=torch.randn(8, steps + 1, 4),
        reset=torch.zeros(8, steps + 1, dtype=torch.bool),
        action=torch.randint(2, (8, steps)),
        reward=torch.ones(8, steps),
        terminated=torch.zeros(8, steps),
        mask=torch.ones(8, steps),
        state0=dqn.init_state(8),
        burn_in=0,
        weight=torch.ones(8),
        places=np.arange(8),
    )
    losses = [float(learner.update(batch)["loss"]) for _ in range(100)]
    print(f"TD loss on one batch: {losses[0]:.3f} before, {losses[-1]:.3f} after 100 updates")


if __name__ == "__main__":
    main()
