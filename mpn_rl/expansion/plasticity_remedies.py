"""Remedies against the loss of plasticity that change weights and no topology.

With theta a network's trained parameters and theta_0 their values at the start of the run:

    L2Init          loss + c ||theta - theta_0||^2, so 2 c (theta - theta_0) is added to the gradient
    ShrinkPerturb   theta <- alpha theta + beta theta_fresh at an event, theta_fresh drawn from the initialisation

Sources: Kumar, Marklund & Van Roy 2023 (arXiv 2308.11958); Ash & Adams 2020 (arXiv 1910.08475), and D'Oro et al. 2023
(SR-SPR) for ShrinkPerturb in reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mpn_rl.config import L2InitConfig, ShrinkPerturbConfig
from mpn_rl.contracts import Network, State, StateDict
from mpn_rl.options import ConfigError
from mpn_rl.storage.state_trees import Whole, check, check_torch_random, like, like_dict

# seed -> new networks by name, from the initialisation of the networks that learn
Draw: TypeAlias = Callable[[int], Mapping[str, nn.Module]]


class Remedy:
    """The part of `contracts.Expansion` that says that no topology changes.

    Args: networks: the trained networks by name. A parameter of theirs without `requires_grad` never changes.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.networks = dict(networks)
        self.weights: dict[str, dict[str, nn.Parameter]] = {
            name: {key: part for key, part in network.named_parameters() if part.requires_grad}
            for name, network in networks.items()
        }

    def before_step(self, name: str) -> None:
        """Do nothing between a network's backward pass and its optimiser's step."""

    def after_step(self, name: str) -> None:
        """Do nothing after the optimiser's step."""

    def advance(self, step: int) -> bool:
        """Returns: whether an event changed a weight, once per vector step; there is none."""
        return False

    def reset_state(self, network: Network, state: State) -> State:
        """The acting state as it is: every synapse still exists."""
        return state

    def densities(self) -> dict[str, float]:
        """1 for every network: all weights exist."""
        return dict.fromkeys(self.networks, 1.0)

    def churn(self) -> dict[str, float]:
        """0 for every network: no mask changes."""
        return dict.fromkeys(self.networks, 0.0)

    def history(self) -> dict[str, np.ndarray]:
        """No masks, at step 0 alone."""
        return {"step": np.zeros(1, np.int64)}


class L2Init(Remedy):
    """L2 regularisation towards the initial weights (L2 Init; Kumar, Marklund & Van Roy 2023).

        L(theta) = L_learner(theta) + c ||theta - theta_0||^2
        dL/dtheta = dL_learner/dtheta + 2 c (theta - theta_0)

    A weight on which the learner's loss hardly depends drifts back to its initial value, from which it can learn again.
    As in the paper, theta has every trained parameter: weights and biases, and here also LayerNorm, eta, lambda and
    M(0). It goes through the gradient, so Adam scales it as it scales the loss, and the clipping of gradients and the
    logged gradient norm cover both terms. A parameter without a gradient in an update is not pulled in it. Target
    networks are not pulled: they follow the trained ones.

    Args:
        config: has c, `l2_init_coef`. The paper tries 1e-2, 1e-3, 1e-4 and 1e-5 on each problem.
        networks: the trained networks by name, at their initial weights.
    """

    def __init__(self, config: L2InitConfig, networks: Mapping[str, nn.Module]) -> None:
        super().__init__(networks)
        self.config = config
        self.initial: dict[str, dict[str, Tensor]] = {
            name: {key: part.detach().clone() for key, part in weights.items()}
            for name, weights in self.weights.items()
        }

    @torch.no_grad()
    def before_step(self, name: str) -> None:
        """Add the gradient of the pull to `.grad` of a network's weights."""
        weights = {key: part for key, part in self.weights[name].items() if part.grad is not None}
        if not weights:
            return
        gradients = [part.grad for part in weights.values() if part.grad is not None]
        moved = torch._foreach_sub(list(weights.values()), [self.initial[name][key] for key in weights])
        torch._foreach_add_(gradients, moved, alpha=2.0 * self.config.l2_init_coef)

    def state_dict(self) -> StateDict:
        """theta_0."""
        return {"initial": {name: dict(weights) for name, weights in self.initial.items()}}

    def check_state(self, saved: object, place: str) -> None:
        """Raise a StateError where `saved` is not a state of this object, before `load_state_dict` loads it."""
        check(saved, like(self.state_dict()), place)

    def load_state_dict(self, saved: StateDict, /) -> None:
        """Restore what `state_dict` returned."""
        for name, weights in self.initial.items():
            for key, part in weights.items():
                part.copy_(saved["initial"][name][key])


class ShrinkPerturb(Remedy):
    """Shrink the weights and perturb them, at an interval (shrink and perturb; Ash & Adams 2020).

        theta <- alpha theta + beta theta_fresh        after every `update_interval` environment steps

    theta_fresh is a new draw from the initialisation of each layer, of the shape of theta, as in SR-SPR (D'Oro et al.
    2023). Differs from Ash & Adams, whose equation adds Gaussian noise of one variance: a layer's own initialisation
    has the scale of that layer. The defaults alpha = 0.8 and beta = 0.2 are those of SR-SPR's public code, which notes
    0.4 and 0.1 as the original values.

    - Weights and biases change alike, in all layers, as in Ash & Adams. SR-SPR changes the encoder alone and draws the
      layers after it again.
    - Parameters whose initialisation draws nothing keep their values: LayerNorm, M(0), a learned standard deviation,
      lambda, and eta unless it is drawn as weights are (`--eta-init xavier`). The papers' networks have none but
      normalisation. A shrunk lambda would only shorten the memory.
    - Adam starts again for the changed parameters, with moments and step counter of 0: the moments belong to the old
      weights. Ash & Adams train each time with a new optimiser; the code of SR-SPR keeps the moments of its encoder.
    - A target network and a running average get the same alpha, beta and theta_fresh. What they were to theta (an
      average of its past values, or a copy) they are to the new theta. The code of SR-SPR draws anew for the target.
    - The acting state and the memory stay as they are.

    An event happens at the first vector step that reaches it. None happens at the end of the run, whose last weights
    would be perturbed ones, and none changes a network before its first update.

    Args:
        config: has alpha, `shrink_factor`, beta, `perturb_factor`, and the interval.
        networks: the trained networks by name.
        copies: targets and running averages, each by the same names.
        optimizers: by the same names.
        draw: new networks by the same names.
        seed: of the draws.
        total_steps: environment steps of the run; None if unknown.

    Raises: ConfigError if the run ends before the first event.
    """

    def __init__(
        self,
        config: ShrinkPerturbConfig,
        networks: Mapping[str, nn.Module],
        copies: Sequence[Mapping[str, nn.Module]],
        optimizers: Mapping[str, torch.optim.Optimizer],
        draw: Draw,
        seed: int,
        total_steps: int | None,
    ) -> None:
        super().__init__(networks)
        if total_steps is not None and config.update_interval >= total_steps:
            raise ConfigError(
                f"--update-interval must be less than the run's {total_steps} environment steps, so that the network "
                f"learns after an event, got {config.update_interval}"
            )
        self.config, self.draw, self.total_steps = config, draw, total_steps
        self.copies, self.optimizers = [dict(group) for group in copies], dict(optimizers)
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        self.done = 0  # events so far, those before the first update included
        self.updates = dict.fromkeys(networks, 0)
        one, other = draw(0), draw(1)
        self.drawn = {  # names of the parameters that the initialisation draws
            name: [key for key in keys if not one[name].get_parameter(key).equal(other[name].get_parameter(key))]
            for name, keys in self.weights.items()
        }

    def before_step(self, name: str) -> None:
        """Count the update."""
        self.updates[name] += 1

    def advance(self, step: int) -> bool:
        """Run the event that is due.

        Args: step: environment steps so far.
        Returns: whether it changed a weight.
        """
        due = step // self.config.update_interval
        if due <= self.done or (self.total_steps is not None and step >= self.total_steps):
            return False
        self.done = due
        fresh = self.draw(int(torch.randint(2**31, (), generator=self.generator)))
        learned = [name for name, updates in self.updates.items() if updates]
        for name in learned:
            self._event(name, fresh[name])
        return bool(learned)

    @torch.no_grad()
    def _event(self, name: str, fresh: nn.Module) -> None:
        modules = [self.networks[name], *(group[name] for group in self.copies if name in group)]
        for key in self.drawn[name]:
            new = fresh.get_parameter(key).to(self.weights[name][key].device)
            for module in modules:
                module.get_parameter(key).mul_(self.config.shrink_factor).add_(new, alpha=self.config.perturb_factor)
            self.optimizers[name].state.pop(self.weights[name][key], None)

    def state_dict(self) -> StateDict:
        """Counters and generator."""
        return {"done": self.done, "updates": dict(self.updates), "generator": self.generator.get_state()}

    def check_state(self, saved: object, place: str) -> None:
        """Raise a StateError where `saved` is not a state of this object, before `load_state_dict` loads it."""
        most = {} if self.total_steps is None else {"high": self.total_steps // self.config.update_interval}
        check(saved, like_dict(self.state_dict(), done=Whole(**most)), place)
        assert isinstance(saved, dict)
        check_torch_random(saved["generator"], f"{place}.generator")

    def load_state_dict(self, saved: StateDict, /) -> None:
        """Restore what `state_dict` returned."""
        self.done, self.updates = saved["done"], dict(saved["updates"])
        self.generator.set_state(saved["generator"].cpu())
