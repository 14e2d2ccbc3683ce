"""How well a network can still learn: activity and rank of its hidden units, size of its weights and gradients.

One forward pass per network on one batch, at an interval: nothing here is on the path of an update. The units are
those that `hidden_units.Watch` sees, at what the next layer reads, after activation function and LayerNorm.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from mpn_rl.expansion.hidden_units import Watch, dormancy, ends

SILENT, SATURATED = 0.01, 0.99  # of units that have two signs
MAX_ROWS = 2048  # that the rank is taken of


def active(activity: Tensor) -> Tensor:
    """Where a unit is active, (rows, units) -> bool: where it passes on its input, and the gradient.

    Rectified units (nowhere negative; sigmoid ones count as such) are active above 0. Where two signs occur, active
    means neither silent, |h| <= 0.01, nor saturated, |h| >= 0.99; the latter of units within [-1, 1], such as tanh.
    """
    if bool((activity >= 0).all()):
        return activity > 0
    size = activity.abs()
    if bool((size <= 1.0).all()):
        return (size > SILENT) & (size < SATURATED)
    return size > SILENT


def active_fraction(activity: Tensor) -> float:
    """Mean over units and rows of 1[active]: "fraction of active units" in Ma et al. (2024) and in the public code
    of Neuroplastic Expansion; about a half in a fresh ReLU network.
    """
    return float(active(activity).float().mean())


def live_fraction(activity: Tensor) -> float:
    """Share of the units that are active in at least one row: 1 minus the share of dead ones."""
    return float(active(activity).any(0).float().mean())


def dormant_fraction(activity: Tensor, tau: float) -> float:
    """Share of the units with s_i = E|h_i| / mean_k E|h_k| <= tau (Sokar et al. 2023)."""
    return float((dormancy(activity) <= tau).float().mean())


def effective_rank(features: Tensor) -> float:
    """exp(- sum_i p_i log p_i), p_i = sigma_i / sum_k sigma_k the singular values' shares (Roy & Vetterli 2007).

    Args: features: (rows, units). Returns: from 1 to the smaller of both; 0 of a matrix of zeros.
    """
    x = features[:: math.ceil(len(features) / MAX_ROWS)].double()
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    sigma = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    if not bool((total := sigma.sum()) > 0):
        return 0.0
    return float(torch.special.entr(sigma / total).sum().exp())


def norm(tensors: list[Tensor]) -> float:
    """The length of all of them as one vector."""
    return float(torch.stack(torch._foreach_norm(tensors)).norm()) if tensors else 0.0


def activities(network: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What the hidden layers give on a batch: {reading layer: (rows, units)}, rows being the learned steps.

    Args:
        network: with the `unroll` of a learner's networks; where its `forward` takes "actions" it is a critic, whose
            unroll gives what the actions are judged on, from a state of its own.
        batch: a `contracts.Batch` on the network's device.
    """
    steps = batch.action.shape[1]
    critic = "actions" in inspect.signature(network.forward).parameters
    state = network.init_state(len(batch.obs), batch.obs.device) if critic else batch.state0  # type: ignore[operator]
    watch = Watch(network)
    try:
        with torch.enable_grad():  # what depends on weights is told by its gradient
            z = network.unroll(batch.obs, state, batch.reset)[0]  # type: ignore[operator]
            if critic:
                network(z[:, :steps], batch.action)
    finally:
        watch.remove()
    learned = batch.mask > 0
    found, seen = {}, set()
    for reader, x in watch.inputs.items():
        if x.data_ptr() not in seen:  # two heads may read the same
            found[reader] = x[:, :steps][learned] if x.ndim == 3 and x.shape[1] >= steps else x.flatten(0, -2)
        seen.add(x.data_ptr())
    return found


def measure(learner: Any, batch: Any, tau: float = 0.1) -> dict[str, float]:
    """The state of every network of a learner, on one batch: "<network>/<quantity>".

        active_fraction    over units and steps, of all hidden layers; "/active_fraction/<layer>" of what one reads
        live_fraction      share of the units active anywhere in the batch
        dormant_fraction   at `tau`
        effective_rank     of the features that the last layer reads (the mean over critics)
        weight_norm        of all trained parameters
        grad_norm          of the last update's gradient, before it was clipped
        density, churn     with a topology: share of the weights that exist, and of the mask entries that changed
                           since the last call

    Args:
        learner: with `networks`, `topology`, `device` and, for the gradient's norm, `grad_norms` by network.
        batch: on any device; drawn with a generator of its own, so that measuring changes no run.
    """
    told: dict[str, float] = {}
    batch = batch.to(learner.device)
    for name, network in learner.networks.items():
        layers = activities(network, batch)
        last = ends(network)[1] & set(layers)
        values = {f"active_fraction/{layer}": active_fraction(x) for layer, x in layers.items()}
        if layers:
            values["active_fraction"] = _pooled(layers, active_fraction)
            values["live_fraction"] = _pooled(layers, live_fraction)
            values["dormant_fraction"] = _pooled(layers, lambda x: dormant_fraction(x, tau))
        if last:
            values["effective_rank"] = sum(effective_rank(layers[layer]) for layer in sorted(last)) / len(last)
        values["weight_norm"] = norm([part.detach() for part in network.parameters() if part.requires_grad])
        if name in (norms := getattr(learner, "grad_norms", {})):
            values["grad_norm"] = float(norms[name])
        told |= {f"{name}/{key}": value for key, value in values.items()}
    if learner.topology is not None:
        densities, churn = learner.topology.densities(), learner.topology.churn()
        for name in learner.networks:
            told |= {f"{name}/density": densities[name], f"{name}/churn": churn[name]}
    return told


def _pooled(layers: dict[str, Tensor], quantity: Any) -> float:
    """A quantity of every layer, averaged over all units."""
    return sum(quantity(x) * x.shape[1] for x in layers.values()) / sum(x.shape[1] for x in layers.values())
