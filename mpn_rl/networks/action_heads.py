"""Output layers: Q-values, a policy over choices, a bounded action vector, a policy over such vectors, a value."""

from __future__ import annotations

import math

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from mpn_rl.networks.encoder import epsilon_greedy
from mpn_rl.returns import shannon_entropy, simpson_entropy

ENTROPIES = {"shannon": shannon_entropy, "simpson": simpson_entropy}


class ChoicesHead(nn.Linear):
    """pi(a | h) = softmax(W h + b)_a over A choices. Args: in_features, out_features: sizes of h and of the set."""

    def best(self, logits: Tensor) -> Tensor:
        """The most probable actions (...,) for logits (..., A)."""
        return logits.argmax(-1)

    def sample(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions (...,) by the Gumbel-max trick: argmax_a logits_a - log E_a, E_a ~ Exp(1)."""
        noise = torch.empty(logits.shape).exponential_(generator=generator)  # on the CPU: the same on every device
        return (logits - noise.log_().to(logits.device)).argmax(-1)

    def mixed(self, actions: Tensor, epsilon: float, generator: torch.Generator | None) -> Tensor:
        """Replace a share `epsilon` of the actions (B,) by uniform ones."""
        return epsilon_greedy(actions, self.out_features, epsilon, generator)

    def evaluate_actions(self, logits: Tensor, actions: Tensor, entropy: str) -> tuple[Tensor, Tensor]:
        """log pi(a) and the entropy of pi, both (...,), of actions (...,) under logits (..., A)."""
        log_probs = logits.log_softmax(-1)
        return log_probs.gather(-1, actions[..., None]).squeeze(-1), ENTROPIES[entropy](log_probs)


class DuelingHead(nn.Linear):
    """Q(h, a) = V(h) + A(h, a) - mean_a' A(h, a'), with [V, A] = W h + b.

    An update of one action's Q also moves the others, by way of V. Where all Q are large and nearly equal, as in tasks
    with a reward at every step, their differences are then learned apart from their size.

    Source: Wang et al. 2016, arXiv 1511.06581.

    Args: in_features: size of h. actions: A, the number of choices.
    """

    def __init__(self, in_features: int, actions: int) -> None:
        super().__init__(in_features, 1 + actions)

    def forward(self, h: Tensor) -> Tensor:
        """(..., H) -> (..., A)."""
        value, advantage = super().forward(h).tensor_split((1,), -1)
        return value + advantage - advantage.mean(-1, keepdim=True)


class NormalizedValue(nn.Linear):
    """V = mu + sigma (w h + b), with mu and sigma the running mean and deviation of the returns that V learns.

    So w and b learn numbers of size 1, however large the returns are (PopArt; van Hasselt et al. 2016, arXiv
    1602.07714).

    Args: in_features: size of h. decay: share of the old statistics that remains after `track`.
    """

    mean: Tensor
    square: Tensor
    tracked: Tensor

    def __init__(self, in_features: int, decay: float = 0.99) -> None:
        super().__init__(in_features, 1)
        self.decay = decay
        for name in ("mean", "square", "tracked"):  # sums of means and squares, and of their weights
            self.register_buffer(name, torch.zeros(()))

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """mu and sigma, 0 and 1 before the first `track`."""
        weights = torch.where(self.tracked > 0.0, self.tracked, 1.0)
        mu = self.mean / weights
        sigma = (self.square / weights - mu.square()).clamp_min(0.0).sqrt().clamp_min(1e-4)
        return mu, torch.where(self.tracked > 0.0, sigma, 1.0)

    def forward(self, h: Tensor) -> Tensor:
        """(..., H) -> (..., 1)."""
        mu, sigma = self.statistics
        return mu + sigma * super().forward(h)

    @torch.no_grad()
    def track(self, returns: Tensor) -> None:
        """Take returns into mu and sigma; w and b change so that V stays as it is."""
        (mu, sigma), rest = self.statistics, 1.0 - self.decay
        self.mean.mul_(self.decay).add_(rest * returns.mean())
        self.square.mul_(self.decay).add_(rest * returns.square().mean())
        self.tracked.mul_(self.decay).add_(rest)
        new_mu, new_sigma = self.statistics
        self.weight.mul_(sigma / new_sigma)
        self.bias.mul_(sigma).add_(mu - new_mu).div_(new_sigma)


class BoundedHead(nn.Linear):
    """a = (high + low) / 2 + (high - low) / 2 tanh(W h + b), within the bounds of the action space.

    Args: in_features; low, high: (A,) finite.
    """

    low: Tensor
    high: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, in_features: int, low: ArrayLike, high: ArrayLike) -> None:
        low, high = (torch.as_tensor(bound, dtype=torch.float32).clone() for bound in (low, high))
        super().__init__(in_features, len(low))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("centre", (high + low) / 2, persistent=False)
        self.register_buffer("scale", (high - low) / 2, persistent=False)

    def _load_from_state_dict(self, saved: dict[str, Tensor], prefix: str, *rest) -> None:
        """Keep the bounds, which belong to the task."""
        super()._load_from_state_dict({**saved, prefix + "low": self.low, prefix + "high": self.high}, prefix, *rest)

    def forward(self, h: Tensor) -> Tensor:
        """(..., H) -> (..., A)."""
        return torch.addcmul(self.centre, self.scale, torch.tanh(super().forward(h)))

    def uniform(self, rows: int, generator: torch.Generator | None) -> Tensor:
        """Random actions (rows, A)."""
        share = torch.rand(rows, self.out_features, generator=generator).to(self.low.device)
        return self.low + (self.high - self.low) * share

    def mixed(self, actions: Tensor, epsilon: float, generator: torch.Generator | None) -> Tensor:
        """Replace a share `epsilon` of the actions (B, A) by uniform ones."""
        if epsilon > 0.0:
            explore = torch.rand(len(actions), 1, generator=generator) < epsilon
            actions = torch.where(explore.to(actions.device), self.uniform(len(actions), generator), actions)
        return actions

    def disturbed(
        self, actions: Tensor, noise: float, generator: torch.Generator | None, clip: float | None = None
    ) -> Tensor:
        """Actions (..., A) plus Gaussian noise, within the bounds.

        Args:
            actions: (..., A).
            noise: standard deviation, in units of half the action's range.
            generator: draws the noise; None: torch's global one.
            clip: largest size of the noise, in the same units; None: no limit.
        """
        drawn = torch.randn(actions.shape, generator=generator).to(actions.device) * noise
        if clip is not None:
            drawn = drawn.clamp_(-clip, clip)
        return torch.addcmul(actions, self.scale, drawn).clamp_(self.low, self.high)


class GaussianHead(BoundedHead):
    """pi(. | h): a Gaussian around `BoundedHead`'s action, cut to the bounds. Its deviation does not depend on h.

        a = clip(mu + s exp(log_std) n, low, high),    n ~ N(0, 1),    s = (high - low) / 2

    An action at a bound stands for all that were cut to it, so its probability is that of the tail. This is the policy
    whose gradient Fujita & Maeda 2018 (clipped action policy gradient, arXiv 1802.07564) show to have less variance
    than the Gaussian's before the cut.

    Args: in_features; low, high: (A,) finite; log_std: initial logarithm of the deviation, in units of half the range.
    """

    def __init__(self, in_features: int, low: ArrayLike, high: ArrayLike, log_std: float = 0.0) -> None:
        super().__init__(in_features, low, high)
        self.log_std = nn.Parameter(torch.full((self.out_features,), log_std))

    def best(self, means: Tensor) -> Tensor:
        """The means (..., A) themselves."""
        return means

    def sample(self, means: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions (..., A) around the means."""
        return self.around(means, torch.randn(means.shape, generator=generator).to(means.device))

    def around(self, means: Tensor, noise: Tensor) -> Tensor:
        """The actions (..., A) with noise (..., A) of deviation 1."""
        return torch.addcmul(means, self.scale, noise * self.log_std.exp()).clamp(self.low, self.high)

    def evaluate_actions(self, means: Tensor, actions: Tensor, entropy: str) -> tuple[Tensor, Tensor]:
        """log pi(a) and the entropy of the Gaussian before the cut, both (...,), for actions (..., A).

            log pi = sum_i  log N(z_i) - log(s_i sigma_i)    within the bounds,  z = (a - mu) / (s sigma)
                            log Phi(z_i), log Phi(-z_i)      at the lower, the upper bound

        The entropy is sum_i log(sigma_i sqrt(2 pi e)), or with "simpson" 1 - prod_i 1 / (2 sqrt(pi) sigma_i).
        """
        z = (actions - means) / (self.scale * self.log_std.exp())
        inside = -0.5 * z.square() - 0.5 * math.log(2.0 * math.pi) - self.log_std - self.scale.log()
        tail = torch.where(actions <= self.low, z, -z)
        cut = (actions <= self.low) | (actions >= self.high)
        # log_ndtr only where it is used: its gradient elsewhere may be infinite, and 0 times infinity is nan.
        log_prob = torch.where(cut, torch.special.log_ndtr(torch.where(cut, tail, 0.0)), inside).sum(-1)
        if entropy == "shannon":
            value = (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()
        else:
            value = 1.0 - (-self.log_std - math.log(2.0 * math.sqrt(math.pi))).sum().exp()
        return log_prob, value.expand(log_prob.shape)
