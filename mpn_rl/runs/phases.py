"""What an agent scored in each phase of a task that changes, from the evaluations of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

REACHED = 0.9  # of the first phase's last score


class PhaseScore(NamedTuple):
    """The evaluations of one phase."""

    phase: int
    area: float  # mean return over the phase: the area under its curve, per step
    last: float  # return at the phase's end
    steps_to_reach: int | None  # from the phase's start to REACHED of the way to the first phase's last return


def phase_scores(rows: Iterable[Mapping[str, Any]]) -> list[PhaseScore]:
    """The scores of each phase, in their order.

    The area of a phase is that under the lines between its own evaluations, divided by the steps that they span. The
    steps to reach a return count from the last evaluation before the phase. As returns may be negative, the return to
    reach is r_0 + 0.9 (R - r_0), with r_0 the run's first return and R the last one of phase 0.

    Args: rows: of metrics.jsonl.
    """
    phases: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row.get("kind") == "eval" and row.get("phase") is not None:
            phases.setdefault(int(row["phase"]), []).append((int(row["step"]), float(row["return_mean"])))
    scores: list[PhaseScore] = []
    start = 0
    goal = np.nan
    for phase, points in sorted(phases.items()):
        steps, returns = np.array(points, float).T
        if not scores:
            goal = returns[0] + REACHED * (returns[-1] - returns[0])
        area = np.trapezoid(returns, steps) / (steps[-1] - steps[0]) if len(steps) > 1 else returns[0]
        hit = np.flatnonzero(returns >= goal)
        reached = int(steps[hit[0]]) - start if len(hit) else None
        scores.append(PhaseScore(phase, float(area), float(returns[-1]), reached))
        start = int(steps[-1])
    return scores
