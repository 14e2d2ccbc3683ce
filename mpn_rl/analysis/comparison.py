"""Several cores over several seeds: interquartile means, their intervals, and how probably one is better than another.

With five seeds no paired test can reach p < 0.05 (the smallest Wilcoxon p is 1/16), so intervals are given, not tests.

Source: Agarwal et al. 2021 (NeurIPS, "Deep reinforcement learning at the edge of the statistical precipice").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata, trim_mean

from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError
from mpn_rl.statistics import bootstrap, common_grid

Scores = Mapping[str, ArrayLike]  # {task: scores of the seeds}


class Row(NamedTuple):
    """One line of a comparison: a group's interquartile mean in one measure, with the scores behind it."""

    measure: str
    group: str
    iqm: Estimate
    scores: np.ndarray


class Better(NamedTuple):
    """How probably a run of `group` scores higher than one of `other`, ties counted half."""

    measure: str
    group: str
    other: str
    probability: Estimate


def _strata(scores: Scores | ArrayLike) -> list[np.ndarray]:
    """The known scores of every task; a bare array is one task."""
    named = scores if isinstance(scores, Mapping) else {"": scores}
    arrays = [np.atleast_1d(np.asarray(values, float)) for values in named.values()]
    arrays = [values[~np.isnan(values)] for values in arrays]
    if not arrays or min(map(len, arrays)) == 0:
        raise MissingDataError("no scores to compare")
    return arrays


def interquartile_mean(scores: Scores | ArrayLike) -> Estimate:
    """Interquartile mean of all runs (a quarter is cut off at each end, rounded down) with a stratified bootstrap's
    95 % interval.

    Args: scores: one task's, (n,), or {task: (n,)}; nan is left out. A task with a single seed has no interval: nan.
    """

    def middle(*tasks: np.ndarray, axis: int) -> np.ndarray:
        return trim_mean(np.concatenate(tasks, axis), 0.25, axis)

    strata = _strata(scores)
    low, high = bootstrap(*strata, statistic=middle)
    return Estimate(float(middle(*strata, axis=0)), float(low), float(high), sum(map(len, strata)))


def _share_above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 of samples (..., n) and (..., m), by ranks: the Mann-Whitney U over n m."""
    n, m = x.shape[-1], y.shape[-1]
    ranks = rankdata(np.concatenate([x, y], axis=-1), axis=-1)[..., :n]
    return (ranks.sum(axis=-1) - n * (n + 1) / 2) / (n * m)


def probability_of_improvement(scores: Scores | ArrayLike, others: Scores | ArrayLike) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run X of `scores` and Y of `others` on the same task, averaged over tasks.

    n counts the runs on both sides together. The interval is a stratified bootstrap's; nan if a task has one seed.
    """
    if isinstance(scores, Mapping) and isinstance(others, Mapping):
        tasks = [task for task in scores if task in others]
        scores, others = {task: scores[task] for task in tasks}, {task: others[task] for task in tasks}
    ours, theirs = _strata(scores), _strata(others)

    def improvement(*tasks: np.ndarray, axis: int) -> np.ndarray:
        pairs = zip(tasks[: len(ours)], tasks[len(ours) :], strict=True)
        return np.mean([_share_above(x, y) for x, y in pairs], axis=0)

    low, high = bootstrap(*ours, *theirs, statistic=improvement)
    n = sum(map(len, [*ours, *theirs]))
    return Estimate(float(improvement(*ours, *theirs, axis=-1)), float(low), float(high), n)


def compare(measures: Mapping[str, Mapping[str, Scores | ArrayLike]]) -> tuple[list[Row], list[Better]]:
    """All groups in all measures, and every pair of groups with a common task: lines for a table, a file, a picture.

    Args: measures: {measure: {group: scores}}. A group without scores in a measure has no line there.
    """
    rows, pairs = [], []
    for measure, groups in measures.items():
        known = {}
        for group, scores in groups.items():
            try:
                known[group] = np.concatenate(_strata(scores))
            except MissingDataError:
                continue
            rows.append(Row(measure, group, interquartile_mean(scores), known[group]))
        names = list(known)
        for i, group in enumerate(names):
            for other in names[i + 1 :]:
                try:
                    probability = probability_of_improvement(groups[group], groups[other])
                except MissingDataError:  # no task in common
                    continue
                pairs.append(Better(measure, group, other, probability))
    return rows, pairs


def learning_band(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[np.ndarray, Estimate]:
    """Interquartile mean over seeds at every step, with its bootstrap band: grid (k,), Estimate of arrays (k,).

    Args: curves: (steps, values) per seed, interpolated to their `common_grid`.
    Raises MissingDataError where the curves share no step.
    """
    if not curves or min(np.size(steps) for steps, _ in curves) == 0:
        raise MissingDataError("no evaluations were logged")
    grid, values = common_grid(curves)
    if not len(grid):
        raise MissingDataError("the runs' evaluations share no step")
    low, high = bootstrap(values, statistic=partial(trim_mean, proportiontocut=0.25))
    return grid, Estimate(trim_mean(values, 0.25, axis=0), low, high, len(values))
