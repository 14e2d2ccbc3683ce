"""Supervised learning: the network is trained on a task's right actions instead of its rewards.

Aitken & Mihalas 2023 (eLife 12:e83035) train their networks in this way. The core is an argument, so that the same
network can be trained by reward and by supervision, and the two compared.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mpn_rl.config import SupervisedConfig
from mpn_rl.contracts import Core, Sequences, State
from mpn_rl.expansion.hidden_units import synapses
from mpn_rl.learners.base import Adam, SequenceLearner
from mpn_rl.networks.encoder import AgentNetwork, Encoder, epsilon_greedy


class SupervisedNetwork(AgentNetwork):
    """The scores of all choices, or the action itself where actions are vectors: linear(h_t).

    Args:
        obs_dim, hidden_dim, action_dim: sizes of observation, core and action set or action vector.
        encoder: in front of the core.
        core: any module with the core contract and `encoder.output_dim` inputs.
        low, high: bounds of continuous actions, (action_dim,); None: actions are choices.
    """

    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        obs_dim: int,
        hidden_dim: int,
        action_dim: int,
        *,
        encoder: Encoder,
        core: Core,
        low: ArrayLike | None = None,
        high: ArrayLike | None = None,
    ) -> None:
        super().__init__()
        self.obs_dim, self.hidden_dim, self.action_dim = obs_dim, hidden_dim, action_dim
        self.encoder, self.core = encoder, core
        self.head = nn.Linear(hidden_dim, action_dim)
        self.output_name = "action_probabilities" if low is None else None
        self.register_buffer("low", None if low is None else torch.tensor(np.asarray(low, np.float32)))
        self.register_buffer("high", None if high is None else torch.tensor(np.asarray(high, np.float32)))

    def unroll(self, obs: Tensor, state: State, reset: Tensor | None = None, noise: Tensor | None = None):
        """A sequence: obs (B, T, D) -> (B, T, A) and the last state.

        Args:
            obs: observations.
            state: before the first step.
            reset: as in the core contract.
            noise: added to the core's input, (B, T, encoder.output_dim); None: no noise.
        """
        x = self.encoder(obs)
        hs, state = self.core.unroll(x if noise is None else x + noise, state, reset)
        return self.head(hs), state

    def reported(self, output: Tensor) -> Tensor:
        """The probabilities of the choices from their scores (B, A)."""
        return output.softmax(-1)

    def choose(self, scores: Tensor, epsilon: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The best choices (B,), a share `epsilon` of them replaced by uniform ones; or the actions within bounds."""
        if self.low is None or self.high is None:
            return epsilon_greedy(scores.argmax(-1), self.action_dim, epsilon, generator)
        actions = torch.maximum(torch.minimum(scores, self.high), self.low)
        if epsilon > 0.0:
            explore = torch.rand(len(actions), 1, generator=generator) < epsilon
            uniform = torch.rand(actions.shape, generator=generator).to(actions.device)
            actions = torch.where(explore.to(actions.device), self.low + (self.high - self.low) * uniform, actions)
        return actions


def step_weights(known: Tensor, decision: Tensor, score_periods: str) -> Tensor:
    """The weight of each step in the loss; the weights sum to 1, or to 0 where no step counts.

    With "decision", the steps of the decision period that have a right action weigh the same. With "all", the other
    steps that have one are a second group: the two groups weigh the same, for the decision is a small part of a trial.

    Args:
        known: whether the step has a right action, (B, T) bool.
        decision: whether it lies in the decision period, (B, T) bool.
        score_periods: "decision" or "all".
    Returns: (B, T).
    """
    groups = [known & decision] if score_periods == "decision" else [known & decision, known & ~decision]
    counts = [group.sum() for group in groups]
    present = sum((count > 0).float() for count in counts)
    parts = [group / count.clamp(min=1) for group, count in zip(groups, counts, strict=True)]
    return torch.stack(parts).sum(0) / torch.clamp(torch.as_tensor(present), min=1.0)


def supervised_losses(outputs: Tensor, target: Tensor) -> Tensor:
    """The loss of each step: cross-entropy of choices, or the mean squared error of an action vector.

    Args:
        outputs: scores or actions, (B, T, A).
        target: right choices, (B, T) int64, or right vectors (B, T, A); -1 or nan where there is none.
    Returns: (B, T), 0 where there is no right action.
    """
    if target.ndim == 2:
        return nn.functional.cross_entropy(outputs.movedim(-1, 1), target, ignore_index=-1, reduction="none")
    return (outputs - torch.where(target.isfinite(), target, outputs.detach())).square().mean(-1)


class SupervisedLearner(SequenceLearner):
    """One step of Adam per batch of new sequences, on the error of the network's actions at every scored step.

        L = sum_{b,t} w_bt l(y_bt, y*_bt) + l1 sum |W|

    l is the cross-entropy or the squared error, w are the `step_weights`, and W the weight matrices of the core. The
    state is reset at each sequence's start, and the whole sequence is unrolled at once.

    Args: those of `BaseLearner`, with a `SupervisedNetwork` and a `config.SupervisedConfig`.
    """

    continuous = None
    config: SupervisedConfig
    online: SupervisedNetwork

    def __init__(
        self, network: SupervisedNetwork, config: SupervisedConfig, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(network, config, seed, device)
        trained = [parameter for parameter in self.online.parameters() if parameter.requires_grad]
        self.optimizer = Adam(trained, lr=config.learning_rate, fused=True)
        self.networks, self.optimizers = {"online": self.online}, {"online": self.optimizer}
        self._penalised = [weight for name, weight in synapses(self.online).items() if name.startswith("core.")]

    def act(self, obs: Tensor, state: State, explore: bool) -> tuple[Tensor, State]:
        """The best actions (N,) or (N, A), and the next state."""
        return self.online.select_action(obs, state)

    def update(self, batch: Sequences) -> dict[str, Tensor]:
        """One step of Adam. Returns "loss" without the L1 term, "grad_norm", and "train_accuracy" of choices.

        The accuracy is the share of right choices at decision steps, or where there are none, at all steps.
        """
        batch = batch.to(self.device)
        rows, steps = batch.decision.shape
        known = batch.target >= 0 if batch.target.ndim == 2 else batch.target.isfinite().all(-1)
        weights = step_weights(known, batch.decision, self.config.score_periods)
        self.optimizer.zero_grad(set_to_none=True)
        outputs, _ = self.online.unroll(batch.obs, self.online.init_state(rows), batch.reset, self._noise(rows, steps))
        loss = (supervised_losses(outputs, batch.target) * weights).sum()
        total = loss
        if self.config.l1 > 0.0:
            total = loss + self.config.l1 * torch.stack([weight.abs().sum() for weight in self._penalised]).sum()
        total.backward()
        values = {"loss": loss.detach(), "grad_norm": self.descend("online", self.config.grad_clip)}
        self.updates += 1
        if batch.target.ndim == 2:
            asked = known & batch.decision
            asked = torch.where(asked.any(), asked, known)
            right = (outputs.detach().argmax(-1) == batch.target) & asked
            values["train_accuracy"] = right.sum() / asked.sum().clamp(min=1)
        return values

    def _noise(self, rows: int, steps: int) -> Tensor | None:
        """Gaussian noise on the core's input, whose root mean square norm is `input_noise`."""
        if self.config.input_noise == 0.0:
            return None
        width = self.online.encoder.output_dim
        noise = torch.empty(rows, steps, width).normal_(generator=self.generator)  # on the CPU, as in `Encoder`
        return (noise * (self.config.input_noise / math.sqrt(width))).to(self.device)
