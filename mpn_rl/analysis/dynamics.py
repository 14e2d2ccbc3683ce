"""State dynamics under a constant input: relaxation from visited states, and fixed points of any core."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mpn_rl.analysis import fixed_points
from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.analysis.probes import Subject
from mpn_rl.contracts import state_parts
from mpn_rl.networks.encoder import AgentNetwork
from mpn_rl.statistics import mean_interval

HELD_STEPS = 300  # for which the input is held constant
LARGEST_STATE = 20_000  # entries, for the search for fixed points


class Relaxation(NamedTuple):
    """The state under a constant input, from n states that the agent visits.

    time (k,) in `unit`. distance (arrays (k,)): from each trajectory's last point, relative to the distance at the
    start, mean over starts. ends: number of last points that differ by more than 1 % of the spread of the starts.
    speed: the largest |z_{t+1} - z_t| at the end over the largest at the start.
    """

    time: np.ndarray
    unit: str
    distance: Estimate[np.ndarray]
    ends: int
    speed: float


def held_inputs(subject: Subject) -> dict[str, np.ndarray]:
    """Zeros as "silence", and what the task shows in the delay, else in the first period, else at all steps.

    Returns: {name: observation (D,)}, as `fixed_points.shown_inputs`.
    """
    silence = np.zeros(subject.seen.shape[1])
    edges = [*subject.marks.values(), float(len(subject.seen))]
    spans = {
        name: (int(start), int(end)) for name, start, end in zip(subject.marks, edges[:-1], edges[1:], strict=True)
    }
    name = next((name for name in spans if "delay" in name), next(iter(spans), "mean input"))
    start, end = spans.get(name, (0, len(subject.seen)))
    steps = slice(start, max(end, start + 1))
    counts: Counter[bytes] = Counter()
    for counted in subject.shown[steps]:
        counts.update(counted or {})
    if None in subject.shown[steps]:
        counts.clear()
    shown = np.array([np.frombuffer(obs, np.float32) for obs in counts]).reshape(len(counts), len(silence))
    numbers = np.array(list(counts.values()), int)
    return {"silence": silence, **fixed_points.shown_inputs(name, shown, numbers, subject.seen[steps].mean(axis=0))}


def state_step(network: AgentNetwork, obs: np.ndarray) -> tuple[Callable, Callable, Callable]:
    """One step F of the state under a constant observation, in float64, as functions of flat states.

    Args: obs: (D,).

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


def relaxation(subject: Subject, obs: np.ndarray, steps: int = HELD_STEPS) -> Relaxation:
    """Relaxation under the constant observation `obs` (D,), from states that the agent visited.

    Raises: MissingDataError for a core without a state, or where the state does not change or diverges.
    """
    if not any(part.numel() for part in subject.states):
        raise MissingDataError(f"the core {subject.config.core.name} has no state")
    step, _, flat = state_step(subject.network, obs)
    z = flat(subject.states)
    spread = float(np.linalg.norm(z - z.mean(axis=0), axis=1).max())
    path = [z.astype(np.float32)]
    for _ in range(steps):
        z = step(z)
        path.append(z.astype(np.float32))
    speeds = [float(np.linalg.norm(b - a, axis=1).max()) for a, b in ((path[0], path[1]), (path[-2], path[-1]))]
    if not np.isfinite(path[-1]).all():
        raise MissingDataError("the state diverges under this input")
    distance = np.array([np.linalg.norm(point - path[-1], axis=1) for point in path])  # (steps + 1, starts)
    moved = distance[0] > 1e-9
    if not moved.any():
        raise MissingDataError("the state does not change under this input")
    relative = distance[:, moved] / distance[0, moved]
    counts = np.full(len(relative), relative.shape[1])
    mean = Estimate(relative.mean(axis=1), *mean_interval(relative.T), counts)
    ends: list[np.ndarray] = []
    for point in path[-1]:
        if all(np.linalg.norm(point - other) > 0.01 * spread for other in ends):
            ends.append(point)
    clock, unit = (subject.dt_ms, "ms") if subject.dt_ms else (1.0, "steps")
    return Relaxation(clock * np.arange(steps + 1), unit, mean, len(ends), speeds[1] / max(speeds[0], 1e-30))


def slow_points(subject: Subject, obs: np.ndarray) -> fixed_points.Minima:
    """Fixed and slow points of any core under the constant observation `obs` (D,), from states that the agent visited.

    Points far from the visited states and from the states that follow them are left out and counted (`Minima.near`).

    Raises: MissingDataError for a core without a state or with more than LARGEST_STATE entries in it, or where the
        state diverges.
    """
    size = sum(part[0].numel() for part in subject.states)
    if not size:
        raise MissingDataError(f"the core {subject.config.core.name} has no state")
    if size > LARGEST_STATE:
        raise MissingDataError(f"the state has {size:,} entries; the search takes up to {LARGEST_STATE:,}")
    step, vjp, flat = state_step(subject.network, obs)
    visited = flat(subject.states)
    rested, passed = visited, [visited]
    for at in range(HELD_STEPS):
        rested = step(rested)
        if at % 10 == 0:
            passed.append(rested)
    if not np.isfinite(rested).all():
        raise MissingDataError("the state diverges under this input")
    # Starts at the end of the relaxation find stable points; starts that the agent visited find others.
    half = 8 if size <= fixed_points.DENSE else 2
    chosen = [z[np.unique(np.linspace(0, len(z) - 1, half).astype(int))] for z in (rested, visited)]
    points = fixed_points.minimise_speed(step, np.concatenate(chosen), vjp, iterations=500)
    return points.near(np.concatenate([*passed, rested]))
