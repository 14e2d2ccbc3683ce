"""TD targets, returns, entropies and losses: pure functions of tensors, with time along the second axis.

Index t refers to step t: q(s_t), the reward r_{t+1} that followed it, and whether the task ended with it. Targets are
for q(s_t, a_t), so `bootstrap[:, t]` is the value of s_{t+1}.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def next_values(q_target_next: Tensor, q_online_next: Tensor | None = None) -> Tensor:
    """The value of the next state, by the greedy action.

        max_a Q'(s_{t+1}, a)                       DQN (Mnih et al. 2015)
        Q'(s_{t+1}, argmax_a Q(s_{t+1}, a))        double DQN (van Hasselt et al. 2016), given q_online_next

    Args:
        q_target_next: Q' at s_{t+1}, (B, T, A).
        q_online_next: Q at s_{t+1}, (B, T, A); None: DQN.
    Returns: values, (B, T).
    """
    if q_online_next is None:
        return q_target_next.amax(-1)
    return q_target_next.gather(-1, q_online_next.argmax(-1, keepdim=True)).squeeze(-1)


def n_step_targets(
    bootstrap: Tensor, rewards: Tensor, terminated: Tensor, valid: Tensor, gamma: float, n_step: int
) -> Tensor:
    """n-step TD targets (Sutton & Barto 2018, ch. 7) by the recursion

        G1_t = r_{t+1} + gamma (1 - terminated_{t+1}) V(s_{t+1})
        Gn_t = r_{t+1} + gamma (1 - terminated_{t+1}) G(n-1)_{t+1}     where step t+1 is recorded, else G1_t

    so a time limit or the end of the recording shortens the sum and still bootstraps.

    Args:
        bootstrap: V(s_{t+1}), (B, T).
        rewards: r_{t+1}, (B, T).
        terminated: 1.0 where the task ended, not the time limit, (B, T).
        valid: true where a step was recorded, (B, T).
        gamma: discount per step.
        n_step: n, >= 1.
    Returns: targets, (B, T).
    """
    alive = gamma * (1.0 - terminated)
    target = rewards + alive * bootstrap
    follows = functional.pad(valid[:, 1:].bool(), (0, 1))  # (B, T): step t+1 belongs to the same episode
    for _ in range(n_step - 1):
        later = functional.pad(target[:, 1:], (0, 1))
        target = rewards + alive * torch.where(follows, later, bootstrap)
    return target


def td_loss(q_taken: Tensor, target: Tensor, weight: Tensor, kind: str = "huber") -> Tensor:
    """The TD loss, summed over steps.

        L = sum_{b,t} weight_t l(q_t - target_t),    l = Huber (delta 1) or half the square

    Args:
        q_taken: q(s_t, a_t), (B, T).
        target: (B, T).
        weight: 0 on steps without a loss, (B, T).
        kind: "huber" or "mse".
    Returns: L, a scalar; divide it by the number of learned steps for the mean.
    """
    if kind == "huber":
        loss = functional.smooth_l1_loss(q_taken, target, reduction="none")
    else:
        loss = 0.5 * (q_taken - target).square()
    return (weight * loss).sum()


def sequence_priorities(errors: Tensor, mask: Tensor) -> Tensor:
    """Priorities of replayed sequences (R2D2, Kapturowski et al. 2019), over the learned steps of each:

        p = 0.9 max_t |delta_t| + 0.1 mean_t |delta_t|

    Args:
        errors: |delta_t|, the size of the TD error, (B, T).
        mask: 1.0 on learned steps, (B, T).
    Returns: (B,).
    """
    errors = errors * mask
    return 0.9 * errors.amax(1) + 0.1 * (errors.sum(1) / mask.sum(1).clamp(min=1.0))


def discounted_sums(x: Tensor, decay: Tensor) -> Tensor:
    """Discounted sums from each step to the end.

        y_t = x_t + decay_t y_{t+1},    y_T = 0

    It takes log2(T) steps instead of T: after the k-th, y_t is the sum of the 2^k terms that start at x_t.

    Args:
        x: terms, (B, T).
        decay: discount of what follows each step, (B, T).
    Returns: y, (B, T).
    """
    reach = 1
    while reach < x.shape[1]:
        x = x + decay * functional.pad(x[:, reach:], (0, reach))
        decay = decay * functional.pad(decay[:, reach:], (0, reach))
        reach *= 2
    return x


def lambda_returns(rewards: Tensor, bootstrap: Tensor, cut: Tensor, gamma: float, lam: float = 1.0) -> Tensor:
    """The lambda-return (Sutton & Barto 2018, ch. 12). Minus V, it is the GAE (Schulman et al. 2016).

        G_t = r_{t+1} + gamma ((1 - lam) V(s_{t+1}) + lam G_{t+1})      within an episode
        G_t = r_{t+1} + gamma V(s_{t+1})                                where it is cut
        G_t - V(s_t) = sum_k (gamma lam)^k delta_{t+k},   delta_t = r_{t+1} + gamma V(s_{t+1}) - V(s_t)

    With lam = 1 these are the discounted returns (Monte Carlo), which use V at the cuts only.

    Args:
        rewards: r_{t+1}, (B, T).
        bootstrap: V(s_{t+1}), (B, T); 0 where the task ended.
        cut: true where the sum stops, (B, T) bool: the last step of an episode, and of the recording.
        gamma: discount per step.
        lam: lambda, in [0, 1].
    Returns: G, (B, T).
    """
    through = gamma * lam * (~cut).to(rewards.dtype)
    return discounted_sums(rewards + (gamma - through) * bootstrap, through)


def shannon_entropy(log_probs: Tensor) -> Tensor:
    """Shannon entropy -sum_a p_a log p_a in nats, between 0 and log A.

    Args: log_probs: log p, (..., A).
    Returns: (...).
    """
    return -(log_probs.exp() * log_probs).sum(-1)


def simpson_entropy(log_probs: Tensor) -> Tensor:
    """Simpson's index 1 - sum_a p_a^2, the probability that two draws differ (Simpson 1949), between 0 and 1 - 1/A.

    Args: log_probs: log p, (..., A).
    Returns: (...).
    """
    return 1.0 - (2.0 * log_probs).exp().sum(-1)
