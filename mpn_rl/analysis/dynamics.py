"""Where the state goes while an input is held: relaxation from visited states, and fixed points of any core."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpn_rl.analysis import fixed_points
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.probes import Subject
from mpn_rl.contracts import state_parts
from mpn_rl.statistics import bootstrap

SILENT = 300  # steps
LARGEST_STATE = 20_000  # entries, for the search for fixed points


class Relaxation(NamedTuple):
    """Where the state goes while an input is held, from n states that the agent visits.

    time (k,) in `unit`; distance: to the state's own last point, relative to where it began, mean over starts (arrays
    (k,)); ends: how many last points differ by more than a hundredth of their spread at the start; speed: the largest
    |z_t+1 - z_t| at the end over the largest at the start.
    """

    time: np.ndarray
    unit: str
    distance: Estimate
    ends: int
    speed: float


def held_inputs(subject: Subject) -> dict[str, np.ndarray]:
    """{"silence": zeros, and the mean observation of the delay, else of the first period, else of all steps}."""
    inputs = {"silence": np.zeros(subject.seen.shape[1])}
    edges = [*subject.marks.values(), float(len(subject.seen))]
    spans = {
        name: (int(start), int(end)) for name, start, end in zip(subject.marks, edges[:-1], edges[1:], strict=True)
    }
    name = next((name for name in spans if "delay" in name), next(iter(spans), "mean input"))
    start, end = spans.get(name, (0, len(subject.seen)))
    inputs[name] = subject.seen[start : max(end, start + 1)].mean(axis=0)
    return inputs


def state_step(network: Any, obs: np.ndarray) -> tuple[Callable, Callable, Callable]:
    """One step of the state under a held observation, in float64, as functions of flat states.

    Returns: step (B, S) -> (B, S); vjp (z, v) -> v^T dF/dz, both (S,); flat: parts of a state -> (B, S).
    """
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        x = twin.encoder(torch.as_tensor(obs, dtype=torch.float64, device=next(twin.parameters()).device)[None])
    example = twin.init_state(1)
    shapes = [part.shape[1:] for part in state_parts(example)]
    sizes = [shape.numel() for shape in shapes]

    def flat(parts: Sequence[Tensor]) -> np.ndarray:
        return torch.cat([part.detach().double().flatten(1) for part in parts], 1).cpu().numpy()

    def advance(z: Tensor) -> Tensor:
        parts = [piece.reshape(len(z), *shape) for piece, shape in zip(z.split(sizes, 1), shapes, strict=True)]
        state = tuple(parts) if isinstance(example, tuple) else parts[0]
        _, after = twin.core(x.expand(len(z), -1), state)
        return torch.cat([part.flatten(1) for part in state_parts(after)], 1)

    def step(z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return advance(torch.from_numpy(np.ascontiguousarray(z)).to(x.device)).cpu().numpy()

    def vjp(z: np.ndarray, v: np.ndarray) -> np.ndarray:
        start = torch.from_numpy(z[None].copy()).to(x.device).requires_grad_(True)
        (pulled,) = torch.autograd.grad(advance(start), start, torch.from_numpy(v[None].copy()).to(x.device))
        return pulled[0].cpu().numpy()

    return step, vjp, flat


def relaxation(subject: Subject, obs: np.ndarray, steps: int = SILENT) -> Relaxation:
    """The state's way under a held observation, from states that the agent passed through."""
    if not any(part.numel() for part in subject.states):
        raise MissingDataError(f"the core {subject.config.core.name} has no state")
    step, _, flat = state_step(subject.network, obs)
    z = flat(subject.states)
    spread = float(np.linalg.norm(z - z.mean(axis=0), axis=1).max())
    way = [z.astype(np.float32)]
    for _ in range(steps):
        z = step(z)
        way.append(z.astype(np.float32))
    speeds = [float(np.linalg.norm(b - a, axis=1).max()) for a, b in ((way[0], way[1]), (way[-2], way[-1]))]
    if not np.isfinite(way[-1]).all():
        raise MissingDataError("the state grows beyond all bounds under this input")
    distance = np.array([np.linalg.norm(point - way[-1], axis=1) for point in way])  # (steps + 1, starts)
    moved = distance[0] > 1e-9
    if not moved.any():
        raise MissingDataError("the state does not change under this input")
    relative = distance[:, moved] / distance[0, moved]
    counts = np.full(len(relative), relative.shape[1])
    mean = Estimate(relative.mean(axis=1), *bootstrap(relative.T), counts)
    ends = _distinct(way[-1], 0.01 * spread)
    clock, unit = (subject.dt_ms, "ms") if subject.dt_ms else (1.0, "steps")
    return Relaxation(clock * np.arange(steps + 1), unit, mean, ends, speeds[1] / max(speeds[0], 1e-30))


def _distinct(points: np.ndarray, apart: float) -> int:
    """How many points are more than `apart` from all those before them that count."""
    kept: list[np.ndarray] = []
    for point in points:
        if all(np.linalg.norm(point - other) > apart for other in kept):
            kept.append(point)
    return len(kept)


def slow_points(subject: Subject, obs: np.ndarray) -> fixed_points.Minima:
    """Fixed and slow points of any core under a held observation, from states that the agent passed through.

    Raises: MissingDataError for a core without a state, or with more than LARGEST_STATE entries in it.
    """
    size = sum(part[0].numel() for part in subject.states)
    if not size:
        raise MissingDataError(f"the core {subject.config.core.name} has no state")
    if size > LARGEST_STATE:
        raise MissingDataError(f"the state has {size:,} entries; the search is made for up to {LARGEST_STATE:,}")
    step, vjp, flat = state_step(subject.network, obs)
    visited = flat(subject.states)
    rested = visited
    for _ in range(SILENT):
        rested = step(rested)
    if not np.isfinite(rested).all():
        raise MissingDataError("the state grows beyond all bounds under this input")
    # From where the state comes to rest, which finds what is stable, and from where the agent has been.
    half = 8 if size <= fixed_points.DENSE else 2
    chosen = [z[np.unique(np.linspace(0, len(z) - 1, half).astype(int))] for z in (rested, visited)]
    return fixed_points.minimise_speed(step, np.concatenate(chosen), vjp, iterations=500)


def slow_points_told(subject: Subject, obs: np.ndarray) -> dict[str, Any]:
    """`slow_points` as numbers for JSON, without the states, which are long."""
    points = slow_points(subject, obs)
    return {
        "speed": points.speed,
        "fixed": points.fixed,
        "stable": points.stable,
        "found": points.found,
        "eigenvalue_size": np.abs(points.eigenvalues)[:, :20],
    }
