"""Plasticity metrics: activity and rank of a network's hidden units, norms of its weights and gradients.

They take one forward pass per network on one batch, at an interval, outside the updates. The units are those that
`hidden_units.Watch` sees: the values that the next layer reads, after activation function and LayerNorm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mpn_rl.contracts import Batch, Learner
from mpn_rl.expansion.hidden_units import Watch, dormancy, ends

SILENT, SATURATED = 0.01, 0.99  # |h| of units whose output has two signs
ROWS = 256  # from which rank and live units are measured: both grow with the number of rows


def active(activity: Tensor) -> Tensor:
    """Where units are active, so that input and gradient pass through them: (rows, units) -> bool.

    If no output is negative (ReLU, sigmoid), a unit is active where h > 0. Otherwise it is active where it is neither
    silent, |h| <= 0.01, nor saturated, |h| >= 0.99; saturation applies only if all outputs lie in [-1, 1] (tanh).
    """
    if bool((activity >= 0).all()):
        return activity > 0
    size = activity.abs()
    if bool((size <= 1.0).all()):
        return (size > SILENT) & (size < SATURATED)
    return size > SILENT


def active_fraction(activity: Tensor) -> float:
    """Mean of 1[active] over units and rows; about 0.5 in a newly initialised ReLU network.

    Source: "fraction of active units" in Ma et al. (2024) and in the public code of Neuroplastic Expansion.
    """
    return float(active(activity).float().mean())


def live_fraction(activity: Tensor) -> float:
    """Share of the units that are active in at least one row; it grows with the number of rows."""
    return float(active(activity).any(0).float().mean())


def dormant_fraction(activity: Tensor, tau: float) -> float:
    """Share of the units with s_i = E|h_i| / mean_k E|h_k| <= tau (Sokar et al. 2023)."""
    return float((dormancy(activity) <= tau).float().mean())


def effective_rank(features: Tensor) -> float:
    """exp(- sum_i p_i log p_i), p_i = sigma_i / sum_k sigma_k the singular values' shares (Roy & Vetterli 2007).

    Args: features: (rows, units).
    Returns: a number from 1 to min(rows, units), which grows with the number of rows; 0 for a matrix of zeros.
    """
    sigma = singular_values(features)
    if not bool((total := sigma.sum()) > 0):
        return 0.0
    return float(torch.special.entr(sigma / total).sum().exp())


def stable_rank(features: Tensor) -> float:
    """sum_i sigma_i^2 / max_i sigma_i^2, a lower bound of the rank that small singular values hardly change.

    Args: features: (rows, units).
    Returns: a number from 1 to min(rows, units); 0 for a matrix of zeros.
    """
    power = singular_values(features).square()
    return float(power.sum() / largest) if bool((largest := power.max()) > 0) else 0.0


def singular_values(features: Tensor) -> Tensor:
    """The singular values of a matrix (rows, units), in ascending order."""
    x = features.double()
    gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
    return torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()


def feature_norm(features: Tensor) -> float:
    """Mean over the rows of the Euclidean norm of (rows, units)."""
    return float(features.norm(dim=1).mean())


def fixed_rows(features: Tensor) -> Tensor:
    """ROWS evenly spaced rows of (rows, units), or all where there are fewer."""
    return features[(torch.arange(ROWS) * len(features)) // ROWS] if len(features) > ROWS else features


def norm(tensors: list[Tensor]) -> float:
    """The Euclidean norm of all the tensors as one vector."""
    return float(torch.stack(torch._foreach_norm(tensors)).norm()) if tensors else 0.0


def activities(learner: Learner[Any], name: str, batch: Batch) -> dict[str, Tensor]:
    """The outputs of a network's hidden layers on a batch: {reading layer: (rows, units)}, one row per learned step.

    Args:
        learner: runs the network.
        name: of the network in `learner.networks`.
        batch: on the learner's device.
    """
    steps = batch.action.shape[1]
    watch = Watch(learner.networks[name])
    try:
        with torch.enable_grad():  # `Watch` needs the autograd graph
            learner.run_network(name, batch)
    finally:
        watch.remove()
    learned = batch.mask > 0
    layers, seen = {}, set()
    for reader, x in watch.inputs.items():
        if x.data_ptr() not in seen:  # two heads may read the same units
            layers[reader] = x[:, :steps][learned] if x.ndim == 3 and x.shape[1] >= steps else x.flatten(0, -2)
        seen.add(x.data_ptr())
    return layers


def measure(learner: Learner[Any], batch: Batch, tau: float = 0.1) -> dict[str, float]:
    """The plasticity metrics of every network of a learner, on one batch: "<network>/<quantity>".

        active_fraction    over units and steps, of all hidden layers; "/active_fraction/<layer>" of one layer's input
        live_fraction      share of the units that are active anywhere in `rows` steps of the batch
        dormant_fraction   at `tau`
        effective_rank     of the features that the last layer reads in these steps (the mean over critics)
        stable_rank        of the same
        feature_norm       of the same
        rows               256, or the steps of the batch where it has fewer: compare rank and live units at equal rows
        weight_norm        of all trained parameters
        grad_norm          of the last update's gradient, before clipping
        density, churn     with a topology: share of the weights that exist, and of the mask entries that changed
                           since the last call

    Args:
        learner: whose networks are measured.
        batch: on any device; the caller draws it with a separate generator, so that measuring changes no run.
        tau: threshold of the dormancy score.
    """
    metrics: dict[str, float] = {}
    batch = batch.to(learner.device)
    for name, network in learner.networks.items():
        layers = activities(learner, name, batch)
        last = ends(network)[1] & set(layers)
        values = {f"active_fraction/{layer}": active_fraction(x) for layer, x in layers.items()}
        if layers:
            values["active_fraction"] = _pooled(layers, active_fraction)
            values["live_fraction"] = _pooled(layers, lambda x: live_fraction(fixed_rows(x)))
            values["rows"] = min(ROWS, *(len(x) for x in layers.values()))
            values["dormant_fraction"] = _pooled(layers, lambda x: dormant_fraction(x, tau))
        if last:
            features = [fixed_rows(layers[layer]) for layer in sorted(last)]
            for quantity in (effective_rank, stable_rank, feature_norm):
                values[quantity.__name__] = sum(map(quantity, features)) / len(features)
        values["weight_norm"] = norm([part.detach() for part in network.parameters() if part.requires_grad])
        if name in learner.grad_norms:
            values["grad_norm"] = float(learner.grad_norms[name])
        metrics |= {f"{name}/{key}": value for key, value in values.items()}
    if learner.topology is not None:
        densities, churn = learner.topology.densities(), learner.topology.churn()
        for name in learner.networks:
            metrics |= {f"{name}/density": densities[name], f"{name}/churn": churn[name]}
    return metrics


def _pooled(layers: dict[str, Tensor], quantity: Callable[[Tensor], float]) -> float:
    """The mean of a quantity of every layer, weighted by its units."""
    return sum(quantity(x) * x.shape[1] for x in layers.values()) / sum(x.shape[1] for x in layers.values())
