"""Several cores over several seeds: interquartile means, their intervals, and how probably one is better than another.

With five seeds no paired test can reach p < 0.05 (the smallest Wilcoxon p is 1/16), so intervals are given, not tests.

Source: Agarwal et al. 2021 (NeurIPS, "Deep reinforcement learning at the edge of the statistical precipice").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata, trim_mean

from mpn_rl.analysis.confidence_intervals import Estimate, MissingDataError

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


def _resampled(strata: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Seeds drawn anew with replacement within every task, (resamples, n) each."""
    return [values[rng.integers(0, len(values), (resamples, len(values)))] for values in strata]


def interquartile_mean(scores: Scores | ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Mean of the middle half of all runs (a quarter cut off at each end, rounded down), with a stratified bootstrap's
    95 % interval.

    Args: scores: one task's, (n,), or {task: (n,)}; nan is left out. One seed per task has no interval: nan.
    """
    strata = _strata(scores)
    everything = np.concatenate(strata)
    value = float(trim_mean(everything, 0.25))
    if min(map(len, strata)) < 2:
        return Estimate(value, np.nan, np.nan, len(everything))
    drawn = np.concatenate(_resampled(strata, resamples, np.random.default_rng(seed)), axis=1)
    low, high = np.quantile(trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(everything))


def _share_above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P(X > Y) + P(X = Y) / 2 of samples (..., n) and (..., m), by ranks: the Mann-Whitney U over n m."""
    n, m = x.shape[-1], y.shape[-1]
    ranks = rankdata(np.concatenate([x, y], axis=-1), axis=-1)[..., :n]
    return (ranks.sum(axis=-1) - n * (n + 1) / 2) / (n * m)


def probability_of_improvement(
    scores: Scores | ArrayLike, others: Scores | ArrayLike, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run X of `scores` and Y of `others` on the same task, averaged over tasks.

    n counts the runs on both sides together. The interval is a stratified bootstrap's; nan with one seed per task.
    """
    if isinstance(scores, Mapping) and isinstance(others, Mapping):
        tasks = [task for task in scores if task in others]
        scores, others = {task: scores[task] for task in tasks}, {task: others[task] for task in tasks}
    ours, theirs = _strata(scores), _strata(others)
    value = float(np.mean([_share_above(x, y) for x, y in zip(ours, theirs, strict=True)]))
    n = sum(map(len, ours)) + sum(map(len, theirs))
    if min(map(len, [*ours, *theirs])) < 2:
        return Estimate(value, np.nan, np.nan, n)
    rng = np.random.default_rng(seed)
    pairs = zip(_resampled(ours, resamples, rng), _resampled(theirs, resamples, rng), strict=True)
    low, high = np.quantile(np.mean([_share_above(x, y) for x, y in pairs], axis=0), [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


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


def learning_band(curves: Sequence[tuple[ArrayLike, ArrayLike]], resamples: int = 1000) -> tuple[np.ndarray, Estimate]:
    """Interquartile mean over seeds at every step, with its bootstrap band: grid (k,), Estimate of arrays (k,).

    Args: curves: (steps, values) per seed. Seeds evaluated at other steps are interpolated; the grid holds all steps
        from where the last curve begins to where the first one ends.
    Raises MissingDataError where the curves share no step.
    """
    steps = [np.asarray(step, float) for step, _ in curves]
    if not steps or min(map(len, steps)) == 0:
        raise MissingDataError("no evaluations were logged")
    grid = np.unique(np.concatenate(steps))
    grid = grid[(grid >= max(step[0] for step in steps)) & (grid <= min(step[-1] for step in steps))]
    if not len(grid):
        raise MissingDataError("the runs' evaluations share no step")
    values = np.array(
        [np.interp(grid, step, np.asarray(own, float)) for step, (_, own) in zip(steps, curves, strict=True)]
    )
    middle = trim_mean(values, 0.25, axis=0)
    if len(values) < 2:
        return grid, Estimate(middle, np.full(len(grid), np.nan), np.full(len(grid), np.nan), 1)
    draws = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(trim_mean(values[draws], 0.25, axis=1), [0.025, 0.975], axis=0)
    return grid, Estimate(middle, low, high, len(values))
